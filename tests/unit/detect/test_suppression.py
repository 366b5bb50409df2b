"""3D non-maximum suppression, caps and ties (T10)."""

import numpy as np
import pytest

from pipeline.detect.detector import raw_score, select
from pipeline.detect.nms import local_maxima, rank, suppress
from pipeline.detect.reduce import Mark
from pipeline.detect.weights import Calibration
from pipeline.domain.geometry import Grid

GRID = Grid((500, 500, 500), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
AS_IS = Calibration(1.0, 0.0, 0.0)


def test_local_maxima_come_by_score_then_place_and_a_plateau_in_full():
    scores = np.zeros((9, 9, 9), np.float32)
    scores[7, 7, 7] = 0.9
    scores[1, 1, 1] = scores[1, 1, 7] = 0.8
    scores[4, 1, 1] = scores[4, 1, 2] = 0.7
    scores[7, 7, 6] = 0.85
    assert local_maxima(scores, (3, 3, 3), 0.5).tolist() == [[7, 7, 7], [1, 1, 1], [1, 1, 7], [4, 1, 1], [4, 1, 2]]


def test_maxima_below_the_floor_and_places_not_searched_are_no_candidates():
    scores = np.full((5, 5, 5), -1.0, np.float32)
    scores[2, 2, 2] = 0.4
    assert len(local_maxima(scores, (3, 3, 3), 0.5)) == 0
    assert local_maxima(scores, (3, 3, 3), 0.3).tolist() == [[2, 2, 2]]


def test_ties_are_ordered_by_z_then_y_then_x():
    places = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert rank([0.5, 0.5, 0.5, 0.4], places).tolist() == [2, 1, 0, 3]


def test_the_nearer_mark_goes_and_true_neighbours_stay():
    places = [[0, 0, 0], [0, 0, 4.9], [0, 0, 5.92], [0, 5.0, 0]]
    assert suppress(places, 5.0, 10).tolist() == [0, 2, 3]


def test_a_mark_dropped_drops_nobody():
    assert suppress([[0, 0, 0], [0, 0, 4], [0, 0, 8]], 5.0, 10).tolist() == [0, 2]


def test_the_cap_keeps_the_first():
    assert suppress([[0, 0, 10 * k] for k in range(9)], 5.0, 3).tolist() == [0, 1, 2]
    assert suppress([], 5.0, 3).tolist() == []


def test_three_hundred_equal_marks_leave_one_hundred_with_distinct_probabilities():
    marks = [Mark((0.0, 0.0, 3.0 * k), 6.0, 1.0, 0.0) for k in range(300)]
    findings = select(marks, GRID, AS_IS)
    assert len(findings) == 100
    probabilities = [f.probability for f in findings]
    assert len(set(probabilities)) == 100
    assert probabilities == sorted(probabilities, reverse=True)
    assert [f.position_lps_mm[0] for f in findings] == [6.0 * k for k in range(100)]


def test_order_of_marks_does_not_matter():
    rng = np.random.default_rng(0)
    marks = [
        Mark(tuple(p), 8.0, float(s), 0.0) for p, s in zip(rng.uniform(0, 60, (80, 3)), rng.random(80), strict=True)
    ]
    assert select(marks, GRID, AS_IS) == select(marks[::-1], GRID, AS_IS)


def test_a_large_finding_swallows_marks_within_its_radius():
    marks = [Mark((0.0, 0.0, 0.0), 30.0, 0.9, 0.0), Mark((0.0, 0.0, 14.0), 5.0, 0.8, 0.0)]
    assert len(select(marks, GRID, AS_IS)) == 1
    assert len(select([marks[0], Mark((0.0, 0.0, 16.0), 5.0, 0.8, 0.0)], GRID, AS_IS)) == 2


def test_no_marks_are_no_findings():
    assert select([], GRID, AS_IS) == ()


@pytest.mark.parametrize(("score", "logit", "expected"), [(0.5, 0.0, 0.5), (0.9, 0.0, 0.9), (0.5, 2.0, 0.7310586)])
def test_probability_joins_both_stages(score, logit, expected):
    assert raw_score(Mark((0, 0, 0), 5.0, score, logit), Calibration(1.0, 0.5, 0.0)) == pytest.approx(expected)


def test_extreme_scores_stay_probabilities():
    assert 0.0 < raw_score(Mark((0, 0, 0), 5.0, 0.0, -1e9), Calibration(1.0, 1.0, 0.0)) < 1e-9
    assert raw_score(Mark((0, 0, 0), 5.0, 1.0, 1e9), Calibration(1.0, 1.0, 0.0)) < 1.0
