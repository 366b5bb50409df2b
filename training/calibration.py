"""Calibration of probabilities: fit on one set of marks, measure on another. Pure.

A mark's label is the judge's: 1 where it hits a nodule, 0 where it hits nothing; ignored marks take no part. Both
fits never fall as the score rises, so they change no ranking and no CPM. On the choice of methods: Kuzucu et al.
2024 (arXiv 2405.20459).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from training.froc import Annotation, ScoredMark

    Numbers = NDArray[np.float64]

BINS = 15
LEAST_OF_EACH = 5
"""Marks on nodules, and false ones, without which nothing is fitted."""

CERTAIN = 1e-7
STEPS = 100


class CalibrationError(Exception):
    """Marks from which nothing can be fitted; the text says how many of which are missing."""


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Marks with labels: score in [0, 1] and whether it hit a nodule, both ``(n,)``."""

    scores: Numbers
    hits: NDArray[np.bool_]

    def __len__(self) -> int:
        """Count the marks."""
        return len(self.scores)


@dataclass(frozen=True, slots=True)
class Platt:
    """probability = sigmoid(slope logit(score) + shift); the slope is positive."""

    slope: float
    shift: float

    def __call__(self, scores: Numbers) -> Numbers:
        """Calibrate scores ``(n,)``."""
        return np.asarray(1 / (1 + np.exp(-(self.slope * logit(scores) + self.shift))), np.float64)


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A rising line through knots: score and probability of each, scores rising; 1e-9 of the score breaks ties."""

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __call__(self, scores: Numbers) -> Numbers:
        """Calibrate scores ``(n,)``."""
        lines = np.interp(scores, self.scores, self.probabilities)
        return np.asarray((lines + 1e-9 * scores) / (1 + 1e-9), np.float64)


@dataclass(frozen=True, slots=True)
class ReliabilityRow:
    """One bin: how many marks, their mean probability, and the part of them that hit."""

    marks: int
    mean_probability: float
    hit_rate: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far probabilities can be believed.

    Attributes
    ----------
    expected_error
        Expected calibration error: mean over all marks of |mean probability - hit rate| of their bin.
    brier
        Mean squared difference of probability and label.
    rows
        Bins of equally many marks, by rising probability.
    """

    marks: int
    expected_error: float
    brier: float
    rows: tuple[ReliabilityRow, ...]


def logit(scores: Numbers) -> Numbers:
    """ln(p / (1 - p)), with scores nearer to 0 or 1 than 1e-7 taken as that near."""
    inside = np.clip(scores, CERTAIN, 1 - CERTAIN)
    return np.asarray(np.log(inside / (1 - inside)), np.float64)


def label_marks(
    included: Iterable[Annotation], excluded: Iterable[Annotation], marks: Iterable[ScoredMark]
) -> Labelled:
    """Label one scan's marks by the judge's rule: on a nodule (a double too), on nothing; ignored ones left out."""
    nodules, ignored = list(included), list(excluded)
    scores, hits = [], []
    for mark in marks:
        hit = any(_inside(a, mark) for a in nodules)
        if hit or not any(_inside(a, mark) for a in ignored):
            scores.append(mark.probability)
            hits.append(hit)
    return Labelled(np.asarray(scores, np.float64), np.asarray(hits, bool))


def pooled(parts: Iterable[Labelled]) -> Labelled:
    """Put the marks of many scans together."""
    every = list(parts)
    if not every:
        return Labelled(np.empty(0), np.empty(0, bool))
    return Labelled(np.concatenate([p.scores for p in every]), np.concatenate([p.hits for p in every]))


def _inside(annotation: Annotation, mark: ScoredMark) -> bool:
    square = sum((a - b) ** 2 for a, b in zip(annotation.position_mm, mark.position_mm, strict=True))
    return square < annotation.radius_squared


def fit_platt(marks: Labelled) -> Platt:
    """Fit slope and shift by maximum likelihood, with Platt's targets against certainty in few marks.

    Raises
    ------
    CalibrationError
        When there are too few marks of a kind, or a higher score does not mean a nodule more often.

    References
    ----------
    Platt 1999; Newton's method with step halving as in Lin, Lin and Weng 2007 (doi 10.1007/s10994-007-5018-6).
    """
    _enough(marks)
    x = logit(marks.scores)
    hits = int(marks.hits.sum())
    misses = len(marks) - hits
    target = np.where(marks.hits, (hits + 1) / (hits + 2), 1 / (misses + 2))
    design = np.stack([x, np.ones_like(x)], 1)
    weights = np.array([1.0, np.log((hits + 1) / (misses + 1))])
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (p - target)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        scale = 1.0
        while scale > 1e-6 and _loss(design, target, weights - scale * step) > _loss(design, target, weights):
            scale /= 2
        weights = weights - scale * step
        if np.abs(scale * step).max() < 1e-9:
            break
    if weights[0] <= 0:
        raise CalibrationError(
            "A higher score does not mean a nodule more often on these marks; nothing was fitted."
        )
    return Platt(float(weights[0]), float(weights[1]))


def _loss(design: Numbers, target: Numbers, weights: Numbers) -> float:
    z = design @ weights
    return float(np.sum(np.logaddexp(0, z) - target * z))


def fit_isotonic(marks: Labelled) -> Isotonic:
    """Fit the rising steps nearest to the labels (pool adjacent violators), joined by lines at their middles.

    Raises
    ------
    CalibrationError
        When there are too few marks of a kind.
    """
    _enough(marks)
    scores, inverse = np.unique(marks.scores, return_inverse=True)
    weight = np.bincount(inverse).astype(np.float64)
    mean = np.bincount(inverse, marks.hits.astype(np.float64)) / weight
    blocks: list[list[float]] = []
    for score, value, count in zip(scores, mean, weight, strict=True):
        blocks.append([value, count, score * count])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            value2, count2, sum2 = blocks.pop()
            value1, count1, sum1 = blocks.pop()
            total = count1 + count2
            blocks.append([(value1 * count1 + value2 * count2) / total, total, sum1 + sum2])
    knots = [(total / count, value) for value, count, total in blocks]
    return Isotonic(
        (0.0, *(float(s) for s, _ in knots), 1.0),
        (float(knots[0][1]), *(float(p) for _, p in knots), float(knots[-1][1])),
    )


def _enough(marks: Labelled) -> None:
    hits = int(marks.hits.sum())
    misses = len(marks) - hits
    if hits < LEAST_OF_EACH or misses < LEAST_OF_EACH:
        raise CalibrationError(
            f"{hits} marks on nodules and {misses} false ones are too few to calibrate on; {LEAST_OF_EACH} of each "
            "are needed."
        )


def reliability(probabilities: Numbers, hits: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Measure calibration with bins of equally many marks.

    Parameters
    ----------
    probabilities, hits
        Of marks that were not fitted on, ``(n,)``.
    bins
        How many; fewer where there are fewer marks.
    """
    if not len(probabilities):
        return Reliability(0, float("nan"), float("nan"), ())
    order = np.argsort(probabilities, kind="stable")
    rows = []
    error = 0.0
    for part in np.array_split(order, min(bins, len(order))):
        mean, rate = float(probabilities[part].mean()), float(hits[part].mean())
        rows.append(ReliabilityRow(len(part), mean, rate))
        error += len(part) / len(order) * abs(mean - rate)
    brier = float(np.mean((probabilities - hits) ** 2))
    return Reliability(len(order), error, brier, tuple(rows))
