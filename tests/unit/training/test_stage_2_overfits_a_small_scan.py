"""T12, second half: trained on one small scan, the second stage ranks its nodules above its mimics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from pipeline.detect.nets.residual import PATCH, ResidualNet
from tests.unit.training.tiny import lung_with_balls
from training.insertion import Look
from training.recipes import Recipe, ReductionRecipe
from training.reduction import residual_widths, train_reduction
from training.sampling import normalise
from training.scans import TrainingScan, save_scan

SHAPE = (48, 140, 140)
NODULES = np.array(
    [[14.0, 40.0, 40.0, 6.0], [16.0, 100.0, 98.0, 7.0], [34.0, 42.0, 100.0, 8.0], [33.0, 101.0, 40.0, 10.0]]
)
MIMICS = np.array([[24.0, 70.0, 30.0], [24.0, 70.0, 70.0], [24.0, 70.0, 110.0], [10.0, 70.0, 70.0]])
SMALL = ReductionRecipe(
    shared=(8, 8, 16), deep=(32, 32), head=32, batch=9, steps=24, warm_up=5, learning_rate=2e-3, average=0.8
)


def small_scan() -> TrainingScan:
    """Four balls, and a vessel as thick as they are that runs through the middle."""
    hu = lung_with_balls(SHAPE, NODULES)
    hu[:, 65:76, :] = 20
    hu = gaussian_filter(hu, 0.7) + 20 * np.random.default_rng(0).standard_normal(SHAPE)
    return TrainingScan(
        name="phantom-1",
        hu=hu.astype(np.int16),
        slice_distance_mm=1.25,
        look=Look((0.6, 0.6, 0.6), 20.0, (0.5, 0.6, 0.6)),
        nodules=NODULES,
        ignored=np.empty((0, 4)),
        mimics=MIMICS,
        places={},
    )


def patch(scan: TrainingScan, centre: np.ndarray) -> np.ndarray:
    start = np.rint(centre - (np.asarray(PATCH) - 1) / 2).astype(int) + 40
    padded = np.pad(scan.hu, 40, mode="edge")
    return padded[tuple(slice(s, s + n) for s, n in zip(start, PATCH, strict=True))]


def test_every_nodule_scores_above_every_mimic(tmp_path: Path):
    scan = small_scan()
    save_scan(scan, tmp_path / "scans")
    recipe = Recipe("t", precision="fp32", threads=1, device="cpu", reduction=SMALL)
    candidates = {"phantom-1": np.concatenate([NODULES[:, :3], MIMICS])}
    path = train_reduction(recipe, tmp_path / "scans", (), candidates, tmp_path / "run")
    network = ResidualNet(residual_widths(SMALL)).eval()
    network.load_state_dict(torch.load(path, weights_only=True)["average"])
    patches = np.stack([patch(scan, place) for place in candidates["phantom-1"]]).astype(np.float32)
    with torch.inference_mode():
        logits, _ = network(torch.from_numpy(normalise(patches))[:, None])
    score = (logits[:, 1] - logits[:, 0]).tolist()
    assert min(score[:4]) > max(score[4:])
