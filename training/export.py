"""From checkpoint to weights: the averaged network in bfloat16 with a card that says what it is.

Operating points are chosen here, from marks on simulated nodules that no training saw, and never on a test scan.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
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
from training.evaluate import at_threshold
from training.recipes import Recipe, build_recipe
from training.reduction import residual_widths
from training.screening import make_network

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from training.evaluate import Evaluated

MODEL_NAME = "nodule-node"
POINT_RATES = (1.0, 0.25, 0.5, 2.0, 4.0)
"""False marks a scan of the operating points; the default one first."""

LEAST_THRESHOLD = 0.05
TRAINING_DATA = (
    TrainingData(
        "LIDC-IDRI, series of patients 0004, 0006, 0007, 0008 (doi 10.7937/K9/TCIA.2015.LO9QL9SX)", "CC BY 3.0"
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
    points = []
    for rate in POINT_RATES:
        threshold = _threshold(scans, rate)
        found, total, false = at_threshold(scans, threshold)
        points.append(
            CardOperatingPoint(
                name=f"fp-{rate:g}",
                threshold=threshold,
                expected_fp_per_scan=round(false / len(scans), 3),
                sensitivity=round(found / max(total, 1), 3),
                data_set=data_set,
            )
        )
    return tuple(points)


def _threshold(scans: Sequence[Evaluated], rate: float) -> float:
    false = sorted((p for s in scans for p in s.judged().false_marks), reverse=True)
    allowed = int(np.floor(rate * len(scans)))
    first_too_many = false[allowed] if allowed < len(false) else 0.0
    return max(float(np.ceil(first_too_many * 1000 + 1e-9) / 1000), LEAST_THRESHOLD)


def load_checkpoint(path: Path) -> tuple[Recipe, dict[str, torch.Tensor], int]:
    """Read recipe, averaged weights and step of a checkpoint."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return build_recipe(json.loads(state["recipe"])), state["average"], int(state["step"])


def export(
    screening: Path,
    out: Path,
    points: Sequence[CardOperatingPoint] = PROVISIONAL,
    *,
    model_version: str,
    reduction: Path | None = None,
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

    Raises
    ------
    ValueError
        When a second stage is needed and missing.
    """
    recipe, average, _ = load_checkpoint(screening)
    network = make_network(recipe.screening)
    network.load_state_dict(average)
    second: ResidualNet | None = None
    if reduction is not None:
        second_recipe, second_average, _ = load_checkpoint(reduction)
        second = ResidualNet(residual_widths(second_recipe.reduction))
        second.load_state_dict(second_average)
    if second is None and not isinstance(network, ModernNet):
        raise ValueError("The paper's first stage gives no diameter; export it with a second stage.")
    card = make_card(recipe, tuple(points), model_version, second_stage=second is not None)
    aside = out.with_suffix(".part")
    save_weights(aside, card, network, second)  # type: ignore[arg-type]
    aside.chmod(0o644)  # safetensors writes it for its owner alone, and it is packaged
    aside.replace(out)
    return card


def make_card(
    recipe: Recipe, points: tuple[CardOperatingPoint, ...], model_version: str, *, second_stage: bool
) -> Card:
    """Say what the weights are."""
    stage = recipe.screening
    base = MODERN_SCREENING if stage.network == "modern" else FCN_SCREENING
    return Card(
        name=MODEL_NAME,
        version=model_version,
        recipe=recipe.name if second_stage or stage.network == "fcn" else f"{recipe.name}, first stage alone",
        preprocessing=PREPROCESSING,
        screening=replace(base, widths=stage.widths, neck=stage.neck, patch_zyx=stage.patch),
        reduction=ReductionSpec(residual_widths(recipe.reduction)) if second_stage else None,
        calibration=Calibration(0.0 if second_stage else 1.0, 1.0 if second_stage else 0.0, 0.0),
        operating_points=points,
        training_data=TRAINING_DATA,
        seed=recipe.seed,
        code_version=version("nodule-node"),
    )
