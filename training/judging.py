"""The judge's shell: tables from files, judged, and the judgement written as JSON and as pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from training.judge_tables import TableError, read_annotations, read_series, read_submission
from training.judgement import Judgement, as_json, judge_submission
from training.run_folder import ANNOTATIONS, EXCLUDED, FROC, SERIESUIDS, SUBMISSION

if TYPE_CHECKING:
    from pathlib import Path


def judge_files(
    submission: Path, annotations: Path, excluded: Path | None = None, seriesuids: Path | None = None
) -> Judgement:
    """Judge a submission from CSV tables alone.

    Parameters
    ----------
    submission, annotations
        Marks and nodules.
    excluded
        Findings to ignore; None where there are none.
    seriesuids
        The series to judge; None for every series of the two tables.

    Raises
    ------
    TableError
        When a table cannot be read, or no mark at all lies on a listed series.
    """
    marks = read_submission(submission)
    included = read_annotations(annotations)
    series = read_series(seriesuids) if seriesuids else sorted({*included, *marks})
    if not series:
        raise TableError(f"{submission} and {annotations} name no series; there is nothing to judge.")
    if marks and not marks.keys() & set(series):
        raise TableError(
            f"{submission}: none of its {len(marks)} series is listed in {seriesuids}; found for example "
            f"{next(iter(marks))}, listed is for example {series[0]}. Identifiers must be equal letter by letter."
        )
    judgement = judge_submission(series, included, read_annotations(excluded) if excluded else {}, marks)
    return replace(judgement, remarks=(*judgement.remarks, *_about_tables(excluded, seriesuids)))


def _about_tables(excluded: Path | None, seriesuids: Path | None) -> list[str]:
    said = []
    if excluded is None:
        said.append("No findings to ignore were given: a mark on one counts as a false positive.")
    if seriesuids is None:
        said.append("No list of series was given: scans with neither nodule nor mark are not counted.")
    return said


def judge_run(folder: Path) -> Judgement:
    """Judge the tables of a run folder and leave ``froc.json``, ``froc.png`` and ``froc.svg`` beside them.

    Raises
    ------
    TableError
        As :func:`judge_files`.
    """
    excluded = folder / EXCLUDED
    judgement = judge_files(
        folder / SUBMISSION,
        folder / ANNOTATIONS,
        excluded if excluded.is_file() else None,
        folder / SERIESUIDS,
    )
    write_judgement(folder / FROC, judgement)
    return judgement


def write_judgement(path: Path, judgement: Judgement) -> None:
    """Write the JSON file, and the plot beside it as PNG and SVG under the same name."""
    from training.plots import Line, froc_figure, save_figure

    values = as_json(judgement)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="ascii")
    curve, cpm = values["curve"], judgement.bootstrap.cpm
    line = Line(
        name=f"CPM {judgement.curve.cpm:.3f} (95 % interval {cpm.low:.3f} to {cpm.high:.3f})",
        false_per_scan=tuple(curve["false_per_scan"]),
        sensitivity=tuple(curve["sensitivity"]),
        low=tuple(curve["low"]),
        high=tuple(curve["high"]),
        sensitivity_at_rates=tuple(values["sensitivity"].values()),
    )
    title = f"{judgement.nodules} nodules in {judgement.scans} scans"
    save_figure(froc_figure([line], title), path.with_suffix(".png"), path.with_suffix(".svg"))
