"""From checkpoint to weights: the averaged network in bfloat16 with a card that says what it is.

Operating points are chosen here, from marks on simulated nodules that no training saw, and never on a test scan.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from pipeline.detect.nets.modern import ModernNet
from pipeline.detect.nets.residual import ResidualNet
from pipeline.detect.resample import PREPROCESSING
from pipeline.detect.weights import (
    FCN_SCREENING,
    MODERN_SCREENING,
    Calibration,
    Card,
    CardOperatingPoint,
    ReductionSpec,
    TrainingData,
    save_weights,
)
from training.held_out import NO_CHANGE, HeldOutScan
from training.held_out import choose_points as choose_held_out_points
from training.recipes import Recipe, build_recipe
from training.reduction import residual_widths
from training.screening import make_network

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from training.evaluate import Evaluated

MODEL_NAME = "nodule-node"
TRAINING_DATA = (
    TrainingData(
        "LIDC-IDRI, series of patients 0003, 0004, 0006, 0007, 0008 (doi 10.7937/K9/TCIA.2015.LO9QL9SX)",
        "CC BY 3.0",
    ),
    TrainingData("LUNA16 annotations of these series", "CC BY 4.0"),
    TrainingData("Digital chest phantoms of nodule-node, seeds below 1000", "Apache-2.0"),
)
PROVISIONAL = (CardOperatingPoint("provisional", 0.3, 1.0, 0.0, "none: an intermediate export"),)


def choose_points(scans: Sequence[Evaluated], data_set: str) -> tuple[CardOperatingPoint, ...]:
    """Choose for each rate the lowest threshold with at most that many false marks a scan.

    Parameters
    ----------
    scans
        Held-out scans with simulated nodules, searched.
    data_set
        What they are, for the card.
    """
    held_out = [HeldOutScan(scan.nodules, scan.ignored, tuple(scan.marks)) for scan in scans]
    return choose_held_out_points(held_out, NO_CHANGE, data_set)


def load_checkpoint(path: Path) -> tuple[Recipe, dict[str, torch.Tensor], int]:
    """Read recipe, averaged weights and step of a checkpoint."""
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return build_recipe(json.loads(state["recipe"])), state["average"], int(state["step"])


def export(
    screening: Path,
    out: Path,
    points: Sequence[CardOperatingPoint] = PROVISIONAL,
    *,
    model_version: str,
    reduction: Path | None = None,
    calibration: Calibration | None = None,
    floor: float | None = None,
    training_data: Sequence[TrainingData] = TRAINING_DATA,
) -> Card:
    """Write weights; aside first, then renamed, so that a reader sees the old file or the new one.

    Parameters
    ----------
    screening, reduction
        Checkpoints of the stages; without the second the first one's centre and diameter are reported.
    out
        The safetensors file.
    points
        Operating points, the default one first.
    model_version
        Of the weights.
    calibration
        What was fitted on held-out marks; its slope, shift, knots and data set are kept.
    floor
        Least score of a candidate, where it was searched for on validation scans.
    training_data
        Sets and licences, for the card.

    Raises
    ------
    ValueError
        When a second stage is needed and missing, or a training diverged.
    """
    recipe, average, _ = load_checkpoint(screening)
    network = make_network(recipe.screening)
    network.load_state_dict(average)
    second: ResidualNet | None = None
    second_recipe: Recipe | None = None
    if reduction is not None:
        second_recipe, second_average, _ = load_checkpoint(reduction)
        second = ResidualNet(residual_widths(second_recipe.reduction))
        second.load_state_dict(second_average)
    if second is None and not isinstance(network, ModernNet):
        raise ValueError("The paper's first stage gives no diameter; export it with a second stage.")
    for stage, net in (("first", network), ("second", second)):
        if net is not None and not all(t.isfinite().all() for t in net.state_dict().values()):
            raise ValueError(f"The {stage} stage holds values that are no numbers: its training diverged.")
    card = make_card(recipe, tuple(points), model_version, second_stage=second_recipe)
    card = replace(card, training_data=tuple(training_data))
    if calibration is not None:
        a, b, c = _stages(second=second is not None)
        card = replace(card, calibration=replace(calibration, a=a, b=b, c=c))
    if floor is not None:
        card = replace(card, screening=replace(card.screening, floor=floor))
    aside = out.with_suffix(".part")
    save_weights(aside, card, network, second)  # type: ignore[arg-type]
    aside.chmod(0o644)  # safetensors writes it for its owner alone, and it is packaged
    aside.replace(out)
    return card


def _stages(*, second: bool) -> tuple[float, float, float]:
    """Give the parts of both stages in the raw score (a, b, c): the last one alone speaks."""
    return (0.0, 1.0, 0.0) if second else (1.0, 0.0, 0.0)


def make_card(
    recipe: Recipe, points: tuple[CardOperatingPoint, ...], model_version: str, *, second_stage: Recipe | None
) -> Card:
    """Say what the weights are."""
    stage = recipe.screening
    base = MODERN_SCREENING if stage.network == "modern" else FCN_SCREENING
    return Card(
        name=MODEL_NAME,
        version=model_version,
        recipe=recipe.name
        if second_stage is not None or stage.network == "fcn"
        else f"{recipe.name}, first stage alone",
        preprocessing=PREPROCESSING,
        screening=replace(base, widths=stage.widths, neck=stage.neck, patch_zyx=stage.patch),
        reduction=None if second_stage is None else ReductionSpec(residual_widths(second_stage.reduction)),
        calibration=Calibration(*_stages(second=second_stage is not None)),
        operating_points=points,
        training_data=TRAINING_DATA,
        seed=recipe.seed,
        code_version=version("nodule-node"),
    )
