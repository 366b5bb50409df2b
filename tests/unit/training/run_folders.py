"""Run folders for tests: small tables, judged with few draws."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from training.judge_tables import read_annotations, read_series, read_submission
from training.judgement import as_json, judge_submission
from training.run_folder import RunCard, write_run_card

MARKS = "seriesuid,coordX,coordY,coordZ,probability,diameter_mm\n"
TRUTH = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"

CARD = RunCard(
    kind="evaluate",
    recipe="ablation",
    screening="fcn+osf",
    reduction="resnet-hl",
    seed=0,
    fold=None,
    folds=0,
    data_set="cohort tiny",
    simulated=True,
    weights_sha256=("ab" * 32,),
)


def make_run(folder: Path, *, hits: int = 3, nodules: int = 4, listed: int = 4, **card: object) -> Path:
    """Write a judged run: a nodule a scan in the first ``nodules`` scans, the first ``hits`` of them found.

    Scan ``s0`` has a false mark 60 mm away, more probable than every hit.
    """
    folder.mkdir(parents=True)
    names = [f"s{k}" for k in range(listed)]
    (folder / "seriesuids.csv").write_text("".join(f"{name}\n" for name in names))
    truth = [f"{n},0,0,{k},{6 + k}\n" for k, n in enumerate(names[:nodules])]
    (folder / "annotations.csv").write_text(TRUTH + "".join(truth))
    (folder / "excluded.csv").write_text(TRUTH)
    marks = [f"{n},0,0,{k},{0.5 + k / 100},{6.5 + k}\n" for k, n in enumerate(names[:hits])]
    (folder / "submission.csv").write_text(MARKS + "".join(marks) + "s0,60,0,0,0.95,5\n")
    judge_again(folder)
    write_run_card(folder, replace(CARD, **card))
    return folder


def judge_again(folder: Path) -> None:
    """Write ``froc.json`` from the tables."""
    judgement = judge_submission(
        read_series(folder / "seriesuids.csv"),
        read_annotations(folder / "annotations.csv"),
        {},
        read_submission(folder / "submission.csv"),
        resamples=40,
    )
    (folder / "froc.json").write_text(json.dumps(as_json(judgement)))
