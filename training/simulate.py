"""Makes a cohort: planned scans in, a folder in LUNA16's layout out, with the truth of every nodule beside it.

Each scan follows from the plan alone and is finished by its row file, so that any number of processes may work and
any of them may be killed. The cohort file is copied into the folder with its SHA-256 and checked at every use.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.domain.limits import SelectionLimits
from pipeline.domain.outcome import Refusal
from pipeline.lungs import find_lungs
from training import luna16
from training.cohort_file import CohortError, CohortFile, PlannedScan, plan, read_cohort
from training.judge_tables import read_annotations
from training.phantom import ScanSettings, draw_settings, make_phantom
from training.placing import Ground, Placing
from training.plain_chest import PlainSettings, make_plain_chest
from training.scans import LEAST_LUNG_L, Truth, measure_look, read_truth, read_volume

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.domain.geometry import Grid
    from pipeline.lungs import LungMask

FROZEN = "cohort.toml"
MANIFEST = "cohort.json"
TRUTH = "truth.csv"
CONTROLS = "controls.csv"
SCANS = "scans.csv"
ROWS = "rows"
PATIENTS = "nodules.csv"
CANDIDATES_A_SCAN = 40
PHANTOM_BLUR_MM = 0.6
TRUTH_COLUMNS = (*luna16.ANNOTATION_COLUMNS, "kind", "place", "origin", "wanted_mm", "part", "source")
CONTROL_COLUMNS = (*luna16.ANNOTATION_COLUMNS, "kind")
SCAN_COLUMNS = ("seriesuid", "name", "part", "source", "subset", "seed", "base", "slices", "settings", "sha256")

Vector = tuple[float, float, float]


@dataclass(slots=True)
class Content:
    """What a scan holds, every position in LPS mm.

    Attributes
    ----------
    nodules
        Rows of the table of truth, without series and part: position, diameter, kind, place, origin, wanted.
    ignored
        Position and diameter (-1 for unknown) of what a real scan held before.
    controls
        Position, size and kind of what looks like a nodule and is none, and of shams.
    """

    nodules: list[tuple[Vector, float, str, str, str, float]]
    ignored: list[tuple[Vector, float]]
    controls: list[tuple[Vector, float, str]]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the real scans are: a folder of DICOM or a ``.mhd`` for each name, and the folder of their truth."""

    paths: dict[str, Path]
    truth: Path | None


@dataclass(frozen=True, slots=True)
class Cohort:
    """A cohort's folder that was checked: its name, the hash of its file, whether all scans are there."""

    folder: Path
    name: str
    sha256: str
    scans: int
    complete: bool


def open_cohort(folder: Path) -> Cohort:
    """Open a cohort's folder and check that its file is the one it was made by.

    Raises
    ------
    CohortError
        When it is no cohort, or its file was changed.
    """
    manifest, frozen = folder / MANIFEST, folder / FROZEN
    if not manifest.is_file() or not frozen.is_file():
        raise CohortError(f"{folder} is no cohort: {MANIFEST} or {FROZEN} is missing; make it with simulate.")
    said = json.loads(manifest.read_text(encoding="ascii"))
    sha256 = hashlib.sha256(frozen.read_bytes()).hexdigest()
    if sha256 != said["sha256"]:
        raise CohortError(
            f"{frozen} was changed (SHA-256 {sha256}, {MANIFEST} says {said['sha256']}): what was measured on this "
            "folder cannot be compared. Make the cohort again."
        )
    return Cohort(folder, said["name"], sha256, int(said["scans"]), bool(said["complete"]))


def cohort_name(folder: Path) -> str:
    """Name a cohort with the beginning of its file's hash."""
    cohort = open_cohort(folder)
    return f"cohort {cohort.name} ({cohort.sha256[:12]})"


def simulate(
    path: Path, out: Path, sources: Sources, *, parts: Sequence[str] = (), workers: int = 1, lungs: bool = False
) -> Iterator[tuple[int, int, str]]:
    """Make the scans of a cohort file that are not there yet, then the tables.

    Parameters
    ----------
    path
        The cohort file.
    out
        Folder of the cohort; one of another file is refused.
    sources
        The real scans.
    parts
        Names of the parts to make; all of them when empty. A cohort without all its parts says so in its manifest.
    workers
        Processes.
    lungs
        Whether to write lung masks too; scans that were there before get none.

    Yields
    ------
    tuple
        How many scans are done, how many there will be, and the name of the one that was finished.

    Raises
    ------
    CohortError
        When the file, the folder or a source cannot be used.
    """
    cohort = read_cohort(path)
    known = {part.name for part in cohort.parts}
    if unknown := sorted(set(parts) - known):
        raise CohortError(f"{path} has no part {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
    planned = plan(cohort)
    scans = [scan for scan in planned if not parts or scan.part in parts]
    if missing := sorted({s.source for s in scans if s.source} - set(sources.paths)):
        raise CohortError(f"{path} needs the real scans {', '.join(missing)}; give their folders, or choose parts.")
    _freeze(path, out, cohort, len(planned))
    left = [scan for scan in scans if not _row_file(out, scan.uid).exists()]
    done = len(scans) - len(left)
    yield done, len(scans), "scans that were there" if done else "begin"
    for name in _made(left, out, sources, workers, lungs=lungs):
        done += 1
        yield done, len(scans), name
    write_tables(out, planned)


def _freeze(path: Path, out: Path, cohort: CohortFile, scans: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if (out / MANIFEST).exists():
        there = open_cohort(out)
        if there.sha256 != cohort.sha256:
            raise CohortError(
                f"{out} holds another cohort ({there.name}, {there.sha256[:12]}); choose a new folder."
            )
        return
    shutil.copyfile(path, out / FROZEN)
    _write_manifest(out, cohort, scans, complete=False)


def _write_manifest(out: Path, cohort: CohortFile, scans: int, *, complete: bool) -> None:
    said = {
        "name": cohort.name,
        "sha256": cohort.sha256,
        "scans": scans,
        "complete": complete,
        "code_version": version("nodule-node"),
    }
    luna16.write_text(out / MANIFEST, json.dumps(said, indent=1) + "\n")


def _made(scans: Sequence[PlannedScan], out: Path, sources: Sources, workers: int, *, lungs: bool) -> Iterator[str]:
    """Make scans in this process, or in several; gives their names as they are finished."""
    if workers <= 1:
        for scan in scans:
            yield make_scan(scan, out, sources, with_lungs=lungs)
        return
    with ProcessPoolExecutor(min(workers, max(len(scans), 1)), get_context("spawn")) as pool:
        futures = [pool.submit(make_scan, scan, out, sources, with_lungs=lungs) for scan in scans]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def make_scan(scan: PlannedScan, out: Path, sources: Sources, *, with_lungs: bool = False) -> str:
    """Make one scan: image first, its rows last; returns its name.

    Raises
    ------
    CohortError
        When a real scan cannot be used.
    """
    hu, grid, content, settings = _ground(scan, sources)
    lungs = find_lungs(hu, grid.spacing_zyx_mm, SelectionLimits(min_lung_l=LEAST_LUNG_L))
    if isinstance(lungs, Refusal):
        raise CohortError(f"{scan.name}: {lungs.text}")
    ground = Ground(hu, grid, lungs)
    placing = _placing(scan, ground, grid, content)
    refused = _insert(scan, placing, grid, content)
    if scan.wanted or scan.imitators or scan.shams:
        hu = hu.copy()
        hu[ground.box] = np.clip(np.rint(ground.hu), -1024, 3071).astype(np.int16)
    path = luna16.subset_folder(out, scan.subset) / f"{scan.uid}.mhd"
    luna16.write_metaimage(path, hu, grid)
    if with_lungs:
        luna16.write_lungs(out / luna16.LUNGS / path.name, _sides(lungs, grid), grid)
    settings |= {
        "refused": refused,
        "slice_distance_mm": grid.spacing_zyx_mm[0],
        "pixel_mm": grid.spacing_zyx_mm[1],
    }
    sha256 = hashlib.sha256(hu.astype("<i2").tobytes()).hexdigest()
    made = {"slices": len(hu), "settings": settings, "sha256": sha256}
    _write_rows(_row_file(out, scan.uid), content, _candidates(placing, grid, content), made)
    return scan.name


def _sides(lungs: LungMask, grid: Grid) -> NDArray[np.uint8]:
    """Label the lungs as LUNA16 does: 3 to the left of their middle, 4 to the right."""
    z, y, x = (np.arange(n, dtype=np.float64) for n in grid.shape_zyx)
    inside = lungs.lungs_at(z, y, x)
    middle = np.average(x, weights=inside.sum(axis=(0, 1)))
    left = (x > middle) == (grid.axes_zyx[2][0] > 0)
    return np.where(inside, np.where(left, 3, 4), 0).astype(np.uint8)


def _ground(scan: PlannedScan, sources: Sources) -> tuple[NDArray[np.int16], Grid, Content, dict[str, Any]]:
    """Give the scan before anything is inserted."""
    content = Content([], [], [])
    if scan.base == "plain":
        plain = replace(PlainSettings(), **scan.scanner)  # type: ignore[arg-type]
        return *make_plain_chest(scan.seed, plain), content, asdict(plain)
    if scan.base == "real":
        hu, grid, truth = _real(scan.source, sources.paths[scan.source], sources.truth)
        content.ignored += [*truth.nodules, *truth.ignored]
        return hu, grid, content, {}
    settings = phantom_settings(scan)
    phantom = make_phantom(scan.seed, settings, scan.own_nodules)
    for n in phantom.nodules:
        content.nodules.append((n.centre_lps_mm, n.diameter_mm, n.kind, n.place, "imaged", n.diameter_mm))
    content.controls += [(m.centre_lps_mm, m.size_mm, m.kind) for m in phantom.mimics]
    return phantom.hu, phantom.grid, content, asdict(settings)


def phantom_settings(scan: PlannedScan) -> ScanSettings:
    """Give a phantom's scanner: what the cohort file says, the rest as its seed draws it."""
    settings = replace(draw_settings(scan.seed), **scan.scanner)  # type: ignore[arg-type]
    if "slice_distance_mm" in scan.scanner and "thickness_mm" not in scan.scanner:
        settings = replace(settings, thickness_mm=max(settings.slice_distance_mm, 1.0))
    return settings


@lru_cache(maxsize=1)
def _real(name: str, path: Path, truth: Path | None) -> tuple[NDArray[np.int16], Grid, Truth]:
    """Read a real scan; the last one is kept, because a cohort takes several from each."""
    volume = read_volume(path)
    if isinstance(volume, Refusal):
        raise CohortError(f"{path.name} cannot be used: {volume.text}")
    return volume.hu, volume.grid, _truth_of(name, truth) if truth else Truth()


def _truth_of(name: str, folder: Path) -> Truth:
    """Read what a real scan holds: by patient, or by series from LUNA16's tables."""
    if (folder / PATIENTS).is_file():
        return read_truth(folder, name)
    included, excluded = (
        {uid: tuple((a.position_mm, a.diameter_mm) for a in rows) for uid, rows in read_annotations(path).items()}
        for path in (folder / luna16.ANNOTATIONS, folder / luna16.EXCLUDED)
    )
    return Truth(nodules=included.get(name, ()), ignored=excluded.get(name, ()))


def _placing(scan: PlannedScan, ground: Ground, grid: Grid, content: Content) -> Placing:
    def index(position: Vector) -> NDArray[np.float64]:
        return np.asarray(grid.lps_to_index(position) - ground.start)

    taken = [(index(row[0]), row[1] / 2) for row in content.nodules]
    taken += [(index(p), d / 2 if d > 0 else 5.0) for p, d in content.ignored]
    taken += [(index(p), min(size, 10) / 2) for p, size, _ in content.controls]
    blur = scan.blur_mm if scan.base == "real" else PHANTOM_BLUR_MM
    look = measure_look(np.asarray(ground.hu, np.int16), grid.spacing_zyx_mm[0], blur)
    return Placing(ground, look, taken, scan.seed)


def _insert(scan: PlannedScan, placing: Placing, grid: Grid, content: Content) -> int:
    """Insert what is planned; returns how many nodules found no room."""
    for _ in range(scan.imitators):
        placing.imitator()
    refused = 0
    for wanted in scan.wanted:
        done = placing.nodule(wanted)
        if done is None:
            refused += 1
            continue
        where = _position(grid, done.centre_zyx + placing.ground.start)
        content.nodules.append((where, done.diameter_mm, done.kind, done.place, "inserted", done.wanted_mm))
    for _ in range(scan.shams):
        sham = placing.sham()
        if sham is not None:
            content.controls.append((_position(grid, sham[0] + placing.ground.start), sham[1], "sham"))
    return refused


def _position(grid: Grid, index_zyx: NDArray[np.float64]) -> Vector:
    x, y, z = (float(v) for v in grid.index_to_lps(index_zyx))
    return x, y, z


def _candidates(placing: Placing, grid: Grid, content: Content) -> list[tuple[Vector, int]]:
    """Give the rows of candidates_V2: every nodule once, shifted within it; controls and other places as none."""
    rows = []
    for position, diameter, *_ in content.nodules:
        shift = placing.rng.uniform(-1, 1, 3) * diameter / 8
        rows.append((tuple(float(a + b) for a, b in zip(position, shift, strict=True)), 1))
    rows += [(position, 0) for position, _, _ in content.controls]
    drawn = (placing.candidate() for _ in range(CANDIDATES_A_SCAN))
    rows += [(_position(grid, c + placing.ground.start), 0) for c in drawn if c is not None]
    return rows  # type: ignore[return-value]


def _row_file(out: Path, uid: str) -> Path:
    return out / ROWS / f"{uid}.json"


def _write_rows(
    path: Path, content: Content, candidates: Sequence[tuple[Vector, int]], made: dict[str, Any]
) -> None:
    """Write what a scan holds; the file's being there means that the scan is finished."""
    rows = made | {
        "nodules": [[*p, d, kind, place, origin, wanted] for p, d, kind, place, origin, wanted in content.nodules],
        "ignored": [[*p, d] for p, d in content.ignored],
        "controls": [[*p, d, kind] for p, d, kind in content.controls],
        "candidates": [[*p, label] for p, label in candidates],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    luna16.write_text(path, json.dumps(rows) + "\n")


def write_tables(out: Path, planned: Sequence[PlannedScan]) -> None:
    """Write the tables of the scans that are there, in the plan's order, whoever made them."""
    made = [
        (scan, json.loads(_row_file(out, scan.uid).read_text()))
        for scan in planned
        if _row_file(out, scan.uid).exists()
    ]

    def rows(key: str, columns: slice = slice(None)) -> Iterator[list[object]]:
        for scan, found in made:
            for row in found[key]:
                yield [scan.uid, *(round(v, 6) if isinstance(v, float) else v for v in row[columns])]

    luna16.write_table(out / luna16.ANNOTATIONS, luna16.ANNOTATION_COLUMNS, rows("nodules", slice(4)))
    luna16.write_table(out / luna16.EXCLUDED, luna16.ANNOTATION_COLUMNS, rows("ignored"))
    luna16.write_table(out / luna16.CANDIDATES, luna16.CANDIDATE_COLUMNS, rows("candidates"))
    luna16.write_table(out / CONTROLS, CONTROL_COLUMNS, rows("controls"))
    of = {scan.uid: (scan.part, scan.source) for scan, _ in made}
    luna16.write_table(out / TRUTH, TRUTH_COLUMNS, ([*row, *of[str(row[0])]] for row in rows("nodules")))
    luna16.write_table(out / SCANS, SCAN_COLUMNS, (_scan_row(scan, found) for scan, found in made))
    luna16.write_text(out / luna16.SERIES, "".join(f"{scan.uid}\n" for scan, _ in made))
    cohort = read_cohort(out / FROZEN)
    _write_manifest(out, cohort, len(planned), complete=len(made) == len(planned))


def _scan_row(scan: PlannedScan, found: dict[str, Any]) -> list[object]:
    settings = json.dumps(found["settings"], sort_keys=True)
    return [
        scan.uid,
        scan.name,
        scan.part,
        scan.source,
        scan.subset,
        scan.seed,
        scan.base,
        found["slices"],
        settings,
        found["sha256"],
    ]


def changed_images(folder: Path) -> list[str]:
    """Name the scans of a cohort whose voxels are not those that were made."""
    with (folder / SCANS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    changed = []
    for row in rows:
        raw = luna16.subset_folder(folder, int(row["subset"])) / f"{row['seriesuid']}.raw"
        if not raw.is_file() or hashlib.sha256(raw.read_bytes()).hexdigest() != row["sha256"]:
            changed.append(row["name"])
    return changed


def default_workers() -> int:
    """Give the number of processes to use when none is said."""
    return max(os.cpu_count() or 1, 1)
