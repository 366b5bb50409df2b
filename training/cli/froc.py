"""``nodule-train froc``: judge a submission from CSV tables, with LUNA16's rules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.cli.say import fail, need_drawing

if TYPE_CHECKING:
    from training.judgement import Judgement


def froc(
    *,
    submission: Annotated[
        Path, typer.Option(help="Marks: seriesuid,coordX,coordY,coordZ,probability; world coordinates in mm.")
    ],
    annotations: Annotated[
        Path, typer.Option(help="Nodules: seriesuid,coordX,coordY,coordZ,diameter_mm (LUNA16's annotations.csv).")
    ],
    excluded: Annotated[
        Path | None,
        typer.Option(
            help="Findings to ignore, same columns (annotations_excluded.csv); without it each mark on one"
            " is a false positive."
        ),
    ] = None,
    seriesuids: Annotated[
        Path | None,
        typer.Option(
            help="Series to judge, one a line (seriesuids.csv, or one fold's); without it those of both"
            " tables, so that scans with neither nodule nor mark are not counted."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for froc.json, froc.png and froc.svg, or a name that ends in .json.")
    ],
) -> None:
    """Judge a submission exactly as LUNA16 does: sensitivity at 1/8 to 8 false positives a scan, their mean (CPM).

    The 95 % interval comes from 1,000 draws of scans with replacement, always the same ones. At most 100 marks a
    scan count; more are cut as LUNA16's script cuts them, with a warning. Example:

    nodule-train froc --submission runs/one/submission.csv --annotations LUNA16/annotations.csv --excluded
    LUNA16/annotations_excluded.csv --seriesuids LUNA16/seriesuids.csv --out judged
    """
    from training.judge_tables import TableError
    from training.judging import judge_files, write_judgement
    from training.run_folder import FROC

    need_drawing()
    target = out if out.suffix == ".json" else out / FROC
    try:
        judgement = judge_files(submission, annotations, excluded, seriesuids)
    except TableError as error:
        fail(str(error))
    write_judgement(target, judgement)
    for remark in judgement.remarks:
        typer.echo(f"warning: {remark}", err=True)
    for line in _lines(judgement):
        typer.echo(line)
    typer.echo(f"{target}")


def _lines(judgement: Judgement) -> list[str]:
    from training.froc import RATES

    drawn, counts = judgement.bootstrap, judgement.counts
    rows = zip(RATES, judgement.curve.at(), drawn.sensitivity, strict=True)
    said = [f"{r:6.3f} FP/scan: sensitivity {s:.3f} (95 % {i.low:.3f} to {i.high:.3f})" for r, s, i in rows]
    cpm = drawn.cpm
    said.append(f"CPM {judgement.curve.cpm:.4f}, bootstrap {cpm.mean:.4f} (95 % {cpm.low:.4f} to {cpm.high:.4f})")
    said.append(
        f"{judgement.nodules} nodules in {judgement.scans} scans: {counts.hits} hit, {counts.misses} missed; "
        f"{counts.false_positives} false positives, {counts.ignored} ignored, {counts.double} double"
    )
    return said
