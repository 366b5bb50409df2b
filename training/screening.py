"""Trains stage 1: one recipe in, one run folder out (checkpoint, CSV log).

Recipe ``modern`` learns a heat map from dense crops, recipe ``paper`` a score from patches with online sample
filtering. Every batch follows from the seed and its number, so an interrupted run goes on exactly where it was.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.multiprocessing

from pipeline.detect.nets.fcn import FCN
from pipeline.detect.nets.modern import ModernNet
from training.filtering import keep
from training.losses import dense_loss
from training.runs import (
    CHECKPOINT_EVERY_S,
    Average,
    Clock,
    Log,
    learning_rate,
    make_optimiser,
    resume,
    save_checkpoint,
)
from training.sampling import CropSampler, PatchSampler, dense_target, normalise
from training.scans import load_scans

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from training.recipes import Recipe, ScreeningRecipe

    Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

CHECKPOINT = "screening.pt"
AHEAD = 6
LARGEST_GRADIENT = 5.0


def train_screening(
    recipe: Recipe,
    scans: Path,
    names: Sequence[str],
    run: Path,
    *,
    workers: int = 1,
    start: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Train stage 1.

    Parameters
    ----------
    recipe
        What to do.
    scans, names
        Folder of prepared scans, and which of them; all when empty.
    run
        Folder for checkpoint and log; an existing checkpoint is continued.
    workers
        1 to cut crops in a process of their own, 0 to cut them in this one.
    start
        Weights of an earlier run to begin with.

    Returns
    -------
    Path
        The checkpoint.
    """
    run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    stage = recipe.screening
    network = make_network(stage)
    if start is not None:
        network.load_state_dict(start)
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average, optimiser, clock = Average(network, stage.average), make_optimiser(stage, network), Clock(stage)
    path = run / CHECKPOINT
    resume(path, clock, network, average, optimiser)
    log, saved = Log(run / "screening.csv"), time.monotonic()
    batches = _batches(recipe, scans, tuple(names), clock.step, workers)
    batch = next(batches)
    clock.started = time.monotonic()
    while clock.done < 1:
        rate = learning_rate(stage, clock.step, clock.done)
        for group in optimiser.param_groups:
            group["lr"] = rate
        values = _step(recipe, network, optimiser, batch, clock.step)
        clock.step += 1
        average.update(network, clock.step)
        log.add(clock, rate, values)
        if time.monotonic() - saved > CHECKPOINT_EVERY_S:
            save_checkpoint(path, recipe, clock, network=network, average=average, optimiser=optimiser)
            saved = time.monotonic()
        batch = next(batches)
    save_checkpoint(path, recipe, clock, network=network, average=average, optimiser=optimiser)
    return path


def make_network(stage: ScreeningRecipe) -> torch.nn.Module:
    """Make the untrained network of a recipe."""
    return ModernNet(stage.widths, stage.neck) if stage.network == "modern" else FCN(stage.widths)


def _step(
    recipe: Recipe, network: torch.nn.Module, optimiser: torch.optim.Optimizer, batch: Batch, number: int
) -> dict[str, float]:
    """Learn from one batch."""
    network.train()
    x, first, second = batch
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
        answer = network(x.contiguous(memory_format=torch.channels_last_3d))
    if recipe.screening.network == "modern":
        loss, values = _modern_loss(recipe.screening, answer, first, second)
    else:
        loss, values = _fcn_loss(recipe, answer, first, number)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
    optimiser.step()
    return values


def _modern_loss(
    stage: ScreeningRecipe, answer: torch.Tensor, heat: torch.Tensor, shape: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    found, size = dense_loss(answer, heat, shape)
    with torch.no_grad():
        probability = torch.sigmoid(answer[:, 0].float())
        at_nodules = probability[heat == 1]
        values = {
            "heat": float(found),
            "shape": float(size),
            "p_nodule": float(at_nodules.mean()) if len(at_nodules) else float("nan"),
            "false_cells": float((probability[heat == 0] > 0.5).sum()),
        }
    return found + stage.shape_weight * size, values


def _fcn_loss(
    recipe: Recipe, answer: torch.Tensor, labels: torch.Tensor, number: int
) -> tuple[torch.Tensor, dict[str, float]]:
    logits = answer.float().reshape(len(labels), 2)
    losses = torch.nn.functional.cross_entropy(logits, labels.long(), reduction="none")
    if recipe.screening.filtering:
        losses_kept = losses[keep(losses, np.random.default_rng([recipe.seed, 4, number]))]
    else:
        losses_kept = losses
    with torch.no_grad():
        right = (logits.argmax(dim=1) == labels.long()).float()
        values = {
            "loss": float(losses_kept.mean()),
            "found": float(right[labels == 1].mean()),
            "rejected": float(right[labels == 0].mean()),
        }
    return losses_kept.mean(), values


def _batches(recipe: Recipe, scans: Path, names: tuple[str, ...], first: int, workers: int) -> Iterator[Batch]:
    """Give batch ``first``, ``first + 1`` and so on."""
    if workers == 0:
        maker = _BatchMaker(recipe, scans, names)
        while True:
            yield maker.batch(first)
            first += 1
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue(AHEAD)
    worker = context.Process(target=_work, args=(recipe, scans, names, first, queue), daemon=True)
    worker.start()
    while True:
        yield queue.get()


def _work(recipe: Recipe, scans: Path, names: tuple[str, ...], number: int, queue: object) -> None:
    torch.set_num_threads(1)
    maker = _BatchMaker(recipe, scans, names)
    while True:
        queue.put(maker.batch(number))  # type: ignore[attr-defined]
        number += 1


class _BatchMaker:
    """Makes batch number i of a recipe."""

    def __init__(self, recipe: Recipe, scans: Path, names: tuple[str, ...]) -> None:
        self.stage = recipe.screening
        loaded = load_scans(scans, names)
        self.dense = CropSampler(loaded, self.stage.patch, recipe.seed, self.stage.mixture)
        self.patches = PatchSampler(loaded, self.stage.patch, recipe.seed)

    def batch(self, number: int) -> Batch:
        if self.stage.network == "fcn":
            hu, labels = self.patches.batch(number, self.stage.batch)
            return torch.from_numpy(normalise(hu))[:, None], torch.from_numpy(labels), torch.empty(0)
        crops = [self.dense.crop(number * self.stage.batch + k) for k in range(self.stage.batch)]
        targets = [dense_target(crop) for crop in crops]
        x = torch.from_numpy(normalise(np.stack([crop.hu for crop in crops])))[:, None]
        heat, shape = (torch.from_numpy(np.stack(part)) for part in zip(*targets, strict=True))
        return x, heat, shape
