"""How far a FROC curve may be chance: scans drawn at random with replacement, LUNA16's way. Pure.

Scans are drawn, never marks: the marks and nodules of a scan stay together, and a draw has as many scans as there
are. Source: the bootstrap of noduleCADEvaluationLUNA16; decision 0090.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.froc import RATES, Curve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from training.froc import Pool

RESAMPLES = 1000
SEED = 20170905
"""Of every judgement, so that the same files give the same interval."""

GRID_POINTS = 10_000
"""Rates between the first and the last of LUNA16 at which the script interpolates each draw."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A quantity over the draws: its mean and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """The curve over the draws, point by point: arrays of one length."""

    false_per_scan: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Bootstrap:
    """What the draws gave.

    Attributes
    ----------
    resamples, seed
        How many draws, and where they come from.
    without_nodules
        Draws that held no nodule; their sensitivity counts as 0.
    sensitivity
        At each of LUNA16's seven rates.
    cpm
        From the CPM of each draw.
    band
        Between 1/8 and 8 false positives a scan.
    """

    resamples: int
    seed: int
    without_nodules: int
    sensitivity: tuple[Interval, ...]
    cpm: Interval
    band: Band


def interval(draws: NDArray[np.float64]) -> Interval:
    """Give mean and 95 % interval: of 1,000 sorted values those at the indices 25 and 975."""
    low, high = _limits(draws[:, None])
    return Interval(float(draws.mean()), float(low[0]), float(high[0]))


def bootstrap(pool: Pool, resamples: int = RESAMPLES, seed: int = SEED) -> Bootstrap:
    """Draw as many scans as there are, with replacement, again and again.

    Parameters
    ----------
    pool
        One scan or more.
    resamples, seed
        How many draws, from which seed.

    Returns
    -------
    Bootstrap
        A draw's divisor is the number of scans and its nodules are counted anew; a draw without a nodule or without
        a hit has sensitivity 0.
    """
    rates = np.linspace(RATES[0], RATES[-1], GRID_POINTS)
    lines = np.empty((resamples, GRID_POINTS), np.float32)
    at_rates = np.empty((resamples, len(RATES)))
    empty = 0
    for k, times in enumerate(_draws(len(pool.nodules), resamples, seed)):
        curve = pool.curve(times)
        lines[k] = curve.at(rates)
        at_rates[k] = curve.at()
        empty += not times @ pool.nodules
    low, high = _limits(lines)
    return Bootstrap(
        resamples=resamples,
        seed=seed,
        without_nodules=empty,
        sensitivity=tuple(interval(column) for column in at_rates.T),
        cpm=interval(at_rates.mean(axis=1)),
        band=Band(rates, lines.mean(axis=0, dtype=np.float64), low, high),
    )


def paired_difference(
    pool: Pool, other: Pool, rate: float | None = None, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval:
    """Compare two submissions judged on the same scans: the first less the second, draw by draw.

    Parameters
    ----------
    pool, other
        Both over the same scans in the same order.
    rate
        False positives a scan at which sensitivities are compared; None compares CPMs.
    resamples, seed
        How many draws, from which seed.

    Raises
    ------
    ValueError
        When the scans cannot be the same ones.
    """
    if not np.array_equal(pool.nodules, other.nodules):
        raise ValueError("The two submissions were not judged on the same scans.")

    def value(curve: Curve) -> float:
        return curve.cpm if rate is None else float(curve.at([rate])[0])

    draws = _draws(len(pool.nodules), resamples, seed)
    return interval(np.array([value(pool.curve(times)) - value(other.curve(times)) for times in draws]))


def _draws(scans: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Say for each draw how often each scan is in it."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(0, scans, scans), minlength=scans)


def _limits(draws: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the lower and upper 2.5 % of draws ``(resamples, points)``, by index as the script does."""
    first, last = len(draws) * 25 // 1000, len(draws) * 975 // 1000
    ordered = np.partition(draws, (first, last), axis=0)
    return ordered[first].astype(np.float64), ordered[last].astype(np.float64)
