from __future__ import annotations

import numpy as np
import pytest

from training.insertion import blend, with_vessels
from training.lesions import Mass, ball, draw_mass, is_mass, occupancy

SPACING = 0.7
AXIS = (np.arange(64) - 31.5).astype(np.float32) * SPACING
AXES = (AXIS[:, None, None], AXIS[None, :, None], AXIS[None, None, :])


def equal_diameter(part: np.ndarray) -> float:
    return float((6 * part.sum() * SPACING**3 / np.pi) ** (1 / 3))


def surface_mm2(part: np.ndarray) -> float:
    """Faces between voxels inside and outside."""
    inside = part > 0.5
    return sum(float(np.logical_xor(*pair).sum()) for pair in (
        (inside[1:], inside[:-1]), (inside[:, 1:], inside[:, :-1]), (inside[:, :, 1:], inside[:, :, :-1])
    )) * SPACING**2  # fmt: skip


def test_a_mass_is_the_union_of_its_parts():
    mass = Mass(((ball(10.0), (0.0, 0.0, 0.0)), (ball(6.0), (0.0, 0.0, 8.0))))
    at = [np.array(v, np.float32).reshape(1, 1, 1) for v in (0, 0, 9.5)]
    assert float(mass.distance((at[0], at[1], at[2]))[0, 0, 0]) == pytest.approx(1.5, abs=0.01)
    assert mass.reach_mm >= 11.0


def test_ripples_raise_and_lower_the_surface_by_their_height():
    plain, uneven = (
        Mass(((ball(20.0), (0.0, 0.0, 0.0)),)),
        Mass(((ball(20.0), (0.0, 0.0, 0.0)),), (((0.0, 1.0, 0.0), 0.0, 0.8),)),
    )
    change = uneven.distance(AXES) - plain.distance(AXES)
    assert change.max() == pytest.approx(0.8, abs=0.02)
    assert change.min() == pytest.approx(-0.8, abs=0.02)


def test_drawn_masses_have_about_the_size_asked_for_and_more_surface_than_a_ball():
    rng, sizes, rougher = np.random.default_rng(1), [], []
    for _ in range(12):
        mass = draw_mass(rng, 20.0)
        part = occupancy(mass, AXES)
        sizes.append(equal_diameter(part))
        rougher.append(surface_mm2(part) / surface_mm2(occupancy(ball(sizes[-1]), AXES)))
        assert part[0].max() == part[-1].max() == 0 or mass.reach_mm > abs(AXIS[0])
    assert 15.0 < np.mean(sizes) < 21.0
    assert min(rougher) > 1.15


def test_strands_of_small_masses_are_small():
    small, large = (max(draw_mass(np.random.default_rng(k), d).reach_mm for k in range(20)) for d in (6.0, 24.0))
    assert small < 15.0 < large


def test_both_forms_come_at_every_size_from_six_millimetres_on():
    rng = np.random.default_rng(2)
    shares = {d: np.mean([is_mass(rng, d, "solid") for _ in range(400)]) for d in (5.9, 6.0, 9.0, 12.0, 30.0)}
    assert shares[5.9] == 0
    assert 0.15 < shares[6.0] < 0.35
    assert 0.3 < shares[9.0] < 0.5
    assert 0.45 < shares[12.0] < 0.65
    assert 0.45 < shares[30.0] < 0.65
    assert not any(is_mass(rng, 20.0, kind) for kind in ("ground-glass", "calcified") for _ in range(50))


def test_vessels_brighter_than_a_nodule_stay_and_darker_ones_do_not():
    hu = np.full((24, 24, 24), -850, np.float32)
    hu[:, 10:14, 10:14] = 250
    hu[:, 2:6, 2:6] = 0
    made = blend(hu, np.ones_like(hu), with_vessels(np.full_like(hu, 30), hu), np.zeros_like(hu))
    assert made[12, 12, 12] > 200
    assert made[12, 4, 4] == pytest.approx(30, abs=1)
    assert made[12, 20, 20] == pytest.approx(30, abs=1)
