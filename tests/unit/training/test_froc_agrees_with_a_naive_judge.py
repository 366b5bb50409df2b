"""The judge against a second one, written from the rules of the challenge with lists and loops alone.

Coordinates lie on a coarse lattice and probabilities have one digit, so that marks on the radius, overlapping
findings, equal probabilities and ties at the cap are frequent.
"""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from training.froc import RATES, Annotation, ScoredMark, counts, froc, judge

Row = tuple[float, float, float, float]


def naive_cap(marks: list[Row]) -> list[Row]:
    if len(marks) <= 100:
        return marks
    by_probability = sorted([m[3] for m in marks])
    by_probability.reverse()
    keep = []
    for mark in marks:
        if mark[3] > by_probability[100] and len(keep) < 100:
            keep.append(mark)
    return keep


def naive_inside(finding: Row, mark: Row) -> bool:
    diameter = finding[3]
    if diameter < 0.0:
        diameter = 10.0
    squared = pow(finding[0] - mark[0], 2.0) + pow(finding[1] - mark[1], 2.0) + pow(finding[2] - mark[2], 2.0)
    return squared < pow(diameter / 2.0, 2.0)


def naive_judge(
    listed: list[str], nodules: dict[str, list[Row]], others: dict[str, list[Row]], marks: dict[str, list[Row]]
) -> tuple[dict[str, int], list[tuple[bool, float | None]]]:
    """Give counts and rows (is it a nodule, its score or None)."""
    count = {"hits": 0, "misses": 0, "false_positives": 0, "ignored": 0, "double": 0}
    rows: list[tuple[bool, float | None]] = []
    for uid in listed:
        candidates = dict(enumerate(naive_cap(marks.get(uid, []))))
        still_there = dict(candidates)
        for nodule in nodules.get(uid, []):
            scores = []
            for number, mark in candidates.items():
                if naive_inside(nodule, mark):
                    scores.append(mark[3])
                    still_there.pop(number, None)
            if scores:
                count["hits"] += 1
                count["double"] += len(scores) - 1
                rows.append((True, max(scores)))
            else:
                count["misses"] += 1
                rows.append((True, None))
        for other in others.get(uid, []):
            for number in [n for n, mark in still_there.items() if naive_inside(other, mark)]:
                count["ignored"] += 1
                del still_there[number]
        for mark in still_there.values():
            count["false_positives"] += 1
            rows.append((False, mark[3]))
    return count, rows


def naive_sensitivity(rows: list[tuple[bool, float | None]], scans: int, rate: float) -> float:
    """Walk the curve from (0, 0), one point for each distinct probability, and read it at a rate."""
    total = sum(1 for is_nodule, _ in rows if is_nodule)
    if total == 0:
        return 0.0
    points = [(0.0, 0.0)]
    for threshold in sorted({score for _, score in rows if score is not None}, reverse=True):
        true = sum(1 for is_nodule, score in rows if is_nodule and score is not None and score >= threshold)
        false = sum(1 for is_nodule, score in rows if not is_nodule and score is not None and score >= threshold)
        points.append((false / scans, true / total))
    best = points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 <= rate:  # the whole step lies before the rate; at a vertical step the upper end counts
            best = y1
        elif x0 <= rate:
            best = y0 + (y1 - y0) * (rate - x0) / (x1 - x0)
    return best


def random_case(
    draw: random.Random,
) -> tuple[list[str], dict[str, list[Row]], dict[str, list[Row]], dict[str, list[Row]]]:
    listed = [f"1.2.{k}" for k in range(draw.randint(1, 9))]

    def place() -> tuple[float, float, float]:
        return (float(draw.randint(-6, 6)), float(draw.randint(-4, 4)), float(draw.choice([0, 0, 3])))

    nodules: dict[str, list[Row]] = {}
    others: dict[str, list[Row]] = {}
    marks: dict[str, list[Row]] = {}
    for uid in [*listed, "1.2.not.listed"]:
        nodules[uid] = [
            (*place(), draw.choice([-1.0, 4.0, 6.0, 10.0])) for _ in range(draw.choice([0, 0, 1, 1, 3]))
        ]
        others[uid] = [(*place(), draw.choice([-1.0, 0.0, 6.0])) for _ in range(draw.choice([0, 1, 4]))]
        many = draw.choice([0, 1, 2, 6, 12, 100, 101, 107])
        marks[uid] = [(*place(), draw.randint(0, 10) / 10) for _ in range(many)]
        far = draw.choice([0, 3])
        marks[uid] += [(90.0 + 9 * k, 0.0, 0.0, draw.randint(0, 10) / 10) for k in range(far)]
    return listed, nodules, others, marks


@pytest.mark.parametrize("seed", range(150))
def test_counts_and_sensitivities_agree_on_a_random_case(seed: int):
    listed, nodules, others, marks = random_case(random.Random(seed))
    expected, rows = naive_judge(listed, nodules, others, marks)

    results = list(
        judge(
            listed,
            {uid: [Annotation(r[:3], r[3]) for r in found] for uid, found in nodules.items()},
            {uid: [Annotation(r[:3], r[3]) for r in found] for uid, found in others.items()},
            {uid: [ScoredMark(m[:3], m[3]) for m in found] for uid, found in marks.items()},
        ).values()
    )

    found = counts(results)
    assert {name: getattr(found, name) for name in expected} == expected
    rates = [*RATES, 0.3, 1.7, 20.0]
    assert froc(results).at(rates).tolist() == pytest.approx(
        [naive_sensitivity(rows, len(listed), rate) for rate in rates], abs=1e-12
    )


def test_the_random_cases_hold_what_they_are_for():
    cases = [random_case(random.Random(seed)) for seed in range(150)]
    judged = [naive_judge(*case)[0] for case in cases]
    for name in judged[0]:
        assert sum(count[name] for count in judged) > 50, f"hardly any case has {name}"
    capped = [m for _, _, _, marks in cases for m in marks.values() if len(m) > 100]
    assert sum(len(naive_cap(m)) < 100 for m in capped) > 50
    on_the_radius = 0
    for _, nodules, _, marks in cases:
        for uid, rows in nodules.items():
            on_the_radius += sum(
                np.linalg.norm(np.subtract(n[:3], m[:3])) == n[3] / 2 for n in rows for m in marks[uid]
            )
    assert on_the_radius > 50
