"""Simulated nodules and imitators put into a piece of a real scan, with the scan's own blur and noise.

Works on Hounsfield units on the networks' grid, in place. The blend keeps the noise's strength everywhere; a naive
one leaves a fingerprint that a network finds (decision 0021). For the idea see Pezeshk et al., IEEE TMI 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from training.imitators import draw_imitator
from training.lesions import (
    Kind,
    Shape,
    ball,
    box_around,
    draw_mass,
    draw_star,
    is_mass,
    occupancy,
    offsets_mm,
    soft,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from training.lesions import Array, Slices3

AIR_HU = -300.0
"""Below it a voxel counts as lung: the part of a nodule that lies there is the part one sees."""

LEAST_SEEN = 0.45
"""A nodule that lies in air with less of its volume is not inserted."""

PLAIN_BALLS = 0.15
"""Part of the nodules that are plain balls."""

VESSELS_STAY = 0.5
"""Part of the solid nodules through which brighter vessels can be seen."""

BUMPS = 0.2
"""Part of the imitators that are bumps of the wall."""

SMOOTHING = 0.8
"""Voxels; a Gaussian that takes most of the noise and leaves vessels."""

FIELD_SHAPE = (72, 128, 128)


@dataclass(frozen=True, slots=True)
class Look:
    """How a scan looks: what an inserted shape must be given.

    Attributes
    ----------
    blur_zyx_mm
        Standard deviation of the point spread function along each axis.
    noise_hu
        Standard deviation of the noise in soft tissue.
    grain_zyx
        Standard deviation, in voxels, of the Gaussian that correlates white noise like the scan's.
    """

    blur_zyx_mm: tuple[float, float, float]
    noise_hu: float
    grain_zyx: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Inserted:
    """What became visible of a nodule: centroid (voxel index) and volume-equal diameter of its part in air."""

    centre_zyx: NDArray[np.float64]
    diameter_mm: float


class NoiseField:
    """A large block of correlated noise of unit strength, from which pieces are cut."""

    def __init__(self, rng: np.random.Generator, grain_zyx: tuple[float, float, float]) -> None:
        field = rng.standard_normal(FIELD_SHAPE, np.float32)
        field = ndimage.gaussian_filter(field, grain_zyx)
        self.field = (field / field.std()).astype(np.float32)

    def cut(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Cut a piece at a random place, shape (z, y, x)."""
        start = [int(rng.integers(0, n - s + 1)) for n, s in zip(self.field.shape, shape, strict=True)]
        z, y, x = (slice(a, a + s) for a, s in zip(start, shape, strict=True))
        return np.asarray(self.field[z, y, x], np.float32)


def blend(hu: Array, part: Array, density_hu: Array | float, noise_hu: Array) -> Array:
    """Lay a body over a scan: (1 - a) I + a H + sqrt(1 - (1 - a)^2) n.

    Parameters
    ----------
    hu
        The scan I.
    part
        Blurred occupancy a of the body, in [0, 1].
    density_hu
        Its density H.
    noise_hu
        Noise n like the scan's.

    Notes
    -----
    The variance is (1 - a)^2 s^2 + (1 - (1 - a)^2) s^2 = s^2: the same inside, at the rim and outside.
    """
    keep = 1 - part
    share = np.sqrt(np.clip(1 - keep * keep, 0, 1))
    return np.asarray(keep * hu + part * density_hu + share * noise_hu, np.float32)


def with_vessels(density_hu: Array, hu: Array) -> Array:
    """Let what is clearly brighter than a body, as vessels with contrast agent are, stay visible inside it.

    Parameters
    ----------
    density_hu
        Of the body, ``(z, y, x)``.
    hu
        The scan without it; its noise is smoothed away first, because the blend adds noise of its own.
    """
    smooth = ndimage.gaussian_filter(hu, SMOOTHING)
    stays = np.clip((smooth - density_hu - 20) / 40, 0, 1)
    return np.asarray(density_hu + stays * (smooth - density_hu), np.float32)


def _noise_kept(grain_zyx: tuple[float, float, float]) -> float:
    """Part of the variance of noise of some grain that smoothing leaves: a Gaussian's widths add in squares."""
    return float(np.prod([g / np.hypot(g, SMOOTHING) for g in grain_zyx]))


def _draw_form(rng: np.random.Generator, diameter_mm: float, kind: Kind) -> Shape:
    """Draw a nodule's form: a mass, a ball, or a star with spicules or without."""
    if is_mass(rng, diameter_mm, kind):
        return draw_mass(rng, diameter_mm)
    spiculated = kind == "solid" and diameter_mm > 7 and bool(rng.random() < 0.2)
    if not spiculated and rng.random() < PLAIN_BALLS:
        return ball(diameter_mm)
    return draw_star(rng, diameter_mm, spiculated=spiculated)


@dataclass(frozen=True, slots=True, eq=False)
class Brush:
    """Inserts things into one piece of a scan.

    Attributes
    ----------
    hu
        The piece, float32, shape ``(z, y, x)``; changed in place.
    spacing_zyx_mm
        Its grid.
    look, noise
        The scan's blur and noise, the latter as a field of unit strength.
    """

    hu: Array
    spacing_zyx_mm: tuple[float, float, float]
    look: Look
    noise: NoiseField

    def _blurred(self, shape: Shape, centre: NDArray[np.float64]) -> tuple[Slices3, Array, Array] | None:
        reach = shape.reach_mm + 3 * max(*self.look.blur_zyx_mm, 0.8)
        box = box_around(centre, reach, self.spacing_zyx_mm, self.hu.shape)
        if box is None:
            return None
        sharp = occupancy(shape, offsets_mm(box, centre, self.spacing_zyx_mm))
        sigma = np.asarray(self.look.blur_zyx_mm) / self.spacing_zyx_mm
        return box, sharp, ndimage.gaussian_filter(sharp, sigma, truncate=2.5)

    def _grain(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return self.noise.cut(rng, shape) * np.float32(self.look.noise_hu)

    def nodule(
        self, rng: np.random.Generator, centre_zyx: NDArray[np.float64], diameter_mm: float, kind: Kind
    ) -> Inserted | None:
        """Insert a nodule.

        Returns
        -------
        Inserted or None
            None, and the piece unchanged, where too little lies in air or the contrast stays below 150 HU (90 HU
            for subsolid ones).
        """
        drawn = self._blurred(_draw_form(rng, diameter_mm, kind), centre_zyx)
        if drawn is None:
            return None
        box, sharp, part = drawn
        old = self.hu[box]
        seen = sharp * (old < AIR_HU)
        if seen.sum() < max(LEAST_SEEN * sharp.sum(), 3):
            return None
        new = self._filled(rng, box, centre_zyx, diameter_mm, kind=kind, part=part)
        contrast = float(((new - old) * part).sum() / part.sum())
        if contrast < (90 if kind in ("ground-glass", "part-solid") else 150):
            return None
        self.hu[box] = new
        middle = np.array(ndimage.center_of_mass(seen)) + [s.start for s in box]
        volume = float(seen.sum() * np.prod(self.spacing_zyx_mm))
        return Inserted(middle, (6 * volume / np.pi) ** (1 / 3))

    def _filled(
        self,
        rng: np.random.Generator,
        box: Slices3,
        centre: NDArray[np.float64],
        diameter: float,
        *,
        kind: Kind,
        part: Array,
    ) -> Array:
        """Give the box with the nodule's matter; ground glass lets vessels shine through and adds no noise."""
        old = self.hu[box]
        grain = self._grain(rng, old.shape)
        if kind == "calcified":
            return blend(old, part, float(rng.uniform(150, 700)), grain)
        if kind == "solid":
            texture = self.noise.cut(rng, old.shape) * np.float32(rng.uniform(0, 20))
            density = np.float32(rng.uniform(-80, 110)) + texture
            if rng.random() < VESSELS_STAY:
                density = with_vessels(density, old)
            return blend(old, part, density, grain)
        added = rng.uniform(150, 450) if kind == "ground-glass" else rng.uniform(150, 350)
        glass = np.minimum(old + part * np.float32(added), np.maximum(old, 60))
        if kind == "ground-glass":
            return np.asarray(glass, np.float32)
        core_diameter = diameter * float(rng.uniform(0.3, 0.7))
        shift = rng.uniform(-0.5, 0.5, 3) * (diameter - core_diameter) / 2 / np.asarray(self.spacing_zyx_mm)
        axes = offsets_mm(box, centre + shift, self.spacing_zyx_mm)
        sigma = np.asarray(self.look.blur_zyx_mm) / self.spacing_zyx_mm
        core = ndimage.gaussian_filter(soft(draw_star(rng, core_diameter).distance(axes)), sigma, truncate=2.5)
        return blend(np.asarray(glass, np.float32), core, float(rng.uniform(-80, 60)), grain)

    def sham(self, rng: np.random.Generator, centre_zyx: NDArray[np.float64], diameter_mm: float) -> bool:
        """Blend lung, its noise smoothed away, over itself, a nodule of contrast 0: the blend itself is no sign."""
        drawn = self._blurred(draw_star(rng, diameter_mm), centre_zyx)
        if drawn is None:
            return False
        box, sharp, part = drawn
        old = self.hu[box]
        inside = old[sharp > 0.5]
        if inside.size == 0 or float((inside > -600).mean()) > 0.05:
            return False
        smooth, kept = ndimage.gaussian_filter(old, SMOOTHING), _noise_kept(self.look.grain_zyx)
        self.hu[box] = blend(old, part, smooth, self._grain(rng, old.shape) * np.float32(np.sqrt(1 - kept)))
        return True

    def mimic(self, rng: np.random.Generator) -> bool:
        """Insert something that is mistaken for a nodule, at a random place in air: see `imitators.py`."""
        margin = 5
        centre = np.array([rng.uniform(margin, n - 1 - margin) for n in self.hu.shape])
        here = float(self.hu[tuple(np.rint(centre).astype(int))])
        if here > -600:
            return False
        if rng.random() < BUMPS:
            return self._bump(rng, centre)
        density = float(rng.uniform(-60, 80)) if rng.random() < 0.75 else float(rng.uniform(80, 230))
        spacing = np.asarray(self.spacing_zyx_mm)
        return self._lay(rng, centre, [(s, shift / spacing) for s, shift in draw_imitator(rng)], density)

    def _bump(self, rng: np.random.Generator, centre: NDArray[np.float64]) -> bool:
        """Lay an end of a rib, of its cartilage or a dome of soft tissue against a wall beside a place."""
        axis, step = int(rng.choice([1, 1, 2])), int(rng.choice([-1, 1]))
        at = np.rint(centre).astype(int)
        while 0 <= at[axis] < self.hu.shape[axis] and self.hu[tuple(at)] < -200:
            at[axis] += step
        if not 0 <= at[axis] < self.hu.shape[axis]:
            return False
        soft_dome = bool(rng.random() < 0.4)
        diameter = float(rng.uniform(14, 34) if soft_dome else rng.uniform(8, 17))
        place = at.astype(np.float64)
        place[axis] += step * float(rng.uniform(0.1, 0.38)) * diameter / self.spacing_zyx_mm[axis]
        density = float(rng.uniform(-20, 70) if soft_dome else rng.uniform(90, 500))
        bump: list[tuple[Shape, NDArray[np.float64]]] = [(draw_star(rng, diameter), np.zeros(3))]
        return self._lay(rng, place, bump, density, most_in_tissue=0.97)

    def _lay(
        self,
        rng: np.random.Generator,
        centre: NDArray[np.float64],
        shapes: list[tuple[Shape, NDArray[np.float64]]],
        density: float,
        *,
        most_in_tissue: float = 0.7,
    ) -> bool:
        """Blend shapes in; one that lies in tissue with more of its volume is left out."""
        laid = False
        for shape, shift in shapes:
            drawn = self._blurred(shape, centre + shift)
            if drawn is None:
                continue
            box, sharp, part = drawn
            old = self.hu[box]
            inside = old[sharp > 0.5]
            if inside.size == 0 or float((inside > -400).mean()) > most_in_tissue:
                continue
            self.hu[box] = blend(old, part, density, self._grain(rng, old.shape))
            laid = True
        return laid
