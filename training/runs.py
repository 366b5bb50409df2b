"""What both training scripts share: run folder, clock, learning rate, running average, checkpoint and resume."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from training.recipes import Recipe, ReductionRecipe, ScreeningRecipe

    StageRecipe = ScreeningRecipe | ReductionRecipe

LAST_PART = 0.02
CHECKPOINT_EVERY_S = 120.0


@dataclass(slots=True)
class Clock:
    """How much of a run is done, by steps or by wall time; survives a resume."""

    stage: StageRecipe
    step: int = 0
    spent_s: float = 0.0
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds of training, earlier parts of a resumed run counted in."""
        return self.spent_s + time.monotonic() - self.started

    @property
    def done(self) -> float:
        """Part of the run that is over; 1 or more when it should end."""
        if self.stage.steps:
            return self.step / self.stage.steps
        return self.elapsed_s / (60 * self.stage.minutes)


def learning_rate(stage: StageRecipe, step: int, done: float) -> float:
    """Give the rate of a step: linear warm-up, then a cosine (AdamW) or a tenth at 60 % and 85 % (SGD)."""
    warm = min(1.0, (step + 1) / max(stage.warm_up, 1))
    if stage.optimiser == "sgd":
        return stage.learning_rate * warm * 0.1 ** ((done >= 0.6) + (done >= 0.85))
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return stage.learning_rate * warm * (LAST_PART + (1 - LAST_PART) * cosine)


def make_optimiser(stage: StageRecipe, network: torch.nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser; weight decay is for weights alone, not for biases and batch norms."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": stage.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if stage.optimiser == "sgd":
        return torch.optim.SGD(groups, stage.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, stage.learning_rate)


class Average:
    """Running average of a network's weights and buffers; young averages forget faster."""

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, network: torch.nn.Module, step: int) -> None:
        """Take in the weights after a step (counted from 1)."""
        decay = min(self.decay, (1 + step) / (20 + step))
        for mean, value in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)


class Log:
    """A line on the screen and a row in ``log.csv`` every so many steps: means since the last one."""

    def __init__(self, path: Path, every: int = 50) -> None:
        self.path = path
        self.every = every
        self.rows: list[dict[str, float]] = []

    def add(self, clock: Clock, rate: float, values: Mapping[str, float]) -> None:
        """Take in one step."""
        self.rows.append(dict(values))
        if clock.step % self.every and clock.done < 1:
            return
        means = {"step": clock.step, "minutes": round(clock.elapsed_s / 60, 2), "rate": round(rate, 7)}
        for key in values:
            known = [row[key] for row in self.rows if not math.isnan(row[key])]
            means[key] = round(sum(known) / len(known), 5) if known else math.nan
        self.rows.clear()
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(means))
            if fresh:
                writer.writeheader()
            writer.writerow(means)
        progress(" ".join(f"{key} {value:g}" for key, value in means.items()))


def progress(line: str) -> None:
    """Show a line of progress; the training scripts are commands, and this is their only output."""
    print(line, flush=True)  # noqa: T201


def save_checkpoint(
    path: Path,
    recipe: Recipe,
    clock: Clock,
    *,
    network: torch.nn.Module,
    average: Average,
    optimiser: torch.optim.Optimizer,
) -> None:
    """Write everything a resume needs, aside first, then renamed."""
    state = {
        "recipe": json.dumps(dataclasses.asdict(recipe)),
        "step": clock.step,
        "spent_s": clock.elapsed_s,
        "network": network.state_dict(),
        "average": average.network.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    aside = path.with_suffix(".part")
    torch.save(state, aside)
    aside.replace(path)


def resume(
    path: Path, clock: Clock, network: torch.nn.Module, average: Average, optimiser: torch.optim.Optimizer
) -> None:
    """Go on from a checkpoint, if there is one; the next step is then the one it would have been."""
    if not path.exists():
        return
    state: dict[str, Any] = torch.load(path, weights_only=True)
    network.load_state_dict(state["network"])
    average.network.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    clock.step, clock.spent_s = int(state["step"]), float(state["spent_s"])
    progress(f"resumed {path} at step {clock.step}")
