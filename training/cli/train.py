"""The commands ``nodule-train screening`` and ``nodule-train reduction``: one recipe, one stage, one run folder."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from training.cli.say import fail

if TYPE_CHECKING:
    from training.recipes import Recipe

RECIPES = Path(__file__).parents[2] / "config" / "recipes"

RecipeName = Annotated[str, typer.Argument(help="modern, paper, paper-fast, ablation, or a TOML file.")]
Scans = Annotated[Path, typer.Option("--scans", help="Folder of prepared scans, from 'prepare'.", exists=True)]
Run = Annotated[
    Path,
    typer.Option("--run", "--run-folder", help="Run folder: checkpoint and CSV log; an unfinished run goes on."),
]
Skip = Annotated[list[str], typer.Option("--skip", help="Name of a prepared scan to leave out; may be repeated.")]
Start = Annotated[
    Path | None, typer.Option("--start", "--start-from", help="screening.pt of an earlier run to begin from.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1; empty: as the recipe says.")]
Seed = Annotated[int, typer.Option(help="Another seed than the recipe's; -1 keeps it.", min=-1)]
Steps = Annotated[int, typer.Option(help="Another length than the recipe's; 0 keeps it.", min=0)]
Batch = Annotated[int, typer.Option(help="Another batch than the recipe's, over all processes; 0 keeps it.", min=0)]
Workers = Annotated[int, typer.Option(help="Processes that make batches ahead; 0 makes them in line.", min=0)]
Filtering = Annotated[
    bool | None,
    typer.Option("--filtering/--no-filtering", help="Online sample filtering, else as the recipe says."),
]
Board = Annotated[bool, typer.Option(help="Write TensorBoard's event files beside the CSV.")]


class SecondNetwork(StrEnum):
    """What may stand behind ``--network``."""

    deepnet = "deepnet"
    resnet = "resnet"
    hybrid = "resnet-hl"


def screening(
    recipe: RecipeName,
    *,
    scans: Scans,
    run: Run,
    skip: Skip = [],  # noqa: B006
    start: Start = None,
    filtering: Filtering = None,
    seed: Seed = -1,
    steps: Steps = 0,
    batch: Batch = 0,
    device: Device = "",
    workers: Workers = 1,
    tensorboard: Board = False,
) -> None:
    """Train stage 1. Progress every 50 steps; a checkpoint every two minutes; killed and begun again, it goes on.

    On several GPUs: torchrun --nproc-per-node 2 -m training.cli.main screening paper --scans s --run-folder r.
    The batch is divided among them, and the loss is that of one process with the whole batch. (torchrun takes --run
    and --start for abbreviations of its own options; --run-folder and --start-from pass it.)
    """
    from training.export import load_checkpoint
    from training.screening import train_screening
    from training.team import UnevenBatchError, gathered

    weights = load_checkpoint(start)[1] if start else None
    stage = _given(filtering=filtering, steps=steps, batch=batch)
    chosen = chosen_recipe(recipe, seed=seed, device=device)
    chosen = replace(chosen, screening=replace(chosen.screening, **stage))
    with gathered(chosen.device) as team:
        try:
            path = train_screening(
                chosen,
                scans,
                names_in(scans, skip),
                run,
                workers=workers,
                start=weights,
                team=team,
                tensorboard=tensorboard,
            )
        except UnevenBatchError as error:
            fail(str(error))
        if team.leads:
            typer.echo(f"stage 1: {path}")


def reduction(
    recipe: RecipeName,
    *,
    scans: Scans,
    run: Run,
    first: Annotated[Path, typer.Option("--screening", help="Checkpoint of stage 1, which proposes candidates.")],
    skip: Skip = [],  # noqa: B006
    network: Annotated[SecondNetwork | None, typer.Option(help="Another network than the recipe's.")] = None,
    filtering: Filtering = None,
    seed: Seed = -1,
    steps: Steps = 0,
    batch: Batch = 0,
    device: Device = "",
    workers: Workers = 1,
    tensorboard: Board = False,
) -> None:
    """Train stage 2 on the candidates of stage 1 (best one that has not seen these scans).

    Of the paper's first stage the first three convolutions are taken over. Several GPUs as for 'screening'.
    """
    from training.export import load_checkpoint
    from training.reduction import find_candidates, train_reduction
    from training.scans import load_scans
    from training.team import UnevenBatchError, gathered

    names = names_in(scans, skip)
    stage = _given(network=network and network.value, filtering=filtering, steps=steps, batch=batch)
    chosen = chosen_recipe(recipe, seed=seed, device=device)
    chosen = replace(chosen, reduction=replace(chosen.reduction, **stage))
    first_recipe, weights, _ = load_checkpoint(first)
    with gathered(chosen.device) as team:
        own = names[team.rank :: team.size]
        found = find_candidates(
            first_recipe.screening, weights, load_scans(scans, own) if own else [], device=str(team.device)
        )
        takes_over = first_recipe.screening.network == "fcn"
        try:
            path = train_reduction(
                chosen,
                scans,
                names,
                team.shared(found),
                run,
                shared_from=weights if takes_over else None,
                workers=workers,
                team=team,
                tensorboard=tensorboard,
            )
        except UnevenBatchError as error:
            fail(str(error))
        if team.leads:
            typer.echo(f"stage 2: {path}")


def chosen_recipe(name: str, *, seed: int = -1, device: str = "") -> Recipe:
    """Read a recipe by name or path, with the flags that every stage has."""
    from training.recipes import RecipeError, load_recipe

    try:
        recipe = load_recipe(recipe_path(name))
    except RecipeError as error:
        fail(str(error))
    if seed >= 0:
        recipe = replace(recipe, seed=seed)
    return replace(recipe, device=device) if device else recipe


def recipe_path(name: str) -> Path:
    """Find a shipped recipe or a file."""
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        fail(f"There is no recipe {name}; known are {', '.join(sorted(p.stem for p in RECIPES.glob('*.toml')))}.")
    return path


def names_in(scans: Path, skip: list[str]) -> list[str]:
    """Name the prepared scans of a folder but those to skip."""
    names = sorted(path.stem for path in scans.glob("*.npz"))
    for name in skip:
        if name not in names:
            fail(f"There is no prepared scan {name} in {scans}.")
    return [name for name in names if name not in skip]


def _given(**flags: Any) -> dict[str, Any]:
    """Keep the flags that were given: neither ``None`` nor 0."""
    return {name: value for name, value in flags.items() if value is False or value not in {None, 0}}
