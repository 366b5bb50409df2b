"""What both training scripts share: clock, learning rate, running average, log, checkpoint and resume."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch.utils.tensorboard import SummaryWriter

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


@dataclass(frozen=True, slots=True)
class Part:
    """One process's contribution to a logged value, which is the quotient of both sums.

    Attributes
    ----------
    total, count
        Scalars; a count of 0 in all steps of a row makes the value NaN.
    """

    total: torch.Tensor
    count: torch.Tensor


def mean_over(values: torch.Tensor, chosen: torch.Tensor) -> Part:
    """Log the mean of some values where ``chosen``."""
    return Part((values * chosen).sum(), chosen.sum())


class Log:
    """A line on the screen and a row in a CSV every so many steps: means since the last one.

    Columns: step, minutes of training, learning rate, samples a second, then the values of the stage. A resumed run
    cuts the file back to its checkpoint and goes on as if it had never stopped.
    """

    def __init__(self, path: Path, every: int = 50, *, tensorboard: bool = False) -> None:
        self.path = path
        self.every = every
        self.sums: dict[str, list[float]] = {}
        self.samples = 0
        self.row_s = 0.0
        self._pending: list[tuple[tuple[str, ...], torch.Tensor]] = []
        self._folder = path.parent / "tensorboard" if tensorboard else None
        self._board: SummaryWriter | None = None

    def add(self, clock: Clock, rate: float, values: Mapping[str, torch.Tensor], samples: int, done: float) -> None:
        """Take in one step: for each value its sum and its count, ``(2,)``, on any device."""
        self._pending.append((tuple(values), torch.stack([v.double() for v in values.values()])))
        self.samples += samples
        if clock.step % self.every and done < 1:
            return
        self._settle()
        elapsed = clock.elapsed_s
        row: dict[str, float] = {
            "step": clock.step,
            "minutes": round(elapsed / 60, 2),
            "rate": round(rate, 7),
            "samples_s": round(self.samples / max(elapsed - self.row_s, 1e-9), 2),
        }
        row |= {key: round(total / count, 5) if count else math.nan for key, (total, count) in self.sums.items()}
        self.sums, self.samples, self.row_s = {}, 0, elapsed
        self._write(row)
        progress(" ".join(f"{key} {value:g}" for key, value in row.items()))

    def _settle(self) -> None:
        """Bring what the device still holds to the host: once a row, so that the device never waits for it."""
        for keys, sums in self._pending:
            for key, (total, count) in zip(keys, sums.tolist(), strict=True):
                known = self.sums.setdefault(key, [0.0, 0.0])
                known[0] += total
                known[1] += count
        self._pending.clear()

    def _write(self, row: Mapping[str, float]) -> None:
        fresh = not self.path.exists() or self.path.stat().st_size == 0
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)
        with self.path.open("a", newline="") as file:
            file.write(text.getvalue())
        if self._folder is not None:
            self._show(row)

    def _show(self, row: Mapping[str, float]) -> None:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(
                str(self._folder), purge_step=int(row["step"]), filename_suffix=f".{self.path.stem}"
            )
        for key, value in row.items():
            if key != "step" and not math.isnan(value):
                self._board.add_scalar(f"{self.path.stem}/{key}", value, int(row["step"]))
        self._board.flush()

    def state(self) -> dict[str, Any]:
        """Give what a resume needs: the sums of the row that is not yet full, and the file's length."""
        self._settle()
        length = self.path.stat().st_size if self.path.exists() else 0
        return {"sums": dict(self.sums), "samples": self.samples, "row_s": self.row_s, "bytes": length}

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Forget all rows after a checkpoint."""
        self.sums = {key: list(value) for key, value in state["sums"].items()}
        self.samples, self.row_s = int(state["samples"]), float(state["row_s"])
        if self.path.exists() and self.path.stat().st_size > state["bytes"]:
            os.truncate(self.path, state["bytes"])


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
    log: Log | None = None,
) -> None:
    """Write everything a resume needs, aside first, then renamed."""
    state = {
        "recipe": json.dumps(dataclasses.asdict(recipe)),
        "step": clock.step,
        "spent_s": clock.elapsed_s,
        "network": network.state_dict(),
        "average": average.network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "random": torch.get_rng_state(),
        "log": log.state() if log is not None else None,
    }
    aside = path.with_suffix(".part")
    torch.save(state, aside)
    aside.replace(path)


def resume(
    path: Path,
    clock: Clock,
    network: torch.nn.Module,
    average: Average,
    optimiser: torch.optim.Optimizer,
    *,
    log: Log | None = None,
) -> bool:
    """Go on from a checkpoint, if there is one; the next step is then the one it would have been.

    Returns
    -------
    bool
        Whether there was one; without it the log of a run killed before its first checkpoint is begun anew.
    """
    if not path.exists():
        if log is not None:
            log.path.unlink(missing_ok=True)
        return False
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    network.load_state_dict(state["network"])
    average.network.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    clock.step, clock.spent_s = int(state["step"]), float(state["spent_s"])
    if "random" in state:
        torch.set_rng_state(state["random"])
    if log is not None and state.get("log") is not None:
        log.go_on(state["log"])
    return True
