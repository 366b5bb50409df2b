"""Everything that is said of one submission: counts, curve, interval, and what somebody should know. Pure.

The rules are ``froc``'s, the draws ``bootstrap``'s; files are ``judging``'s.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from training.bootstrap import RESAMPLES, SEED, Bootstrap, bootstrap
from training.froc import MOST_MARKS, RATES, Counts, Curve, Pool, capped, counts, judge, pool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from training.froc import Annotation, ScoredMark

CURVE_POINTS = 121
"""Points of the curve in ``froc.json``, evenly spaced in log2 between 1/8 and 8: 20 an octave."""


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """A submission judged.

    Attributes
    ----------
    scans, nodules
        Of the listed series.
    counts
        Hits, misses, false positives, ignored, double.
    pool, curve
        All scans' results, and their curve.
    bootstrap
        Mean and 95 % interval.
    remarks
        One sentence for each thing that somebody who reads the numbers should know.
    """

    scans: int
    nodules: int
    counts: Counts
    pool: Pool
    curve: Curve
    bootstrap: Bootstrap
    remarks: tuple[str, ...]


def judge_submission(
    series: Sequence[str],
    included: Mapping[str, Sequence[Annotation]],
    excluded: Mapping[str, Sequence[Annotation]],
    marks: Mapping[str, Sequence[ScoredMark]],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Judgement:
    """Judge marks on the listed series (one or more) as LUNA16 does, with interval and remarks."""
    results = list(judge(series, included, excluded, marks).values())
    pooled = pool(results)
    drawn = bootstrap(pooled, resamples, seed)
    found = counts(results)
    return Judgement(
        scans=len(series),
        nodules=int(pooled.nodules.sum()),
        counts=found,
        pool=pooled,
        curve=pooled.curve(np.ones(len(series), np.int64)),
        bootstrap=drawn,
        remarks=(
            *_about_marks(set(series), marks),
            *_about_truth(set(series), included, found),
            *_about_draws(drawn),
        ),
    )


def _about_marks(series: set[str], marks: Mapping[str, Sequence[ScoredMark]]) -> list[str]:
    said = []
    strange = [uid for uid in marks if uid not in series]
    if strange:
        lost = sum(len(marks[uid]) for uid in strange)
        said.append(
            f"{lost} marks on {len(strange)} series that are not listed were dropped, as LUNA16 does; the first "
            f"series is {strange[0]}. Identifiers must be equal letter by letter."
        )
    bare = sum(not marks.get(uid) for uid in series)
    if bare:
        said.append(
            f"{bare} of {len(series)} listed series have no mark; each counts as a scan without findings. To judge "
            "one fold, list that fold's series alone."
        )
    full = [list(marks[uid]) for uid in series & set(marks) if len(marks[uid]) > MOST_MARKS]
    if full:
        kept = [len(capped(rows)) for rows in full]
        tied = sum(MOST_MARKS - n for n in kept)
        said.append(
            f"{len(full)} scans have more than {MOST_MARKS} marks: {sum(map(len, full)) - sum(kept)} marks were "
            f"dropped, {tied} of them only because their probability equals the {MOST_MARKS + 1}st largest of "
            "their scan. Submit at most 100 marks a scan, with distinct probabilities."
        )
    return said


def _about_truth(series: set[str], included: Mapping[str, Sequence[Annotation]], found: Counts) -> list[str]:
    said = []
    outside = sum(len(rows) for uid, rows in included.items() if uid not in series)
    if outside:
        said.append(f"{outside} nodules lie in series that are not listed and do not count.")
    if not found.hits + found.misses:
        said.append("The listed series have no nodule: there is no sensitivity to tell, and 0 stands in its place.")
    elif not found.hits:
        said.append("No nodule was hit: sensitivity is 0 (LUNA16's own script prints nan).")
    return said


def _about_draws(drawn: Bootstrap) -> list[str]:
    if not drawn.without_nodules:
        return []
    return [f"{drawn.without_nodules} of {drawn.resamples} draws held no nodule; their sensitivity counts as 0."]


def as_json(judgement: Judgement) -> dict[str, Any]:
    """Give the contents of ``froc.json``: plain values, keys by rate as ``"0.125"`` to ``"8"``."""
    drawn, curve = judgement.bootstrap, judgement.curve
    rates = np.geomspace(RATES[0], RATES[-1], CURVE_POINTS)
    band = {
        name: _rounded(np.interp(rates, drawn.band.false_per_scan, values))
        for name, values in (("mean", drawn.band.mean), ("low", drawn.band.low), ("high", drawn.band.high))
    }
    return {
        "sensitivity": {f"{rate:g}": float(s) for rate, s in zip(RATES, curve.at(), strict=True)},
        "cpm": curve.cpm,
        "scans": judgement.scans,
        "nodules": judgement.nodules,
        "counts": asdict(judgement.counts),
        "bootstrap": {
            "resamples": drawn.resamples,
            "seed": drawn.seed,
            "draws_without_nodules": drawn.without_nodules,
            "cpm": asdict(drawn.cpm),
            "sensitivity": {f"{r:g}": asdict(i) for r, i in zip(RATES, drawn.sensitivity, strict=True)},
        },
        "curve": {"false_per_scan": _rounded(rates), "sensitivity": _rounded(curve.at(rates)), **band},
        "remarks": list(judgement.remarks),
    }


def _rounded(values: np.typing.NDArray[np.float64]) -> list[float]:
    return [round(float(v), 6) for v in values]
