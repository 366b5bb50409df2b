"""Held-out marks: what calibration is fitted on and operating points are chosen on, with scans as the unit.

They come from a run folder whose scans the weights never saw. Both are functions of marks and truth alone.
"""

from __future__ import annotations

import csv
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.detect.detector import calibrated
from pipeline.detect.weights import Calibration, CardOperatingPoint
from training.calibration import (
    Labelled,
    Reliability,
    fit_isotonic,
    fit_platt,
    label_marks,
    pooled,
    reliability,
)
from training.froc import ScoredMark, judge_scan
from training.judge_tables import read_annotations, read_series, read_submission
from training.run_folder import ANNOTATIONS, EXCLUDED, SERIESUIDS, SUBMISSION

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.froc import Annotation

Method = Literal["platt", "isotonic"]
POINT_RATES = (1.0, 0.25, 0.5, 2.0, 4.0)
"""False marks a scan of the operating points; the default one first."""

LEAST_THRESHOLD = 0.001
RESAMPLES = 1000
NO_CHANGE = Calibration(1.0, 0.0, 0.0)
RAW = "raw_score"


@dataclass(frozen=True, slots=True)
class HeldOutScan:
    """A scan's truth and its marks with raw scores."""

    included: tuple[Annotation, ...]
    excluded: tuple[Annotation, ...]
    marks: tuple[ScoredMark, ...]

    @property
    def labelled(self) -> Labelled:
        """Raw scores with labels."""
        return label_marks(self.included, self.excluded, self.marks)


def read_held_out(folder: Path) -> list[HeldOutScan]:
    """Read the tables of a run folder; raw scores where the submission has them, else its probabilities.

    Raises
    ------
    TableError
        When a table cannot be read.
    """
    marks = read_submission(folder / SUBMISSION)
    raw = _raw_scores(folder / SUBMISSION)
    if raw is not None:
        left = {uid: iter(rows) for uid, rows in raw.items()}
        marks = {uid: [replace(m, probability=next(left[uid])) for m in rows] for uid, rows in marks.items()}
    included = read_annotations(folder / ANNOTATIONS)
    excluded = read_annotations(folder / EXCLUDED) if (folder / EXCLUDED).is_file() else {}
    return [
        HeldOutScan(tuple(included.get(uid, ())), tuple(excluded.get(uid, ())), tuple(marks.get(uid, ())))
        for uid in read_series(folder / SERIESUIDS)
    ]


def _raw_scores(path: Path) -> dict[str, list[float]] | None:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if RAW not in (rows.fieldnames or ()):
            return None
        scores: dict[str, list[float]] = {}
        for row in rows:
            scores.setdefault(row["seriesuid"], []).append(float(row[RAW]))
        return scores


def fit(scans: Sequence[HeldOutScan], method: Method, data_set: str) -> Calibration:
    """Fit a calibration of raw scores on the marks of all scans.

    Raises
    ------
    CalibrationError
        When there are too few marks.
    """
    marks = pooled(s.labelled for s in scans)
    if method == "platt":
        platt = fit_platt(marks)
        return replace(NO_CHANGE, slope=platt.slope, shift=platt.shift, data_set=data_set)
    line = fit_isotonic(marks)
    return replace(NO_CHANGE, knots=tuple(zip(line.scores, line.probabilities, strict=True)), data_set=data_set)


def measure(scans: Sequence[HeldOutScan], calibration: Calibration) -> Reliability:
    """Measure a calibration on scans."""
    marks = pooled(s.labelled for s in scans)
    probabilities = np.array([calibrated(float(s), calibration) for s in marks.scores], np.float64)
    return reliability(probabilities, marks.hits)


def halves(scans: Sequence[HeldOutScan], seed: int = 0) -> tuple[list[HeldOutScan], list[HeldOutScan]]:
    """Divide scans at random into two halves."""
    order = np.random.default_rng([seed, 14]).permutation(len(scans))
    middle = len(scans) // 2
    return [scans[i] for i in order[:middle]], [scans[i] for i in order[middle:]]


def half_and_half(scans: Sequence[HeldOutScan], method: Method) -> dict[str, Any]:
    """Fit on one half and measure on the other; plain values for a JSON file.

    Raises
    ------
    CalibrationError
        When a half has too few marks.
    """
    first, second = halves(scans)
    calibration = fit(first, method, "one half")
    before, after = measure(second, NO_CHANGE), measure(second, calibration)
    return {
        "method": method,
        "hits_by": "LUNA16's judge: strictly within the radius; ignored marks left out",
        "scans": {"fitted_on": len(first), "measured_on": len(second)},
        "calibration": asdict(calibration),
        "before": asdict(before),
        "after": asdict(after),
    }


def choose_points(
    scans: Sequence[HeldOutScan], calibration: Calibration, data_set: str, *, seed: int = 0
) -> tuple[CardOperatingPoint, ...]:
    """Choose for each rate the lowest threshold with at most that many false marks a scan.

    Parameters
    ----------
    scans
        Held-out scans.
    calibration
        What turns raw scores into the probabilities that the thresholds are on.
    data_set
        What the scans are, for the card.
    seed
        Of the bootstrap's draws of scans.
    """
    results = []
    for scan in scans:
        marks = [replace(m, probability=calibrated(m.probability, calibration)) for m in scan.marks]
        results.append(judge_scan(scan.included, scan.excluded, marks))
    false = np.sort(np.array([p for r in results for p in r.false_marks], np.float64))[::-1]
    counts = np.array([len(r.nodules) for r in results], np.float64)
    draws = np.random.default_rng([seed, 15]).integers(0, len(scans), (RESAMPLES, len(scans)))
    points = []
    for rate in POINT_RATES:
        allowed = math.floor(rate * len(scans) + 1e-9)
        first_too_many = float(false[allowed]) if allowed < len(false) else 0.0
        threshold = max(math.ceil(first_too_many * 1e6 + 1e-6) / 1e6, LEAST_THRESHOLD)
        found = np.array([sum(p is not None and p >= threshold for p in r.nodules) for r in results], np.float64)
        low, high = _interval(found, counts, draws)
        points.append(
            CardOperatingPoint(
                name=f"fp-{rate:g}",
                threshold=threshold,
                expected_fp_per_scan=round(float((false >= threshold).sum()) / len(scans), 3),
                sensitivity=round(float(found.sum() / max(counts.sum(), 1)), 4),
                data_set=data_set,
                sensitivity_low=low,
                sensitivity_high=high,
            )
        )
    return tuple(points)


def _interval(
    found: NDArray[np.float64], counts: NDArray[np.float64], draws: NDArray[np.int64]
) -> tuple[float, float]:
    """Give the 95 % interval of the sensitivity over draws of scans; a draw without nodules counts as 0."""
    totals = counts[draws].sum(axis=1)
    drawn = np.sort(found[draws].sum(axis=1) / np.maximum(totals, 1))
    return round(float(drawn[25]), 4), round(float(drawn[975]), 4)
