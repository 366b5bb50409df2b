"""A scan and stages so small that a run of some steps takes a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from training.insertion import Look
from training.recipes import Recipe, ReductionRecipe, ScreeningRecipe
from training.sampling import SPACING
from training.scans import TrainingScan, save_scan

MODERN = ScreeningRecipe(
    widths=(4, 4, 8, 8, 8), neck=8, patch=(16, 32, 32), batch=2, steps=4, warm_up=2, average=0.9
)
PAPER = ScreeningRecipe(
    network="fcn", widths=(4, 4, 4, 8), patch=(10, 30, 30), batch=8, steps=4, optimiser="sgd", filtering=True
)
SECOND = ReductionRecipe(shared=(4, 4, 4), deep=(8, 8), head=8, batch=8, steps=4)
CANDIDATES = {"phantom-1": np.array([[22.0, 44.0, 43.0], [40.0, 60.0, 60.0], [50.0, 70.0, 20.0]])}


def recipe(**stages: ScreeningRecipe | ReductionRecipe) -> Recipe:
    return Recipe("t", precision="fp32", threads=1, device="cpu", **stages)


def lung_with_balls(shape: tuple[int, int, int], nodules: np.ndarray) -> np.ndarray:
    """HU of an empty lung with soft-edged balls in it: rows of centre z, y, x in voxels and diameter in mm."""
    z, y, x = (np.arange(n, dtype=np.float32) for n in shape)
    hu = np.full(shape, -860, np.float32)
    for row in nodules:
        away = (((z - row[0]) * SPACING[0]) ** 2)[:, None, None] + (((y - row[1]) * SPACING[1]) ** 2)[None, :, None]
        away = np.sqrt(away + (((x - row[2]) * SPACING[2]) ** 2)[None, None])
        hu += 880 * np.clip(0.5 + (row[3] / 2 - away) / 0.9, 0, 1)
    return hu


def scan(name: str = "phantom-1", seed: int = 0) -> TrainingScan:
    rng = np.random.default_rng(seed)
    hu = (-850 + rng.normal(0, 30, (60, 90, 90))).astype(np.int16)
    hu[20:26, 40:48, 40:48] = 20
    places = np.array([[30, 60, 60], [40, 30, 30]], np.int16)
    return TrainingScan(
        name=name,
        hu=hu,
        slice_distance_mm=1.25,
        look=Look((0.6, 0.6, 0.6), 20.0, (0.5, 0.6, 0.6)),
        nodules=np.array([[22.5, 43.5, 43.5, 6.0]]),
        ignored=np.array([[50.0, 70.0, 20.0, 8.0]]),
        mimics=np.array([[40.0, 30.0, 30.0]]),
        places=dict.fromkeys(("free", "pleura", "vessel", "any"), places),
    )


def write_scans(folder: Path, count: int = 1) -> Path:
    for number in range(1, count + 1):
        save_scan(replace(scan(seed=number - 1), name=f"phantom-{number}"), folder)
    return folder
