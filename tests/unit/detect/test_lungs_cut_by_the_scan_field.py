"""Lung that the field of view cuts is searched and said: at a side, at a corner, by a circle with padding."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.domain.limits import SelectionLimits
from pipeline.lungs import LungMask, find_lungs
from tests.builders import ChestSeries
from tests.damage import hu_of

SPACING = (3.0, 5.0, 5.0)


@pytest.fixture(scope="module")
def scan():
    series = ChestSeries(slices=80, rows=64, columns=64, pixel_mm=5.0, slice_step=3.0)
    return np.stack([hu_of(dataset) for dataset in series.datasets()]).astype(np.int16)


def cut(scan, how):
    rows, columns = np.mgrid[0:64, 0:64]
    if how == "circle":
        scan = scan.copy()
        scan[:, (rows - 31.5) ** 2 + (columns - 31.5) ** 2 > 17**2] = -1024
        return scan
    return scan[:, :, 20:] if how == "side" else scan[:, 22:, 20:]


@pytest.mark.parametrize("how", ["side", "corner", "circle"])
def test_what_is_left_of_both_lungs_is_searched_and_the_cut_is_said(scan, how):
    seen = cut(scan, how)
    mask = find_lungs(seen, SPACING, SelectionLimits(min_lung_l=0.5))
    assert isinstance(mask, LungMask)
    assert [notice.code for notice in mask.notices] == ["LUNG_CUT"]
    lung = (seen > -950) & (seen < -700)
    found = mask.search_at(*(np.arange(size, dtype=float) for size in seen.shape))
    assert found[lung].mean() > 0.97


def test_an_uncut_chest_with_padding_around_it_raises_no_warning(scan):
    rows, columns = np.mgrid[0:64, 0:64]
    scan = scan.copy()
    scan[:, (rows - 31.5) ** 2 + (columns - 31.5) ** 2 > 31**2] = -1024
    mask = find_lungs(scan, SPACING, SelectionLimits())
    assert isinstance(mask, LungMask)
    assert mask.notices == ()
