"""The twenty cases of the judge: counts, and sensitivities at 1/8, 1/4, 1/2 and 1 false positive a scan."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from training.froc import (
    Annotation,
    ScoredMark,
    froc,
    judge,
    judge_scan,
)
from training.judge_tables import read_submission, write_submission

B = (0.0, 0.0, 0.0, 10.0)
FAR = [(100 + i, 0, 0, 0.5 + i * 1e-4) for i in range(100)]
CASES = {
    "J01": ({"s": ([B], [], [(4.999, 0, 0, 0.9)])}, (1, 0, 0, 0, 0), (1, 1, 1, 1)),
    "J02": ({"s": ([B], [], [(5.0, 0, 0, 0.9)])}, (0, 1, 1, 0, 0), (0, 0, 0, 0)),
    "J03": ({"s": ([B], [], [(3, 4, 0, 0.9)])}, (0, 1, 1, 0, 0), (0, 0, 0, 0)),
    "J04": ({"s": ([(0, 0, 0, -1)], [], [(4.9, 0, 0, 0.9)])}, (1, 0, 0, 0, 0), (1, 1, 1, 1)),
    "J05": ({"s": ([], [(0, 0, 0, -1)], [(4.9, 0, 0, 0.9), (5.1, 0, 0, 0.8)])}, (0, 0, 1, 1, 0), None),
    "J06": ({"s": ([B], [], [(0, 0, 0, 0.5), (1, 0, 0, 0.9), (2, 0, 0, 0.1)])}, (1, 0, 0, 0, 2), (1, 1, 1, 1)),
    "J07": ({"s": ([B, (6, 0, 0, 10.0)], [], [(3, 0, 0, 0.7)])}, (2, 0, 0, 0, 0), (1, 1, 1, 1)),
    "J08": ({"s": ([B], [(1, 0, 0, 10.0)], [(0.5, 0, 0, 0.7)])}, (1, 0, 0, 0, 0), (1, 1, 1, 1)),
    "J09": ({"s": ([B], [], [(50, 0, 0, 0.7), (50, 0, 0, 0.7)])}, (0, 1, 2, 0, 0), (0, 0, 0, 0)),
    "J10": (
        {"s": ([B], [], []), "t": ([B], [], [(0, 0, 0, 0.9), (40, 0, 0, 0.4)])},
        (1, 1, 1, 0, 0),
        (0.5, 0.5, 0.5, 0.5),
    ),
    "J11": (
        {
            "s": ([], [(0, 0, 0, -1), (1, 0, 0, -1)], [(0.5, 0, 0, 0.6)]),
            "t": ([B], [], [(0, 0, 0, 0.9), (40, 0, 0, 0.4)]),
        },
        (1, 0, 1, 1, 0),
        (1, 1, 1, 1),
    ),
    "J12": ({"s": ([B], [], [*FAR, (0, 0, 0, 0.1)])}, (0, 1, 100, 0, 0), (0, 0, 0, 0)),
    "J13": (
        {"s": ([B], [], [(0, 0, 0, 0.5), *[(100 + i, 0, 0, 0.9) for i in range(99)], (300, 0, 0, 0.5)])},
        (0, 1, 99, 0, 0),
        (0, 0, 0, 0),
    ),
    "J14": (
        {"s": ([B], [], [(0, 0, 0, 1.0), *[(100 + i, 0, 0, 1.0) for i in range(100)]])},
        (0, 1, 0, 0, 0),
        (0, 0, 0, 0),
    ),
    "J15": (
        {"s": ([], [(0, 0, 0, 0.0)], [(0, 0, 0, 0.9)]), "t": ([B], [], [(0, 0, 0, 0.9)])},
        (1, 0, 1, 0, 0),
        (0.25, 0.5, 1, 1),
    ),
    "J16": (
        {
            "s": ([(0, 0, 0, 6.0)], [(0.2, 0, 0, -1)], [(4, 0, 0, 0.9), (40, 0, 0, 0.3)]),
            "t": ([(0, 0, 0, 8.0)], [], [(0, 0, 0, 0.8)]),
        },
        (1, 1, 1, 1, 0),
        (0.5, 0.5, 0.5, 0.5),
    ),
    "J17": ({"s": ([B], [], [(0, 0, 0, 0.9), (50, 0, 0, 0.2)])}, (1, 0, 1, 0, 0), (1, 1, 1, 1)),
    "J18": (
        {"s": ([B], [], [(0, 0, 0, 0.9), (50, 0, 0, 0.2)]), "q": ([B], [], [])},
        (1, 1, 1, 0, 0),
        (0.5, 0.5, 0.5, 0.5),
    ),
    "J19": (
        {
            "a": ([B, (50, 0, 0, 10.0)], [], [(0, 0, 0, 0.9), (50, 0, 0, 0.6), (90, 0, 0, 0.8)]),
            "b": ([(0, 0, 0, 6.0)], [(20, 0, 0, -1)], [(0, 0, 0, 0.7), (20, 0, 0, 0.95), (60, 0, 0, 0.5)]),
            "c": ([], [], [(9, 9, 9, 0.65)]),
            "d": ([(0, 0, 0, 8.0)], [], []),
        },
        (3, 1, 3, 1, 0),
        (0.25, 0.5, 0.75, 0.75),
    ),
    "J20": (
        {"s": ([B], [], [(0, 0, 0, 0.9), (90, 0, 0, 0.9)]), "t": ([B], [], [(0, 0, 0, 0.8)])},
        (2, 0, 1, 0, 0),
        (0.125, 0.25, 1, 1),
    ),
}
ANNOTATION = [lambda row: Annotation(row[:3], row[3]), lambda row: ScoredMark(row[:3], row[3])]


def judged(scans, listed=None, extra=None):
    annotation, mark = ANNOTATION
    included = {u: [annotation(r) for r in rows] for u, (rows, _, _) in scans.items()}
    excluded = {u: [annotation(r) for r in rows] for u, (_, rows, _) in scans.items()}
    marks = {u: [mark(r) for r in rows] for u, (_, _, rows) in scans.items()}
    return judge(listed or list(scans), included, excluded, marks | (extra or {}))


@pytest.mark.parametrize("name", CASES)
def test_each_case_gives_the_counts_and_sensitivities_of_the_official_judge(name):
    scans, counts, sensitivities = CASES[name]
    extra = {"zz": [ScoredMark((0, 0, 0), 0.99)]} if name == "J17" else None
    results = judged(scans, extra=extra).values()
    found = sum(p is not None for r in results for p in r.nodules)
    missed = sum(p is None for r in results for p in r.nodules)
    false = sum(len(r.false_marks) for r in results)
    assert (found, missed, false, sum(r.ignored for r in results), sum(r.doubles for r in results)) == counts
    if sensitivities is not None:
        np.testing.assert_allclose(froc(results).at()[:4], sensitivities)


def test_the_score_of_a_nodule_is_the_highest_of_its_marks():
    scans, _, _ = CASES["J06"]
    assert judged(scans)["s"].nodules == (0.9,)


def test_the_cpm_is_the_mean_at_the_seven_rates():
    scans, _, _ = CASES["J19"]
    assert math.isclose(froc(judged(scans).values()).cpm, 0.642857, abs_tol=1e-6)


def test_no_scan_at_all_gives_a_curve_of_zero():
    assert froc([]).cpm == 0.0


def test_a_scan_without_false_marks_keeps_its_last_sensitivity():
    curve = froc([judge_scan([Annotation((0, 0, 0), 10)], [], [ScoredMark((0, 0, 0), 0.4)])])
    assert curve.at().tolist() == [1.0] * 7


def test_a_submission_reads_back_with_the_same_probabilities(tmp_path: Path):
    marks = {"1.2": [ScoredMark((1.0, -2.5, 3.25), 0.1 + 0.2), ScoredMark((0.0, 0.0, 0.0), 1e-9)]}
    write_submission(tmp_path / "marks.csv", marks)
    assert read_submission(tmp_path / "marks.csv") == marks
