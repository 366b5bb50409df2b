"""Trains stage 2: one recipe in, one run folder out (checkpoint, CSV log).

Patches around candidates are told apart, and centre and diameter of the nodules are regressed, with the hybrid loss
and online sample filtering of the paper. The candidates come from a first stage; on scans that it was trained on
its marks are too good, which is why a rushed second stage does not pay (decision 0023).
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.detect.box_code import encode
from pipeline.detect.nets.residual import PATCH, ResidualNet, ResidualWidths
from pipeline.detect.placement import choose
from pipeline.detect.screen import make_screening
from pipeline.detect.weights import FCN_SCREENING, MODERN_SCREENING
from training.filtering import keep
from training.losses import hybrid_loss
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
from training.sampling import SPACING, CandidateSampler, normalise
from training.scans import load_scans, searchable
from training.screening import make_network

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.detect.nets.fcn import FCN
    from pipeline.detect.nets.modern import ModernNet
    from training.recipes import Recipe, ReductionRecipe, ScreeningRecipe
    from training.scans import TrainingScan

CHECKPOINT = "reduction.pt"
CANDIDATES_A_SCAN = 300
FLOOR = 0.01
LARGEST_GRADIENT = 5.0
SIZE_MM = np.asarray(PATCH) * SPACING


def residual_widths(stage: ReductionRecipe) -> ResidualWidths:
    """Give the network's widths of a recipe."""
    return ResidualWidths(shared=stage.shared, deep=stage.deep, head=stage.head, squeeze=stage.squeeze)


def find_candidates(
    stage: ScreeningRecipe, weights: Mapping[str, torch.Tensor], scans: Sequence[TrainingScan]
) -> dict[str, NDArray[np.float64]]:
    """Search scans with a first stage at a low floor.

    Returns
    -------
    dict
        For each scan voxel indices ``(n, 3)``, best first.
    """
    network: ModernNet | FCN = make_network(stage)  # type: ignore[assignment]
    network.load_state_dict(weights)
    network.eval()
    base = MODERN_SCREENING if stage.network == "modern" else FCN_SCREENING
    spec = replace(base, widths=stage.widths, neck=stage.neck, floor=FLOOR, cap=CANDIDATES_A_SCAN)
    screening = make_screening(network, spec, choose("cpu", "auto"))
    found = {}
    for scan in scans:
        proposals = screening.candidates(searchable(scan), lambda _: None)
        found[scan.name] = np.asarray([p.index_zyx for p in proposals], np.float64).reshape(-1, 3)
    return found


def train_reduction(
    recipe: Recipe,
    scans: Path,
    names: Sequence[str],
    candidates: Mapping[str, NDArray[np.float64]],
    run: Path,
    *,
    shared_from: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Train stage 2.

    Parameters
    ----------
    recipe
        What to do.
    scans, names
        Folder of prepared scans, and which of them; all when empty.
    candidates
        Of :func:`find_candidates`.
    run
        Folder for checkpoint and log; an existing checkpoint is continued.
    shared_from
        Weights of the paper's first stage, whose first three convolutions are taken over.

    Returns
    -------
    Path
        The checkpoint.
    """
    run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    stage = recipe.reduction
    network = ResidualNet(residual_widths(stage))
    if shared_from is not None:
        take_over(network, shared_from)
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average, optimiser, clock = Average(network, stage.average), make_optimiser(stage, network), Clock(stage)
    path = run / CHECKPOINT
    resume(path, clock, network, average, optimiser)
    sampler = CandidateSampler(load_scans(scans, names), candidates, PATCH, recipe.seed)
    log, saved = Log(run / "reduction.csv"), time.monotonic()
    while clock.done < 1:
        rate = learning_rate(stage, clock.step, clock.done)
        for group in optimiser.param_groups:
            group["lr"] = rate
        values = _step(recipe, network, optimiser, sampler, clock.step)
        clock.step += 1
        average.update(network, clock.step)
        log.add(clock, rate, values)
        if time.monotonic() - saved > CHECKPOINT_EVERY_S:
            save_checkpoint(path, recipe, clock, network=network, average=average, optimiser=optimiser)
            saved = time.monotonic()
    save_checkpoint(path, recipe, clock, network=network, average=average, optimiser=optimiser)
    return path


def take_over(network: ResidualNet, screening: Mapping[str, torch.Tensor]) -> None:
    """Start C1 to C3 from the first stage's (section 2.2 of the paper)."""
    shared = {key.removeprefix("shared."): value for key, value in screening.items() if key.startswith("shared.")}
    network.shared.load_state_dict(shared)


def _step(
    recipe: Recipe,
    network: ResidualNet,
    optimiser: torch.optim.Optimizer,
    sampler: CandidateSampler,
    number: int,
) -> dict[str, float]:
    """Learn from one batch: the samples that filtering keeps are the batch of equation 4."""
    network.train()
    batch = sampler.batch(number, recipe.reduction.batch)
    x = torch.from_numpy(normalise(batch.hu))[:, None].contiguous(memory_format=torch.channels_last_3d)
    labels = torch.from_numpy(batch.labels)
    boxes = torch.from_numpy(box_targets(batch.offsets_mm, batch.diameters_mm))
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
        logits, box = network(x)
    losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    kept = torch.arange(len(labels))
    if recipe.reduction.filtering:
        kept = keep(losses, np.random.default_rng([recipe.seed, 5, number]))
    loss = hybrid_loss(logits[kept], box[kept], labels[kept], boxes[kept])
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
    optimiser.step()
    with torch.no_grad():
        right = (logits.argmax(dim=1) == labels).float()
    return {
        "loss": float(loss.detach()),
        "found": float(right[labels == 1].mean()),
        "rejected": float(right[labels == 0].mean()),
    }


def box_targets(offsets_mm: NDArray[np.float64], diameters_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """Write what the regression head should say: T_z, T_y, T_x, T_d of equation 2, ``(n, 4)``.

    Parameters
    ----------
    offsets_mm
        Nodule centre minus patch centre along z, y, x, ``(n, 3)``; mm.
    diameters_mm
        ``(n,)``; any positive number where there is no nodule.
    """
    return encode(offsets_mm, diameters_mm, np.zeros(3), SIZE_MM).astype(np.float32)
