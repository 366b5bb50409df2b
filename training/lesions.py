"""Shapes of nodules and of their imitators: signed distances in millimetres, soft edges, sizes by LUNA16.

Owns form and density; where a shape goes is decided by the phantom (`phantom.py`) or by the insertion into a real
lung (`insertion.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Axes = tuple[Array, Array, Array]

Shift = tuple[float, float, float]
Kind = Literal["solid", "part-solid", "ground-glass", "calcified"]

DIAMETER_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
DIAMETERS_MM = (3.0, 4.09, 5.11, 6.43, 9.70, 18.95, 30.0)
"""Quantiles of the 1 186 LUNA16 diameters, cut to the task's 3-30 mm."""

MASSES_FROM_MM, MASSES = (6.0, 12.0), (0.25, 0.55)
"""Part of the solid and part-solid nodules that are irregular: from these diameters on, linear in between."""

EDGE_MM = 0.9
"""Width of the linear edge that stands for the partial volume of a voxel."""


def draw_diameter(rng: np.random.Generator, at_least_mm: float = 3.0) -> float:
    """Draw a diameter (mm) from LUNA16's distribution, the part above a limit."""
    lowest = float(np.interp(at_least_mm, DIAMETERS_MM, DIAMETER_QUANTILES))
    return float(np.interp(rng.uniform(lowest, 1.0), DIAMETER_QUANTILES, DIAMETERS_MM))


def draw_kind(rng: np.random.Generator) -> Kind:
    """Draw what a nodule is made of; one in three is subsolid."""
    kinds: tuple[Kind, ...] = ("solid", "part-solid", "ground-glass", "calcified")
    return kinds[rng.choice(4, p=[0.60, 0.14, 0.21, 0.05])]


@dataclass(frozen=True, slots=True)
class Star:
    """A star-shaped body: a stretched ball whose radius waves with direction, with spicules or without.

    Attributes
    ----------
    radius_mm
        Radius before stretching and waves.
    stretch_zyx
        Factor along each axis; their product is one.
    turn
        Rotation of the stretched axes in the transverse plane; rad.
    waves
        Direction (z, y, x), amplitude, and whether the wave is even.
    spicules
        Direction (z, y, x) and height of each, as a part of the radius.
    """

    radius_mm: float
    stretch_zyx: tuple[float, float, float]
    turn: float
    waves: tuple[tuple[tuple[float, float, float], float, bool], ...]
    spicules: tuple[tuple[tuple[float, float, float], float], ...] = ()

    @property
    def reach_mm(self) -> float:
        """Farthest the surface can lie from the centre."""
        return self.radius_mm * (2.2 if self.spicules else 1.6) * max(self.stretch_zyx)

    def distance(self, axes: Axes) -> Array:
        """Signed distance to the surface (mm, positive inside) at offsets z, y, x (mm) that broadcast."""
        z, y, x = axes
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        z, y, x = (
            z / self.stretch_zyx[0],
            (cos * y + sin * x) / self.stretch_zyx[1],
            (cos * x - sin * y) / self.stretch_zyx[2],
        )
        radius = np.sqrt(z * z + y * y + x * x) + np.float32(1e-3)
        surface = np.ones_like(radius)
        for (dz, dy, dx), amplitude, even in self.waves:
            along = (z * dz + y * dy + x * dx) / radius
            surface += np.float32(amplitude) * (along * along - 0.33 if even else along * along * along)
        for (dz, dy, dx), height in self.spicules:
            along = (z * dz + y * dy + x * dx) / radius
            surface += np.float32(height) * np.exp(60 * (along - 1))
        limit = 2.2 if self.spicules else 1.6
        return np.asarray(self.radius_mm * np.clip(surface, 0.5, limit) - radius, np.float32)


def draw_star(rng: np.random.Generator, diameter_mm: float, *, spiculated: bool = False) -> Star:
    """Draw a nodule's form: radius r0 (1 + low-order waves of 3-14 %), axes stretched by some 13 %."""
    stretch = np.exp(rng.normal(0, 0.13, 3))
    stretch /= np.prod(stretch) ** (1 / 3)
    amplitude = rng.uniform(0.03, 0.14)
    waves = tuple((direction(rng), float(amplitude * rng.standard_normal()), k % 2 == 1) for k in range(4))
    count = int(rng.integers(6, 16)) if spiculated else 0
    spicules = tuple((direction(rng), float(rng.uniform(0.2, 0.8))) for _ in range(count))
    turn = float(rng.uniform(0, np.pi))
    return Star(diameter_mm / 2, (stretch[0], stretch[1], stretch[2]), turn, waves, spicules)


def is_mass(rng: np.random.Generator, diameter_mm: float, kind: Kind) -> bool:
    """Draw whether a nodule is irregular, with lobes and strands (`draw_mass`); decision 0095."""
    share = float(np.interp(diameter_mm, MASSES_FROM_MM, MASSES, left=0.0))
    return kind in ("solid", "part-solid") and bool(rng.random() < share)


def ball(diameter_mm: float) -> Star:
    """Give a plain ball, the nodule of physical phantoms."""
    return Star(diameter_mm / 2, (1.0, 1.0, 1.0), 0.0, ())


@dataclass(frozen=True, slots=True)
class Tube:
    """A round rod with tapering ends: a vessel piece, or a plugged bronchus. Half length and radius in mm."""

    along_zyx: tuple[float, float, float]
    half_length_mm: float
    radius_mm: float

    @property
    def reach_mm(self) -> float:
        """Farthest the surface can lie from the centre."""
        return self.half_length_mm + 1.0

    def distance(self, axes: Axes) -> Array:
        """Signed distance to the surface (mm, positive inside) at offsets z, y, x (mm) that broadcast."""
        z, y, x = axes
        along = z * self.along_zyx[0] + y * self.along_zyx[1] + x * self.along_zyx[2]
        across = np.sqrt(np.maximum(z * z + y * y + x * x - along * along, 0))
        radius = self.radius_mm * np.clip(1.7 * (1 - np.abs(along) / self.half_length_mm), 0, 1)
        return np.asarray(np.where(radius > 0.05, radius - across, -9.0), np.float32)


@dataclass(frozen=True, slots=True)
class Plate:
    """A flat lens: a pleural plaque, a scar or a thickened fissure. Normal, half width and half thickness in mm."""

    normal_zyx: tuple[float, float, float]
    half_width_mm: float
    half_thickness_mm: float

    @property
    def reach_mm(self) -> float:
        """Farthest the surface can lie from the centre."""
        return self.half_width_mm + 1.0

    def distance(self, axes: Axes) -> Array:
        """Signed distance to the surface (mm, positive inside) at offsets z, y, x (mm) that broadcast."""
        z, y, x = axes
        off = np.abs(z * self.normal_zyx[0] + y * self.normal_zyx[1] + x * self.normal_zyx[2])
        span = np.sqrt(z * z + y * y + x * x) / self.half_width_mm
        thickness = self.half_thickness_mm * np.clip(1.6 * (1 - span), 0, 1)
        return np.asarray(np.where(span < 1, thickness - off, -9.0), np.float32)


@dataclass(frozen=True, slots=True)
class Mass:
    """What several bodies fill together, lobes and strands that run out of them, with an uneven surface.

    Attributes
    ----------
    parts
        Each with its shift from the centre along z, y, x; mm.
    ripples
        Waves through space that raise and lower the surface: wave vector z, y, x (rad/mm), phase, height (mm).
    """

    parts: tuple[tuple[Star | Tube, Shift], ...]
    ripples: tuple[tuple[Shift, float, float], ...] = ()

    @property
    def reach_mm(self) -> float:
        """Farthest the surface can lie from the centre."""
        raised = sum(height for _, _, height in self.ripples)
        return raised + max(part.reach_mm + float(np.linalg.norm(shift)) for part, shift in self.parts)

    def distance(self, axes: Axes) -> Array:
        """Signed distance to the surface (mm, positive inside) at offsets z, y, x (mm) that broadcast."""
        z, y, x = axes
        inside = [
            part.distance((z - np.float32(dz), y - np.float32(dy), x - np.float32(dx)))
            for part, (dz, dy, dx) in self.parts
        ]
        found = np.maximum.reduce(inside)
        for (kz, ky, kx), phase, height in self.ripples:
            found += np.float32(height) * np.sin(np.float32(phase) + z * kz + y * ky + x * kx)
        return np.asarray(found, np.float32)


def draw_mass(rng: np.random.Generator, diameter_mm: float) -> Mass:
    """Draw a large irregular nodule: an uneven core with lobes, and strands into the lung, as many cancers have."""
    radius = diameter_mm / 2
    fine = min(1.0, radius / 6)
    core = draw_star(rng, diameter_mm * float(rng.uniform(0.6, 0.85)), spiculated=bool(rng.random() < 0.5))
    parts: list[tuple[Star | Tube, Shift]] = [(core, (0.0, 0.0, 0.0))]
    for _ in range(int(rng.integers(2, 6))):
        lobe = draw_star(rng, diameter_mm * float(rng.uniform(0.3, 0.6)))
        parts.append((lobe, _along(direction(rng), radius * float(rng.uniform(0.5, 0.95)))))
    for _ in range(int(rng.integers(4, 15))):
        along, half = direction(rng), float(rng.uniform(3, 10)) * fine
        strand = Tube(along, half, float(rng.uniform(0.5, 1.4)) * fine**0.5)
        parts.append((strand, _along(along, radius * 0.8 + half * 0.5)))
    height = float(rng.uniform(0.1, 0.45)) * fine
    ripples = tuple(
        (_along(direction(rng), float(2 * np.pi / rng.uniform(3.5, 11))), float(rng.uniform(0, 2 * np.pi)), height)
        for _ in range(8)
    )
    return Mass(tuple(parts), ripples)


def _along(unit: Shift, length: float) -> Shift:
    return unit[0] * length, unit[1] * length, unit[2] * length


Shape = Star | Tube | Plate | Mass


def direction(rng: np.random.Generator) -> tuple[float, float, float]:
    """Draw a unit vector, every direction equally likely."""
    v = rng.standard_normal(3)
    v /= np.linalg.norm(v)
    return float(v[0]), float(v[1]), float(v[2])


def soft(distance_mm: Array) -> Array:
    """Turn a signed distance (mm) into the part of a voxel that is filled, in [0, 1]."""
    return np.asarray(np.clip(np.float32(0.5) + distance_mm / np.float32(EDGE_MM), 0, 1), np.float32)


Slices3 = tuple[slice, slice, slice]


def box_around(
    centre_zyx: NDArray[np.float64], reach_mm: float, spacing_zyx_mm: Sequence[float], shape_zyx: Sequence[int]
) -> Slices3 | None:
    """Find the voxels within a distance of a centre (index), or None where fewer than two remain on an axis."""
    reach = reach_mm / np.asarray(spacing_zyx_mm)
    low = np.maximum(np.floor(centre_zyx - reach).astype(int), 0)
    high = np.minimum(np.ceil(centre_zyx + reach).astype(int) + 1, shape_zyx)
    if (high - low < 2).any():
        return None
    return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])


def offsets_mm(
    box: Slices3, centre_zyx: NDArray[np.float64], spacing_zyx_mm: Sequence[float], z_parts: int = 1
) -> Axes:
    """Give the offsets (mm) of the voxels of a box from a centre (index), ready to broadcast.

    With ``z_parts`` > 1 each slice is cut in so many layers, for an integral over the slice's profile.
    """
    z, y, x = (
        ((np.arange(s.start, s.stop) - c) * mm).astype(np.float32)
        for s, c, mm in zip(box, centre_zyx, spacing_zyx_mm, strict=True)
    )
    if z_parts > 1:
        within = ((np.arange(z_parts) + 0.5) / z_parts - 0.5) * spacing_zyx_mm[0]
        z = (z[:, None] + within.astype(np.float32)).ravel()
    return z[:, None, None], y[None, :, None], x[None, None, :]


def occupancy(shape: Shape, axes: Axes, z_parts: int = 1) -> Array:
    """Part of each voxel that a shape fills, in [0, 1], shape (z, y, x); layers of a slice are averaged."""
    filled = soft(shape.distance(axes))
    if z_parts == 1:
        return filled
    return np.asarray(filled.reshape(-1, z_parts, *filled.shape[1:]).mean(axis=1), np.float32)
