"""Does insertion leave a fingerprint? Classifiers try to tell inserted nodules from real ones, and shams from lung.

A network that is trained on insertions could learn the blend instead of the nodule. Two simple classifiers look for
it: one sees texture in shells around the centre, one the features of a trained first stage. Each is fitted on all
scans but one and asked about that one. An area under the curve near 0.5 means that it found nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from scipy import ndimage

from pipeline.detect.resample import PREPROCESSING
from training.insertion import Brush, NoiseField
from training.lesions import draw_kind
from training.sampling import SPACING, STRIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.detect.nets.modern import ModernNet
    from training.scans import TrainingScan

    Array = NDArray[np.float64]

HALF = np.array([16, 32, 32])
"""Half of the piece that is cut around a place; voxels z, y, x, multiples of what the network halves."""

LARGER = HALF * 2
"""Half of the piece into which a nodule is inserted, so that the final cut shows no edge of it."""

SHELLS = (0.0, 0.5, 0.85, 1.15, 1.5, 2.0)
"""Bounds of the shells, in radii."""

INSERTED_A_NODULE = 24
SHAMS_A_SCAN = 80
TRIES = 40
RIDGE = 1.0
PLACES = ("free", "pleura", "vessel")

Question = Literal["inserted or real", "sham or lung"]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A piece of a scan to be told apart.

    Attributes
    ----------
    hu
        float32, ``(32, 64, 64)``, the place at ``HALF``.
    radius_mm
        Of what is there, or would be.
    made
        Whether it was inserted.
    scan
        Name of the scan.
    """

    hu: NDArray[np.float32]
    radius_mm: float
    made: bool
    scan: str


@dataclass(frozen=True, slots=True)
class Told:
    """How well a classifier told apart.

    Attributes
    ----------
    question, classifier
        What was asked of which.
    auc, low, high
        Area under the ROC curve over all scans, each judged by a classifier that was fitted without it; 95 %
        interval by Hanley and McNeil (Radiology 1982).
    made, untouched
        Samples of each kind.
    """

    question: Question
    classifier: str
    auc: float
    low: float
    high: float
    made: int
    untouched: int


class Features(Protocol):
    """Turns a sample into numbers."""

    def __call__(self, sample: Sample, /) -> Array:
        """Give them, always equally many."""


def piece(
    hu: NDArray[np.int16] | NDArray[np.float32], centre_zyx: Array, half: NDArray[np.int64] = HALF
) -> tuple[NDArray[np.float32], Array]:
    """Cut the piece around a place, repeating the edge outside; give it and the place's index in it."""
    first = np.rint(centre_zyx).astype(int) - half
    index = [np.clip(np.arange(f, f + 2 * h), 0, n - 1) for f, h, n in zip(first, half, hu.shape, strict=True)]
    return hu[np.ix_(*index)].astype(np.float32), np.asarray(centre_zyx - first, np.float64)


def nodule_samples(scan: TrainingScan, rng: np.random.Generator) -> Iterator[Sample]:
    """Give the real nodules of a scan, and for each some inserted ones of its size."""
    noise = NoiseField(rng, scan.look.grain_zyx)
    for row in scan.nodules:
        yield Sample(piece(scan.hu, row[:3])[0], row[3] / 2, made=False, scan=scan.name)
        for _ in range(INSERTED_A_NODULE):
            sample = _tried(partial(_inserted, scan, rng, noise, float(row[3])))
            if sample is not None:
                yield sample


def sham_samples(scan: TrainingScan, rng: np.random.Generator) -> Iterator[Sample]:
    """Give as many places where lung was blended over lung as untouched ones of the same kind."""
    noise = NoiseField(rng, scan.look.grain_zyx)
    for number in range(2 * SHAMS_A_SCAN):
        sample = _tried(partial(_sham, scan, rng, noise, keep=bool(number % 2)))
        if sample is not None:
            yield sample


def _tried(make: Callable[[], Sample | None]) -> Sample | None:
    return next((sample for sample in (make() for _ in range(TRIES)) if sample is not None), None)


def _inserted(scan: TrainingScan, rng: np.random.Generator, noise: NoiseField, size_mm: float) -> Sample | None:
    hu, at = _somewhere(scan, rng, PLACES[rng.integers(len(PLACES))], LARGER)
    brush = Brush(hu, PREPROCESSING.spacing_zyx_mm, scan.look, noise)
    done = brush.nodule(rng, at, size_mm * float(rng.uniform(0.85, 1.15)), draw_kind(rng))
    if done is None:
        return None
    moved, _ = piece(np.rint(hu), done.centre_zyx)
    return Sample(moved, done.diameter_mm / 2, made=True, scan=scan.name)


def _sham(scan: TrainingScan, rng: np.random.Generator, noise: NoiseField, *, keep: bool) -> Sample | None:
    """Try a sham; with ``keep`` the lung as it was, where a sham would have been accepted."""
    hu, at = _somewhere(scan, rng, "free", HALF)
    untouched, size = hu.copy(), float(rng.uniform(4, 12))
    if not Brush(hu, PREPROCESSING.spacing_zyx_mm, scan.look, noise).sham(rng, at, size):
        return None
    return Sample(untouched if keep else np.rint(hu), size / 2, made=not keep, scan=scan.name)


def _somewhere(
    scan: TrainingScan, rng: np.random.Generator, kind: str, half: NDArray[np.int64]
) -> tuple[NDArray[np.float32], Array]:
    rows = scan.places[kind] if len(scan.places[kind]) else scan.places["any"]
    return piece(scan.hu, np.asarray(rows[rng.integers(len(rows))], np.float64), half)


def texture(sample: Sample) -> Array:
    """Mean, spread, grain and steepness in shells around the centre; shells that hold no voxel give nan."""
    hu = sample.hu
    grain = hu - ndimage.gaussian_filter(hu, 1.0)
    steep = np.sqrt(sum(g * g for g in np.gradient(hu, *SPACING)))
    z, y, x = (((np.arange(n) - h) * s) ** 2 for n, h, s in zip(hu.shape, HALF, SPACING, strict=True))
    away = np.sqrt(z[:, None, None] + y[None, :, None] + x[None, None]) / sample.radius_mm
    rows = []
    for low, high in pairwise(SHELLS):
        shell = (away >= low) & (away < high)
        if not shell.any():
            rows.append([math.nan] * 4)
            continue
        rows.append([hu[shell].mean(), hu[shell].std(), grain[shell].std(), steep[shell].mean()])
    return np.asarray(rows, np.float64).ravel()


@dataclass(frozen=True, slots=True, eq=False)
class Deep:
    """The features from which a first stage makes its answer for the cell at the place."""

    network: ModernNet

    def __call__(self, sample: Sample) -> Array:
        """Give one number a channel."""
        hu = torch.from_numpy(np.asarray(sample.hu, np.float32))
        with torch.inference_mode():
            maps = self.network.features(PREPROCESSING.normalise(hu)[None, None])[0]
        z, y, x = HALF // STRIDE
        return np.asarray(maps[:, z, y, x].float().numpy(), np.float64)


def tell_apart(question: Question, classifier: str, samples: Sequence[Sample], features: Features) -> Told:
    """Fit on all scans but one, ask about that one, for each scan; pool the areas of the scans by their pairs.

    Raises
    ------
    ValueError
        When fewer than two scans have samples of both kinds.
    """
    x = np.stack([features(s) for s in samples])
    made = np.array([s.made for s in samples])
    scans = np.array([s.scan for s in samples])
    both = [n for n in dict.fromkeys(scans) if 0 < made[scans == n].sum() < (scans == n).sum()]
    if len(both) < 2:
        raise ValueError(
            "Two scans with samples of both kinds are needed: one to learn from, one to be asked about."
        )
    wins = pairs = 0.0
    for name in both:
        test = scans == name
        score = _fitted(x[~test], made[~test])(x[test])
        higher = score[made[test]][:, None] - score[~made[test]][None]
        wins += float((higher > 0).sum() + 0.5 * (higher == 0).sum())
        pairs += higher.size
    used = np.isin(scans, both)
    auc, positive, negative = wins / pairs, int(made[used].sum()), int((~made[used]).sum())
    reach = 1.96 * _spread(auc, positive, negative)
    return Told(question, classifier, auc, max(0.0, auc - reach), min(1.0, auc + reach), positive, negative)


def _fitted(x: Array, made: NDArray[np.bool_]) -> Callable[[Array], Array]:
    """Fit a ridge logistic regression, both kinds weighing alike, by Newton's steps."""
    middle = np.nanmean(x, axis=0)
    filled = np.where(np.isnan(x), middle, x)
    scale = filled.std(axis=0) + 1e-6

    def prepared(rows: Array) -> Array:
        values = (np.where(np.isnan(rows), middle, rows) - middle) / scale
        return np.column_stack([values, np.ones(len(rows))])

    rows = prepared(x)
    share = np.where(made, 0.5 / max(made.mean(), 1e-9), 0.5 / max((~made).mean(), 1e-9))
    penalty = np.diag([RIDGE] * x.shape[1] + [1e-6])
    weights = np.zeros(rows.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
        slope = rows.T @ (share * (p - made)) + penalty @ weights
        bend = (rows * (share * p * (1 - p))[:, None]).T @ rows + penalty
        weights = weights - np.linalg.solve(bend, slope)
    return lambda asked: np.asarray(prepared(asked) @ weights, np.float64)


def _spread(auc: float, positive: int, negative: int) -> float:
    """Give the standard error of an area (Hanley and McNeil, equation 2)."""
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = auc * (1 - auc) + (positive - 1) * (q1 - auc * auc) + (negative - 1) * (q2 - auc * auc)
    return math.sqrt(max(variance, 0.0) / (positive * negative))


def probe(scans: Sequence[TrainingScan], network: ModernNet, seed: int = 1) -> list[Told]:
    """Ask both questions of both classifiers."""
    rng = np.random.default_rng([seed, 9])
    deep = Deep(network.eval())
    nodules = [sample for scan in scans for sample in nodule_samples(scan, rng)]
    shams = [sample for scan in scans for sample in sham_samples(scan, rng)]
    return [
        tell_apart("inserted or real", "texture", nodules, texture),
        tell_apart("inserted or real", "features of stage 1", nodules, deep),
        tell_apart("sham or lung", "texture", shams, texture),
        tell_apart("sham or lung", "features of stage 1", shams, deep),
    ]
