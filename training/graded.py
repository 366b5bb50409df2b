"""Results on a simulated cohort by size, kind and place of the nodules, with exact intervals. Pure but for reading.

The threshold of a table is the one that lets through a given number of false marks a scan on the scans at hand.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from training.froc import Annotation, ScoredMark, froc, judge_scan
from training.simulate import CONTROLS, SCANS, TRUTH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from training.marks import Mark

CONTROL_REACH_MM = 5.0


@dataclass(frozen=True, slots=True)
class GradedNodule:
    """A nodule of a cohort and its best mark.

    Attributes
    ----------
    kind, place, part
        As in ``truth.csv``.
    diameter_mm
        True diameter.
    probability, found_mm, distance_mm
        Of its most probable mark; None where it has none.
    """

    uid: str
    kind: str
    place: str
    part: str
    diameter_mm: float
    probability: float | None
    found_mm: float | None
    distance_mm: float | None


@dataclass(frozen=True, slots=True)
class GradedRow:
    """A group of nodules: how many there are and were found, and the exact 95 % interval of the sensitivity."""

    group: str
    nodules: int
    found: int
    sensitivity: float
    low: float
    high: float


def _between(kind: str, low: float, high: float) -> Callable[[GradedNodule], bool]:
    return lambda n: n.kind == kind and low <= n.diameter_mm < high


GROUPS: dict[str, Callable[[GradedNodule], bool]] = {
    "all": lambda _: True,
    "solid 3.5 mm (3 to 4)": _between("solid", 3, 4),
    "solid 4.5 mm (4 to 5.2)": _between("solid", 4, 5.2),
    "solid >= 6 mm": _between("solid", 6, math.inf),
    "part-solid >= 6 mm": _between("part-solid", 6, math.inf),
    "ground glass 4.5 mm (4 to 5.2)": _between("ground-glass", 4, 5.2),
    "ground glass 6 mm (5.2 to 7)": _between("ground-glass", 5.2, 7),
    "ground glass >= 8 mm": _between("ground-glass", 8, math.inf),
    "calcified": lambda n: n.kind == "calcified",
    "free": lambda n: n.place == "free",
    "pleura": lambda n: n.place == "pleura",
    "vessel": lambda n: n.place == "vessel",
    "fissure": lambda n: n.place == "fissure",
    "below 4 mm": lambda n: n.diameter_mm < 4,
    "4 to 6 mm": lambda n: 4 <= n.diameter_mm < 6,
    "6 to 10 mm": lambda n: 6 <= n.diameter_mm < 10,
    "10 mm and more": lambda n: n.diameter_mm >= 10,
}


def grade(
    cohort: Path,
    marks: Mapping[str, Sequence[Mark]],
    excluded: Mapping[str, Sequence[Annotation]],
    rates: Sequence[float] = (0.5, 1.0, 2.0),
) -> dict[str, Any]:
    """Grade marks on a cohort made by ``simulate``.

    Parameters
    ----------
    cohort
        Its folder, for ``truth.csv``, ``controls.csv`` and ``scans.csv``.
    marks
        Of every scan that is judged, by UID; a scan without marks has an empty list.
    excluded
        Findings to ignore.
    rates
        False marks a scan for which there is a table.

    Returns
    -------
    dict
        Plain values for a JSON file.
    """
    truth = [row for row in _rows(cohort / TRUTH) if row["seriesuid"] in marks]
    nodules = [_graded(row, marks[row["seriesuid"]]) for row in truth]
    included: dict[str, list[Annotation]] = {}
    for row in truth:
        included.setdefault(row["seriesuid"], []).append(Annotation(_position(row), float(row["diameter_mm"])))
    results = {
        uid: judge_scan(included.get(uid, ()), excluded.get(uid, ()), [_scored(m) for m in found])
        for uid, found in marks.items()
    }
    parts = {row["seriesuid"]: row["part"] for row in _rows(cohort / SCANS)}
    said: dict[str, Any] = {"scans": len(marks), "nodules": len(nodules), "hits": _hits(nodules)}
    said["parts"] = {}
    for part in sorted({parts[uid] for uid in marks}):
        of_part = [results[uid] for uid in marks if parts[uid] == part]
        false = sum(len(r.false_marks) for r in of_part)
        said["parts"][part] = {"scans": len(of_part), "cpm": froc(of_part).cpm, "all_false_marks": false}
    said["at"] = {}
    for rate in rates:
        threshold = _threshold([p for r in results.values() for p in r.false_marks], rate, len(marks))
        said["at"][f"{rate:g}"] = {
            "threshold": threshold,
            "groups": [asdict(row) for row in grade_groups(nodules, threshold)],
            "false_marks_per_scan": {
                part: sum(p >= threshold for uid in marks if parts[uid] == part for p in results[uid].false_marks)
                / values["scans"]
                for part, values in said["parts"].items()
            },
            "marks_on_controls": _on_controls(cohort, marks, threshold),
        }
    return said


def grade_groups(nodules: Sequence[GradedNodule], threshold: float) -> list[GradedRow]:
    """Count each group at a threshold; groups without a nodule are left out."""
    rows = []
    for group, belongs in GROUPS.items():
        chosen = [n for n in nodules if belongs(n)]
        if not chosen:
            continue
        found = sum(n.probability is not None and n.probability >= threshold for n in chosen)
        low, high = exact_interval(found, len(chosen))
        rows.append(GradedRow(group, len(chosen), found, found / len(chosen), low, high))
    return rows


def exact_interval(hits: int, of: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a part."""
    low = 0.0 if hits == 0 else float(stats.beta.ppf(0.025, hits, of - hits + 1))
    high = 1.0 if hits == of else float(stats.beta.ppf(0.975, hits + 1, of - hits))
    return low, high


def graded_lines(graded: Mapping[str, Any], rate: str = "1") -> list[str]:
    """Give the table of one rate as lines of text."""
    at = graded["at"][rate]
    lines = [f"at {rate} false marks a scan (threshold {at['threshold']:.3f}):"]
    for row in at["groups"]:
        bounds = f"95 % {row['low']:.3f} to {row['high']:.3f}"
        lines.append(
            f"  {row['group']:32s} {row['found']:4d} of {row['nodules']:4d}  {row['sensitivity']:.3f}  ({bounds})"
        )
    for part, false in at["false_marks_per_scan"].items():
        lines.append(f"  false marks a scan, {part}: {false:.2f}")
    return lines


def _graded(row: Mapping[str, str], marks: Sequence[Mark]) -> GradedNodule:
    position, diameter = _position(row), float(row["diameter_mm"])
    hits = [m for m in marks if math.dist(m.position_mm, position) < diameter / 2]
    best = max(hits, key=lambda m: m.probability, default=None)
    return GradedNodule(
        uid=row["seriesuid"],
        kind=row["kind"],
        place=row["place"],
        part=row["part"],
        diameter_mm=diameter,
        probability=None if best is None else best.probability,
        found_mm=None if best is None else best.diameter_mm,
        distance_mm=None if best is None else math.dist(best.position_mm, position),
    )


def _hits(nodules: Iterable[GradedNodule]) -> dict[str, Any]:
    """Say how exact the marks on nodules are."""
    found = [n for n in nodules if n.found_mm is not None and n.distance_mm is not None]
    if not found:
        return {"nodules": 0}
    errors = np.array([float(n.found_mm or 0) - n.diameter_mm for n in found])
    true = np.array([n.diameter_mm for n in found])
    return {
        "nodules": len(found),
        "diameter_mean_absolute_error_mm": round(float(np.abs(errors).mean()), 3),
        "diameter_bias_mm": round(float(errors.mean()), 3),
        "diameter_bias_part": round(float((errors / true).mean()), 4),
        "position_median_error_mm": round(float(np.median([float(n.distance_mm or 0) for n in found])), 3),
    }


def _threshold(false: Sequence[float], rate: float, scans: int) -> float:
    """Give the lowest threshold that lets through at most so many false marks a scan."""
    falling = sorted(false, reverse=True)
    allowed = math.floor(rate * scans + 1e-9)
    return math.nextafter(falling[allowed], 1.0) if allowed < len(falling) else 0.0


def _on_controls(cohort: Path, marks: Mapping[str, Sequence[Mark]], threshold: float) -> dict[str, str]:
    """Count for each sort of control how many have a mark on them."""
    there: Counter[str] = Counter()
    marked: Counter[str] = Counter()
    for row in _rows(cohort / CONTROLS):
        if row["seriesuid"] not in marks:
            continue
        reach = max(min(float(row["diameter_mm"]), 20.0) / 2, CONTROL_REACH_MM)
        position = _position(row)
        there[row["kind"]] += 1
        marked[row["kind"]] += any(
            m.probability >= threshold and math.dist(m.position_mm, position) < reach
            for m in marks[row["seriesuid"]]
        )
    return {kind: f"{marked[kind]} of {count}" for kind, count in sorted(there.items())}


def _scored(mark: Mark) -> ScoredMark:
    return ScoredMark(mark.position_mm, mark.probability)


def _position(row: Mapping[str, str]) -> tuple[float, float, float]:
    return float(row["coordX"]), float(row["coordY"]), float(row["coordZ"])


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="ascii") as file:
        return list(csv.DictReader(file))
