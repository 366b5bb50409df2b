"""A plain chest, made in a moment: two lungs with vessels in soft tissue, on a small matrix; for tests of commands.

Nothing here looks like a person. What is found in it says that the commands work and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from pipeline.domain.geometry import Grid
from training.lesions import Tube, box_around, direction, occupancy, offsets_mm, soft

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

LUNG_HU, TISSUE_HU, AIR_HU = -860.0, 35.0, -1000.0
VESSELS = 10
LUNG_AT, LUNG_HALF = 0.25, (0.40, 0.31, 0.165)
"""Centre beside the axis and half axes (z, y, x) of a lung, as parts of the extent."""


@dataclass(frozen=True, slots=True)
class PlainSettings:
    """How the plain chest is scanned: slices and their distance (mm), matrix and pixel (mm), noise (HU)."""

    slices: int = 48
    slice_distance_mm: float = 2.0
    matrix: int = 112
    pixel_mm: float = 1.2
    noise_hu: float = 20.0


def make_plain_chest(seed: int, settings: PlainSettings) -> tuple[NDArray[np.int16], Grid]:
    """Make the plain chest of a seed, without nodules.

    Returns
    -------
    hu
        int16, shape ``(z, y, x)``.
    grid
        Where it lies; LPS mm.
    """
    rng = np.random.default_rng([seed, 12])
    grid = _grid(settings)
    z, y, x = (
        ((np.arange(n) - (n - 1) / 2) * s).astype(np.float32)
        for n, s in zip(grid.shape_zyx, grid.spacing_zyx_mm, strict=True)
    )
    high, wide = settings.slices * settings.slice_distance_mm, settings.matrix * settings.pixel_mm
    body = (1 - np.hypot(y[:, None] / (0.40 * wide), x[None] / (0.47 * wide))) * 0.4 * wide
    hu = np.broadcast_to(AIR_HU + soft(body.astype(np.float32)) * (TISSUE_HU - AIR_HU), grid.shape_zyx).astype(
        np.float32
    )
    for side in (-1, 1):
        half = np.array(LUNG_HALF) * (high, wide, wide) * rng.uniform(0.93, 1.0, 3)
        centre = side * LUNG_AT * wide
        away = (z[:, None, None] / half[0]) ** 2 + (y[:, None] / half[1]) ** 2 + ((x - centre) / half[2]) ** 2
        inside = soft(((1 - np.sqrt(away)) * half.min()).astype(np.float32))
        hu += inside * (LUNG_HU - hu)
        _draw_vessels(rng, hu, grid, np.array([0.0, 0.0, centre]), half)
    hu = ndimage.gaussian_filter(hu, (0.3, 0.5, 0.5))
    hu += (
        settings.noise_hu / 0.58 * ndimage.gaussian_filter(rng.standard_normal(hu.shape, np.float32), (0, 0.5, 0.5))
    )
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16), grid


def _grid(settings: PlainSettings) -> Grid:
    spacing = (settings.slice_distance_mm, settings.pixel_mm, settings.pixel_mm)
    first = -(settings.matrix - 1) / 2 * settings.pixel_mm
    return Grid((settings.slices, settings.matrix, settings.matrix), spacing, (first, first, 0.0))


def _draw_vessels(
    rng: np.random.Generator, hu: Array, grid: Grid, centre_mm: NDArray[np.float64], half_mm: NDArray[np.float64]
) -> None:
    for _ in range(VESSELS):
        rod = Tube(direction(rng), float(rng.uniform(8, 18)), float(rng.uniform(0.8, 2.0)))
        place = centre_mm + np.asarray(direction(rng)) * half_mm * rng.uniform(0.1, 0.6)
        index = place / grid.spacing_zyx_mm + (np.asarray(grid.shape_zyx) - 1) / 2
        box = box_around(index, rod.reach_mm, grid.spacing_zyx_mm, grid.shape_zyx)
        if box is not None:
            view = hu[box]
            view += occupancy(rod, offsets_mm(box, index, grid.spacing_zyx_mm)) * np.maximum(TISSUE_HU - view, 0)
