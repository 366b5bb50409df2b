"""Vessel and bronchial trees of the digital lungs: recursive branching towards random points of the tissue.

A branch that feeds n points has a radius that goes with n to the power 1/3, which is Murray's law and gives the
ratio 0.79 at an even bifurcation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.lesions import offsets_mm

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from training.lesions import Array, Slices3

TIP_RADIUS_MM = 0.36
SMALLEST_DRAWN_MM = 0.35


@dataclass(frozen=True, slots=True)
class Branch:
    """A straight piece of a tree. Ends in mm (x, y, z), radius in mm."""

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radius_mm: float

    @property
    def middle(self) -> NDArray[np.float64]:
        """Half way between the ends; mm (x, y, z)."""
        return np.asarray((np.asarray(self.start) + np.asarray(self.end)) / 2, np.float64)


def grow(rng: np.random.Generator, root: NDArray[np.float64], points: NDArray[np.float64]) -> list[Branch]:
    """Grow a tree from a root (mm, x y z) that feeds points ``(n, 3)``; branches from the root outwards."""
    branches: list[Branch] = []
    stack = [(root, points)]
    while stack:
        start, targets = stack.pop()
        radius = TIP_RADIUS_MM * len(targets) ** (1 / 3)
        if len(targets) <= 2:
            branches.append(_branch(start, targets.mean(axis=0), radius))
            continue
        middle = targets.mean(axis=0)
        reach = rng.uniform(0.28, 0.5)
        end = start + reach * (middle - start) + rng.normal(0, 1.0, 3)
        branches.append(_branch(start, end, radius))
        stack.extend((end, part) for part in _split(rng, targets, end))
    return branches


def _branch(start: NDArray[np.float64], end: NDArray[np.float64], radius: float) -> Branch:
    a, b = start.tolist(), end.tolist()
    return Branch((a[0], a[1], a[2]), (b[0], b[1], b[2]), radius)


def _split(
    rng: np.random.Generator, targets: NDArray[np.float64], at: NDArray[np.float64]
) -> Iterator[NDArray[np.float64]]:
    """Cut points in two by a plane through their longest extent, unevenly."""
    rel = targets - at
    spread = np.linalg.svd(rel - rel.mean(axis=0), full_matrices=False)[2][0] + rng.normal(0, 0.2, 3)
    along = rel @ spread
    low = along <= np.quantile(along, rng.uniform(0.3, 0.7))
    for part in (targets[low], targets[~low]):
        if len(part):
            yield part


def branch_occupancy(
    branch: Branch,
    origin: NDArray[np.float64],
    spacing_zyx_mm: Sequence[float],
    shape_zyx: Sequence[int],
    *,
    z_parts: int,
    extra_mm: float = 0.0,
) -> tuple[Slices3, Array] | None:
    """Part of each voxel that a branch fills, within its box; ``extra_mm`` widens it (for a bronchial wall)."""
    middle = (branch.middle - origin)[::-1] / np.asarray(spacing_zyx_mm)
    half = (np.asarray(branch.end) - np.asarray(branch.start))[::-1] / 2
    radius = max(branch.radius_mm, SMALLEST_DRAWN_MM) + extra_mm
    reach = np.abs(half) + radius + 1.0
    low = np.maximum(np.floor(middle - reach / np.asarray(spacing_zyx_mm)).astype(int), 0)
    high = np.minimum(np.ceil(middle + reach / np.asarray(spacing_zyx_mm)).astype(int) + 1, shape_zyx)
    if (high - low < 2).any():
        return None
    box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    z, y, x = offsets_mm(box, middle, spacing_zyx_mm, z_parts)
    hz, hy, hx = (np.float32(v) for v in half)
    t = (z * hz + y * hy + x * hx) / np.float32(max(float(half @ half), 1e-6))
    t = np.clip(t, -1, 1)
    away = np.sqrt((z - t * hz) ** 2 + (y - t * hy) ** 2 + (x - t * hx) ** 2)
    filled = np.clip(0.5 + (radius - away) / np.float32(0.8), 0, 1)
    if branch.radius_mm < SMALLEST_DRAWN_MM:
        filled *= np.float32((branch.radius_mm / SMALLEST_DRAWN_MM) ** 2)
    if z_parts > 1:
        filled = filled.reshape(-1, z_parts, *filled.shape[1:]).mean(axis=1)
    return box, filled.astype(np.float32)
