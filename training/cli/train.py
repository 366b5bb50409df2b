"""The commands ``nodule-train screening`` and ``nodule-train reduction``: one recipe, one stage, one run folder."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from training.cli.say import by_person, fail

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from training.recipes import Recipe
    from training.team import Team

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
    first_for: Annotated[
        list[str],
        typer.Option(
            "--screening-for",
            help="NAME=FILE: another checkpoint for this real scan and those made from it, as one that left it "
            "out; may be repeated.",
        ),
    ] = [],  # noqa: B006
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

    Marks on scans that a first stage was trained on are too good to learn from. New phantoms (prepare --phantoms)
    are unseen by any; for real scans give models that left them out, as those of 'left-out', with --screening-for.

    Of the paper's first stage the first three convolutions are taken over. Several GPUs as for 'screening'.

    nodule-train reduction modern --scans scans --run runs/second --screening runs/one/screening.pt
    --screening-for LIDC-IDRI-0003=runs/left-out/seed1/LIDC-IDRI-0003/screening.pt
    """
    from training.export import load_checkpoint
    from training.reduction import train_reduction
    from training.team import UnevenBatchError, gathered

    names = names_in(scans, skip)
    stage = _given(network=network and network.value, filtering=filtering, steps=steps, batch=batch)
    chosen = chosen_recipe(recipe, seed=seed, device=device)
    chosen = replace(chosen, reduction=replace(chosen.reduction, **stage))
    checkpoints = by_person(str(first), first_for)
    first_recipe, weights, _ = load_checkpoint(first)
    with gathered(chosen.device) as team:
        found = _proposed(checkpoints, scans, names, team)
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


def _proposed(
    checkpoints: dict[str, str], scans: Path, names: list[str], team: Team
) -> dict[str, NDArray[np.float64]]:
    """Search this process's share of the scans, each with the checkpoint that is for its person."""
    from training.export import load_checkpoint
    from training.reduction import find_candidates
    from training.scans import load_scans, person_of

    persons = {name: person_of(scans / f"{name}.npz") for name in names}
    if unknown := sorted(set(checkpoints) - {""} - set(persons.values())):
        fail(f"{scans} has no scan made from {', '.join(unknown)}.")
    whose = {name: person if person in checkpoints else "" for name, person in persons.items()}
    found: dict[str, NDArray[np.float64]] = {}
    for person, file in checkpoints.items():
        own = [name for name in names[team.rank :: team.size] if whose[name] == person]
        if own:
            recipe, weights, _ = load_checkpoint(Path(file))
            found |= find_candidates(recipe.screening, weights, load_scans(scans, own), device=str(team.device))
    return found


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
