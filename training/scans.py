"""A scan as training takes it: on the networks' grid, with its truth, its look and the places worth a crop.

Made once by ``nodule-train prepare`` and kept as one ``.npz`` a scan; reading DICOM is the pipeline's business.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from pipeline.analysis import analyse_path
from pipeline.detect.resample import PREPROCESSING, Prepared, prepare
from pipeline.domain.finding import Detection, ModelIdentity, OperatingPoint
from pipeline.domain.geometry import Grid
from pipeline.domain.limits import SelectionLimits
from pipeline.domain.outcome import Code, Refusal
from pipeline.lungs import find_lungs
from training.insertion import Look

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.domain.volume import Volume
    from pipeline.ports import Progress
    from training.phantom import Phantom

UNKNOWN_DIAMETER_MM = 10.0
LEAST_LUNG_L = 0.1
"""A scan for training or judging counts as a chest from this lung volume on; test scans are small."""

PLACE_GRID = (2, 4, 4)


class UnusableScanError(Exception):
    """A scan that training or judging asked for and the pipeline refuses; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What is in a scan; positions in LPS mm (x, y, z).

    Attributes
    ----------
    nodules
        Position and diameter (mm) of each nodule.
    ignored
        Position and diameter of each finding that is neither nodule nor healthy: no loss is taken there.
    mimics
        Positions of known imitators.
    """

    nodules: tuple[tuple[tuple[float, float, float], float], ...] = ()
    ignored: tuple[tuple[tuple[float, float, float], float], ...] = ()
    mimics: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class TrainingScan:
    """A scan on the networks' grid.

    Attributes
    ----------
    name
        Of the file; ``phantom-N`` or a patient's pseudonym.
    hu
        Hounsfield units, int16, shape ``(z, y, x)``: the box around the lungs.
    slice_distance_mm
        As received, before resampling.
    look
        Blur and noise.
    nodules, ignored
        ``(n, 4)``: voxel index z, y, x and diameter in mm.
    mimics
        ``(n, 3)``: voxel index.
    places
        For each kind of place (free, pleura, vessel, any) voxel indices ``(n, 3)``.
    grid
        Where the voxels lie, LPS mm; None for scans that were prepared without it.
    person
        Whose scan it is: scans of one person are never divided between training and test.
    subset
        LUNA16's fold; -1 for none.
    """

    name: str
    hu: NDArray[np.int16]
    slice_distance_mm: float
    look: Look
    nodules: NDArray[np.float64]
    ignored: NDArray[np.float64]
    mimics: NDArray[np.float64]
    places: dict[str, NDArray[np.int16]] = field(default_factory=dict)
    grid: Grid | None = None
    person: str = ""
    subset: int = -1

    @property
    def is_phantom(self) -> bool:
        """Whether the scan is a digital phantom."""
        return self.name.startswith("phantom")


def prepare_scan(
    name: str,
    hu: NDArray[np.int16],
    grid: Grid,
    truth: Truth,
    blur_mm: float,
    *,
    person: str = "",
    subset: int = -1,
    least_lung_l: float | None = None,
) -> TrainingScan | Refusal:
    """Bring a scan to the networks' grid and find where crops pay.

    Parameters
    ----------
    name
        Kept with the scan.
    hu, grid
        As assembled: int16 ``(z, y, x)`` and its place in LPS mm.
    truth
        Nodules, findings to ignore, imitators.
    blur_mm
        In-plane standard deviation of the point spread function.
    person, subset
        Whose scan it is, and LUNA16's fold.
    least_lung_l
        Lung volume from which it counts as a chest; the node's own limit when None.

    Returns
    -------
    TrainingScan or Refusal
        The refusal of the lung segmentation.
    """
    limits = SelectionLimits() if least_lung_l is None else SelectionLimits(min_lung_l=least_lung_l)
    lungs = find_lungs(hu, grid.spacing_zyx_mm, limits)
    if isinstance(lungs, Refusal):
        return lungs
    prepared = prepare(hu, grid, lungs)

    def indices(found: Iterable[tuple[tuple[float, float, float], float]]) -> NDArray[np.float64]:
        rows = [(*prepared.grid.lps_to_index(p), d if d > 0 else UNKNOWN_DIAMETER_MM) for p, d in found]
        return np.asarray(rows, np.float64).reshape(-1, 4)

    nodules, ignored = indices(truth.nodules), indices(truth.ignored)
    spacing = np.asarray(prepared.grid.spacing_zyx_mm)
    apart = [all(np.linalg.norm((row[:3] - n[:3]) * spacing) > n[3] / 2 + 1 for n in nodules) for row in ignored]
    ignored = ignored[np.asarray(apart, bool)]
    cells = [np.arange(0, n, s, dtype=np.float64) for n, s in zip(prepared.hu.shape, PLACE_GRID, strict=True)]
    inside = prepared.lungs_at(*cells)
    return TrainingScan(
        name=name,
        hu=prepared.hu,
        slice_distance_mm=grid.spacing_zyx_mm[0],
        look=measure_look(prepared.hu, grid.spacing_zyx_mm[0], blur_mm),
        nodules=nodules,
        ignored=ignored,
        mimics=np.asarray([prepared.grid.lps_to_index(p) for p in truth.mimics], np.float64).reshape(-1, 3),
        places=_places(prepared.hu, inside, np.concatenate([nodules, ignored]), spacing),
        grid=prepared.grid,
        person=person or name,
        subset=subset,
    )


def measure_look(hu: NDArray[np.int16], slice_distance_mm: float, blur_mm: float) -> Look:
    """Measure noise strength and grain of a scan in its quiet soft tissue.

    The strength is the 15 % quantile of the local standard deviation where the local mean is soft tissue (10 to
    90 HU): homogeneous places. The grain follows from the correlation of neighbouring voxels there, which for
    white noise under a Gaussian of s voxels is exp(-1 / 4 s^2).
    """
    size = (5, 9, 9)
    volume = hu.astype(np.float32)
    mean = ndimage.uniform_filter(volume, size)[2::4, 4::6, 4::6]
    square = ndimage.uniform_filter(volume * volume, size)[2::4, 4::6, 4::6]
    deviation = np.sqrt(np.maximum(square - mean * mean, 0))
    quiet = (mean > 10) & (mean < 90)
    if quiet.sum() < 20:
        return Look((0.5 * slice_distance_mm, blur_mm, blur_mm), 20.0, (0.6, 0.7, 0.7))
    noise = float(np.quantile(deviation[quiet], 0.15))
    still = np.argwhere(quiet & (deviation < 1.25 * noise)) * [4, 6, 6] + [2, 4, 4]
    return Look(
        (0.5 * slice_distance_mm, blur_mm, blur_mm), noise, _grain(volume, np.asarray(still[::7], np.int64))
    )


def _grain(volume: NDArray[np.float32], centres: NDArray[np.int64]) -> tuple[float, float, float]:
    sums = np.zeros(4)
    for z, y, x in centres[:400]:
        piece = volume[z - 2 : z + 3, y - 4 : y + 5, x - 4 : x + 5]
        piece = piece - piece.mean()
        sums += [
            float((piece * piece).mean()),
            float((piece[1:] * piece[:-1]).mean()),
            float((piece[:, 1:] * piece[:, :-1]).mean()),
            float((piece[:, :, 1:] * piece[:, :, :-1]).mean()),
        ]
    correlation = np.clip(sums[1:] / max(sums[0], 1e-6), 0.05, 0.93)
    sigma = np.clip(np.sqrt(-1 / (4 * np.log(correlation))), 0.28, 1.4)
    return float(sigma[0]), float(sigma[1]), float(sigma[2])


def _places(
    hu: NDArray[np.int16], inside: NDArray[np.bool_], findings: NDArray[np.float64], spacing: NDArray[np.float64]
) -> dict[str, NDArray[np.int16]]:
    """Sort the lattice points in the lungs: free, near the wall, on a vessel; away from every finding."""
    cell = spacing * PLACE_GRID
    depth = ndimage.distance_transform_edt(inside, sampling=cell)
    value = hu[:: PLACE_GRID[0], :: PLACE_GRID[1], :: PLACE_GRID[2]]
    clear = inside.copy()
    z, y, x = (np.arange(n) * c for n, c in zip(inside.shape, cell, strict=True))
    for row in findings:
        p = row[:3] * spacing
        away = (z[:, None, None] - p[0]) ** 2 + (y[None, :, None] - p[1]) ** 2 + (x[None, None] - p[2]) ** 2
        clear &= away > (row[3] / 2 + 6) ** 2
    kinds = {
        "free": clear & (depth > 5) & (value < -700),
        "pleura": clear & (depth <= 4) & (value < -500),
        "vessel": clear & (depth > 6) & (value > -300),
        "any": inside,
    }
    step = np.asarray(PLACE_GRID)
    return {kind: (np.argwhere(chosen) * step).astype(np.int16) for kind, chosen in kinds.items()}


def prepare_phantom(phantom: Phantom) -> TrainingScan | Refusal:
    """Bring a phantom to the networks' grid."""
    truth = Truth(
        nodules=tuple((n.centre_lps_mm, n.diameter_mm) for n in phantom.nodules),
        mimics=tuple(m.centre_lps_mm for m in phantom.mimics),
    )
    return prepare_scan(f"phantom-{phantom.seed}", phantom.hu, phantom.grid, truth, blur_mm=0.6)


def searchable(scan: TrainingScan) -> Prepared:
    """Give a training scan as the pipeline's first stage takes it: its lungs are found again in the box."""
    spacing = PREPROCESSING.spacing_zyx_mm
    lungs = find_lungs(scan.hu, spacing, SelectionLimits(min_lung_l=0.0))
    if isinstance(lungs, Refusal):
        raise UnusableScanError(f"{scan.name}: {lungs.text}")
    shape = (scan.hu.shape[0], scan.hu.shape[1], scan.hu.shape[2])
    same = (1.0, 0.0)
    grid = scan.grid or Grid(shape, spacing, (0.0, 0.0, 0.0))
    return Prepared(scan.hu, grid, lungs, (same, same, same), PREPROCESSING)


def save_scan(scan: TrainingScan, folder: Path) -> Path:
    """Write a scan as ``NAME.npz``, aside first, then renamed: a file that is there is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{scan.name}.npz"
    look = [*scan.look.blur_zyx_mm, scan.look.noise_hu, *scan.look.grain_zyx]
    arrays: dict[str, Any] = {f"place_{kind}": rows for kind, rows in scan.places.items()}
    if scan.grid is not None:
        arrays |= {"origin": np.asarray(scan.grid.origin_lps_mm), "axes": np.asarray(scan.grid.axes_zyx)}
    aside = folder / f"{scan.name}.npz.part"
    with aside.open("wb") as file:
        np.savez(
            file,
            hu=scan.hu,
            slice_distance_mm=scan.slice_distance_mm,
            look=np.asarray(look),
            nodules=scan.nodules,
            ignored=scan.ignored,
            mimics=scan.mimics,
            person=np.asarray(scan.person),
            subset=scan.subset,
            **arrays,
        )
    aside.replace(path)
    return path


def load_scan(path: Path) -> TrainingScan:
    """Read what :func:`save_scan` wrote."""
    with np.load(path) as kept:
        look = [float(v) for v in kept["look"]]
        return TrainingScan(
            name=path.stem,
            hu=kept["hu"],
            slice_distance_mm=float(kept["slice_distance_mm"]),
            look=Look((look[0], look[1], look[2]), look[3], (look[4], look[5], look[6])),
            nodules=kept["nodules"],
            ignored=kept["ignored"],
            mimics=kept["mimics"],
            places={key.removeprefix("place_"): kept[key] for key in kept.files if key.startswith("place_")},
            grid=_grid(kept) if "origin" in kept.files else None,
            person=str(kept["person"]) if "person" in kept.files else path.stem,
            subset=int(kept["subset"]) if "subset" in kept.files else -1,
        )


def _grid(kept: Mapping[str, NDArray[Any]]) -> Grid:
    """Give the grid of a kept scan; its spacing is the networks'."""
    shape, origin = kept["hu"].shape, [float(v) for v in kept["origin"]]
    z, y, x = ((float(a[0]), float(a[1]), float(a[2])) for a in kept["axes"])
    return Grid(
        (shape[0], shape[1], shape[2]), PREPROCESSING.spacing_zyx_mm, (origin[0], origin[1], origin[2]), (z, y, x)
    )


def person_of(path: Path) -> str:
    """Tell whose scan a prepared one is, without reading its voxels."""
    with np.load(path) as kept:
        return str(kept["person"]) if "person" in kept.files else path.stem


def subset_of(path: Path) -> int:
    """Tell the subset of a prepared scan, without reading its voxels; -1 for none."""
    with np.load(path) as kept:
        return int(kept["subset"]) if "subset" in kept.files else -1


def load_scans(folder: Path, names: Sequence[str] = ()) -> list[TrainingScan]:
    """Read the scans of a folder in order of their names; all of them when no names are given."""
    paths = [folder / f"{name}.npz" for name in names] if names else sorted(folder.glob("*.npz"))
    return [load_scan(path) for path in paths]


class _Keeper:
    """A detector that finds nothing and keeps the volume it was shown: the pipeline's reading for training."""

    def __init__(self) -> None:
        self.volume: Volume | None = None
        self.model = ModelIdentity("none", "0", "none", "")
        self.operating_points = (OperatingPoint("none", 1.0),)

    def detect(self, volume: Volume, progress: Progress | None = None) -> Detection | Refusal:
        """Keep the volume."""
        self.volume = volume
        return Detection((), (), self.model, self.operating_points)


def read_volume(path: Path) -> Volume | Refusal:
    """Read a folder of DICOM or a ``.mhd`` exactly as the node does: same selection, same assembly."""
    keeper = _Keeper()
    analysis = analyse_path(path, keeper, SelectionLimits(), operating_point=1.0)
    if keeper.volume is not None:
        return keeper.volume
    return analysis.reason or Refusal(Code.NOT_CT, f"{path.name} holds no series that can be analysed.")


def read_truth(folder: Path, patient: str) -> Truth:
    """Read a patient's rows of ``nodules.csv`` and ``excluded.csv`` (columns x, y, z, diameter_mm; LPS mm)."""

    def rows(name: str) -> tuple[tuple[tuple[float, float, float], float], ...]:
        with (folder / name).open(newline="") as file:
            return tuple(
                ((float(row["x"]), float(row["y"]), float(row["z"])), float(row["diameter_mm"]))
                for row in csv.DictReader(file)
                if row["patient"] == patient
            )

    return Truth(nodules=rows("nodules.csv"), ignored=rows("excluded.csv"))
