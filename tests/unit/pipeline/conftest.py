"""Small series and the limits under which they pass: the rules are the same, the arrays are quick."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.domain.limits import SelectionLimits
from tests.builders import ChestSeries

SMALL = SelectionLimits(
    min_rows=32, max_pixel_mm=10.0, warn_pixel_mm=10.0, min_slices=10, min_coverage_mm=10.0, warn_coverage_mm=20.0
)


@pytest.fixture
def small_limits() -> SelectionLimits:
    return SMALL


@pytest.fixture
def small_series() -> ChestSeries:
    return ChestSeries(slices=14, rows=48, columns=64, pixel_mm=4.0, slice_step=2.0, thickness=2.0)


@pytest.fixture
def test_data() -> Path:
    folder = os.environ.get("NODULE_NODE_TEST_DATA")
    if not folder:
        pytest.skip("NODULE_NODE_TEST_DATA is not set")
    return Path(folder)
