"""Puts ordered nodules into a whole scan on its own grid: of a wanted kind and size, at a wanted kind of place.

Where a nodule lies is decided here by what is around it; how it is blended in is `insertion.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from training.insertion import FIELD_SHAPE, Brush, Inserted, Look, NoiseField
from training.lesions import direction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.domain.geometry import Grid
    from pipeline.lungs import LungMask
    from training.cohort_file import WantedNodule
    from training.lesions import Array, Kind
    from training.phantom import Place

    Point = NDArray[np.float64]
    Box = tuple[slice, slice, slice]

ATTEMPTS = 150
LEAST_MM = 3.0
"""LUNA16's nodules are 3 mm and larger; what shows less of itself is not kept."""

LEAST_PART = 0.75
"""A nodule whose visible part is smaller than this part of the wanted diameter is not kept."""

ROOM_MM = 5.0
"""Between the surfaces of two findings."""

MOST_REACH = 2.9
"""Farthest a nodule's surface lies from its centre, in radii: spicules times stretch."""

OPEN_PART = 0.45
"""Part of the surroundings of a nodule at the wall that is air: it lies on a wall, not in the tip of a recess."""

TISSUE_HU = -400.0
AIR_HU = -500.0
EMPTY_HU = -955.0
"""Mean of the air in a trachea lies below, that of a lung above, an emphysematous one too."""

BOX_MARGIN_MM = 14.0


@dataclass(frozen=True, slots=True)
class Placed:
    """A nodule that was inserted: visible centroid and diameter as in :class:`training.insertion.Inserted`."""

    centre_zyx: Point
    diameter_mm: float
    kind: Kind
    place: Place
    wanted_mm: float


class Ground:
    """A scan's lungs as a place to put things: the box around them, float, and what lies where.

    Attributes
    ----------
    hu
        The box; changed by what is put into it.
    start
        Index of its first voxel in the scan.
    """

    def __init__(self, hu: NDArray[np.int16], grid: Grid, lungs: LungMask) -> None:
        self.spacing = np.asarray(grid.spacing_zyx_mm)
        margin = np.ceil(BOX_MARGIN_MM / self.spacing).astype(int)
        first, behind = lungs.bounds()
        self.start = np.maximum(np.asarray(first) - margin, 0)
        stop = np.minimum(np.asarray(behind) + margin, hu.shape)
        z, y, x = (slice(int(a), int(b)) for a, b in zip(self.start, stop, strict=True))
        self.box: Box = (z, y, x)
        self.hu = hu[self.box].astype(np.float32)
        stride = np.asarray(lungs.strides_zyx)
        depth = ndimage.distance_transform_edt(lungs.lungs, sampling=stride * self.spacing)
        cells = np.argwhere(lungs.lungs)
        self.depth_mm = np.asarray(depth[lungs.lungs], np.float64)
        self.cells = cells * stride + (stride - 1) / 2 - self.start
        inside = ((self.cells >= 0) & (self.cells <= np.asarray(self.hu.shape) - 1)).all(axis=1)
        self.cells, self.depth_mm = self.cells[inside], self.depth_mm[inside]
        self.value = self.hu[tuple(np.rint(self.cells).astype(int).T)]

    def centre(self, rng: np.random.Generator, place: Place, diameter_mm: float) -> Point | None:
        """Draw a centre (index in the box) for a nodule, or None where this draw does not fit."""
        radius = diameter_mm / 2
        if place == "pleura":
            centre = self._at_wall(rng, radius)
        elif place == "vessel":
            centre = self._at_vessel(rng, radius)
        else:
            centre = self._free(rng, radius)
        return None if centre is None or self._in_airway(centre, radius) else centre

    def _free(self, rng: np.random.Generator, radius: float) -> Point | None:
        centre = self._cell(rng, (self.depth_mm > radius + 4) & (self.value < -650))
        if centre is None or float(np.quantile(self._around(centre, radius + 1.5), 0.97)) > -450:
            return None
        return centre

    def _in_airway(self, centre: Point, radius: float) -> bool:
        """Tell whether the air around is that of the trachea or a main bronchus, which no parenchyma thickens."""
        around = self._around(centre, radius + 3)
        air = around[around < AIR_HU]
        return bool(len(air) == 0 or air.mean() < EMPTY_HU)

    def anywhere(self, rng: np.random.Generator) -> Point | None:
        """Draw a place in the lungs, half of them on vessels or near the wall."""
        chosen = self.depth_mm >= 0 if rng.random() < 0.5 else (self.value > -500) | (self.depth_mm < 5)
        return self._cell(rng, chosen)

    def _cell(self, rng: np.random.Generator, chosen: NDArray[np.bool_]) -> Point | None:
        rows = np.flatnonzero(chosen)
        if not len(rows):
            return None
        return np.asarray(self.cells[rows[rng.integers(len(rows))]] + rng.uniform(-0.5, 0.5, 3), np.float64)

    def _around(self, centre: Point, radius_mm: float) -> Array:
        """Give the values within a distance of an index."""
        reach = radius_mm / self.spacing
        low = np.maximum(np.floor(centre - reach).astype(int), 0)
        high = np.minimum(np.ceil(centre + reach).astype(int) + 1, self.hu.shape)
        z, y, x = ((np.arange(a, b) - c) * s for a, b, c, s in zip(low, high, centre, self.spacing, strict=True))
        near = (z**2)[:, None, None] + (y**2)[:, None] + x**2 <= radius_mm**2
        return np.asarray(self.hu[low[0] : high[0], low[1] : high[1], low[2] : high[2]][near], np.float32)

    def _at_vessel(self, rng: np.random.Generator, radius: float) -> Point | None:
        """Draw a centre beside a vessel, so that the nodule touches it; not around a thick one."""
        vessel = self._cell(rng, (self.depth_mm > radius + 6) & (self.value > TISSUE_HU))
        if vessel is None:
            return None
        centre = vessel + np.asarray(direction(rng)) * radius * rng.uniform(0.6, 1.0) / self.spacing
        tissue = float((self._around(centre, radius + 1) > TISSUE_HU).mean())
        return centre if 0.02 < tissue < 0.3 else None

    def _at_wall(self, rng: np.random.Generator, radius: float) -> Point | None:
        """Draw a centre so near to the wall that the nodule touches it: go outwards until there is tissue."""
        begin = self._cell(rng, (self.depth_mm > 2) & (self.depth_mm < 12) & (self.value < -600))
        if begin is None:
            return None
        outwards = np.asarray(direction(rng))
        steps = np.arange(0, 25, 0.4)
        line = self._line(begin, outwards, steps)
        tissue = line > TISSUE_HU
        wall = next((k for k in range(len(steps) - 20) if tissue[k : k + 20].all()), None)
        if wall is None or wall < 3:
            return None
        depth = radius * rng.uniform(0.25, 0.85)
        centre = np.asarray(begin + outwards * (steps[wall] - depth) / self.spacing, np.float64)
        open_part = float((self._around(centre, radius + 3) < AIR_HU).mean())
        return centre if open_part > OPEN_PART else None

    def _line(self, begin: Point, along: Point, steps: Point) -> Point:
        index = begin + along * steps[:, None] / self.spacing
        return np.asarray(ndimage.map_coordinates(self.hu, index.T, order=1, mode="nearest"), np.float64)


class Placing:
    """Inserts into one scan, nothing nearer to another finding than ``ROOM_MM``."""

    def __init__(self, ground: Ground, look: Look, taken: Sequence[tuple[Point, float]], seed: int) -> None:
        self.ground = ground
        self.rng = np.random.default_rng([seed, 13])
        z, y, x = (float(s) for s in ground.spacing)
        self.brush = Brush(ground.hu, (z, y, x), look, NoiseField(self.rng, look.grain_zyx))
        self.taken = [(centre * ground.spacing, radius) for centre, radius in taken]

    def nodule(self, wanted: WantedNodule) -> Placed | None:
        """Insert a nodule, or give None where no room was found for it."""
        if not self._has_noise_for(wanted.diameter_mm):
            return None
        for _ in range(ATTEMPTS):
            centre = self.ground.centre(self.rng, wanted.place, wanted.diameter_mm)
            if centre is None or not self._free(centre, wanted.diameter_mm / 2):
                continue
            done = self._tried(centre, wanted)
            if done is not None:
                self._take(done.centre_zyx, done.diameter_mm / 2)
                return Placed(done.centre_zyx, done.diameter_mm, wanted.kind, wanted.place, wanted.diameter_mm)
        return None

    def _has_noise_for(self, diameter_mm: float) -> bool:
        """Tell whether the field of noise is large enough for a nodule with its spicules on this grid."""
        reach = diameter_mm / 2 * MOST_REACH + 3 * max(*self.brush.look.blur_zyx_mm, 0.8)
        return bool((2 * reach / self.ground.spacing + 2 < FIELD_SHAPE).all())

    def _tried(self, centre: Point, wanted: WantedNodule) -> Inserted | None:
        """Insert; what shows too little of itself is taken out again."""
        reach = np.ceil((wanted.diameter_mm * 2 + 10) / self.ground.spacing).astype(int)
        low = np.maximum(np.floor(centre).astype(int) - reach, 0)
        z, y, x = (slice(int(a), int(a + 2 * r + 2)) for a, r in zip(low, reach, strict=True))
        before = self.ground.hu[z, y, x].copy()
        done = self.brush.nodule(self.rng, centre, wanted.diameter_mm, wanted.kind)
        if done is not None and done.diameter_mm < max(LEAST_MM, LEAST_PART * wanted.diameter_mm):
            self.ground.hu[z, y, x] = before
            return None
        return done

    def sham(self) -> tuple[Point, float] | None:
        """Blend lung over lung; gives centre (index) and diameter."""
        for _ in range(ATTEMPTS):
            diameter = float(self.rng.uniform(4, 12))
            centre = self.ground.centre(self.rng, "free", diameter)
            if (
                centre is not None
                and self._free(centre, diameter / 2)
                and self.brush.sham(self.rng, centre, diameter)
            ):
                self._take(centre, diameter / 2)
                return centre, diameter
        return None

    def imitator(self) -> bool:
        """Insert something that is mistaken for a nodule, anywhere."""
        return any(self.brush.mimic(self.rng) for _ in range(40))

    def candidate(self) -> Point | None:
        """Draw a place (index) that is no finding."""
        for _ in range(20):
            centre = self.ground.anywhere(self.rng)
            if centre is not None and self._free(centre, 0.0):
                return centre
        return None

    def _free(self, centre: Point, radius: float) -> bool:
        place = centre * self.ground.spacing
        return all(np.linalg.norm(place - p) > radius + r + ROOM_MM for p, r in self.taken)

    def _take(self, centre: Point, radius: float) -> None:
        self.taken.append((centre * self.ground.spacing, radius))
