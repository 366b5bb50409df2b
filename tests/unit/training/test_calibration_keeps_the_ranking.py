from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.detect.detector import calibrated
from pipeline.detect.weights import Calibration, load_weights
from training.calibration import (
    CalibrationError,
    Labelled,
    fit_isotonic,
    fit_platt,
    label_marks,
    logit,
    reliability,
)
from training.froc import Annotation, ScoredMark, froc, judge_scan
from training.held_out import NO_CHANGE, HeldOutScan, choose_points, fit, half_and_half, measure

FAR = 1000.0


def overconfident(count: int, seed: int) -> Labelled:
    """Marks whose score s is a nodule with probability sigmoid(0.4 logit(s) - 0.5)."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.01, 0.99, count)
    truth = 1 / (1 + np.exp(-(0.4 * logit(scores) - 0.5)))
    return Labelled(scores, rng.random(count) < truth)


def scans(count: int = 60, seed: int = 5) -> list[HeldOutScan]:
    """Scans with three nodules; a mark hits one, or nothing, as its score says."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        nodules = tuple(Annotation((50.0 * k, 0.0, 0.0), 8.0) for k in range(3))
        marks = []
        for k in range(3):
            score = float(rng.beta(4, 2))
            if rng.random() < 0.9:
                marks.append(ScoredMark((50.0 * k, 0.5, 0.0), score))
        marks += [ScoredMark((FAR + 30 * k, 0.0, 0.0), float(rng.beta(1.5, 4))) for k in range(6)]
        made.append(HeldOutScan(nodules, (), tuple(marks)))
    return made


def test_expected_calibration_error_and_brier_equal_hand_values():
    found = reliability(np.array([0.2, 0.2, 0.8, 0.8]), np.array([False, True, True, True]), bins=2)
    assert found.expected_error == pytest.approx(0.5 * abs(0.2 - 0.5) + 0.5 * abs(0.8 - 1.0))
    assert found.brier == pytest.approx((0.04 + 0.64 + 0.04 + 0.04) / 4)
    assert [(r.marks, r.hit_rate) for r in found.rows] == [(2, 0.5), (2, 1.0)]


def test_bins_hold_equally_many_marks():
    found = reliability(np.linspace(0, 1, 151), np.zeros(151, bool))
    assert len(found.rows) == 15
    assert {r.marks for r in found.rows} == {10, 11}


def test_platt_finds_slope_and_shift():
    fitted = fit_platt(overconfident(6000, 1))
    assert fitted.slope == pytest.approx(0.4, abs=0.05)
    assert fitted.shift == pytest.approx(-0.5, abs=0.08)


@pytest.mark.parametrize("method", [fit_platt, fit_isotonic])
def test_a_fit_on_one_half_makes_the_other_half_honest(method):
    fitted, other = method(overconfident(3000, 2)), overconfident(3000, 3)
    before = reliability(other.scores, other.hits)
    after = reliability(fitted(other.scores), other.hits)
    assert before.expected_error > 0.1
    assert after.expected_error < 0.05
    assert after.brier < before.brier


def test_isotonic_never_falls_and_breaks_ties():
    fitted = fit_isotonic(overconfident(200, 4))
    scores = np.linspace(0.001, 0.999, 2000)
    assert (np.diff(fitted(scores)) > 0).all()


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_calibration_leaves_cpm_unchanged(method):
    held = scans()
    calibration = fit(held, method, "these")

    def cpm(change: Calibration) -> float:
        changed = [[replace(m, probability=calibrated(m.probability, change)) for m in s.marks] for s in held]
        return froc(judge_scan(s.included, s.excluded, marks) for s, marks in zip(held, changed, strict=True)).cpm

    assert cpm(calibration) == pytest.approx(cpm(NO_CHANGE), abs=1e-12)
    assert calibrated(0.3, calibration) != pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_the_detector_applies_what_was_fitted(method):
    held = scans()
    calibration = fit(held, method, "these")
    marks = [s.labelled for s in held]
    every = Labelled(np.concatenate([m.scores for m in marks]), np.concatenate([m.hits for m in marks]))
    fitted = fit_platt(every) if method == "platt" else fit_isotonic(every)
    for score in (0.02, 0.4, 0.95):
        assert calibrated(score, calibration) == pytest.approx(float(fitted(np.array([score]))[0]), abs=1e-9)


def test_a_card_without_calibration_leaves_scores_as_they_are():
    card = load_weights().card
    if card.calibration.knots or card.calibration.slope != 1.0:
        pytest.skip("the bundled weights are calibrated")
    assert calibrated(0.371, card.calibration) == 0.371
    assert calibrated(0.371, Calibration(1.0, 0.0, 0.0)) == 0.371


def test_ignored_marks_take_no_part_and_doubles_are_hits():
    nodule, ignored = Annotation((0, 0, 0), 10.0), Annotation((100, 0, 0), -1.0)
    marks = [ScoredMark((x, 0, 0), p) for x, p in ((1.0, 0.9), (2.0, 0.8), (101.0, 0.7), (300.0, 0.6))]
    found = label_marks([nodule], [ignored], marks)
    assert found.scores.tolist() == [0.9, 0.8, 0.6]
    assert found.hits.tolist() == [True, True, False]


def test_too_few_marks_are_refused_with_their_numbers():
    with pytest.raises(CalibrationError, match="1 marks on nodules and 2 false ones are too few"):
        fit_platt(Labelled(np.array([0.9, 0.2, 0.1]), np.array([True, False, False])))


def test_operating_points_cost_what_they_say():
    held = scans()
    calibration = fit(held, "platt", "these")
    points = choose_points(held, calibration, "sixty scans")
    assert [p.name for p in points] == ["fp-1", "fp-0.25", "fp-0.5", "fp-2", "fp-4"]
    for point, rate in zip(points, (1.0, 0.25, 0.5, 2.0, 4.0), strict=True):
        kept = [[m for m in s.marks if calibrated(m.probability, calibration) >= point.threshold] for s in held]
        false = sum(m.position_mm[0] >= FAR for marks in kept for m in marks)
        hits = sum(m.position_mm[0] < FAR for marks in kept for m in marks)
        assert false / len(held) == pytest.approx(point.expected_fp_per_scan, abs=1e-3)
        assert false / len(held) <= rate
        assert hits / 180 == pytest.approx(point.sensitivity, abs=1e-3)
        assert point.sensitivity_low is not None
        assert point.sensitivity_high is not None
        assert point.sensitivity_low <= point.sensitivity <= point.sensitivity_high


def test_one_half_is_fitted_and_the_other_measured():
    said = half_and_half(scans(80), "platt")
    assert said["scans"] == {"fitted_on": 40, "measured_on": 40}
    assert said["after"]["expected_error"] < said["before"]["expected_error"]
    assert len(said["after"]["rows"]) == 15
    assert measure(scans(80), NO_CHANGE).marks > 500
