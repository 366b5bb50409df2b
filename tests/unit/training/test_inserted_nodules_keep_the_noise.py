from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from training.insertion import Brush, Look, NoiseField, blend
from training.lesions import DIAMETERS_MM, draw_diameter

SPACING = (1.25, 0.7, 0.7)
LOOK = Look((0.9, 0.6, 0.6), 40.0, (0.4, 0.7, 0.7))


def correlated_noise(rng: np.random.Generator) -> np.ndarray:
    noise = gaussian_filter(rng.standard_normal((40, 72, 72)), (0.4, 0.7, 0.7))
    return (40 * noise / noise.std()).astype(np.float32)


def ball(diameter: float = 12.0) -> np.ndarray:
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip((40, 72, 72), SPACING, strict=True)]
    away = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None] ** 2)
    return gaussian_filter((away < diameter / 2).astype(np.float32), 0.55 / np.array(SPACING))


def test_the_noise_is_as_strong_in_the_core_and_at_the_rim_as_outside():
    rng, part = np.random.default_rng(0), ball()
    ideal = (1 - part) * -850 + part * 30
    shells = {"core": part > 0.98, "rim": (part > 0.4) & (part < 0.6), "outside": part < 0.02}
    found = {name: [] for name in shells}
    for _ in range(30):
        made = blend(-850 + correlated_noise(rng), part, 30.0, correlated_noise(rng))
        for name, shell in shells.items():
            found[name].append(float((made - ideal)[shell].std()))
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    assert mean["core"] == pytest.approx(39, abs=1.5)
    assert mean["rim"] == pytest.approx(36, abs=2.5)
    assert mean["outside"] == pytest.approx(40, abs=1.0)


def brush(hu: np.ndarray) -> Brush:
    return Brush(hu, SPACING, LOOK, NoiseField(np.random.default_rng(1), LOOK.grain_zyx))


def lung() -> np.ndarray:
    return np.full((40, 72, 72), -850, np.float32)


def test_an_inserted_nodule_has_the_size_and_place_it_reports():
    hu = lung()
    done = brush(hu).nodule(np.random.default_rng(2), np.array([20.0, 36.0, 36.0]), 12.0, "solid")
    assert done is not None
    assert done.diameter_mm == pytest.approx(12.0, abs=1.5)
    filled = np.clip((hu + 850) / 850, 0, 1.3)
    volume = float(filled.sum() * np.prod(SPACING))
    assert (6 * volume / np.pi) ** (1 / 3) == pytest.approx(done.diameter_mm, abs=1.2)
    assert np.linalg.norm((done.centre_zyx - [20, 36, 36]) * SPACING) < 2.0


def test_of_a_nodule_at_the_wall_the_part_in_air_is_reported():
    hu = lung()
    hu[:, :30] = 40
    done = brush(hu).nodule(np.random.default_rng(3), np.array([20.0, 32.0, 36.0]), 12.0, "solid")
    assert done is not None
    assert done.diameter_mm < 12.0
    assert done.centre_zyx[1] > 32.0


def test_a_nodule_inside_the_wall_is_refused_and_changes_nothing():
    hu = np.full((40, 72, 72), 40, np.float32)
    before = hu.copy()
    assert brush(hu).nodule(np.random.default_rng(3), np.array([20.0, 36.0, 36.0]), 8.0, "solid") is None
    np.testing.assert_array_equal(hu, before)


def test_ground_glass_stays_below_soft_tissue():
    hu = lung()
    assert (
        brush(hu).nodule(np.random.default_rng(4), np.array([20.0, 36.0, 36.0]), 14.0, "ground-glass") is not None
    )
    assert -720 < hu[20, 36, 36] < -350


def test_a_sham_insertion_keeps_the_mean_of_the_lung():
    rng = np.random.default_rng(5)
    hu = lung() + correlated_noise(rng)
    before = hu.copy()
    assert brush(hu).sham(rng, np.array([20.0, 36.0, 36.0]), 10.0)
    assert not np.array_equal(hu, before)
    assert abs(float(hu.mean() - before.mean())) < 1.0


def test_an_imitator_is_laid_into_lung_only():
    rng = np.random.default_rng(6)
    hu = lung()
    assert any(brush(hu).mimic(rng) for _ in range(5))
    wall = np.full((40, 72, 72), 40, np.float32)
    assert not any(brush(wall).mimic(rng) for _ in range(5))


def test_a_bump_stands_on_the_wall_and_nowhere_else():
    hu = lung()
    hu[:, :20] = 40
    rng, before = np.random.default_rng(8), hu.copy()
    assert any(brush(hu)._bump(rng, np.array([20.0, 36.0, 36.0])) for _ in range(8))
    raised = np.argwhere((before < -800) & (hu > -300))
    assert raised[:, 1].min() == 20
    assert raised[:, 1].max() < 20 + 0.5 * 34 / SPACING[1]


def test_diameters_follow_the_quantiles_of_luna16():
    rng = np.random.default_rng(7)
    drawn = np.array([draw_diameter(rng) for _ in range(4000)])
    assert np.median(drawn) == pytest.approx(6.43, rel=0.04)
    assert drawn.min() >= DIAMETERS_MM[0]
    assert drawn.max() <= DIAMETERS_MM[-1]
    assert min(draw_diameter(rng, 6.0) for _ in range(200)) >= 6.0
