"""Slices that are exchanged, blank or of another scale are seen by their pixels; a scan's own change is not."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pipeline.seams import notice_of, unfitting
from tests.builders import ChestSeries
from tests.damage import hu_of

PIXEL_MM = 5.0


@pytest.fixture(scope="module")
def scan():
    series = ChestSeries(slices=80, rows=64, columns=64, pixel_mm=PIXEL_MM, slice_step=3.0, noise_hu=40.0)
    return np.stack([hu_of(dataset) for dataset in series.datasets()]).astype(np.int16)


def test_an_even_scan_fits_together_whatever_its_noise(scan):
    assert unfitting(scan, PIXEL_MM) == ()
    assert notice_of(scan, PIXEL_MM) == ()


@pytest.mark.parametrize("value", [-1024, 0, 1500])
def test_blank_slices_are_seen_where_they_begin_and_end(scan, value):
    scan = scan.copy()
    scan[30:33] = value
    assert unfitting(scan, PIXEL_MM) == (30, 33)


def test_a_slice_of_another_scale_is_seen(scan):
    scan = scan.copy()
    scan[40] += 1024
    assert unfitting(scan, PIXEL_MM) == (40, 41)


def test_exchanged_blocks_are_seen(scan):
    scan = scan.copy()
    scan[[*range(10, 20), *range(50, 60)]] = scan[[*range(50, 60), *range(10, 20)]]
    assert {10, 20, 50, 60} >= set(unfitting(scan, PIXEL_MM)) != set()


def test_slices_in_no_order_at_all_are_seen(scan):
    order = list(range(80))
    random.Random(3).shuffle(order)
    (notice,) = notice_of(scan[order], PIXEL_MM)
    assert notice.code == "SLICES_DO_NOT_FIT"
    assert "do not fit their neighbours" in notice.text


def test_two_interleaved_scans_are_seen(scan):
    mixed = np.empty((160, 64, 64), np.int16)
    mixed[::2], mixed[1::2] = scan, np.roll(scan, 25, axis=0)
    assert len(unfitting(mixed, PIXEL_MM)) > 50


def test_a_handful_of_slices_is_not_judged(scan):
    assert unfitting(scan[:5], PIXEL_MM) == ()
