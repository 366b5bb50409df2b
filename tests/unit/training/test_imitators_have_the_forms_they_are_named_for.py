"""Imitators: thin or flat, or long for their thickness; never a ball."""

from __future__ import annotations

import numpy as np

from training.imitators import KINDS, SHARES, draw_imitator
from training.lesions import Plate, Tube


def test_shares_of_the_kinds_sum_to_one():
    assert len(KINDS) == len(SHARES)
    assert np.isclose(sum(SHARES), 1)


def test_every_part_is_flat_or_longer_than_it_is_thick():
    rng = np.random.default_rng(1)
    for _ in range(300):
        for shape, shift in draw_imitator(rng):
            assert shift.shape == (3,)
            if isinstance(shape, Plate):
                assert shape.half_width_mm > 3 * shape.half_thickness_mm
            else:
                assert isinstance(shape, Tube)
                assert shape.half_length_mm >= 2.2 * shape.radius_mm


def test_thin_and_thick_vessels_branchings_and_plates_all_occur():
    rng = np.random.default_rng(2)
    drawn = [draw_imitator(rng) for _ in range(200)]
    assert any(len(parts) >= 3 for parts in drawn)
    assert any(isinstance(parts[0][0], Plate) for parts in drawn)
    assert any(isinstance(parts[0][0], Tube) and parts[0][0].radius_mm > 3 for parts in drawn)


def test_the_same_generator_draws_the_same_imitator():
    first, second = (draw_imitator(np.random.default_rng(3)) for _ in range(2))
    assert [shape for shape, _ in first] == [shape for shape, _ in second]
