"""``nodule-train crossval``: both stages on LUNA16's folds, every scan judged by a model that never saw it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.cli.say import Progress, fail, numbers
from training.cli.train import chosen_recipe


def crossval(
    recipe: Annotated[str, typer.Argument(help="modern, paper, paper-fast, ablation, or a TOML file.")],
    *,
    luna16: Annotated[Path, typer.Option(help="LUNA16's folder, or a cohort from 'simulate'.", exists=True)],
    scans: Annotated[Path, typer.Option(help="The same scans prepared, from 'prepare --luna16'.", exists=True)],
    run: Annotated[Path, typer.Option(help="Folder of the cross-validation; an unfinished one is gone on with.")],
    folds: Annotated[str, typer.Option(help="Which test subsets, as 0,1 or 0-4; all when empty.")] = "",
    data_set: Annotated[str, typer.Option(help="Name of the data, for reports and cards.")] = "",
    seed: Annotated[int, typer.Option(help="Another seed than the recipe's; -1 keeps it.", min=-1)] = -1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1; empty: as the recipe says.")] = "",
    workers: Annotated[int, typer.Option(help="Processes that make training batches ahead.", min=0)] = 1,
) -> None:
    """Cross-validate a recipe on LUNA16's official folds.

    Fold i is tested on subset i, validated on subset i + 1 and trained on the other eight; with two subsets one
    person in four of the training subset validates. Checkpoints, thresholds and calibration come from training and
    validation scans alone. What a model saw is written down before it sees it, and a scan that it saw, or another
    scan of the same person, is refused when it is to be judged.

    Each fold's folder gets its stages, weights.safetensors, submission.csv, froc.json and run.json; 'pooled' has
    all finished folds together. Killed at any point, the same command goes on at the step it was in. With --folds
    several machines, or GPUs with --device cuda:0, cuda:1, can share the work; begin it again without --folds to
    pool. Not for torchrun.

    nodule-train crossval modern --luna16 LUNA16 --scans cache --run runs/cv --folds 0,1
    """
    from training.cohort_file import CohortError
    from training.crossval import PlanError, cross_validate, plan
    from training.download import read_download
    from training.folds import LeakError
    from training.scans import UnusableScanError
    from training.simulate import cohort_name

    chosen = chosen_recipe(recipe, seed=seed, device=device)
    bars: dict[str, Progress] = {}

    def say(what: str, done: int, total: int, name: str) -> None:
        bars.setdefault(what, Progress(what)).show(done, total, name)

    try:
        download = read_download(luna16)
        name = data_set or (cohort_name(luna16) if download.simulated else "LUNA16")
        validation = plan(chosen, download, scans, run, name)
        pooled = cross_validate(validation, numbers(folds), say, workers=workers)
    except (PlanError, LeakError, CohortError, UnusableScanError) as error:
        fail(str(error))
    finished = [f.number for f in validation.folds if (validation.folder(f) / "run.json").exists()]
    typer.echo(f"{pooled}: folds {', '.join(map(str, finished))} of {len(validation.folds)}")
