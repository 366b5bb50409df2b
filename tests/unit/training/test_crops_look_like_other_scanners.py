"""Imitated scanners change sharpness, thickness, noise and density, and never where a thing lies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from training.appearance import EXTRA_GRAINS, TONE_KNOTS_HU, draw_tone, refocus, sharpen, thicken, tone, vary
from training.insertion import NoiseField


def ball_in_lung(radius: float = 5.0) -> np.ndarray:
    axes = [np.arange(n, dtype=np.float32) - c for n, c in zip((24, 40, 40), (11.0, 22.0, 17.0), strict=True)]
    away = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None] ** 2)
    return np.clip(-860 + 890 * np.clip(radius + 0.5 - away, 0, 1), -860, 30).astype(np.float32)


def noises() -> list[NoiseField]:
    rng = np.random.default_rng(0)
    return [NoiseField(rng, grain) for grain in EXTRA_GRAINS]


def centre(hu: np.ndarray) -> np.ndarray:
    smooth = ndimage.gaussian_filter(hu, 1.5)
    return np.array(ndimage.center_of_mass(smooth > (smooth.max() + np.median(smooth)) / 2))


def test_nothing_that_is_varied_moves_a_nodule():
    fields, hu = noises(), ball_in_lung()
    for seed in range(30):
        varied = vary(np.random.default_rng(seed), hu.copy(), (2.5, 1.0)[seed % 2], fields)
        assert varied.dtype == np.float32
        assert varied.shape == hu.shape
        np.testing.assert_allclose(centre(varied), [11, 22, 17], atol=0.9)


def test_crops_differ_in_density_and_in_noise():
    fields, hu = noises(), ball_in_lung()
    varied = [vary(np.random.default_rng(seed), hu.copy(), 1.0, fields) for seed in range(30)]
    assert np.ptp([float(np.median(v)) for v in varied]) > 60
    assert max(float(v[:, :8, :8].std()) for v in varied) > 25


def test_a_tone_curve_rises_and_keeps_the_order_of_densities():
    rng = np.random.default_rng(1)
    for _ in range(200):
        becomes = draw_tone(rng)
        assert len(becomes) == len(TONE_KNOTS_HU)
        assert (np.diff(becomes) > 0).all()
    np.testing.assert_allclose(tone(np.array([-860.0, 50.0], np.float32), TONE_KNOTS_HU), [-860, 50])


def test_a_soft_kernel_takes_noise_away_and_a_sharp_one_adds_it():
    noise = np.random.default_rng(2).normal(0, 30, (8, 48, 48)).astype(np.float32)
    soft, sharp = refocus(noise, 0.9, -1.0), refocus(noise, 0.9, 1.0)
    assert soft.std() < 0.5 * noise.std()
    assert sharp.std() > 1.3 * noise.std()
    flat = np.full((4, 16, 16), -700, np.float32)
    np.testing.assert_allclose(refocus(flat, 1.2, 1.4), flat, rtol=1e-5)


def test_thick_slices_average_groups_and_keep_a_ramp():
    ramp = np.arange(14, dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32)
    for phase, slices in ((0, 2), (1, 2), (0, 3), (1, 3)):
        np.testing.assert_allclose(thicken(ramp, phase, slices)[4:9], ramp[4:9], atol=1e-5)
    spike = np.zeros((12, 1, 1), np.float32)
    spike[6] = 100
    assert thicken(spike, 0).sum() == 100
    assert thicken(spike, 0).max() == 37.5


@pytest.mark.parametrize("in_plane", [True, False])
def test_sharpening_undoes_a_part_of_a_blur(in_plane: bool):
    hu = ball_in_lung(3.0)
    assert sharpen(hu, 0.8, in_plane=in_plane).max() <= hu.max()
    assert sharpen(hu, -0.8, in_plane=in_plane).max() > hu.max()
