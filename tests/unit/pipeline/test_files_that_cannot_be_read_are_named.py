"""A file of which not even the series is known is a warning with every CT series of the study."""

from __future__ import annotations

from pipeline.decision import decide
from pipeline.domain.outcome import Code
from pipeline.wholeness import look_and_decide


def test_every_series_says_that_it_may_lack_an_image(small_series, small_limits, tmp_path):
    paths = small_series.write(tmp_path)
    assert decide(paths, small_limits).series[0].notices == ()
    paths[3].write_bytes(paths[3].read_bytes()[:140])
    (verdict,) = decide(paths, small_limits).series
    assert verdict.eligible
    texts = [notice.text for notice in verdict.notices if notice.code is Code.EXTRA_IMAGES_DROPPED]
    assert texts == ["1 files could not be read at all; they may be images of this series. Send them again."]


def test_such_a_study_is_not_provably_whole(small_series, small_limits, tmp_path):
    paths = small_series.write(tmp_path)
    paths[3].write_bytes(paths[3].read_bytes()[:140])
    whole = look_and_decide(paths, small_limits)[0]
    assert (whole.geometry, whole.lungs) == (False, False)


def test_a_gap_shows_that_a_study_is_not_whole(small_series, small_limits, tmp_path):
    paths = small_series.write(tmp_path)
    whole = look_and_decide([*paths[:5], *paths[7:]], small_limits)[0]
    assert not whole.geometry
    assert whole.text == "2 missing slices were filled in from the neighbours."


def test_lungs_that_reach_the_last_slice_show_it_too(small_series, tmp_path):
    from dataclasses import replace

    from tests.builders import ChestSeries
    from tests.damage import LIMITS

    series = ChestSeries(slices=48, rows=64, columns=64, pixel_mm=5.0, slice_step=5.0, thickness=5.0)
    paths = series.write(tmp_path)
    assert look_and_decide(paths, LIMITS)[0].lungs
    cut = look_and_decide(paths[:30], replace(LIMITS, min_lung_l=0.5))[0]
    assert (cut.geometry, cut.lungs) == (True, False)
    assert cut.text == "The lungs reach the last slice; parts of them are not seen."
