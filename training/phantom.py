"""A digital chest phantom by seed: a CT scan with nodules whose place, size and kind are known exactly.

Joins organs (`anatomy.py`), trees (`vessels.py`) and lesions (`lesions.py`), then images them: slice profile, blur,
noise with a ramp-like spectrum. Writing it as files is `phantom_files.py`. For training and tests, not for claims.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import fft, ndimage

from pipeline.domain.geometry import Grid
from training.anatomy import (
    COARSE_MM,
    MARGIN_ABOVE_MM,
    MARGIN_BELOW_MM,
    Anatomy,
    Build,
    draw_anatomy,
    draw_build,
)
from training.lesions import (
    Kind,
    Plate,
    Shape,
    Tube,
    box_around,
    direction,
    draw_diameter,
    draw_mass,
    draw_star,
    is_mass,
    occupancy,
    offsets_mm,
)
from training.vessels import Branch, branch_occupancy, grow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from training.lesions import Array, Slices3

Place = Literal["free", "pleura", "vessel", "fissure"]
Point = tuple[float, float, float]

MATRIX = 512
MIMICS = 18
HILUM_MM = 20.0
KERNELS = {"STANDARD": (0.62, 0.0, 0.25), "SOFT": (0.75, 0.0, 0.19), "LUNG": (0.55, 0.55, 0.36)}
"""Blur sigma (mm), edge enhancement, and the frequency (of the sampling rate) where the noise is strongest."""


@dataclass(frozen=True, slots=True)
class ScanSettings:
    """How the phantom is scanned.

    Attributes
    ----------
    slice_distance_mm, thickness_mm
        Distance of slices, and width of the slice profile; mm.
    noise_hu
        Standard deviation of the noise in the middle of the body; HU.
    kernel
        Name of the reconstruction kernel, a key of ``KERNELS``.
    matrix
        Rows and columns.
    """

    slice_distance_mm: float
    thickness_mm: float
    noise_hu: float
    kernel: str
    matrix: int = MATRIX


@dataclass(frozen=True, slots=True)
class PhantomNodule:
    """A nodule that is truly there.

    Attributes
    ----------
    centre_lps_mm
        Centroid of the part that lies in air; x, y, z.
    diameter_mm
        Diameter of the ball with the volume of that part.
    kind, place
        What it is made of, and what it touches.
    """

    centre_lps_mm: Point
    diameter_mm: float
    kind: Kind
    place: Place


@dataclass(frozen=True, slots=True)
class Mimic:
    """Something that looks like a nodule and is none."""

    centre_lps_mm: Point
    size_mm: float
    kind: str


@dataclass(frozen=True, slots=True, eq=False)
class Phantom:
    """A phantom's scan and its truth.

    Attributes
    ----------
    seed
        Everything follows from it and from ``settings``.
    hu
        Hounsfield units, int16, shape ``(z, y, x)``.
    grid
        Where the voxels lie; LPS mm.
    """

    seed: int
    settings: ScanSettings
    hu: NDArray[np.int16]
    grid: Grid
    nodules: tuple[PhantomNodule, ...]
    mimics: tuple[Mimic, ...]


def draw_settings(seed: int) -> ScanSettings:
    """Draw how the phantom of a seed is scanned: several slice distances, kernels and noise levels."""
    rng = np.random.default_rng([seed, 1])
    distance = float(rng.choice([0.7, 1.0, 1.25, 1.25, 2.0, 2.5, 2.5]))
    kernel = str(rng.choice(list(KERNELS), p=[0.55, 0.2, 0.25]))
    low, high = {"STANDARD": (20, 40), "SOFT": (20, 32), "LUNG": (35, 60)}[kernel]
    thickness = distance if distance > 0.9 else 1.0
    return ScanSettings(distance, thickness, float(rng.uniform(low, high)), kernel)


def make_phantom(seed: int, settings: ScanSettings | None = None, nodules: int | None = None) -> Phantom:
    """Make the phantom of a seed.

    Parameters
    ----------
    seed
        Any whole number from 0; the person, the nodules and the noise follow from it.
    settings
        How it is scanned; drawn from the seed when left out.
    nodules
        How many nodules; drawn (4 to 9) when left out; 0 for a chest without.
    """
    settings = settings or draw_settings(seed)
    rng = np.random.default_rng([seed, 2])
    build = draw_build(rng)
    view = float(np.clip((2 * build.half_width + 24) / MATRIX, 0.6, 0.85)) * MATRIX
    anatomy = draw_anatomy(rng, build, view)
    grid = _grid(settings, view, build.height)
    # Masses have a stream of their own: a phantom without one is the same as before there were any.
    canvas = _Canvas(_paint_organs(anatomy, grid), grid, settings, np.random.default_rng([seed, 4]))
    trees = _paint_trees(rng, anatomy, canvas)
    canvas.keep_clear = []
    count = int(rng.integers(4, 10)) if nodules is None else nodules
    placed = [_place_nodule(rng, k, anatomy, trees, canvas) for k in range(count)]
    mimics = [_place_mimic(rng, k, anatomy, trees, canvas) for k in range(MIMICS)]
    hu = _scan(np.random.default_rng([seed, 3]), canvas.hu, grid, settings)
    return Phantom(
        seed,
        settings,
        hu,
        grid,
        tuple(n for n in placed if n is not None),
        (*(m for m in mimics if m is not None), *_hila(build)),
    )


def _grid(settings: ScanSettings, view_mm: float, height_mm: float) -> Grid:
    pixel = view_mm / settings.matrix
    extent = height_mm + MARGIN_ABOVE_MM + MARGIN_BELOW_MM
    slices = int(np.ceil(extent / settings.slice_distance_mm))
    first = -(settings.matrix - 1) / 2 * pixel
    return Grid(
        (slices, settings.matrix, settings.matrix),
        (settings.slice_distance_mm, pixel, pixel),
        (first, first, -MARGIN_BELOW_MM),
    )


class _Canvas:
    """The scan while it is painted, before blur and noise."""

    def __init__(self, hu: Array, grid: Grid, settings: ScanSettings, forms: np.random.Generator) -> None:
        self.hu = hu
        self.forms = forms
        self.grid = grid
        self.origin = np.asarray(grid.origin_lps_mm)
        self.spacing = grid.spacing_zyx_mm
        self.z_parts = max(1, round(settings.thickness_mm / 0.8))
        self.keep_clear: list[tuple[NDArray[np.float64], float]] = []

    def index(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((point - self.origin)[::-1] / self.spacing, np.float64)

    def free(self, point: NDArray[np.float64], reach_mm: float) -> bool:
        index = self.index(point)
        margin = (reach_mm + 1) / np.asarray(self.spacing)
        inside = bool(((index > margin) & (index < np.asarray(self.hu.shape) - 1 - margin)).all())
        return inside and all(np.linalg.norm(point - p) > reach_mm + r for p, r in self.keep_clear)

    def shape(self, shape: Shape, point: NDArray[np.float64]) -> tuple[Slices3, Array] | None:
        index = self.index(point)
        box = box_around(index, shape.reach_mm + 1, self.spacing, self.hu.shape)
        if box is None:
            return None
        return box, occupancy(shape, offsets_mm(box, index, self.spacing, self.z_parts), self.z_parts)


def _paint_organs(anatomy: Anatomy, grid: Grid) -> Array:
    """Compose the organs slice by slice: distances are interpolated, edges stay one voxel wide."""
    pixel = grid.spacing_zyx_mm[1]
    z = grid.origin_lps_mm[2] + np.arange(grid.shape_zyx[0]) * grid.spacing_zyx_mm[0]
    x = grid.origin_lps_mm[0] + np.arange(grid.shape_zyx[2]) * pixel
    up = _Upsample(anatomy, np.asarray(x, np.float64))
    hu = np.empty(grid.shape_zyx, np.float32)
    for k, height in enumerate(z):
        hu[k] = _organ_slice(anatomy, up, float(height), pixel)
    return hu


class _Upsample:
    """Linear interpolation of coarse fields to the pixels of one slice."""

    def __init__(self, anatomy: Anatomy, x: NDArray[np.float64]) -> None:
        place = (x - float(anatomy.x_mm[0])) / COARSE_MM
        self.low = np.clip(np.floor(place).astype(int), 0, len(anatomy.x_mm) - 2)
        self.part = (place - self.low).astype(np.float32)
        self.z0 = float(anatomy.z_mm[0])
        self.layers = len(anatomy.z_mm)
        self.couch = _couch(anatomy, x.astype(np.float32))

    def __call__(self, field: Array, height_mm: float) -> Array:
        place = min(max((height_mm - self.z0) / COARSE_MM, 0), self.layers - 1.001)
        k = int(place)
        layer = field[k] + np.float32(place - k) * (field[k + 1] - field[k])
        wide = layer[:, self.low]
        wide += self.part * (layer[:, self.low + 1] - wide)
        full = wide[self.low]
        full += self.part[:, None] * (wide[self.low + 1] - full)
        return np.asarray(full, np.float32)


def _couch(anatomy: Anatomy, x: Array) -> Array:
    """Air with the scanner's couch under the back: a thin curved shell; HU, the same in every slice."""
    below = x[:, None] - np.float32(anatomy.build.half_depth + 9) + (x[None] / 30) ** 2 * np.float32(0.7)
    shell = np.clip(1.5 - np.abs(below), 0, 1) * (np.abs(x[None]) < 190)
    foam = np.clip(10 - np.abs(below - 12), 0, 1) * (np.abs(x[None]) < 190)
    return np.asarray(-1000 + 60 * foam + 620 * shell, np.float32)


def _organ_slice(anatomy: Anatomy, up: _Upsample, z: float, pixel: float) -> Array:
    def edge(distance: Array) -> Array:
        return np.asarray(np.clip(0.5 + distance / np.float32(pixel), 0, 1), np.float32)

    build = anatomy.build
    body = up(anatomy.body, z)
    lung = up(anatomy.lung, z)
    texture = up(anatomy.lung_hu, z)
    muscle = np.float32(52) + (texture - np.float32(build.lung_hu)) * 0.4
    hu = up.couch.copy()
    hu += edge(body) * (np.float32(-100) - hu)
    muscle -= 135 * up(anatomy.marbling, z)
    hu += edge(body - np.float32(build.fat)) * (muscle - hu)
    organ = up(anatomy.organ, z)
    inside_fat = edge(organ) * np.clip((z - 0.25 * build.height) / 20, 0, 1)
    hu += inside_fat * (np.float32(-85) - hu)
    hu += edge(up(anatomy.blood, z)) * (np.float32(build.blood_hu) - hu)
    hu += edge(lung) * (texture - hu)
    bone = up(anatomy.bone, z)
    outside_lung = 1 - edge(lung)
    cortex = np.clip(1 - np.abs(bone - 0.9) / 1.4, 0, 1) * np.clip((up(anatomy.bone_hu, z) - 70) / 120, 0, 1)
    hu += edge(bone) * outside_lung * (up(anatomy.bone_hu, z) + 520 * cortex - hu)
    airway = up(anatomy.airway, z)
    hu += edge(airway + 1.6) * np.clip(1 - lung / 4, 0, 1) * (np.float32(20) - hu)
    hu += edge(airway) * (np.float32(-990) - hu)
    _sheet(hu, up(anatomy.major_fissure, z), lung, pixel)
    _sheet(hu, up(anatomy.minor_fissure, z), lung, pixel)
    return np.asarray(hu, np.float32)


def _sheet(hu: Array, distance: Array, lung: Array, pixel: float) -> None:
    """Add a fissure: a sheet 0.8 mm thick, 400 HU above the tissue, spread over the pixels it cuts."""
    part = np.clip(1 - np.abs(distance) / np.float32(max(pixel, 0.8)), 0, 1)
    hu += np.float32(190) * part * np.float32(0.5 / max(pixel, 0.8)) * (lung > 1)


def _roots(build: Build, side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the arteries and the veins of a lung begin: mm (x, y, z)."""
    h, d = build.height, build.cage_half_depth
    return np.array([side * 38.0, 0.08 * d, 0.5 * h]), np.array([side * 38.0, -0.04 * d, 0.44 * h])


def _hila(build: Build) -> list[Mimic]:
    """Name the places where vessels gather: lobed and large, and no nodule."""
    roots = [root for side in (-1, 1) for root in _roots(build, side)]
    return [Mimic((float(x), float(y), float(z)), HILUM_MM, "hilum") for x, y, z in roots]


def _paint_trees(rng: np.random.Generator, anatomy: Anatomy, canvas: _Canvas) -> list[Branch]:
    """Draw an arterial and a venous tree into each lung, and bronchi beside the arteries."""
    build = anatomy.build
    trees: list[Branch] = []
    for side in (-1, 1):
        inside = (anatomy.lung_depth > 3) & (np.sign(anatomy.x_mm)[None, None, :] == side)
        places = np.argwhere(inside)
        for root, points, artery in zip(_roots(build, side), (1500, 1100), (True, False), strict=True):
            chosen = places[rng.integers(len(places), size=points)] + rng.uniform(-0.5, 0.5, (points, 3))
            targets = _positions(anatomy, chosen)
            tree = grow(rng, root, targets)
            trees += tree
            if artery:
                _paint_bronchi(tree, canvas)
    tissue = np.float32(build.blood_hu)
    for branch in trees:
        drawn = branch_occupancy(branch, canvas.origin, canvas.spacing, canvas.hu.shape, z_parts=canvas.z_parts)
        if drawn is not None:
            box, part = drawn
            view = canvas.hu[box]
            view += part * np.maximum(tissue - view, 0)
    return [b for b in trees if b.radius_mm > 0.6]


def _positions(anatomy: Anatomy, index: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert coarse indices ``(n, 3)`` in z, y, x to mm in x, y, z."""
    first = np.array([anatomy.z_mm[0], anatomy.y_mm[0], anatomy.x_mm[0]], np.float64)
    return np.asarray((index * COARSE_MM + first)[:, ::-1], np.float64)


def _paint_bronchi(tree: Sequence[Branch], canvas: _Canvas) -> None:
    """Draw an air tube with a wall beside each larger arterial branch."""
    beside = [
        replace(b, radius_mm=b.radius_mm * 0.8, start=_aside(b.start, b.radius_mm), end=_aside(b.end, b.radius_mm))
        for b in tree
        if b.radius_mm > 1.3
    ]
    for value, extra in ((0.0, 0.8), (-950.0, 0.0)):
        for branch in beside:
            drawn = branch_occupancy(
                branch, canvas.origin, canvas.spacing, canvas.hu.shape, z_parts=canvas.z_parts, extra_mm=extra
            )
            if drawn is not None:
                box, part = drawn
                view = canvas.hu[box]
                view += part * (np.float32(value) - view)


def _aside(point: Point, radius: float) -> Point:
    shift = 1.9 * radius + 0.8
    return point[0], point[1] + 0.8 * shift, point[2] + 0.6 * shift


def _place_nodule(
    rng: np.random.Generator, number: int, anatomy: Anatomy, trees: Sequence[Branch], canvas: _Canvas
) -> PhantomNodule | None:
    """Find room for a nodule and draw it: every fourth is subsolid, of the others one in twelve calcified."""
    kind: Kind = ("ground-glass", "part-solid")[number // 4 % 2] if number % 4 == 1 else "solid"
    if kind == "solid" and rng.random() < 0.08:
        kind = "calcified"
    at_least = {"solid": 3.0, "calcified": 3.0, "part-solid": 6.0, "ground-glass": 6.0}[kind]
    diameter = draw_diameter(rng, at_least)
    for attempt in range(60):
        place: Place = ("free", "pleura", "vessel", "fissure")[rng.choice(4, p=[0.45, 0.3, 0.15, 0.1])]
        smaller = diameter * 0.97**attempt if attempt > 20 else diameter
        smaller = max(smaller, at_least)
        centre = _spot(rng, place, smaller, anatomy, trees)
        if centre is None or not canvas.free(centre, smaller / 2 + 4):
            continue
        drawn = _draw_nodule(rng, centre, smaller, canvas, kind=kind, place=place)
        if drawn is not None:
            canvas.keep_clear.append((centre, smaller / 2 + 6))
            return drawn
    return None


def _spot(
    rng: np.random.Generator, place: Place, diameter: float, anatomy: Anatomy, trees: Sequence[Branch]
) -> NDArray[np.float64] | None:
    """Draw a centre for a nodule: mm (x, y, z)."""
    depth = anatomy.lung_depth
    if place == "vessel":
        fitting = [b for b in trees if 0.7 < b.radius_mm < 2.2]
        branch = fitting[rng.integers(len(fitting))]
        away = np.asarray(direction(rng)) * (diameter / 2 + branch.radius_mm * 0.4)
        return np.asarray(branch.middle + away, np.float64)
    if place == "fissure":
        sheet = (np.abs(anatomy.major_fissure) < COARSE_MM / 2) & (depth > diameter / 2 + 3)
    elif place == "pleura":
        centre = max(diameter * rng.uniform(0.15, 0.42), 1.3)
        sheet = (depth > 0) & (np.abs(depth - centre) < COARSE_MM / 2 + 0.3)
    else:
        sheet = depth > diameter / 2 + 4
    places = np.flatnonzero(sheet)
    if not len(places):
        return None
    index = np.array(np.unravel_index(places[rng.integers(len(places))], sheet.shape))[None]
    return np.asarray(_positions(anatomy, index + rng.uniform(-0.4, 0.4, (1, 3)))[0], np.float64)


def _draw_nodule(
    rng: np.random.Generator,
    centre: NDArray[np.float64],
    diameter: float,
    canvas: _Canvas,
    *,
    kind: Kind,
    place: Place,
) -> PhantomNodule | None:
    """Draw a nodule where the tissue is air, and measure what became visible; None where too little did."""
    spiculated = kind == "solid" and diameter > 8 and bool(rng.random() < 0.25)
    star = draw_star(rng, diameter, spiculated=spiculated)
    form = draw_mass(canvas.forms, diameter) if is_mass(canvas.forms, diameter, kind) else star
    drawn = canvas.shape(form, centre)
    if drawn is None:
        return None
    box, part = drawn
    view = canvas.hu[box]
    seen = part * np.clip((-300 - view) / 300, 0, 1)
    if seen.sum() < (0.85 if place in ("free", "fissure") else 0.5) * part.sum() or part.sum() < 1:
        return None
    if kind == "ground-glass":
        view += part * np.maximum(np.float32(rng.uniform(170, 380)) - np.maximum(view + 700, 0), 0)
    elif kind == "part-solid":
        view += part * np.maximum(np.float32(rng.uniform(200, 350)) - np.maximum(view + 650, 0), 0)
        core_diameter = diameter * float(rng.uniform(0.4, 0.65))
        core = canvas.shape(draw_star(rng, core_diameter), centre + rng.uniform(-0.12, 0.12, 3) * diameter)
        if core is None:
            return None
        core_box, core_part = core
        inner = canvas.hu[core_box]
        inner += core_part * np.maximum(np.float32(rng.uniform(-20, 60)) - inner, 0)
    else:
        density = rng.uniform(150, 600) if kind == "calcified" else rng.uniform(-50, 80)
        view += part * np.maximum(np.float32(density) - view, 0)
    return _measure(seen, box, canvas, kind, place)


def _measure(seen: Array, box: Slices3, canvas: _Canvas, kind: Kind, place: Place) -> PhantomNodule:
    """Give centroid and volume-equal diameter of the visible part."""
    total = float(seen.sum())
    middle = np.array(ndimage.center_of_mass(seen)) + [s.start for s in box]
    point = canvas.grid.index_to_lps(middle)
    volume = total * float(np.prod(canvas.spacing))
    return PhantomNodule(
        (float(point[0]), float(point[1]), float(point[2])), float((6 * volume / np.pi) ** (1 / 3)), kind, place
    )


_MIMIC_KINDS = (
    "vessel cross-section",
    "vessel bifurcation",
    "pleural plaque",
    "rib tip",
    "fissural triangle",
    "apical scar",
    "mucus plug",
    "vessel cross-section",
    "vessel bifurcation",
)


def _place_mimic(
    rng: np.random.Generator, number: int, anatomy: Anatomy, trees: Sequence[Branch], canvas: _Canvas
) -> Mimic | None:
    """Draw one of the structures that are mistaken for nodules."""
    kind = _MIMIC_KINDS[number % len(_MIMIC_KINDS)]
    for _ in range(40):
        found = _mimic(rng, kind, anatomy, trees)
        if found is None:
            continue
        centre, shapes, density = found
        size = max(s.reach_mm for s, _ in shapes)
        if not canvas.free(centre, min(size, 5.0)):
            continue
        for shape, shift in shapes:
            drawn = canvas.shape(shape, centre + shift)
            if drawn is not None:
                box, part = drawn
                view = canvas.hu[box]
                view += part * np.maximum(np.float32(density) - view, 0)
        canvas.keep_clear.append((centre, 6.0))
        return Mimic((float(centre[0]), float(centre[1]), float(centre[2])), 2 * size, kind)
    return None


def _mimic(
    rng: np.random.Generator, kind: str, anatomy: Anatomy, trees: Sequence[Branch]
) -> tuple[NDArray[np.float64], list[tuple[Shape, NDArray[np.float64]]], float] | None:
    """Draw centre, shapes with their shifts (mm, x y z) and density of a mimic."""
    none = np.zeros(3)
    depth = anatomy.lung_depth
    if kind in ("vessel cross-section", "vessel bifurcation", "mucus plug"):
        fitting = [b for b in trees if 0.8 < b.radius_mm < 2.6]
        centre = fitting[rng.integers(len(fitting))].middle
        blood = anatomy.build.blood_hu
        if kind == "vessel cross-section":
            steep = np.array([1.0, *rng.normal(0, 0.35, 2)])
            steep /= np.linalg.norm(steep)
            rod = Tube((steep[0], steep[1], steep[2]), float(rng.uniform(9, 16)), float(rng.uniform(1.0, 2.6)))
            return centre, [(rod, none)], blood
        if kind == "mucus plug":
            rod = Tube(direction(rng), float(rng.uniform(8, 14)), float(rng.uniform(1.5, 2.8)))
            return centre, [(rod, none)], float(rng.uniform(-30, 40))
        radius = float(rng.uniform(1.1, 2.2))
        parts: list[tuple[Shape, NDArray[np.float64]]] = []
        for _ in range(3):
            along = direction(rng)
            half = float(rng.uniform(7, 12))
            parts.append((Tube(along, half, radius), np.asarray(along[::-1]) * half * 0.75))
        return centre, parts, blood
    if kind == "fissural triangle":
        sheet = (np.abs(anatomy.major_fissure) < COARSE_MM / 2) & (depth > 3)
    elif kind == "apical scar":
        sheet = (depth > 1) & (depth < 9) & (anatomy.z_mm > 0.86 * anatomy.build.height)[:, None, None]
    elif kind == "rib tip":
        sheet = (depth > 0) & (depth < 3) & (np.abs(anatomy.bone) < 6) & (anatomy.y_mm < 0)[None, :, None]
    else:
        sheet = (depth > 0) & (depth < 3)
    places = np.flatnonzero(sheet)
    if not len(places):
        return None
    index = np.array(np.unravel_index(places[rng.integers(len(places))], sheet.shape))
    centre = _positions(anatomy, index[None].astype(np.float64))[0]
    normal = _normal(anatomy.major_fissure if kind == "fissural triangle" else depth, index)
    if kind == "fissural triangle":
        width = float(rng.uniform(3.5, 8))
        return centre, [(Plate(normal, width, float(rng.uniform(0.8, 1.4))), none)], float(rng.uniform(-60, 40))
    if kind == "apical scar":
        streaks: list[tuple[Shape, NDArray[np.float64]]] = [
            (Tube(direction(rng), float(rng.uniform(6, 13)), float(rng.uniform(0.8, 1.6))), rng.normal(0, 2.0, 3))
            for _ in range(int(rng.integers(2, 5)))
        ]
        return centre, streaks, float(rng.uniform(-50, 60))
    outwards = -np.asarray(normal)[::-1]
    if kind == "rib tip":
        bump = draw_star(rng, float(rng.uniform(9, 14)))
        return centre, [(bump, outwards * (bump.radius_mm * 0.75 + 2))], float(rng.uniform(90, 350))
    width = float(rng.uniform(6, 13))
    density = float(rng.uniform(20, 90)) if rng.random() < 0.7 else float(rng.uniform(150, 500))
    return centre, [(Plate(normal, width, float(rng.uniform(1.8, 3.2))), outwards * 1.5)], density


def _normal(field: Array, index: NDArray[np.int64]) -> tuple[float, float, float]:
    """Direction (z, y, x) in which a field grows fastest at an index."""
    low = np.maximum(index - 1, 0)
    high = np.minimum(index + 2, field.shape)
    part = field[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    slope = np.array([float(np.mean(g)) for g in np.gradient(part)])
    length = float(np.linalg.norm(slope))
    if length < 1e-6:
        return 1.0, 0.0, 0.0
    return float(slope[0] / length), float(slope[1] / length), float(slope[2] / length)


def _scan(rng: np.random.Generator, hu: Array, grid: Grid, settings: ScanSettings) -> NDArray[np.int16]:
    """Image the painted chest: in-plane blur and edge enhancement, slice profile, then noise; HU."""
    sigma, sharpen, peak = KERNELS[settings.kernel]
    pixel = grid.spacing_zyx_mm[1]
    ndimage.gaussian_filter1d(hu, settings.thickness_mm * 0.22 / grid.spacing_zyx_mm[0], axis=0, output=hu)
    shape = hu.shape[1:]
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    frequency = np.hypot(fy, fx).astype(np.float32)
    transfer = np.exp(-0.5 * (2 * np.pi * frequency * sigma / pixel) ** 2).astype(np.float32)
    wide = np.exp(-0.5 * (2 * np.pi * frequency * 1.6 * sigma / pixel) ** 2).astype(np.float32)
    transfer = transfer + np.float32(sharpen) * (transfer - wide)
    ramp = (frequency + np.float32(0.01)) * np.exp(-((frequency / peak) ** 2))
    ramp /= np.sqrt(np.mean(ramp**2))
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)
    level = np.float32(settings.noise_hu) * (1.1 - 0.35 * np.minimum(y[:, None] ** 2 + y[None] ** 2, 1))
    scanned = np.empty(hu.shape, np.int16)
    for k in range(len(hu)):
        noise = fft.irfft2(fft.rfft2(rng.standard_normal(shape, np.float32)) * ramp, s=shape)
        blurred = fft.irfft2(fft.rfft2(hu[k]) * transfer, s=shape)
        scanned[k] = np.clip(np.rint(blurred + noise * level), -1024, 3071)
    return scanned
