from __future__ import annotations

import pytest

from training.froc import Annotation, ScoredMark
from training.judgement import as_json, judge_submission

NODULE = Annotation((0.0, 0.0, 0.0), 10.0)
ON_IT = ScoredMark((0.0, 0.0, 0.0), 0.9)
FAR = ScoredMark((90.0, 0.0, 0.0), 0.4)
SURE = ScoredMark((90.0, 0.0, 0.0), 1.0)


@pytest.mark.parametrize(
    ("series", "nodules", "marks", "sentence"),
    [
        (
            ["s"],
            {"s": [NODULE]},
            {"s": [ON_IT], "zz": [FAR]},
            "1 marks on 1 series that are not listed were dropped",
        ),
        (["s", "t"], {"s": [NODULE]}, {"s": [ON_IT]}, "1 of 2 listed series have no mark; each counts as a scan"),
        (["s"], {"s": [NODULE]}, {"s": [ON_IT] + [SURE] * 101}, "102 marks were dropped, 100 of them only because"),
        (["s"], {"s": [NODULE], "t": [NODULE]}, {"s": [ON_IT]}, "1 nodules lie in series that are not listed"),
        (["s"], {}, {"s": [ON_IT]}, "The listed series have no nodule: there is no sensitivity to tell"),
        (["s"], {"s": [NODULE]}, {"s": [FAR]}, "No nodule was hit: sensitivity is 0"),
        (
            ["s", "t"],
            {"s": [NODULE]},
            {"s": [ON_IT], "t": [FAR]},
            "draws held no nodule; their sensitivity",
        ),
    ],
)
def test_a_remark_is_made_where_numbers_could_mislead(series, nodules, marks, sentence):
    remarks = judge_submission(series, nodules, {}, marks, resamples=50).remarks
    assert [sentence in remark for remark in remarks].count(True) == 1


def test_nothing_is_remarked_on_a_hundred_marks_with_distinct_probabilities():
    marks = [ScoredMark((9.0 * k, 0.0, 0.0), 0.5 + k / 1000) for k in range(100)]
    assert judge_submission(["s"], {"s": [NODULE]}, {}, {"s": marks}, resamples=10).remarks == ()


def test_the_curve_of_the_file_runs_from_one_eighth_to_8_with_its_band():
    curve = as_json(judge_submission(["s"], {"s": [NODULE]}, {}, {"s": [ON_IT]}, resamples=10))["curve"]
    assert (curve["false_per_scan"][0], curve["false_per_scan"][-1]) == (0.125, 8.0)
    assert set(curve) == {"false_per_scan", "sensitivity", "mean", "low", "high"}
    assert {len(values) for values in curve.values()} == {121}
