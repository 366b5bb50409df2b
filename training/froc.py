"""LUNA16's judge, restated: marks and truth in, FROC curve and CPM out. Pure.

Rules as in the challenge's evaluation script: strict distance, included before excluded findings, at most 100 marks
a scan with ties at the 101st dropped, linear interpolation. Where the script gives nan or raises (no nodule found),
this gives 0.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
"""False positives a scan at which LUNA16 reads the curve."""

MOST_MARKS = 100
UNKNOWN_DIAMETER_MM = 10.0


@dataclass(frozen=True, slots=True)
class Annotation:
    """A finding of the reference: position in mm (x, y, z) and diameter; a negative diameter means 10 mm."""

    position_mm: tuple[float, float, float]
    diameter_mm: float

    @property
    def radius_squared(self) -> float:
        """Square of the radius within which a mark hits; mm^2."""
        diameter = UNKNOWN_DIAMETER_MM if self.diameter_mm < 0 else self.diameter_mm
        return (diameter / 2) ** 2


@dataclass(frozen=True, slots=True)
class ScoredMark:
    """A detection: position in mm (x, y, z) and probability."""

    position_mm: tuple[float, float, float]
    probability: float


@dataclass(frozen=True, slots=True)
class ScanResult:
    """One scan judged.

    Attributes
    ----------
    nodules
        For each included nodule the highest probability of the marks on it, or None where there is none.
    false_marks
        Probabilities of the marks on nothing.
    ignored, doubles
        Marks on excluded findings, and surplus marks on included ones.
    """

    nodules: tuple[float | None, ...]
    false_marks: tuple[float, ...]
    ignored: int
    doubles: int


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A free-response curve: false positives a scan and sensitivity, from (0, 0) upwards."""

    false_per_scan: NDArray[np.float64]
    sensitivity: NDArray[np.float64]

    def at(self, rates: Sequence[float] = RATES) -> NDArray[np.float64]:
        """Sensitivity at rates of false positives: linear between points, flat behind the last."""
        return np.asarray(np.interp(rates, self.false_per_scan, self.sensitivity), np.float64)

    @property
    def cpm(self) -> float:
        """Competition performance metric: mean sensitivity at the seven rates."""
        return float(self.at().mean())


def capped(marks: Sequence[ScoredMark], most: int = MOST_MARKS) -> list[ScoredMark]:
    """Keep the marks above the 101st largest probability, in order; all where there are no more than 100."""
    if len(marks) <= most:
        return list(marks)
    limit = sorted((m.probability for m in marks), reverse=True)[most]
    return [m for m in marks if m.probability > limit][:most]


def judge_scan(
    included: Sequence[Annotation], excluded: Sequence[Annotation], marks: Sequence[ScoredMark]
) -> ScanResult:
    """Match the marks of one scan.

    A mark hits a finding when it lies strictly within its radius. One mark may find two nodules; every mark that
    hits an included one is gone before the excluded are looked at.
    """
    kept = capped(marks)
    left = set(range(len(kept)))
    nodules: list[float | None] = []
    doubles = ignored = 0
    for annotation in included:
        hits = _hits(annotation, kept)
        left -= set(hits)
        doubles += max(0, len(hits) - 1)
        nodules.append(max((kept[i].probability for i in hits), default=None))
    for annotation in excluded:
        hit = left.intersection(_hits(annotation, kept))
        ignored += len(hit)
        left -= hit
    return ScanResult(tuple(nodules), tuple(kept[i].probability for i in sorted(left)), ignored, doubles)


def _hits(annotation: Annotation, marks: Sequence[ScoredMark]) -> list[int]:
    x, y, z = annotation.position_mm
    hits = []
    for i, mark in enumerate(marks):
        mx, my, mz = mark.position_mm
        if (x - mx) ** 2 + (y - my) ** 2 + (z - mz) ** 2 < annotation.radius_squared:
            hits.append(i)
    return hits


def froc(results: Iterable[ScanResult]) -> Curve:
    """Pool scans to a curve; marks of equal probability make one oblique step."""
    judged = list(results)
    found = np.array([p for r in judged for p in r.nodules if p is not None])
    false = np.array([p for r in judged for p in r.false_marks])
    total = sum(len(r.nodules) for r in judged)
    levels = np.unique(np.concatenate([found, false]))[::-1]
    hits = np.array([(found >= level).sum() for level in levels], np.float64)
    misses = np.array([(false >= level).sum() for level in levels], np.float64)
    return Curve(
        np.concatenate([[0.0], misses / max(len(judged), 1)]), np.concatenate([[0.0], hits / max(total, 1)])
    )


def judge(
    series: Sequence[str],
    included: Mapping[str, Sequence[Annotation]],
    excluded: Mapping[str, Sequence[Annotation]],
    marks: Mapping[str, Sequence[ScoredMark]],
) -> dict[str, ScanResult]:
    """Judge the listed series; marks on others are dropped, and a listed one without marks counts."""
    return {uid: judge_scan(included.get(uid, ()), excluded.get(uid, ()), marks.get(uid, ())) for uid in series}


def read_annotations(path: Path) -> dict[str, list[Annotation]]:
    """Read ``seriesuid,coordX,coordY,coordZ,diameter_mm``."""
    table: dict[str, list[Annotation]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            x, y, z = (float(row[f"coord{axis}"]) for axis in "XYZ")
            table[row["seriesuid"]].append(Annotation((x, y, z), float(row["diameter_mm"])))
    return dict(table)


def read_submission(path: Path) -> dict[str, list[ScoredMark]]:
    """Read ``seriesuid,coordX,coordY,coordZ,probability``."""
    table: dict[str, list[ScoredMark]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            x, y, z = (float(row[f"coord{axis}"]) for axis in "XYZ")
            table[row["seriesuid"]].append(ScoredMark((x, y, z), float(row["probability"])))
    return dict(table)


def write_submission(path: Path, marks: Mapping[str, Sequence[ScoredMark]]) -> None:
    """Write marks as LUNA16 takes them; probabilities in full precision, so that none become equal."""
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file)
        writer.writerow(["seriesuid", "coordX", "coordY", "coordZ", "probability"])
        for uid, rows in marks.items():
            for mark in rows:
                writer.writerow([uid, *(f"{v:.6f}" for v in mark.position_mm), repr(mark.probability)])
