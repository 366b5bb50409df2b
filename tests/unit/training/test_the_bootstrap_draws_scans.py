from __future__ import annotations

import numpy as np
import pytest

from training.bootstrap import RESAMPLES, bootstrap, interval, paired_difference
from training.froc import RATES, ScanResult, froc, pool

FOUND = ScanResult((0.9,), (), 0, 0)
MISSED = ScanResult((None,), (), 0, 0)
EMPTY = ScanResult((), (0.4,), 0, 0)


def mixed(scans: int = 40) -> list[ScanResult]:
    rng = np.random.default_rng(5)
    return [
        ScanResult(
            tuple(float(p) if p > 0.2 else None for p in rng.random(rng.integers(0, 3))),
            tuple(rng.choice(20, rng.integers(0, 6)) / 20),
            0,
            0,
        )
        for _ in range(scans)
    ]


def test_of_a_thousand_sorted_values_those_at_25_and_975_bound_the_interval():
    shuffled = np.random.default_rng(0).permutation(1000).astype(float)
    drawn = interval(shuffled)
    assert (drawn.low, drawn.high, drawn.mean) == (25.0, 975.0, 499.5)


def test_the_same_submission_gives_the_same_interval_again():
    first, again = (bootstrap(pool(mixed())) for _ in range(2))
    assert first.resamples == RESAMPLES == 1000
    assert first.cpm == again.cpm
    assert first.sensitivity == again.sensitivity
    assert np.array_equal(first.band.low, again.band.low)


def test_each_draw_is_judged_as_if_its_scans_were_a_submission():
    scans = mixed()
    rng = np.random.default_rng(3)
    picks = [rng.integers(0, len(scans), len(scans)) for _ in range(200)]
    cpms = np.array([froc([scans[i] for i in pick]).cpm for pick in picks])
    drawn = bootstrap(pool(scans), resamples=200, seed=3)
    assert drawn.cpm.mean == pytest.approx(cpms.mean(), abs=1e-12)
    assert drawn.cpm.low == pytest.approx(np.sort(cpms)[5], abs=1e-12)
    assert drawn.cpm.high == pytest.approx(np.sort(cpms)[195], abs=1e-12)


def test_the_band_covers_the_rates_of_the_challenge_and_lies_around_the_mean():
    scans = mixed()
    drawn = bootstrap(pool(scans))
    band = drawn.band
    assert (band.false_per_scan[0], band.false_per_scan[-1], len(band.mean)) == (RATES[0], RATES[-1], 10_000)
    assert (band.low <= band.mean + 1e-6).all()
    assert (band.mean <= band.high + 1e-6).all()
    assert [band.low[0], band.high[-1]] == pytest.approx(
        [drawn.sensitivity[0].low, drawn.sensitivity[-1].high], abs=1e-6
    )
    at = [s.low <= v <= s.high for s, v in zip(drawn.sensitivity, froc(scans).at(), strict=True)]
    assert all(at)


def test_a_nodule_total_is_counted_anew_in_each_draw():
    # One scan with its nodule found, one without nodules: a draw has sensitivity 1 or, without a nodule, 0.
    drawn = bootstrap(pool([FOUND, EMPTY]))
    assert (drawn.cpm.low, drawn.cpm.high) == (0.0, 1.0)
    assert drawn.cpm.mean == pytest.approx(1 - drawn.without_nodules / 1000)
    assert 200 < drawn.without_nodules < 300


def test_draws_without_any_hit_have_sensitivity_0():
    drawn = bootstrap(pool([MISSED, EMPTY]))
    assert (drawn.cpm.mean, drawn.cpm.low, drawn.cpm.high) == (0.0, 0.0, 0.0)
    assert drawn.band.high.max() == 0.0


def test_a_submission_less_itself_is_nothing():
    pooled = pool(mixed())
    assert paired_difference(pooled, pooled) == interval(np.zeros(1000))


def test_a_paired_difference_is_narrower_than_two_intervals_apart():
    scans = mixed()
    worse = [
        ScanResult((None, *s.nodules[1:]), s.false_marks, 0, 0) if s.nodules and k < 8 else s
        for k, s in enumerate(scans)
    ]
    difference = paired_difference(pool(scans), pool(worse))
    alone = bootstrap(pool(scans)).cpm
    assert difference.mean > 0
    assert difference.high - difference.low < alone.high - alone.low


def test_sensitivities_at_one_rate_are_compared_when_a_rate_is_given():
    all_found = paired_difference(pool([FOUND] * 4), pool([MISSED] * 4), rate=1.0)
    assert (all_found.mean, all_found.low, all_found.high) == (1.0, 1.0, 1.0)


def test_submissions_over_other_scans_are_not_compared():
    with pytest.raises(ValueError, match="not judged on the same scans"):
        paired_difference(pool([FOUND, EMPTY]), pool([EMPTY, FOUND]))
