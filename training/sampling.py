"""Crops for training: where they are cut, how they are varied, and what the network should answer.

Crop number i of a seed is always the same crop, so that a run can be resumed exactly and workers share nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from pipeline.detect.nets.modern import ModernNet
from pipeline.detect.resample import PREPROCESSING
from training.appearance import EXTRA_GRAINS, vary
from training.insertion import Brush, Look, NoiseField
from training.lesions import draw_diameter, draw_kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from training.scans import TrainingScan

    Array = NDArray[np.float32]
    Index3 = tuple[int, int, int]

SPACING = np.asarray(PREPROCESSING.spacing_zyx_mm)
STRIDE = np.asarray(ModernNet.STRIDE)
POSITIVE_CELLS = 5
POSITIVE_CELLS_LARGE = 9
LARGE_MM = 10.0
PLACES = ("free", "pleura", "vessel", "any")


@dataclass(frozen=True, slots=True)
class Mixture:
    """How often what is drawn; parts in [0, 1].

    Attributes
    ----------
    phantoms
        Crops from digital phantoms; the others come from real scans.
    real_nodules
        Of the real crops, those around a real nodule without a simulated one in the middle.
    phantom_nodules, phantom_mimics
        Of the phantom crops, those around a nodule, and around an imitator.
    large
        Of the inserted nodules, those of 8 to 30 mm, every ratio of diameters equally likely; the others follow
        LUNA16, where only one in twenty is larger than 19 mm.
    small
        Of the inserted nodules, those of 3 to 5.5 mm (subsolid ones from 4 mm).
    real_mimics
        Of the real crops, those around a place where a model that never saw the scan marked what is no nodule.
    """

    phantoms: float = 0.35
    real_nodules: float = 0.25
    phantom_nodules: float = 0.5
    phantom_mimics: float = 0.3
    large: float = 0.0
    small: float = 0.0
    real_mimics: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """How a crop lies in its scan: flips, rotation about z, scale.

    A point ``p`` of the crop (index) shows the scan's index ``matrix @ p + shift``; ``scale`` multiplies lengths.
    """

    matrix: NDArray[np.float64]
    shift: NDArray[np.float64]
    scale: float

    def to_crop(self, index_zyx: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert an index of the scan to one of the crop."""
        return np.asarray(np.linalg.solve(self.matrix, index_zyx - self.shift), np.float64)

    def to_scan(self, index_zyx: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert an index of the crop to one of the scan."""
        return np.asarray(self.matrix @ index_zyx + self.shift, np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """A training crop before it is normalised.

    Attributes
    ----------
    hu
        float32, shape ``(z, y, x)``.
    nodules, ignored
        ``(n, 4)``: voxel index z, y, x in the crop, diameter in mm as it appears there.
    """

    hu: Array
    nodules: NDArray[np.float64]
    ignored: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """A patch that is drawn and not yet cut: whoever holds the voxels cuts it, on whichever device they lie.

    Attributes
    ----------
    scan, turn
        Where it lies.
    label
        1 for a nodule.
    offset_mm, diameter_mm
        Nodule centre minus patch centre along z, y, x, and diameter as it appears; 0 and 1 where there is none.
    """

    scan: TrainingScan
    turn: Turn
    label: int
    offset_mm: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    diameter_mm: float = 1.0


def draw_turn(rng: np.random.Generator, centre_zyx: NDArray[np.float64], at_zyx: NDArray[np.float64]) -> Turn:
    """Draw flips along all axes, a rotation in the transverse plane and a scale of 0.85 to 1.15.

    Parameters
    ----------
    centre_zyx
        Index in the scan that is shown.
    at_zyx
        Index in the crop where it is shown.
    """
    scale = float(np.exp(rng.uniform(np.log(0.85), np.log(1.15))))
    angle = float(rng.uniform(0, 2 * np.pi)) if rng.random() < 0.7 else float(rng.integers(4)) * np.pi / 2
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) * rng.choice([-1.0, 1.0], 3)[None]
    matrix = turn / scale * SPACING[None] / SPACING[:, None]
    return Turn(matrix, centre_zyx - matrix @ at_zyx, scale)


def cut(hu: NDArray[np.int16], turn: Turn, shape: Index3) -> Array:
    """Interpolate a turned crop of a scan: linear along z, then bilinear in the plane; HU, float32."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    source = turn.matrix @ corners + turn.shift[:, None]
    limit = np.asarray(hu.shape)
    low = np.clip(np.floor(source.min(axis=1)).astype(int), 0, limit - 2)
    high = np.clip(np.ceil(source.max(axis=1)).astype(int) + 1, low + 2, limit)
    part = torch.from_numpy(hu[low[0] : high[0], low[1] : high[1], low[2] : high[2]].astype(np.float32))
    sizes = high - low
    z = np.clip(turn.matrix[0, 0] * np.arange(shape[0]) + turn.shift[0] - low[0], 0, sizes[0] - 1)
    below = np.minimum(np.floor(z).astype(int), sizes[0] - 2)
    weight = torch.from_numpy((z - below).astype(np.float32))[:, None, None]
    part = torch.lerp(part[below], part[below + 1], weight)
    j, i = np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
    y = turn.matrix[1, 1] * j + turn.matrix[1, 2] * i + turn.shift[1] - low[1]
    x = turn.matrix[2, 1] * j + turn.matrix[2, 2] * i + turn.shift[2] - low[2]
    grid = np.stack([x / (sizes[2] - 1) * 2 - 1, y / (sizes[1] - 1) * 2 - 1], -1).astype(np.float32)
    turned = functional.grid_sample(
        part[None], torch.from_numpy(grid)[None], align_corners=True, padding_mode="border"
    )
    return np.asarray(turned[0].numpy(), np.float32)


class CropSampler:
    """Cuts crop number i of a seed from a set of scans, with nodules and imitators inserted on the fly."""

    def __init__(
        self, scans: Sequence[TrainingScan], shape: Index3, seed: int, mixture: Mixture | None = None
    ) -> None:
        self.mixture = mixture or Mixture()
        self.shape = shape
        self.seed = seed
        self.real = [s for s in scans if not s.is_phantom]
        self.phantoms = [s for s in scans if s.is_phantom]
        self.real_nodules = [(s, row) for s in self.real for row in s.nodules]
        self.real_mimics = [(s, place) for s in self.real for place in s.mimics]
        rng = np.random.default_rng([seed, 1])
        self.noise = {s.name: NoiseField(rng, s.look.grain_zyx) for s in scans}
        self.extra = [NoiseField(rng, grain) for grain in EXTRA_GRAINS]

    def crop(self, number: int) -> Crop:
        """Give crop ``number``."""
        rng = np.random.default_rng([self.seed, 2, number])
        from_phantom = bool(self.phantoms) and (not self.real or rng.random() < self.mixture.phantoms)
        scan, centre, insert = self._phantom_centre(rng) if from_phantom else self._real_centre(rng)
        turn = self._turn(rng, centre)
        hu = cut(scan.hu, turn, self.shape)
        nodules, ignored = self._seen(scan.nodules, turn), self._seen(scan.ignored, turn)
        look = Look(
            tuple(b * turn.scale for b in scan.look.blur_zyx_mm),  # type: ignore[arg-type]
            scan.look.noise_hu,
            scan.look.grain_zyx,
        )
        brush = Brush(hu, PREPROCESSING.spacing_zyx_mm, look, self.noise[scan.name])
        for chance in (0.35, 0.25):
            if rng.random() < chance:
                brush.mimic(rng)
        if insert:
            middle = None if insert == "elsewhere" else turn.to_crop(centre)
            nodules = self._insert(rng, brush, scan, turn, middle=middle, nodules=nodules, ignored=ignored)
        if rng.random() < 0.3:
            self._sham(rng, brush, nodules)
        return Crop(vary(rng, hu, scan.slice_distance_mm, self.extra), nodules, ignored)

    def _real_centre(self, rng: np.random.Generator) -> tuple[TrainingScan, NDArray[np.float64], str]:
        if self.real_nodules and rng.random() < self.mixture.real_nodules:
            scan, row = self.real_nodules[rng.integers(len(self.real_nodules))]
            return scan, row[:3], "elsewhere" if rng.random() < 0.3 else ""
        if self.real_mimics and rng.random() < self.mixture.real_mimics:
            scan, centre = self.real_mimics[rng.integers(len(self.real_mimics))]
            return scan, centre, "elsewhere" if rng.random() < 0.3 else ""
        weight = np.array([1.6 if s.slice_distance_mm < 2 else 1.0 for s in self.real])
        scan = self.real[rng.choice(len(self.real), p=weight / weight.sum())]
        place = PLACES[rng.choice(4, p=[0.35, 0.3, 0.15, 0.2])]
        return scan, self._place(rng, scan, place), "elsewhere" if place == "any" else "middle"

    def _phantom_centre(self, rng: np.random.Generator) -> tuple[TrainingScan, NDArray[np.float64], str]:
        scan = self.phantoms[rng.integers(len(self.phantoms))]
        drawn = rng.random()
        insert = "elsewhere" if rng.random() < 0.3 else ""
        if drawn < self.mixture.phantom_nodules and len(scan.nodules):
            return scan, scan.nodules[rng.integers(len(scan.nodules)), :3], insert
        if drawn < self.mixture.phantom_nodules + self.mixture.phantom_mimics and len(scan.mimics):
            return scan, scan.mimics[rng.integers(len(scan.mimics))], insert
        return scan, self._place(rng, scan, "any"), insert

    @staticmethod
    def _place(rng: np.random.Generator, scan: TrainingScan, kind: str) -> NDArray[np.float64]:
        rows = scan.places[kind] if len(scan.places[kind]) else scan.places["any"]
        return np.asarray(rows[rng.integers(len(rows))], np.float64)

    def _turn(self, rng: np.random.Generator, centre: NDArray[np.float64]) -> Turn:
        half = (np.asarray(self.shape) - 1) / 2
        room = np.maximum(half - 7 / SPACING, 0)
        return draw_turn(rng, centre, half + rng.uniform(-1, 1, 3) * room)

    def _seen(self, rows: NDArray[np.float64], turn: Turn) -> NDArray[np.float64]:
        """Bring findings to the crop, as far as any of their volume lies in it."""
        seen = [(*turn.to_crop(row[:3]), row[3] * turn.scale) for row in rows]
        return np.asarray([r for r in seen if self._inside(r[:3], -r[3] / 2)], np.float64).reshape(-1, 4)

    def _inside(self, index: Sequence[float] | NDArray[np.float64], margin_mm: float) -> bool:
        margin = margin_mm / SPACING
        index = np.asarray(index)
        return bool(((index > margin) & (index < np.asarray(self.shape) - 1 - margin)).all())

    def _insert(
        self,
        rng: np.random.Generator,
        brush: Brush,
        scan: TrainingScan,
        turn: Turn,
        *,
        middle: NDArray[np.float64] | None,
        nodules: NDArray[np.float64],
        ignored: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Insert up to four nodules, the first one in the middle; apart from each other and from real findings."""
        centres = [] if middle is None else [middle]
        for _ in range(int(rng.integers(0, 4))):
            place = PLACES[rng.choice(3, p=[0.45, 0.4, 0.15])]
            tries = (turn.to_crop(self._place(rng, scan, place)) for _ in range(60))
            centres.extend([c for c in tries if self._inside(c, 4.0)][:1])
        found = list(nodules)
        for centre in centres:
            kind = draw_kind(rng)
            diameter = self._diameter(rng, subsolid=kind in ("ground-glass", "part-solid"))
            place = centre + rng.uniform(-1.5, 1.5, 3) / SPACING
            if self._near(place, diameter / 2 + 5, found) or self._near(place, diameter / 2 + 2, ignored):
                continue
            done = brush.nodule(rng, place, diameter, kind)
            if done is not None:
                found.append(np.array([*done.centre_zyx, done.diameter_mm]))
        return np.asarray(found, np.float64).reshape(-1, 4)

    def _diameter(self, rng: np.random.Generator, *, subsolid: bool) -> float:
        drawn = rng.random()
        if drawn < self.mixture.large:
            return float(np.exp(rng.uniform(np.log(8), np.log(30))))
        if drawn < self.mixture.large + self.mixture.small:
            return float(rng.uniform(4.0 if subsolid else 3.0, 5.5))
        return max(draw_diameter(rng), float(rng.uniform(4, 8)) if subsolid else 3.0)

    @staticmethod
    def _near(
        place: NDArray[np.float64], reach_mm: float, rows: Sequence[NDArray[np.float64]] | NDArray[np.float64]
    ) -> bool:
        return any(np.linalg.norm((place - r[:3]) * SPACING) < reach_mm + r[3] / 2 for r in rows)

    def _sham(self, rng: np.random.Generator, brush: Brush, nodules: NDArray[np.float64]) -> None:
        place = np.array([rng.uniform(4, n - 5) for n in self.shape])
        if not self._near(place, 10, nodules):
            brush.sham(rng, place, float(rng.uniform(4, 12)))


def dense_target(crop: Crop) -> tuple[NDArray[np.int8], Array]:
    """Say what stage 1 of recipe ``modern`` should answer for a crop.

    Returns
    -------
    heat
        int8, one value a cell: 1 the cells nearest to a nodule's centre (5, or 9 from 10 mm on), -1 the rest of a
        nodule and findings to ignore (no loss), 0 elsewhere.
    shape
        float32 ``(4, z, y, x)``: offset of the centre along z, y, x in cells, natural logarithm of the diameter in
        mm; defined where ``heat`` is 1.
    """
    cells = [np.arange(n // s, dtype=np.float32) * s for n, s in zip(crop.hu.shape, STRIDE, strict=True)]
    z, y, x = cells[0][:, None, None], cells[1][None, :, None], cells[2][None, None, :]
    heat = np.zeros([len(c) for c in cells], np.int8)
    shape = np.zeros((4, *heat.shape), np.float32)

    def away(row: NDArray[np.float64]) -> NDArray[np.float64]:
        mm = [((a - c) * s) ** 2 for a, c, s in zip((z, y, x), row[:3], SPACING, strict=True)]
        return np.asarray(np.sqrt(mm[0] + mm[1] + mm[2]), np.float64)

    for row in crop.ignored:
        heat[away(row) < row[3] / 2 + 1] = -1
    for row in crop.nodules:
        heat[away(row) < max(row[3] / 2, 3.5) + 1.5] = -1
    last = np.asarray(crop.hu.shape) - 1
    for row in crop.nodules:
        if not ((row[:3] >= 0) & (row[:3] <= last)).all():
            continue
        distance = away(row)
        count = POSITIVE_CELLS if row[3] < LARGE_MM else POSITIVE_CELLS_LARGE
        chosen = distance <= np.partition(distance.ravel(), count - 1)[count - 1]
        heat[chosen] = 1
        for axis, place in enumerate((z, y, x)):
            offset = np.broadcast_to((row[axis] - place) / STRIDE[axis], heat.shape)
            shape[axis][chosen] = offset[chosen]
        shape[3][chosen] = np.log(row[3])
    return heat, shape


def normalise(hu: Array) -> Array:
    """Bring Hounsfield units to the network's numbers, with the pipeline's own constants."""
    return np.asarray(PREPROCESSING.normalise(torch.from_numpy(hu)).numpy(), np.float32)


class PatchSampler:
    """Cuts batches of small patches for the paper's stage 1: a nodule at the centre, or none (decision 0020)."""

    SHARES = (0.25, 0.35, 0.25)
    """Nodules, anywhere in the lungs, vessels and wall; what remains are imitators of the phantoms."""

    def __init__(self, scans: Sequence[TrainingScan], shape: Index3, seed: int) -> None:
        self.scans = list(scans)
        self.shape = shape
        self.seed = seed
        self.with_nodules = [s for s in self.scans if len(s.nodules)]
        self.with_mimics = [s for s in self.scans if len(s.mimics)]

    def batch(self, number: int, size: int) -> tuple[Array, NDArray[np.int64]]:
        """Give batch ``number``: Hounsfield units ``(n, z, y, x)`` and labels ``(n,)``."""
        drawn = self.draws(number, size)
        hu = [cut(d.scan.hu, d.turn, self.shape) for d in drawn]
        return np.stack(hu), np.asarray([d.label for d in drawn])

    def draws(self, number: int, size: int) -> list[Draw]:
        """Draw batch ``number`` without cutting it."""
        rng = np.random.default_rng([self.seed, 3, number])
        return [self._patch(rng) for _ in range(size)]

    def _patch(self, rng: np.random.Generator) -> Draw:
        centre_in_crop = (np.asarray(self.shape) - 1) / 2
        kind = int(rng.choice(4, p=[*self.SHARES, 1 - sum(self.SHARES)]))
        if kind == 0 and self.with_nodules:
            scan = self.with_nodules[rng.integers(len(self.with_nodules))]
            row = scan.nodules[rng.integers(len(scan.nodules))]
            v = rng.standard_normal(3)
            away = v / np.linalg.norm(v) * row[3] / 2 * rng.random() ** (1 / 3)
            return Draw(scan, draw_turn(rng, row[:3] + away / SPACING, centre_in_crop), 1)
        if kind == 3 and self.with_mimics:
            scan = self.with_mimics[rng.integers(len(self.with_mimics))]
            place = scan.mimics[rng.integers(len(scan.mimics))]
            return Draw(scan, draw_turn(rng, place, centre_in_crop), 0)
        scan = self.scans[rng.integers(len(self.scans))]
        place = self._background(rng, scan, ("pleura", "vessel")[rng.integers(2)] if kind == 2 else "free")
        return Draw(scan, draw_turn(rng, place, centre_in_crop), 0)

    @staticmethod
    def _background(rng: np.random.Generator, scan: TrainingScan, kind: str) -> NDArray[np.float64]:
        rows = next(scan.places[k] for k in (kind, "free", "any") if len(scan.places[k]))
        return np.asarray(rows[rng.integers(len(rows))], np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class PatchBatch:
    """A batch for stage 2.

    Attributes
    ----------
    hu
        ``(n, z, y, x)``; float32.
    labels
        ``(n,)``: 1 for a nodule; int64.
    offsets_mm, diameters_mm
        Nodule centre minus patch centre along z, y, x, ``(n, 3)``, and diameter; 0 and 1 where there is none.
    """

    hu: Array
    labels: NDArray[np.int64]
    offsets_mm: NDArray[np.float64]
    diameters_mm: NDArray[np.float64]


class CandidateSampler:
    """Cuts batches around candidates: a third nodules, two thirds candidates that are none (decision 0020)."""

    NODULES = 1 / 3
    LARGEST_SHIFT_MM = 4.0

    def __init__(
        self,
        scans: Sequence[TrainingScan],
        candidates: Mapping[str, NDArray[np.float64]],
        shape: Index3,
        seed: int,
    ) -> None:
        self.shape = shape
        self.seed = seed
        self.nodules = [(s, row) for s in scans for row in s.nodules]
        self.on_nodule: list[tuple[TrainingScan, NDArray[np.float64], NDArray[np.float64]]] = []
        self.mimics: list[tuple[TrainingScan, NDArray[np.float64]]] = []
        for scan in scans:
            for place in candidates.get(scan.name, ()):
                self._sort(scan, place)
            self.mimics.extend((scan, place) for place in scan.mimics)

    def _sort(self, scan: TrainingScan, place: NDArray[np.float64]) -> None:
        """Take a candidate as nodule or as imitator; those on findings to ignore are left out."""
        for row in scan.nodules:
            if np.linalg.norm((place - row[:3]) * SPACING) < row[3] / 2:
                self.on_nodule.append((scan, row, place))
                return
        if all(np.linalg.norm((place - row[:3]) * SPACING) >= row[3] / 2 for row in scan.ignored):
            self.mimics.append((scan, place))

    def batch(self, number: int, size: int) -> PatchBatch:
        """Give batch ``number``."""
        drawn = self.draws(number, size)
        return PatchBatch(
            np.stack([cut(d.scan.hu, d.turn, self.shape) for d in drawn]),
            np.asarray([d.label for d in drawn]),
            np.stack([d.offset_mm for d in drawn]),
            np.asarray([d.diameter_mm for d in drawn]),
        )

    def draws(self, number: int, size: int) -> list[Draw]:
        """Draw batch ``number`` without cutting it."""
        rng = np.random.default_rng([self.seed, 6, number])
        count = max(1, round(size * self.NODULES))
        return [self._nodule(rng) if k < count else self._mimic(rng) for k in range(size)]

    def _nodule(self, rng: np.random.Generator) -> Draw:
        """Draw a nodule: half around candidates on it, half around its centre, shifted within its radius."""
        if self.on_nodule and rng.random() < 0.5:
            scan, row, centre = self.on_nodule[rng.integers(len(self.on_nodule))]
        else:
            scan, row = self.nodules[rng.integers(len(self.nodules))]
            v = rng.standard_normal(3)
            reach = min(row[3] / 2, self.LARGEST_SHIFT_MM) * rng.random() ** (1 / 3)
            centre = row[:3] + v / np.linalg.norm(v) * reach / SPACING
        turn = draw_turn(rng, centre, self._middle)
        offset = (turn.to_crop(row[:3]) - self._middle) * SPACING
        return Draw(scan, turn, 1, offset, float(row[3] * turn.scale))

    def _mimic(self, rng: np.random.Generator) -> Draw:
        scan, place = self.mimics[rng.integers(len(self.mimics))]
        return Draw(scan, draw_turn(rng, place + rng.uniform(-1.5, 1.5, 3) / SPACING, self._middle), 0)

    @property
    def _middle(self) -> NDArray[np.float64]:
        return (np.asarray(self.shape) - 1) / 2
