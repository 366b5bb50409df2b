"""The command ``nodule-train average``: one checkpoint out of several that began alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.cli.say import fail


def average(
    checkpoints: Annotated[list[Path], typer.Argument(help="screening.pt of runs that began alike.", exists=True)],
    *,
    out: Annotated[Path, typer.Option("--out", help="Checkpoint to write, for 'export' or 'screening --start'.")],
) -> None:
    """Average the weights of runs that began with the same weights (screening --start).

    Several short runs on one core each, with a seed of their own, use a machine's cores without waiting for each
    other. Runs from different starts must not be averaged: the mean is then worse than any of them.
    """
    from training.soup import UnlikeCheckpointsError, average_checkpoints

    try:
        steps = average_checkpoints(checkpoints, out)
    except UnlikeCheckpointsError as error:
        fail(str(error))
    typer.echo(f"{out}: mean of {len(checkpoints)} checkpoints, {steps} steps together")
