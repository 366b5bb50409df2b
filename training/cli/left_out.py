"""``nodule-train left-out``: every real scan judged by models that never saw it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.cli.say import Progress, fail, numbers
from training.cli.train import RecipeName, Scans, Start, Workers, chosen_recipe


def left_out(
    recipe: RecipeName,
    *,
    scans: Scans,
    series: Annotated[
        Path, typer.Option(help="Folder of the real scans as received, named as the prepared ones.", exists=True)
    ],
    truth: Annotated[Path, typer.Option(help="Folder with nodules.csv and excluded.csv.", exists=True)],
    run: Annotated[Path, typer.Option(help="Folder of all models; an unfinished one is gone on with.")],
    start: Start = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the models, as 1-3.")] = "1-3",
    only: Annotated[list[str] | None, typer.Option(help="This scan alone; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1; empty: as the recipe says.")] = "",
    workers: Workers = 1,
) -> None:
    """Leave each real scan out in turn: train without it, search it, and judge all of them together.

    For every seed there are as many models as real scans; phantoms teach all of them. --start must come from a run
    that saw phantoms alone. The judge is LUNA16's, with and without its list of findings to ignore; left-out.json
    has every nodule and the medians over the seeds whose scans are all judged.

    Killed at any point, the same command goes on. With --seeds and --only several processes can share the work;
    call it once more for the table.

    nodule-train left-out modern-left-out --start runs/start/screening.pt --scans scans --series LIDC --truth LIDC
    --run runs/left-out
    """
    from training.folds import LeakError
    from training.left_out import LeftOut, learn_and_judge, table_lines, write_table
    from training.scans import UnusableScanError

    plan = LeftOut(chosen_recipe(recipe, seed=-1, device=device), scans, series, truth, run, start)
    names = plan.names()
    if unknown := sorted(set(only or ()) - set(names)):
        fail(f"{scans} has no real scan {', '.join(unknown)}; it has {', '.join(names) or 'none'}.")
    chosen = [(seed, name) for seed in numbers(seeds) for name in (only or names)]
    progress = Progress("models")
    for done, (seed, name) in enumerate(chosen):
        progress.show(done, len(chosen), f"seed {seed}, without {name}")
        if plan.judged(seed, name):
            continue
        try:
            learn_and_judge(plan, seed, name, workers=workers)
        except (LeakError, UnusableScanError) as error:
            fail(str(error))
    progress.show(len(chosen), len(chosen))
    table = write_table(plan, numbers(seeds))
    for line in table_lines(table) if table else ("No seed has all its scans judged yet.",):
        typer.echo(line)
