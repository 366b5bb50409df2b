"""Trains stage 1: one recipe in, one run folder out (checkpoint, CSV log).

Recipe ``modern`` learns a heat map from dense crops, recipe ``paper`` a score from patches with online sample
filtering. Every batch follows from the seed and its number, so an interrupted run goes on exactly where it was.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.detect.nets.fcn import FCN
from pipeline.detect.nets.modern import ModernNet
from pipeline.detect.resample import PREPROCESSING
from training.feed import PatchSource, feed, patches
from training.filtering import keep
from training.loop import Course, begin, fit
from training.losses import dense_loss
from training.runs import Part, mean_over
from training.sampling import CropSampler, PatchSampler, dense_target, normalise
from training.scans import load_scans
from training.team import ALONE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from training.loop import Learn
    from training.pool import Plan
    from training.recipes import Recipe, ScreeningRecipe
    from training.team import Team

    Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

NAME = "screening"
CHECKPOINT = f"{NAME}.pt"


def train_screening(
    recipe: Recipe,
    scans: Path,
    names: Sequence[str],
    run: Path,
    *,
    workers: int = 1,
    start: Mapping[str, torch.Tensor] | None = None,
    team: Team = ALONE,
    tensorboard: bool = False,
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
        Processes that make batches ahead, 0 to make them in this one.
    start
        Weights of an earlier run to begin with.
    team
        Device, and the other processes of the run.
    tensorboard
        Whether to write its event files beside the CSV.

    Returns
    -------
    Path
        The checkpoint.

    Raises
    ------
    UnevenBatchError
        When the batch cannot be divided among the processes.
    """
    stage = recipe.screening
    part = team.part(stage.batch)
    course = Course(recipe, stage, run, NAME, tensorboard)
    begin(course)
    network = make_network(stage)
    if start is not None:
        network.load_state_dict(start)

    def learn(first: int) -> Learn:
        if stage.network == "fcn":
            sampler = partial(PatchSampler, shape=stage.patch, seed=recipe.seed)
            source = PatchSource(
                scans, tuple(names), sampler, stage.batch, part, stage.patch, recipe.seed, recipe.resident
            )
            return step_of(recipe, team, patches(source, team.device, first, workers))
        crops = partial(CropMaker, recipe, scans, tuple(names), part)
        return step_of(recipe, team, feed(crops, first, workers))

    return fit(course, network, learn, team)


def make_network(stage: ScreeningRecipe) -> torch.nn.Module:
    """Make the untrained network of a recipe."""
    return ModernNet(stage.widths, stage.neck) if stage.network == "modern" else FCN(stage.widths)


def step_of(recipe: Recipe, team: Team, batches: Iterator[Any]) -> Learn:
    """Give the function that learns from the next batch: network and step in, shares of loss and log out."""
    return partial(_learn_patches if recipe.screening.network == "fcn" else _learn_crops, recipe, team, batches)


def _learn_crops(
    recipe: Recipe, team: Team, batches: Iterator[Batch], network: torch.nn.Module, _: int
) -> tuple[torch.Tensor, dict[str, Part]]:
    """Give loss and log of the next batch of crops."""
    x, heat, shape = (t.to(team.device, non_blocking=True) for t in next(batches))
    with torch.autocast(team.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
        answer = network(x.contiguous(memory_format=torch.channels_last_3d))
    found, size = dense_loss(answer, heat, shape, team=team)
    with torch.no_grad():
        probability = torch.sigmoid(answer[:, 0].float())
        one = torch.full_like(found, 1 / team.size)
        values = {
            "heat": Part(found, one),
            "shape": Part(size, one),
            "p_nodule": mean_over(probability, heat == 1),
            "false_cells": Part(((probability > 0.5) & (heat == 0)).sum(), one),
        }
    return found + recipe.screening.shape_weight * size, values


def _learn_patches(
    recipe: Recipe,
    team: Team,
    batches: Iterator[tuple[torch.Tensor, Plan]],
    network: torch.nn.Module,
    number: int,
) -> tuple[torch.Tensor, dict[str, Part]]:
    """Give loss and log of the next batch of patches: the samples that filtering keeps take part."""
    hu, plan = next(batches)
    labels = plan.labels.to(team.device, non_blocking=True)
    x = PREPROCESSING.normalise(hu)[:, None]
    with torch.autocast(team.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
        answer = network(x.contiguous(memory_format=torch.channels_last_3d))
    logits = answer.float().reshape(len(labels), 2)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    chosen = taking_part(losses, team, [recipe.seed, 4, number] if recipe.screening.filtering else None)
    loss = (losses * chosen).sum() / team.total(chosen.sum())
    with torch.no_grad():
        right = (logits.argmax(dim=1) == labels).float()
        values = {
            "loss": Part(loss, torch.full_like(loss, 1 / team.size)),
            "found": mean_over(right, labels == 1),
            "rejected": mean_over(right, labels == 0),
        }
    return loss, values


def taking_part(losses: torch.Tensor, team: Team, seed: list[int] | None) -> torch.Tensor:
    """Tell which of this process's samples take part in the update, online sample filtering being global.

    Parameters
    ----------
    losses
        Of this process's samples, ``(n,)``.
    team
        The processes among which the batch is divided.
    seed
        Of the choice among the easy samples; ``None`` keeps all.

    Returns
    -------
    torch.Tensor
        ``(n,)``: 1 or 0.
    """
    if seed is None:
        return torch.ones_like(losses.detach())
    everyone = team.joined(losses)
    chosen = torch.zeros_like(everyone)
    chosen[keep(everyone, np.random.default_rng(seed))] = 1
    return chosen[team.part(len(everyone))]


class CropMaker:
    """Makes one process's part of batch number i of dense crops."""

    def __init__(self, recipe: Recipe, scans: Path, names: tuple[str, ...], part: slice) -> None:
        self.stage, self.part = recipe.screening, part
        self.sampler = CropSampler(load_scans(scans, names), self.stage.patch, recipe.seed, self.stage.mixture)

    def __call__(self, number: int) -> Batch:
        """Make batch ``number``: input ``(n, 1, z, y, x)``, heat and shape as ``dense_target`` gives them."""
        own = range(self.stage.batch)[self.part]
        crops = [self.sampler.crop(number * self.stage.batch + k) for k in own]
        targets = [dense_target(crop) for crop in crops]
        x = torch.from_numpy(normalise(np.stack([crop.hu for crop in crops])))[:, None]
        heat, shape = (torch.from_numpy(np.stack(part)) for part in zip(*targets, strict=True))
        return x, heat, shape
