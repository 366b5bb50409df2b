"""What a scanner or a breath may change, imitated on a crop: kernel, slice thickness, dose, calibration, air.

Works on Hounsfield units on the networks' grid, float32, shape (z, y, x). Nothing here moves a nodule, so truths
stay. Why each of them is varied: decision 0080.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from training.insertion import NoiseField

    Array = NDArray[np.float32]

THICK_MM = 1.6
"""From this slice distance on a scan counts as thick: it is made thinner in imitation, never thicker."""

MOST_NOISE_HU = 90.0

EXTRA_GRAINS = (
    (0.5, 0.5, 0.5),
    (0.8, 0.7, 0.7),
    (0.9, 1.1, 1.1),
    (0.3, 0.35, 0.35),
    (0.5, 0.4, 3.0),
    (0.5, 3.0, 0.4),
)
"""Grains (voxels z, y, x) of added noise: sharp and thin to soft and thick, and the streaks of a low dose."""

TONE_KNOTS_HU = (-1100.0, -1000.0, -860.0, -600.0, -100.0, 50.0, 400.0, 3100.0)


def vary(rng: np.random.Generator, hu: Array, slice_distance_mm: float, noises: Sequence[NoiseField]) -> Array:
    """Show a crop as another scanner might have: density, thickness, kernel, noise, calibration, in this order.

    Parameters
    ----------
    hu
        The crop, with everything inserted.
    slice_distance_mm
        Of the scan as received.
    noises
        Fields of unit noise of the grains ``EXTRA_GRAINS``.
    """
    if rng.random() < 0.5:
        hu = tone(hu, draw_tone(rng))
    if slice_distance_mm < THICK_MM:
        if rng.random() < 0.35:
            hu = thicken(hu, phase=int(rng.integers(2)), slices=2 if rng.random() < 0.7 else 3)
    elif rng.random() < 0.4:
        hu = sharpen(hu, float(rng.uniform(-1.1, 0.0)), in_plane=False)
    drawn = rng.random()
    if drawn < 0.2:
        hu = refocus(hu, float(rng.uniform(0.5, 1.1)), -1.0)
    elif drawn < 0.45:
        hu = refocus(hu, float(rng.uniform(0.8, 1.6)), float(rng.uniform(0.2, 1.4)))
    elif drawn < 0.6:
        hu = sharpen(hu, float(rng.uniform(-0.5, 0.8)), in_plane=True)
    if rng.random() < 0.6:
        strength = min(abs(float(rng.normal(0, 32))), MOST_NOISE_HU)
        hu = hu + noises[int(rng.integers(len(noises)))].cut(rng, hu.shape) * np.float32(strength)
    return np.asarray((hu + 1000) * rng.uniform(0.95, 1.05) - 1000 + rng.normal(0, 12), np.float32)


def draw_tone(rng: np.random.Generator) -> tuple[float, ...]:
    """Draw what the densities ``TONE_KNOTS_HU`` become: lungs fuller or emptier of air, soft tissue a little off.

    A physical phantom's lungs are plain air, and a shallow breath brings them to -750 HU.
    """
    lung = float(np.clip(rng.normal(-865, 55), -990, -740))
    shift = (lung + 860) * 0.35
    tissue = float(rng.normal(0, 15))
    bright = float(rng.uniform(0.85, 1.3))
    return (-1100, -1000, lung, -600 + shift, -100 + tissue, 50 + tissue, 50 + tissue + 350 * bright, 3100)


def tone(hu: Array, becomes: Sequence[float]) -> Array:
    """Map densities by a rising curve through ``TONE_KNOTS_HU`` and what they become."""
    return np.asarray(np.interp(hu, TONE_KNOTS_HU, becomes), np.float32)


def thicken(hu: Array, phase: int, slices: int = 2) -> Array:
    """Imitate thicker slices: groups of grid slices are averaged, then interpolated back to the grid.

    Parameters
    ----------
    hu
        The crop.
    phase
        Slice where the first group begins.
    slices
        Grid slices in a group.
    """
    depth = len(hu)
    first = np.arange(phase, depth - slices + 1, slices)
    slabs = np.mean([hu[first + k] for k in range(slices)], axis=0)
    place = np.clip((np.arange(depth) - phase - (slices - 1) / 2) / slices, 0, len(first) - 1)
    below = np.minimum(np.floor(place).astype(int), len(first) - 2)
    weight = (place - below).astype(np.float32)[:, None, None]
    return np.asarray(slabs[below] * (1 - weight) + slabs[below + 1] * weight, np.float32)


def sharpen(hu: Array, amount: float, *, in_plane: bool) -> Array:
    """Blend with a 3-voxel mean, in all directions or along z only; a negative amount sharpens."""
    volume = torch.from_numpy(hu)[None, None]
    pad, size = ((1,) * 6, (3, 3, 3)) if in_plane else ((0, 0, 0, 0, 1, 1), (3, 1, 1))
    mean = functional.avg_pool3d(functional.pad(volume, pad, mode="replicate"), size, 1)
    return np.asarray((volume + amount * (mean - volume))[0, 0].numpy(), np.float32)


def refocus(hu: Array, sigma: float, amount: float) -> Array:
    """Enhance what a Gaussian blur in the plane removes, as a sharp kernel does with edges and noise alike.

    Parameters
    ----------
    hu
        The crop.
    sigma
        Of the Gaussian; voxels in the plane.
    amount
        Of what is added; -1 gives the blurred crop, a soft kernel.
    """
    reach = int(np.ceil(2.5 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float32) / sigma) ** 2)
    taps /= taps.sum()
    sharp = torch.from_numpy(hu)[:, None]
    padded = functional.pad(sharp, (reach,) * 4, mode="replicate")
    soft = functional.conv2d(functional.conv2d(padded, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))
    return np.asarray((sharp + amount * (sharp - soft))[:, 0].numpy(), np.float32)
