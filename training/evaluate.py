"""Weights and scans in; submission, table of truth and FROC out. The scans go through the product's own detector.

A case is a scan with its truth: a folder of DICOM or a ``.mhd`` with annotation tables, or a phantom of a seed.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.analysis import analyse_path
from pipeline.detect.resample import PREPROCESSING
from pipeline.domain.geometry import Grid
from pipeline.domain.limits import SelectionLimits
from pipeline.domain.outcome import Refusal
from pipeline.domain.volume import ReceivedGeometry, Volume
from training.froc import RATES, Annotation, ScoredMark, froc, judge_scan
from training.insertion import Brush, NoiseField
from training.judge_tables import write_submission
from training.lesions import draw_diameter, draw_kind
from training.phantom import Phantom, make_phantom
from training.phantom_files import series_uid, study_uid
from training.scans import UnusableScanError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.domain.finding import Finding
    from pipeline.ports import Detector
    from training.froc import Curve, ScanResult
    from training.scans import TrainingScan


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A scan, its truth and what the detector found.

    Attributes
    ----------
    name, series_instance_uid
        Of the scan.
    nodules, ignored
        Its truth.
    findings
        Uncut, by falling probability.
    """

    name: str
    series_instance_uid: str
    nodules: tuple[Annotation, ...]
    ignored: tuple[Annotation, ...]
    findings: tuple[Finding, ...]

    @property
    def marks(self) -> list[ScoredMark]:
        """The findings as the judge takes them."""
        return [ScoredMark(f.position_lps_mm, f.probability) for f in self.findings]

    def judged(self, *, with_ignored: bool = True) -> ScanResult:
        """Judge the scan, with or without its findings to ignore."""
        return judge_scan(self.nodules, self.ignored if with_ignored else (), self.marks)


@dataclass(frozen=True, slots=True)
class TruthRow:
    """What became of one nodule.

    Attributes
    ----------
    diameter_mm
        True diameter.
    rank
        Place among the scan's findings, from 1; None when missed.
    false_before
        False marks (findings to ignore not counted as such) that rank above it.
    probability, found_diameter_mm, distance_mm
        Of its most probable mark.
    """

    scan: str
    nodule: int
    diameter_mm: float
    rank: int | None
    false_before: int | None
    probability: float | None
    found_diameter_mm: float | None
    distance_mm: float | None


def volume_of(phantom: Phantom) -> Volume:
    """Give a phantom as the pipeline would assemble it."""
    spacing, shape = phantom.grid.spacing_zyx_mm, phantom.grid.shape_zyx
    extent = (shape[0] * spacing[0], shape[1] * spacing[1], shape[2] * spacing[2])
    return Volume(
        hu=phantom.hu,
        grid=phantom.grid,
        study_instance_uid=study_uid(phantom),
        series_instance_uid=series_uid(phantom),
        slices=(),
        received=ReceivedGeometry(shape[0], spacing, extent),
    )


def evaluate_phantom(detector: Detector, phantom: Phantom) -> Evaluated:
    """Run the detector on a phantom.

    Raises
    ------
    UnusableScanError
        When the detector refuses the scan.
    """
    volume = volume_of(phantom)
    answer = detector.detect(volume)
    if isinstance(answer, Refusal):
        raise UnusableScanError(f"phantom {phantom.seed} was refused: {answer.text}")
    nodules = tuple(Annotation(n.centre_lps_mm, n.diameter_mm) for n in phantom.nodules)
    return Evaluated(f"phantom-{phantom.seed}", volume.series_instance_uid, nodules, (), answer.findings)


def evaluate_phantoms(detector: Detector, seeds: Iterable[int]) -> Iterator[Evaluated]:
    """Make and search the phantoms of some seeds, one after the other."""
    for seed in seeds:
        yield evaluate_phantom(detector, make_phantom(seed))


def evaluate_path(
    detector: Detector,
    path: Path,
    included: Mapping[str, Sequence[Annotation]],
    excluded: Mapping[str, Sequence[Annotation]],
) -> Evaluated:
    """Run the whole pipeline on a folder or a ``.mhd``; truth is looked up by series UID, or by the file's name.

    Raises
    ------
    UnusableScanError
        When the scan is not analysed.
    """
    analysis = analyse_path(path, detector, SelectionLimits(), operating_point=0.0)
    if analysis.reason is not None:
        raise UnusableScanError(f"{path.name} was not analysed: {analysis.reason.text}")
    uid = analysis.series_instance_uid or path.stem
    return Evaluated(path.stem, uid, tuple(included.get(uid, ())), tuple(excluded.get(uid, ())), analysis.findings)


def with_insertions(
    scan: TrainingScan, seed: int, count: int
) -> tuple[Volume, tuple[Annotation, ...], tuple[Annotation, ...]]:
    """Put simulated nodules into a whole prepared scan, at places and with a seed of their own.

    Returns
    -------
    Volume
        The scan's box on the networks' grid, its first voxel at the origin.
    nodules, ignored
        What was inserted; the scan's own nodules and findings.
    """
    rng = np.random.default_rng([seed, 7])
    hu = scan.hu.astype(np.float32)
    spacing = PREPROCESSING.spacing_zyx_mm
    brush = Brush(hu, spacing, scan.look, NoiseField(rng, scan.look.grain_zyx))
    taken = [(row[:3] * spacing, row[3] / 2) for row in (*scan.nodules, *scan.ignored)]
    own = [_annotation(row[:3], row[3], spacing) for row in (*scan.nodules, *scan.ignored)]
    inserted: list[Annotation] = []
    for _ in range(60 * count):
        if len(inserted) == count:
            break
        kind = draw_kind(rng)
        diameter = draw_diameter(rng, 6.0 if kind in ("ground-glass", "part-solid") else 3.0)
        rows = scan.places[("free", "pleura", "vessel")[rng.choice(3, p=[0.45, 0.4, 0.15])]]
        place = rows[rng.integers(len(rows))].astype(np.float64)
        if any(np.linalg.norm(place * spacing - p) < r + diameter / 2 + 8 for p, r in taken):
            continue
        done = brush.nodule(rng, place, diameter, kind)
        if done is not None:
            taken.append((done.centre_zyx * spacing, done.diameter_mm / 2))
            inserted.append(_annotation(done.centre_zyx, done.diameter_mm, spacing))
    shape = (hu.shape[0], hu.shape[1], hu.shape[2])
    extent = (shape[0] * spacing[0], shape[1] * spacing[1], shape[2] * spacing[2])
    volume = Volume(
        hu=np.clip(np.rint(hu), -1024, 3071).astype(np.int16),
        grid=Grid(shape, spacing, (0.0, 0.0, 0.0)),
        study_instance_uid="",
        series_instance_uid=f"{scan.name}-inserted-{seed}",
        slices=(),
        received=ReceivedGeometry(shape[0], spacing, extent),
    )
    return volume, tuple(inserted), tuple(own)


def _annotation(index: NDArray[np.float64], diameter: float, spacing: tuple[float, float, float]) -> Annotation:
    z, y, x = (float(i) * s for i, s in zip(index, spacing, strict=True))
    return Annotation((x, y, z), float(diameter))


def evaluate_insertions(detector: Detector, scan: TrainingScan, seed: int, count: int = 12) -> Evaluated:
    """Run the detector on a real scan with simulated nodules; its own findings are ignored.

    Raises
    ------
    UnusableScanError
        When the detector refuses the scan.
    """
    volume, nodules, ignored = with_insertions(scan, seed, count)
    answer = detector.detect(volume)
    if isinstance(answer, Refusal):
        raise UnusableScanError(f"{scan.name} was refused: {answer.text}")
    return Evaluated(volume.series_instance_uid, volume.series_instance_uid, nodules, ignored, answer.findings)


def truth_rows(scan: Evaluated) -> list[TruthRow]:
    """Say for each nodule where it stands among the findings."""
    hit = [any(_hits(n, f) for n in scan.nodules) for f in scan.findings]
    rows = []
    for number, nodule in enumerate(scan.nodules, 1):
        rank = next((k for k, f in enumerate(scan.findings) if _hits(nodule, f)), None)
        if rank is None:
            rows.append(TruthRow(scan.name, number, nodule.diameter_mm, None, None, None, None, None))
            continue
        found = scan.findings[rank]
        rows.append(
            TruthRow(
                scan.name,
                number,
                nodule.diameter_mm,
                rank + 1,
                hit[:rank].count(False),
                found.probability,
                found.diameter_mm,
                math.dist(nodule.position_mm, found.position_lps_mm),
            )
        )
    return rows


def _hits(nodule: Annotation, finding: Finding) -> bool:
    x, y, z = (a - b for a, b in zip(nodule.position_mm, finding.position_lps_mm, strict=True))
    return x * x + y * y + z * z < nodule.radius_squared


def at_threshold(scans: Sequence[Evaluated], threshold: float, from_mm: float = 0.0) -> tuple[int, int, int]:
    """Count nodules found at a threshold, all nodules (of some diameter on), and false marks."""
    found = total = false = 0
    for scan in scans:
        result = scan.judged()
        for nodule, probability in zip(scan.nodules, result.nodules, strict=True):
            if nodule.diameter_mm >= from_mm:
                total += 1
                found += probability is not None and probability >= threshold
        false += sum(p >= threshold for p in result.false_marks)
    return found, total, false


def curve_of(scans: Sequence[Evaluated], *, with_ignored: bool = True) -> Curve:
    """Pool scans to a FROC curve."""
    return froc([scan.judged(with_ignored=with_ignored) for scan in scans])


def write_evaluation(folder: Path, scans: Sequence[Evaluated], threshold: float) -> dict[str, object]:
    """Write ``submission.csv``, ``truth.csv`` and ``summary.json``; give the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    write_submission(folder / "submission.csv", {s.series_instance_uid: s.marks for s in scans})
    rows = [row for scan in scans for row in truth_rows(scan)]
    with (folder / "truth.csv").open("w", newline="", encoding="ascii") as file:
        writer = csv.DictWriter(file, list(TruthRow.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    summary = summarise(scans, threshold)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="ascii")
    return summary


def summarise(scans: Sequence[Evaluated], threshold: float) -> dict[str, object]:
    """Put the result in numbers."""
    found, total, false = at_threshold(scans, threshold)
    found4, total4, _ = at_threshold(scans, threshold, from_mm=4.0)
    rows = [r for scan in scans for r in truth_rows(scan)]
    errors = [r.found_diameter_mm - r.diameter_mm for r in rows if r.found_diameter_mm is not None]
    distances = [r.distance_mm for r in rows if r.distance_mm is not None]
    curve = curve_of(scans)
    return {
        "scans": len(scans),
        "threshold": threshold,
        "nodules": total,
        "found": found,
        "nodules_from_4_mm": total4,
        "found_from_4_mm": found4,
        "false_per_scan": false / max(len(scans), 1),
        "sensitivity_at": {f"{rate:g}": round(float(s), 4) for rate, s in zip(RATES, curve.at(), strict=True)},
        "cpm": round(curve.cpm, 4),
        "diameter_error_mm": round(sum(abs(e) for e in errors) / max(len(errors), 1), 3),
        "diameter_bias_mm": round(sum(errors) / max(len(errors), 1), 3),
        "centre_error_mm": round(sum(distances) / max(len(distances), 1), 3),
    }
