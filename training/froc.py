"""LUNA16's judge, restated: marks and truth in, FROC curve and CPM out. Pure.

Rules as in the challenge's evaluation script: strict distance, included before excluded findings, at most 100 marks
a scan with ties at the 101st dropped, linear interpolation. Where the script gives nan or raises (no nodule found),
this gives 0. Reading the tables is ``judge_tables``' business, drawing at random ``bootstrap``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of nodules and marks, all scans together.

    Attributes
    ----------
    hits, misses
        Nodules with and without a mark on them.
    false_positives
        Marks on nothing, duplicates each for itself.
    ignored, double
        Marks on excluded findings, and surplus marks on nodules.
    """

    hits: int
    misses: int
    false_positives: int
    ignored: int
    double: int


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A free-response curve: false positives a scan and sensitivity, from (0, 0) upwards."""

    false_per_scan: NDArray[np.float64]
    sensitivity: NDArray[np.float64]

    def at(self, rates: Sequence[float] | NDArray[np.float64] = RATES) -> NDArray[np.float64]:
        """Sensitivity at rates of false positives: linear between points, flat behind the last."""
        return np.asarray(
            np.interp(np.asarray(rates, np.float64), self.false_per_scan, self.sensitivity), np.float64
        )

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
    positions = np.array([m.position_mm for m in kept], np.float64).reshape(-1, 3)
    left = np.ones(len(kept), bool)
    nodules: list[float | None] = []
    doubles = ignored = 0
    for annotation in included:
        hits = _hits(annotation, positions)
        left[hits] = False
        doubles += max(0, len(hits) - 1)
        nodules.append(max((kept[i].probability for i in hits), default=None))
    for annotation in excluded:
        if not left.any():
            break
        hits = [i for i in _hits(annotation, positions) if left[i]]
        ignored += len(hits)
        left[hits] = False
    return ScanResult(tuple(nodules), tuple(kept[i].probability for i in np.flatnonzero(left)), ignored, doubles)


def _hits(annotation: Annotation, positions: NDArray[np.float64]) -> list[int]:
    """Give the marks strictly within the radius, in double precision and the script's order of sums."""
    dx, dy, dz = (positions - annotation.position_mm).T
    return [int(i) for i in np.flatnonzero(dx * dx + dy * dy + dz * dz < annotation.radius_squared)]


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """All scans' results, ordered so that the curve of any draw of scans is two running sums.

    Attributes
    ----------
    found_scan, false_scan
        For each found nodule and each false mark its scan (place in the list), by falling probability.
    found_upto, false_upto
        For each point of the curve how many of them lie at or above its probability. Probabilities at which only
        false marks come, between others of that kind, are left out: they lie on a horizontal line.
    nodules
        Nodules of each scan, the missed ones too.
    """

    found_scan: NDArray[np.int64]
    false_scan: NDArray[np.int64]
    found_upto: NDArray[np.int64]
    false_upto: NDArray[np.int64]
    nodules: NDArray[np.int64]

    def curve(self, times: NDArray[np.int64]) -> Curve:
        """Make the curve of scans that count so many times each; the divisor is their sum.

        A draw without a nodule has sensitivity 0.
        """
        scans, nodules = int(times.sum()), int(times @ self.nodules)
        return Curve(
            _running(times[self.false_scan])[self.false_upto] / max(scans, 1),
            _running(times[self.found_scan])[self.found_upto] / max(nodules, 1),
        )


def _running(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def pool(results: Iterable[ScanResult]) -> Pool:
    """Pool the results of scans, in their order."""
    judged = list(results)
    found, found_scan = _by_falling([[p for p in r.nodules if p is not None] for r in judged])
    false, false_scan = _by_falling([list(r.false_marks) for r in judged])
    levels = np.unique(np.concatenate([found, false]))[::-1]
    is_found = np.isin(levels, found)
    corner = is_found | np.append(is_found[1:], True)
    points = -levels[corner]
    return Pool(
        found_scan=found_scan,
        false_scan=false_scan,
        found_upto=np.append(0, np.searchsorted(-found, points, side="right")),
        false_upto=np.append(0, np.searchsorted(-false, points, side="right")),
        nodules=np.array([len(r.nodules) for r in judged], np.int64),
    )


def _by_falling(scores: list[list[float]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Order the scores of all scans by falling value; give each one's scan too."""
    flat = np.array([p for row in scores for p in row], np.float64)
    scan = np.repeat(np.arange(len(scores)), [len(row) for row in scores])
    order = np.argsort(-flat, kind="stable")
    return flat[order], scan[order]


def froc(results: Iterable[ScanResult]) -> Curve:
    """Pool scans to a curve; marks of equal probability make one oblique step."""
    pooled = pool(results)
    return pooled.curve(np.ones(len(pooled.nodules), np.int64))


def counts(results: Iterable[ScanResult]) -> Counts:
    """Count hits, misses, false positives, ignored and double marks."""
    judged = list(results)
    found = sum(p is not None for r in judged for p in r.nodules)
    return Counts(
        hits=found,
        misses=sum(len(r.nodules) for r in judged) - found,
        false_positives=sum(len(r.false_marks) for r in judged),
        ignored=sum(r.ignored for r in judged),
        double=sum(r.doubles for r in judged),
    )


def judge(
    series: Sequence[str],
    included: Mapping[str, Sequence[Annotation]],
    excluded: Mapping[str, Sequence[Annotation]],
    marks: Mapping[str, Sequence[ScoredMark]],
) -> dict[str, ScanResult]:
    """Judge the listed series; marks on others are dropped, and a listed one without marks counts."""
    return {uid: judge_scan(included.get(uid, ()), excluded.get(uid, ()), marks.get(uid, ())) for uid in series}
