"""Small chests and small networks for the tests of this room."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from pipeline.detect.nets.residual import ResidualWidths
from pipeline.detect.placement import Placement
from pipeline.detect.resample import PREPROCESSING, Prepared
from pipeline.detect.weights import (
    Calibration,
    Card,
    CardOperatingPoint,
    ReductionSpec,
    ScreeningSpec,
    TrainingData,
    Weights,
    build_reduction,
    build_screening,
)
from pipeline.domain.geometry import Grid
from pipeline.domain.limits import SelectionLimits
from pipeline.domain.volume import ReceivedGeometry, Volume
from pipeline.lungs import LungMask

SMALL_CHEST = SelectionLimits(min_lung_l=0.3)
CPU = Placement(torch.device("cpu"), torch.float32)

SMALL_FCN = ScreeningSpec("fcn", (4, 4, 6, 8), 0, (10, 30, 30), (16, 16, 16), (0, 0, 0), 0.3, (5, 5, 5), cap=20)
SMALL_MODERN = ScreeningSpec(
    "modern", (4, 6, 8, 8, 8), 8, (48, 96, 96), (64, 128, 128), (8, 16, 16), 0.02, (3, 3, 3), cap=20
)
SMALL_REDUCTION = ReductionSpec(ResidualWidths(shared=(4, 4, 6), deep=(8, 8), head=8), batch=8)


def chest(
    shape: tuple[int, int, int] = (32, 96, 96),
    spacing: tuple[float, float, float] = (3.0, 2.5, 2.5),
    *,
    nodules: Sequence[tuple[float, float, float, float]] = (),
    taper: bool = True,
    seed: int = 3,
) -> np.ndarray:
    """Body and two lungs; nodules as ``(z, y, x, diameter)`` in voxels and mm."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij", sparse=True)
    u, v = (x - (shape[2] - 1) / 2) / shape[2], (y - (shape[1] - 1) / 2) / shape[1]
    w = (z - (shape[0] - 1) / 2) / (0.46 * shape[0])
    hu = np.where((u / 0.44) ** 2 + (v / 0.38) ** 2 + 0 * w < 1, 30.0, -1000.0)
    for side in (-0.19, 0.19):
        hu[((u - side) / 0.14) ** 2 + (v / 0.27) ** 2 + (w**2 if taper else 0 * w) < 1] = -850.0
    for nz, ny, nx, diameter in nodules:
        squared = sum(((a - c) * s) ** 2 for a, c, s in zip((z, y, x), (nz, ny, nx), spacing, strict=True))
        hu[squared < (diameter / 2) ** 2] = 30.0
    noise = np.random.default_rng(seed).normal(0, 20, shape)
    return np.clip(hu + noise, -1024, 3071).astype(np.int16)


def volume(
    hu: np.ndarray, grid: Grid | None = None, spacing: tuple[float, float, float] = (3.0, 2.5, 2.5)
) -> Volume:
    grid = grid or Grid(hu.shape, spacing, (-118.75, -118.75, -46.5))
    extent = tuple(n * s for n, s in zip(hu.shape, grid.spacing_zyx_mm, strict=True))
    return Volume(hu, grid, "1.2.3", "1.2.3.4", (), ReceivedGeometry(hu.shape[0], grid.spacing_zyx_mm, extent))


def searched_everywhere(hu: np.ndarray, grid: Grid | None = None, search: np.ndarray | None = None) -> Prepared:
    """A prepared scan whose voxels are these, on the networks' own grid."""
    grid = grid or Grid(hu.shape, PREPROCESSING.spacing_zyx_mm, (0.0, 0.0, 0.0))
    mask = np.ones(hu.shape, bool) if search is None else search
    lungs = LungMask(mask, mask, (1, 1, 1), hu.shape, 5.0)
    return Prepared(hu.astype(np.int16), grid, lungs, ((1.0, 0.0),) * 3, PREPROCESSING)


def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    """A network with weights and batch norms that look trained: random, none of them neutral."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                scale = (2.0 / module.weight[0].numel()) ** 0.5
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * scale)
                if module.bias is not None:
                    module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
            if isinstance(module, nn.BatchNorm3d):
                n = module.num_features
                module.running_mean.copy_(torch.randn(n, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(n, generator=generator) + 0.5)
                module.weight.copy_(torch.rand(n, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(n, generator=generator) * 0.1)
    return net.eval()


def card(screening: ScreeningSpec = SMALL_MODERN, reduction: ReductionSpec | None = SMALL_REDUCTION) -> Card:
    return Card(
        name="test",
        version="1",
        recipe="small",
        preprocessing=PREPROCESSING,
        screening=screening,
        reduction=reduction,
        calibration=Calibration(1.0, 0.5, 0.0),
        operating_points=(
            CardOperatingPoint("balanced", 0.5, 1.0, 0.9, "phantoms"),
            CardOperatingPoint("sensitive", 0.2, 4.0, 0.97, "phantoms"),
        ),
        training_data=(TrainingData("phantoms", "Apache-2.0"),),
        seed=1,
        code_version="0.1.0",
    )


def weights(
    screening: ScreeningSpec = SMALL_MODERN, reduction: ReductionSpec | None = SMALL_REDUCTION, seed: int = 0
) -> Weights:
    first, second = lively(build_screening(screening), seed), build_reduction(reduction)
    return Weights(
        card(screening, reduction), "0" * 64, first, None if second is None else lively(second, seed + 1)
    )


def ignore(_: float) -> None:
    """Progress that nobody watches."""
