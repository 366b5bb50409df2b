"""The loop of both stages: learn from batch after batch, and leave a run folder that can be gone on with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from training.runs import (
    CHECKPOINT_EVERY_S,
    Average,
    Clock,
    Log,
    learning_rate,
    make_optimiser,
    progress,
    resume,
    save_checkpoint,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from training.recipes import Recipe
    from training.runs import Part, StageRecipe
    from training.team import Team

    Learn = Callable[[torch.nn.Module, int], tuple[torch.Tensor, Mapping[str, Part]]]

LARGEST_GRADIENT = 5.0


@dataclass(frozen=True, slots=True)
class Course:
    """One stage to train.

    Attributes
    ----------
    recipe, stage
        The whole recipe, and its part for this stage.
    run, name
        Folder and stem of checkpoint (``NAME.pt``) and log (``NAME.csv``).
    tensorboard
        Whether to write its event files beside them.
    """

    recipe: Recipe
    stage: StageRecipe
    run: Path
    name: str
    tensorboard: bool = False

    @property
    def checkpoint(self) -> Path:
        """The checkpoint."""
        return self.run / f"{self.name}.pt"


def begin(course: Course) -> None:
    """Make the run folder, and fix threads and seed before the network is made."""
    course.run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(course.recipe.threads)
    torch.manual_seed(course.recipe.seed)
    torch.backends.cudnn.benchmark = True


def fit(course: Course, network: torch.nn.Module, learn: Callable[[int], Learn], team: Team) -> Path:
    """Train a network to the end of its stage.

    Parameters
    ----------
    course
        What to train, and where the run lives; a checkpoint there is gone on from.
    network
        With its first weights.
    learn
        Given the first step, gives the function that is called for each step with network and step: it returns
        this process's share of the loss and of the values to log.
    team
        The processes of the run; their shares add up to the loss of the global batch.

    Returns
    -------
    Path
        The checkpoint.
    """
    stage = course.stage
    network = network.to(team.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average, optimiser, clock = Average(network, stage.average), make_optimiser(stage, network), Clock(stage)
    log = Log(course.run / f"{course.name}.csv", tensorboard=course.tensorboard) if team.leads else None
    if resume(course.checkpoint, clock, network, average, optimiser, log=log) and team.leads:
        progress(f"resumed {course.checkpoint} at step {clock.step}")

    def save() -> None:
        if log is not None:
            save_checkpoint(
                course.checkpoint,
                course.recipe,
                clock,
                network=network,
                average=average,
                optimiser=optimiser,
                log=log,
            )

    wrapped, step = team.wrap(network), learn(clock.step)
    saved = clock.started = time.monotonic()
    done = _done(clock, team)
    while done < 1:
        rate = learning_rate(stage, clock.step, done)
        for group in optimiser.param_groups:
            group["lr"] = rate
        values = _update(wrapped, optimiser, step, clock.step, team)
        clock.step += 1
        average.update(network, clock.step)
        done = _done(clock, team)
        if log is not None:
            log.add(clock, rate, values, stage.batch, done)
        if time.monotonic() - saved > CHECKPOINT_EVERY_S:
            save()
            saved = time.monotonic()
    save()
    return course.checkpoint


def _update(
    network: torch.nn.Module, optimiser: torch.optim.Optimizer, learn: Learn, number: int, team: Team
) -> dict[str, torch.Tensor]:
    """Learn from one batch; give the sums and counts to log of the whole team, which the device may still owe."""
    network.train()
    loss, parts = learn(network, number)
    optimiser.zero_grad()
    (loss * team.size).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
    optimiser.step()
    sums = torch.stack([torch.stack([p.total.detach().double(), p.count.double()]) for p in parts.values()])
    return dict(zip(parts, team.total(sums), strict=True))


def _done(clock: Clock, team: Team) -> float:
    """Part of the run that is over; by wall time the first process's clock counts for all."""
    if team.size == 1 or clock.stage.steps:
        return clock.done
    return float(team.total(torch.tensor(clock.done if team.leads else 0.0, device=team.device)))
