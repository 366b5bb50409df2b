"""The paper's tables with our runs beside them: finished runs in, rows and sentences out. Pure.

What no run shows is said to be missing; nothing is filled in. Published numbers are ``published.toml``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from training.bootstrap import Interval, paired_difference
from training.froc import RATES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from training.froc import Pool
    from training.run_folder import CandidateCount, RunCard

LUNA16 = "LUNA16"
LUNA16_SCANS = 888
ORDER = ("none", "deepnet", "resnet", "resnet-hl")
"""Second stages, each with one thing more than the one before it."""

NOT_COMPARABLE = (
    "Simulated nodules and simulated scans show how well such nodules are found in such scans, and whether a "
    "change helps. They cannot be compared with Table 1: they say nothing about LUNA16, patients or cancer."
)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """``froc.json`` of a run: sensitivities at the seven rates and CPM, 95 % intervals, curve and band."""

    scans: int
    nodules: int
    sensitivity: tuple[float, ...]
    sensitivity_intervals: tuple[Interval, ...]
    cpm: float
    cpm_interval: Interval
    counts: Mapping[str, int]
    curve: Mapping[str, tuple[float, ...]]
    remarks: tuple[str, ...]

    @property
    def at_1(self) -> float:
        """Sensitivity at 1 false positive a scan."""
        return self.sensitivity[RATES.index(1.0)]

    @property
    def at_1_interval(self) -> Interval:
        """Its 95 % interval."""
        return self.sensitivity_intervals[RATES.index(1.0)]


def judged_of(values: Mapping[str, Any]) -> Judged:
    """Take in the contents of ``froc.json``.

    Raises
    ------
    KeyError
        When a value is missing.
    """
    names = [f"{rate:g}" for rate in RATES]
    drawn = values["bootstrap"]
    return Judged(
        scans=values["scans"],
        nodules=values["nodules"],
        sensitivity=tuple(values["sensitivity"][name] for name in names),
        sensitivity_intervals=tuple(Interval(**drawn["sensitivity"][name]) for name in names),
        cpm=values["cpm"],
        cpm_interval=Interval(**drawn["cpm"]),
        counts=values["counts"],
        curve={name: tuple(points) for name, points in values["curve"].items()},
        remarks=tuple(values["remarks"]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class FinishedRun:
    """A run folder as read.

    Attributes
    ----------
    name
        Of the folder.
    card
        ``run.json``.
    judged, candidates
        ``froc.json`` and ``candidates.json``; None where the folder has none.
    series, pool
        The judged series and their results, for paired comparisons; empty and None where the tables are not there.
    """

    name: str
    card: RunCard
    judged: Judged | None
    candidates: CandidateCount | None
    series: tuple[str, ...] = ()
    pool: Pool | None = None


def why_not_comparable(run: FinishedRun) -> str:
    """Say why a run does not belong beside LUNA16's ten-fold rows; empty where it does."""
    card, scans = run.card, run.judged.scans if run.judged else 0
    if card.simulated:
        return "simulated"
    if card.data_set != LUNA16:
        return f"other data ({card.data_set})"
    if card.kind != "crossval" or card.fold is not None or card.folds != 10:
        return "not ten folds; single folds differ by more than methods do"
    if scans != LUNA16_SCANS:
        return f"{scans} of LUNA16's {LUNA16_SCANS} scans"
    return ""


@dataclass(frozen=True, slots=True)
class CurveRow:
    """One of our rows of Table 1: sensitivities at the seven rates and CPM, with intervals."""

    run: str
    recipe: str
    stages: str
    seed: int
    data: str
    scans: int
    nodules: int
    sensitivity: tuple[float, ...]
    intervals: tuple[Interval, ...]
    cpm: float
    cpm_interval: Interval
    why_not: str


def curve_rows(runs: Iterable[FinishedRun]) -> list[CurveRow]:
    """Give a row for each judged run, those that belong beside the published ones first."""
    rows = [
        CurveRow(
            run=run.name,
            recipe=run.card.recipe,
            stages=_stages(run.card),
            seed=run.card.seed,
            data=data_of(run.card),
            scans=run.judged.scans,
            nodules=run.judged.nodules,
            sensitivity=run.judged.sensitivity,
            intervals=run.judged.sensitivity_intervals,
            cpm=run.judged.cpm,
            cpm_interval=run.judged.cpm_interval,
            why_not=why_not_comparable(run),
        )
        for run in runs
        if run.judged is not None
    ]
    return sorted(rows, key=lambda row: (bool(row.why_not), row.data))


def without_pooled_folds(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Leave out single folds of a cross-validation whose pooled result is there too."""
    pooled = {_validation(run.card) for run in runs if run.card.kind == "crossval" and run.card.fold is None}
    return [run for run in runs if run.card.fold is None or _validation(run.card) not in pooled]


def _validation(card: RunCard) -> tuple[object, ...]:
    """What the folds of one cross-validation have in common."""
    return card.kind, card.recipe, card.screening, card.reduction, card.seed, card.data_set


def fold_sentences(runs: Sequence[FinishedRun]) -> list[str]:
    """Say for each pooled cross-validation how far its single folds lie apart."""
    said = []
    for run in runs:
        if run.card.kind != "crossval" or run.card.fold is not None:
            continue
        same = [o for o in runs if o.card.fold is not None and _validation(o.card) == _validation(run.card)]
        cpms = [other.judged.cpm for other in same if other.judged]
        if len(cpms) > 1:
            said.append(
                f"{run.name}: CPM of its {len(cpms)} single folds {min(cpms):.3f} to {max(cpms):.3f}, median "
                f"{median(cpms):.3f}; the row judges all their scans together."
            )
    return said


def _stages(card: RunCard) -> str:
    return card.screening if card.reduction == "none" else f"{card.screening} + {card.reduction}"


def data_of(card: RunCard) -> str:
    """Name the data a run was judged on, its fold with it."""
    where = f", fold {card.fold}" if card.fold is not None else f", {card.folds} folds" if card.folds else ""
    return f"{card.data_set}{where}"


@dataclass(frozen=True, slots=True)
class ScreeningRow:
    """One of our rows of Table 2, upper half."""

    run: str
    screening: str
    seed: int
    data: str
    simulated: bool
    count: CandidateCount


def screening_rows(runs: Iterable[FinishedRun]) -> list[ScreeningRow]:
    """Give a row for each run that counted candidates, by data and stage."""
    rows = [
        ScreeningRow(
            run.name, run.card.screening, run.card.seed, data_of(run.card), run.card.simulated, run.candidates
        )
        for run in runs
        if run.candidates is not None
    ]
    return sorted(rows, key=lambda row: (row.data, row.screening, row.seed))


@dataclass(frozen=True, slots=True)
class ReductionRow:
    """One of our rows of Table 2, lower half: sensitivity at 1 false positive a scan.

    Attributes
    ----------
    difference, against
        Paired difference to the run of the simpler stage 2 with the same data, stage 1 and seed, and its name; None
        and empty where there is none.
    """

    run: str
    reduction: str
    seed: int
    data: str
    simulated: bool
    sensitivity: float
    interval: Interval
    difference: Interval | None
    against: str


def reduction_rows(runs: Sequence[FinishedRun]) -> list[ReductionRow]:
    """Give a row for each judged run of a stage 2 that the paper compares, by data, seed and network."""
    chosen = [run for run in runs if run.judged is not None and run.card.screening != "modern"]
    chosen.sort(key=lambda run: (data_of(run.card), run.card.seed, ORDER.index(run.card.reduction)))
    rows = []
    for run in chosen:
        if run.judged is None or run.card.reduction == "none":
            continue
        simpler = _simpler(run, chosen)
        rows.append(
            ReductionRow(
                run=run.name,
                reduction=run.card.reduction,
                seed=run.card.seed,
                data=data_of(run.card),
                simulated=run.card.simulated,
                sensitivity=run.judged.at_1,
                interval=run.judged.at_1_interval,
                difference=_difference(run, simpler),
                against=simpler.card.reduction if simpler else "",
            )
        )
    return rows


def _simpler(run: FinishedRun, runs: Sequence[FinishedRun]) -> FinishedRun | None:
    """Find the run of the next simpler stage 2 that was judged on the same series."""
    place = ORDER.index(run.card.reduction)
    same = [
        other
        for other in runs
        if other.series == run.series
        and (other.card.seed, other.card.screening) == (run.card.seed, run.card.screening)
        and ORDER.index(other.card.reduction) < place
        and other.pool is not None
        and run.pool is not None
        and np.array_equal(other.pool.nodules, run.pool.nodules)
    ]
    return max(same, key=lambda other: ORDER.index(other.card.reduction), default=None)


def _difference(run: FinishedRun, simpler: FinishedRun | None) -> Interval | None:
    if run.pool is None or simpler is None or simpler.pool is None:
        return None
    return paired_difference(run.pool, simpler.pool, rate=1.0)


def order_sentences(rows: Sequence[ReductionRow]) -> list[str]:
    """Say for each data set whether DeepNet < ResNet < ResNet + hybrid loss, by median over seeds."""
    said = []
    for data in dict.fromkeys(row.data for row in rows):
        by_network = {
            network: [row.sensitivity for row in rows if row.data == data and row.reduction == network]
            for network in ORDER[1:]
        }
        if not all(by_network.values()):
            continue
        plain, residual, hybrid = (median(by_network[network]) for network in ORDER[1:])
        seeds = min(len(found) for found in by_network.values())
        verdict = "as in the paper" if plain < residual < hybrid else "not the paper's order"
        said.append(
            f"{data}: DeepNet {plain:.3f}, ResNet {residual:.3f}, ResNet with hybrid loss {hybrid:.3f} "
            f"({'one seed' if seeds == 1 else f'medians over {seeds} seeds'}): {verdict}."
        )
    return said


def missing(runs: Sequence[FinishedRun]) -> list[str]:
    """Say what the paper shows and these runs do not."""
    said = [f"{run.name}: not judged; its folder has no froc.json." for run in runs if _should_be_judged(run)]
    if not any(run.judged and not why_not_comparable(run) for run in runs):
        said.append(
            f"Table 1, our row: no finished ten-fold cross-validation over the {LUNA16_SCANS} scans of LUNA16."
        )
    counted = {run.card.screening for run in runs if run.candidates}
    for stage, name in (("fcn", "FCN"), ("fcn+osf", "FCN + online sample filtering")):
        if stage not in counted:
            said.append(f"Table 2, screening: no run of kind candidates for {name}.")
    judged = {run.card.reduction for run in runs if run.judged and run.card.screening != "modern"}
    said += [f"Table 2, reduction: no judged run for {stage}." for stage in ORDER[1:] if stage not in judged]
    if not any(run.judged for run in runs):
        said.append("Figure 2, curves: no judged run.")
    return said


def _should_be_judged(run: FinishedRun) -> bool:
    return run.judged is None and run.card.kind != "candidates"
