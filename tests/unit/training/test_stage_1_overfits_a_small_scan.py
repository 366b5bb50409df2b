"""T12: trained on one small scan, the paper's first stage finds all its nodules there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from pipeline.detect.nets.fcn import FCN
from pipeline.detect.placement import choose
from pipeline.detect.resample import PREPROCESSING, Prepared
from pipeline.detect.screen import make_screening
from pipeline.detect.weights import FCN_SCREENING
from pipeline.domain.geometry import Grid
from pipeline.lungs import LungMask
from tests.unit.training.tiny import lung_with_balls
from training.insertion import Look
from training.recipes import Recipe, ScreeningRecipe
from training.sampling import SPACING
from training.scans import TrainingScan, save_scan
from training.screening import make_network, train_screening

SHAPE = (48, 112, 112)
NODULES = np.array(
    [[12.0, 30.0, 30.0, 5.0], [14.0, 80.0, 78.0, 6.5], [34.0, 32.0, 80.0, 8.0], [33.0, 82.0, 30.0, 10.0]]
)
PAPER = ScreeningRecipe(
    network="fcn",
    widths=(8, 12, 16, 32),
    patch=(10, 30, 30),
    batch=32,
    steps=70,
    warm_up=10,
    learning_rate=4e-3,
    average=0.9,
    filtering=True,
)


def small_scan() -> TrainingScan:
    rng = np.random.default_rng(0)
    hu = lung_with_balls(SHAPE, NODULES)
    hu[:, 55:58, :] = 0
    hu = gaussian_filter(hu, 0.7) + 25 * rng.standard_normal(SHAPE)
    places = np.argwhere(hu[::4, ::8, ::8] < -700) * [4, 8, 8]
    far = np.array([all(np.linalg.norm((p - n[:3]) * SPACING) > n[3] / 2 + 6 for n in NODULES) for p in places])
    kinds = ("free", "pleura", "vessel", "any")
    return TrainingScan(
        name="phantom-1",
        hu=hu.astype(np.int16),
        slice_distance_mm=1.25,
        look=Look((0.6, 0.6, 0.6), 25.0, (0.3, 0.3, 0.3)),
        nodules=NODULES,
        ignored=np.empty((0, 4)),
        mimics=np.array([[24.0, 56.0, float(k)] for k in range(12, 100, 8)]),
        places=dict.fromkeys(kinds, places[far].astype(np.int16)),
    )


def everywhere(scan: TrainingScan) -> Prepared:
    whole = np.ones(SHAPE, bool)
    lungs = LungMask(whole, whole, (1, 1, 1), SHAPE, 1.0)
    same = (1.0, 0.0)
    grid = Grid(SHAPE, PREPROCESSING.spacing_zyx_mm, (0.0, 0.0, 0.0))
    return Prepared(scan.hu, grid, lungs, (same, same, same), PREPROCESSING)


def test_every_nodule_of_the_training_scan_is_found(tmp_path: Path):
    scan = small_scan()
    save_scan(scan, tmp_path / "scans")
    recipe = Recipe("overfit", precision="fp32", threads=2, screening=PAPER)
    path = train_screening(recipe, tmp_path / "scans", (), tmp_path / "run", workers=0)
    network = make_network(PAPER)
    network.load_state_dict(torch.load(path, weights_only=True)["average"])
    assert isinstance(network, FCN)
    spec = replace(FCN_SCREENING, widths=PAPER.widths, floor=0.2)
    found = make_screening(network.eval(), spec, choose("cpu", "float32")).candidates(
        everywhere(scan), lambda _: None
    )
    places = np.array([p.index_zyx for p in found]).reshape(-1, 3)
    for row in NODULES:
        assert (np.linalg.norm((places - row[:3]) * SPACING, axis=1) < row[3] / 2).any(), row
    assert len(found) < 60
