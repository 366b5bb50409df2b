"""Averaging checkpoints: the mean of every weight, nothing else changed, and no mixing of networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from typer.testing import CliRunner

from training.cli.main import app
from training.export import load_checkpoint
from training.recipes import Recipe, ScreeningRecipe
from training.runs import Average, Clock, make_optimiser, save_checkpoint
from training.screening import make_network
from training.soup import UnlikeCheckpointsError, average_checkpoints, mean_weights

if TYPE_CHECKING:
    from pathlib import Path


def checkpoint(path: Path, seed: int, widths: tuple[int, ...] = (4, 4, 6, 6, 8)) -> Path:
    torch.manual_seed(seed)
    recipe = Recipe("tiny", screening=ScreeningRecipe(widths=widths, neck=8, steps=3))
    network = make_network(recipe.screening)
    clock = Clock(recipe.screening, step=3)
    optimiser = make_optimiser(recipe.screening, network)
    save_checkpoint(path, recipe, clock, network=network, average=Average(network, 0.5), optimiser=optimiser)
    return path


def test_every_weight_is_the_mean(tmp_path: Path):
    paths = [checkpoint(tmp_path / f"{seed}.pt", seed) for seed in (1, 2, 3)]
    assert average_checkpoints(paths, tmp_path / "mean.pt") == 9
    _, mean, step = load_checkpoint(tmp_path / "mean.pt")
    parts = [load_checkpoint(path)[1] for path in paths]
    assert step == 9
    for name, value in mean.items():
        if value.dtype.is_floating_point:
            torch.testing.assert_close(value, (parts[0][name] + parts[1][name] + parts[2][name]) / 3)
    assert not (tmp_path / "mean.part").exists()


def test_the_mean_of_one_is_itself(tmp_path: Path):
    path = checkpoint(tmp_path / "one.pt", 1)
    state = load_checkpoint(path)[1]
    for name, value in mean_weights([state]).items():
        torch.testing.assert_close(value, state[name])


def test_networks_of_other_widths_are_refused(tmp_path: Path):
    paths = [checkpoint(tmp_path / "a.pt", 1), checkpoint(tmp_path / "b.pt", 1, (4, 4, 6, 6, 12))]
    with pytest.raises(UnlikeCheckpointsError):
        average_checkpoints(paths, tmp_path / "mean.pt")
    assert not (tmp_path / "mean.pt").exists()


def test_the_command_says_what_it_did(tmp_path: Path):
    paths = [checkpoint(tmp_path / f"{seed}.pt", seed) for seed in (1, 2)]
    done = CliRunner().invoke(app, ["average", *map(str, paths), "--out", str(tmp_path / "mean.pt")])
    assert done.exit_code == 0
    assert "mean of 2 checkpoints, 6 steps together" in done.output
