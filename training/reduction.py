"""Trains stage 2: one recipe in, one run folder out (checkpoint, CSV log).

Patches around candidates are told apart, and centre and diameter of the nodules are regressed, with the hybrid loss
and online sample filtering of the paper. The candidates come from a first stage; on scans that it was trained on
its marks are too good, which is why a rushed second stage does not pay (decision 0023).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.detect.box_code import encode
from pipeline.detect.nets.residual import PATCH, ResidualNet, ResidualWidths
from pipeline.detect.placement import choose
from pipeline.detect.resample import PREPROCESSING
from pipeline.detect.screen import make_screening
from pipeline.detect.weights import FCN_SCREENING, MODERN_SCREENING
from training.feed import PatchSource, patches
from training.loop import Course, begin, fit
from training.losses import hybrid_loss
from training.runs import Part, mean_over
from training.sampling import SPACING, CandidateSampler
from training.scans import searchable
from training.screening import make_network, taking_part
from training.team import ALONE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.detect.nets.fcn import FCN
    from pipeline.detect.nets.modern import ModernNet
    from training.loop import Learn
    from training.pool import Plan
    from training.recipes import Recipe, ReductionRecipe, ScreeningRecipe
    from training.scans import TrainingScan
    from training.team import Team

NAME = "reduction"
CHECKPOINT = f"{NAME}.pt"
CANDIDATES_A_SCAN = 300
FLOOR = 0.01
SIZE_MM = np.asarray(PATCH) * SPACING


def residual_widths(stage: ReductionRecipe) -> ResidualWidths:
    """Give the shape of a recipe's network."""
    return ResidualWidths(
        shared=stage.shared,
        deep=stage.deep,
        head=stage.head,
        skips=stage.network != "deepnet",
        regression=stage.network == "resnet-hl",
        squeeze=stage.squeeze,
    )


def find_candidates(
    stage: ScreeningRecipe,
    weights: Mapping[str, torch.Tensor],
    scans: Sequence[TrainingScan],
    *,
    device: str = "auto",
) -> dict[str, NDArray[np.float64]]:
    """Search scans with a first stage at a low floor, on ``device`` as ``detector.device`` of the node's settings.

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
    screening = make_screening(network, spec, choose(device, "auto"))
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
    workers: int = 0,
    team: Team = ALONE,
    tensorboard: bool = False,
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
    workers
        Processes that make batches ahead, 0 to make them in this one.
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
    stage = recipe.reduction
    part = team.part(stage.batch)
    course = Course(recipe, stage, run, NAME, tensorboard)
    begin(course)
    network = ResidualNet(residual_widths(stage))
    if shared_from is not None:
        take_over(network, shared_from)
    sampler = partial(CandidateSampler, candidates=dict(candidates), shape=PATCH, seed=recipe.seed)
    source = PatchSource(scans, tuple(names), sampler, stage.batch, part, PATCH, recipe.seed, recipe.resident)

    def learn(first: int) -> Learn:
        return partial(_learn, recipe, team, patches(source, team.device, first, workers))

    return fit(course, network, learn, team)


def take_over(network: ResidualNet, screening: Mapping[str, torch.Tensor]) -> None:
    """Start C1 to C3 from the first stage's (section 2.2 of the paper)."""
    shared = {key.removeprefix("shared."): value for key, value in screening.items() if key.startswith("shared.")}
    network.shared.load_state_dict(shared)


def _learn(
    recipe: Recipe,
    team: Team,
    batches: Iterator[tuple[torch.Tensor, Plan]],
    network: torch.nn.Module,
    number: int,
) -> tuple[torch.Tensor, dict[str, Part]]:
    """Give loss and log of the next batch: the samples that filtering keeps are the batch of equation 4."""
    hu, plan = next(batches)
    labels = plan.labels.to(team.device, non_blocking=True)
    boxes = box_targets(plan.offsets_mm.numpy(), plan.diameters_mm.numpy())
    x = PREPROCESSING.normalise(hu)[:, None]
    with torch.autocast(team.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
        logits, box = network(x.contiguous(memory_format=torch.channels_last_3d))
    losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    chosen = taking_part(losses, team, [recipe.seed, 5, number] if recipe.reduction.filtering else None)
    targets = torch.from_numpy(boxes).to(team.device, non_blocking=True)
    loss = hybrid_loss(logits, box, labels, targets, taking_part=chosen, team=team)
    with torch.no_grad():
        right = (logits.argmax(dim=1) == labels).float()
        values = {
            "loss": Part(loss, torch.full_like(loss, 1 / team.size)),
            "found": mean_over(right, labels == 1),
            "rejected": mean_over(right, labels == 0),
        }
    return loss, values


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
