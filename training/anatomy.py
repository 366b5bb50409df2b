"""The large organs of the digital chest: signed distances on a coarse grid, from a seed.

Owns body, lungs, airways, bones, heart and diaphragm; vessels, nodules and the scanner are others' rooms. Nothing
here claims to be a person. Coordinates are LPS millimetres: x to the left, y to the back, z to the head; z = 0 is
the lungs' base and the origin lies on the body's axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float32]

COARSE_MM = 2.5
MARGIN_BELOW_MM = 22.0
MARGIN_ABOVE_MM = 14.0
RIB_PITCH_MM = 27.0


@dataclass(frozen=True, slots=True)
class Build:
    """A person's measures; mm.

    ``half_width`` and ``half_depth`` are the body's, ``cage_half_width`` and ``cage_half_depth`` those of the rib
    cage's inside, ``height`` the lungs' from base to apex; ``blood_hu`` follows ``contrast``.
    """

    half_width: float
    half_depth: float
    fat: float
    cage_half_width: float
    cage_half_depth: float
    height: float
    heart: float
    dome: float
    lung_hu: float
    blood_hu: float
    contrast: bool


def draw_build(rng: np.random.Generator) -> Build:
    """Draw a person."""
    half_width = float(rng.uniform(150, 190))
    half_depth = half_width * float(rng.uniform(0.66, 0.74))
    fat = float(rng.uniform(7, 20))
    wall = float(rng.uniform(15, 19))
    contrast = bool(rng.random() < 0.4)
    return Build(
        half_width=half_width,
        half_depth=half_depth,
        fat=fat,
        cage_half_width=half_width - fat - wall,
        cage_half_depth=half_depth - fat - wall,
        height=float(rng.uniform(205, 255)),
        heart=float(rng.uniform(0.85, 1.1)),
        dome=float(rng.uniform(38, 55)),
        lung_hu=float(rng.uniform(-880, -830)),
        blood_hu=float(rng.uniform(140, 230)) if contrast else float(rng.uniform(30, 50)),
        contrast=contrast,
    )


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Signed distances (mm, positive inside) on a coarse grid, shape ``(z, y, x)``, spacing ``COARSE_MM``.

    Attributes
    ----------
    z_mm, y_mm, x_mm
        Coordinates of the grid; mm.
    body, lung, airway, bone, blood, organ
        Skin, both lungs, trachea and main bronchi, skeleton, heart and great vessels, other soft organs.
    bone_hu
        What the skeleton is made of: bone behind, cartilage in front.
    major_fissure, minor_fissure
        Signed distance to the sheets, right minor fissure apart.
    lung_depth
        True distance from the lungs' surface inwards; mm.
    lung_hu
        Parenchyma with its gradient and slow texture; HU.
    marbling
        Part of fat between the muscles, in [0, 1].
    """

    build: Build
    z_mm: Array
    y_mm: Array
    x_mm: Array
    body: Array
    lung: Array
    airway: Array
    bone: Array
    bone_hu: Array
    blood: Array
    organ: Array
    major_fissure: Array
    minor_fissure: Array
    lung_depth: Array
    lung_hu: Array
    marbling: Array


def _union(parts: Sequence[Array]) -> Array:
    """Distance to the union of bodies; the parts broadcast."""
    return np.asarray(reduce(np.maximum, parts), np.float32)


def _common(parts: Sequence[Array]) -> Array:
    """Distance to the intersection of bodies; the parts broadcast."""
    return np.asarray(reduce(np.minimum, parts), np.float32)


def _radial(x: Array, y: Array, half_x: Array | float, half_y: Array | float, power: float) -> Array:
    """Distance along the ray from the axis to a superellipse, positive inside."""
    span = (np.abs(x / half_x) ** power + np.abs(y / half_y) ** power) ** np.float32(1 / power) + np.float32(1e-3)
    out = np.hypot(x, y) + np.float32(0.5)
    return np.asarray(out / span - out, np.float32)


def _ball(x: Array, y: Array, z: Array, radii: tuple[float, float, float]) -> Array:
    """Approximate distance to an ellipsoid's surface, positive inside."""
    span = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2) + np.float32(1e-3)
    return np.asarray((1 - span) * min(radii), np.float32)


def _rod(
    at: tuple[Array, Array, Array],
    start: tuple[float, float, float],
    end: tuple[float, float, float],
    radius: float,
) -> Array:
    """Distance to a capsule from start to end (x, y, z), positive inside."""
    axis = np.subtract(end, start).astype(np.float32)
    rel = [a - np.float32(s) for a, s in zip(at, start, strict=True)]
    t = sum(r * a for r, a in zip(rel, axis, strict=True)) / np.float32(axis @ axis)
    t = np.clip(t, 0, 1)
    return np.asarray(radius - np.sqrt(sum((r - t * a) ** 2 for r, a in zip(rel, axis, strict=True))), np.float32)


def draw_anatomy(rng: np.random.Generator, build: Build, field_of_view_mm: float) -> Anatomy:
    """Draw the organs of a person over a square field of view (mm) centred on the body's axis."""
    half = field_of_view_mm / 2 + COARSE_MM
    x1 = np.arange(-half, half + COARSE_MM, COARSE_MM, dtype=np.float32)
    z1 = np.arange(-MARGIN_BELOW_MM - 3, build.height + MARGIN_ABOVE_MM + 3, COARSE_MM, dtype=np.float32)
    z, y, x = z1[:, None, None], x1[None, :, None], x1[None, None, :]
    cage = _cage(build, z, y, x)
    airway = _airways(build, (x, y, z))
    blood, organ = _soft_organs(build, (x, y, z))
    spine, bone, bone_hu = _skeleton(rng, build, cage, (x, y, z))
    lung = _lungs(build, cage, np.maximum(blood, organ), spine, (x, y, z))
    major, minor = _fissures(rng, build, z, y, x)
    return Anatomy(
        build=build,
        z_mm=z1,
        y_mm=x1,
        x_mm=x1,
        body=np.broadcast_to(_radial(x, y, build.half_width, build.half_depth, 2.5), lung.shape),
        lung=lung,
        airway=airway,
        bone=bone,
        bone_hu=bone_hu,
        blood=blood,
        organ=organ,
        major_fissure=major,
        minor_fissure=minor,
        lung_depth=ndimage.distance_transform_edt(lung > 0, sampling=COARSE_MM).astype(np.float32),
        lung_hu=_parenchyma(rng, build, lung.shape, y),
        marbling=_marbling(rng, lung.shape),
    )


def _cage(build: Build, z: Array, y: Array, x: Array) -> Array:
    """Inside of the rib cage: a superellipse that closes towards the apex."""
    up = np.clip((z / build.height - 0.25) / 0.78, 0, 1.5)
    close = np.sqrt(np.maximum(1 - up**2.8, 1e-4)).astype(np.float32)
    forward = np.float32(0.10 * build.cage_half_depth) * up
    return _radial(x, y - forward, build.cage_half_width * close, build.cage_half_depth * close, 2.3)


def _airways(build: Build, at: tuple[Array, Array, Array]) -> Array:
    """Trachea, carina and the two main bronchi."""
    h, d = build.height, build.cage_half_depth
    carina = (0.0, 0.12 * d, 0.60 * h)
    parts = [
        _rod(at, carina, (0.0, -0.02 * d, h + 40), 8.5),
        _rod(at, carina, (-34.0, 0.14 * d, 0.52 * h), 6.5),
        _rod(at, carina, (38.0, 0.16 * d, 0.50 * h), 6.0),
    ]
    return _union(parts)


def _soft_organs(build: Build, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """Heart with the great vessels, and the mediastinum with what lies below the diaphragm."""
    x, y, z = at
    h, d, w = build.height, build.cage_half_depth, build.cage_half_width
    size = build.heart
    heart = _ball(x - 24, y + 0.26 * d, z - 0.22 * h, (58 * size, 46 * size, 62 * size))
    aorta_back = _rod(at, (20, 0.50 * d, -40), (22, 0.46 * d, 0.62 * h), 11.5)
    arch = _rod(at, (22, 0.46 * d, 0.66 * h), (2, -0.25 * d, 0.68 * h), 12.5)
    rise = _rod(at, (-8, -0.28 * d, 0.36 * h), (2, -0.25 * d, 0.68 * h), 14.0)
    cava = _rod(at, (-26, -0.18 * d, 0.30 * h), (-24, -0.20 * d, 0.80 * h), 9.0)
    right = _rod(at, (0, -0.10 * d, 0.50 * h), (-42, 0.04 * d, 0.50 * h), 9.0)
    left = _rod(at, (0, -0.10 * d, 0.52 * h), (44, 0.08 * d, 0.53 * h), 9.5)
    branches = [_rod(at, (s * 10 + 4, -0.15 * d, 0.68 * h), (s * 26, -0.05 * d, h + 30), 5.5) for s in (-1, 0, 1)]
    blood = _union([heart, aorta_back, arch, rise, cava, right, left, *branches])
    front = np.clip((y / d + 1.0) / 0.7, 0.25, 1)
    waist = (26 + 14 * np.clip(1 - z / (0.5 * h), 0, 1) + 12 * np.clip(z / h - 0.7, 0, 1)) * front
    column = np.asarray(np.minimum(waist - np.abs(x - 2), d * 1.05 - np.abs(y)), np.float32)
    dome = _dome(build, x, y)
    below = np.asarray(dome - z + 0 * x, np.float32)
    inside = _radial(x, y, w * 1.02, d * 1.02, 2.3)
    return blood, np.maximum(column, np.minimum(below, inside))


def _dome(build: Build, x: Array, y: Array) -> Array:
    """Height of the diaphragm over x and y, the right side higher; mm."""
    w, d = build.cage_half_width, build.cage_half_depth
    right = build.dome + 10 - 62 * (((x + 0.48 * w) / (0.62 * w)) ** 2 + ((y + 0.05 * d) / d) ** 2)
    left = build.dome - 62 * (((x - 0.48 * w) / (0.62 * w)) ** 2 + ((y + 0.05 * d) / d) ** 2)
    return np.asarray(np.maximum(right, left), np.float32)


def _skeleton(
    rng: np.random.Generator, build: Build, cage: Array, at: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """Vertebral column, ribs, sternum, collar bones and shoulder blades; also the column with its soft sleeve."""
    x, y, z = at
    h, d = build.height, build.cage_half_depth
    back = 0.74 * d
    shift = float(rng.uniform(0, RIB_PITCH_MM))
    ring = np.abs((z + shift) / RIB_PITCH_MM - np.round((z + shift) / RIB_PITCH_MM)) * RIB_PITCH_MM
    body = _radial(x, y - back, 17.0, 14.0, 2.3) - np.clip(3 - (RIB_PITCH_MM / 2 - ring), 0, 2)
    canal = _radial(x, y - back - 22, 9.0, 8.0, 2)
    arch = np.minimum(_radial(x, y - back - 21, 15.0, 13.0, 2), -canal)
    process = np.minimum(3.5 - np.abs(x), np.minimum(y - back - 28, back + 46 - y)) - np.clip(ring - 8, 0, 6)
    angle = np.arctan2(x, -(y - 0.1 * d))  # 0 in front, +-pi at the spine
    slope = np.abs(angle) / np.pi
    drop = 115 * (1 - slope) ** 1.2
    level = (z + shift + drop) / RIB_PITCH_MM
    across = (level - np.round(level)) * RIB_PITCH_MM
    shell = cage + 6.0
    rib = 4.0 * (1 - np.sqrt((shell / 4.0) ** 2 + (across / 6.5) ** 2))
    rib = np.where((z < h + 2) & (slope > 0.12), rib, -9.0)
    sternum = _common(
        [15 - np.abs(x) + 0 * z, 5 - np.abs(y + 1.0 * d + 3) + 0 * z, np.minimum(z - 0.3 * h, 0.88 * h - z) + 0 * x]
    )
    collar = np.maximum(
        _rod(at, (18, -0.75 * d, 0.93 * h), (120, -0.45 * d, 1.05 * h), 6.0),
        _rod(at, (-18, -0.75 * d, 0.93 * h), (-120, -0.45 * d, 1.05 * h), 6.0),
    )
    blade = _common(
        [2.6 - np.abs(cage + 17.0), 60 * (0.10 - np.abs(slope - 0.70)) + 0 * z, 0.3 * (z - 0.42 * h) + 0 * x]
    )
    bone = _union([body + 0 * z, arch + 0 * z, process, rib, sternum, collar, blade]).astype(np.float32)
    soft_front = np.clip((0.34 - slope) / 0.06, 0, 1) * (np.abs(cage + 6.0) < 7)
    disc = np.clip((ring - 10.5) / 1.5, 0, 1) * (np.hypot(x, y - back) < 19)
    marrow = 190.0 + 0 * bone
    bone_hu = marrow * (1 - soft_front) + 95 * soft_front
    bone_hu = bone_hu * (1 - disc) + 80 * disc
    sleeve = _radial(x, y - back, 22.0, 19.0, 2.3) + 0 * z
    return sleeve, bone, np.asarray(bone_hu, np.float32)


def _lungs(build: Build, cage: Array, organs: Array, spine: Array, at: tuple[Array, Array, Array]) -> Array:
    """Both lungs: the cage less mediastinum, column and diaphragm."""
    x, _, z = at
    gap = np.asarray(np.abs(x) - 1.5 + 0 * z, np.float32)
    outline = _common([cage, -organs, -spine, gap, z + 0 * x])
    mask, count = ndimage.label(outline > 0)
    if count > 2:
        sizes = np.bincount(mask.ravel())
        sizes[0] = 0
        keep = np.isin(mask, np.flatnonzero(sizes > 0.1 * sizes.max()))
        outline = np.where(keep, outline, np.minimum(outline, -1.0))
    smooth = ndimage.gaussian_filter(np.clip(outline, -12, 12).astype(np.float32), 0.9)
    return np.asarray(np.where(np.abs(outline) < 6, smooth, outline), np.float32)


def _fissures(rng: np.random.Generator, build: Build, z: Array, y: Array, x: Array) -> tuple[Array, Array]:
    """Oblique fissures of both lungs, and the right lung's horizontal one (far away elsewhere)."""
    h, d = build.height, build.cage_half_depth
    lean = float(rng.uniform(0.75, 0.95))
    bow = float(rng.uniform(0.002, 0.006))
    curve = bow * (np.abs(x) - 70) ** 2 + 0.2 * np.abs(x) + 4 * np.sign(x)
    oblique = (z - 0.45 * h) - lean * 0.5 * h / d * (y - 0.05 * d) + curve
    major = np.asarray(oblique / np.float32(np.hypot(1, lean * 0.5 * h / d)), np.float32)
    flat = (z - 0.5 * h) + 0.12 * (x + 70) + 0.0015 * (y + 20) ** 2
    minor = np.where((x < -20) & (major > 1.0), flat, 99.0)
    return major, np.asarray(minor, np.float32)


def _parenchyma(rng: np.random.Generator, build: Build, shape: tuple[int, ...], y: Array) -> Array:
    """Lung tissue: denser towards the back, with slow texture; HU."""
    texture = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), 2.0)
    texture *= np.float32(rng.uniform(8, 18)) / texture.std()
    gradient = np.float32(rng.uniform(15, 40)) * y / np.float32(build.cage_half_depth)
    return np.asarray(build.lung_hu + gradient + texture, np.float32)


def _marbling(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Fat between muscles: flat patches along the body's axis."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), (5.0, 1.6, 2.6))
    noise /= noise.std()
    return np.asarray(np.clip((noise - 0.75) / 0.35, 0, 1), np.float32)
