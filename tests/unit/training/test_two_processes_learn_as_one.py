"""Under ``torchrun`` two processes with half a batch each learn what one process learns from the whole batch."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.detect.nets.residual import ResidualNet
from tests.unit.training.tiny import write_scans
from training.recipes import load_recipe
from training.reduction import residual_widths, take_over
from training.screening import make_network
from training.team import Team, UnevenBatchError

RECIPE = """
name = "t"
precision = "fp32"
threads = 1
device = "cpu"
[screening]
network = "{network}"
widths = {widths}
neck = 8
patch = {patch}
batch = {batch}
optimiser = "sgd"
learning_rate = 1e-3
warm_up = 1
steps = 3
filtering = true
[reduction]
shared = [4, 4, 4]
deep = [8, 8]
head = 8
batch = 8
optimiser = "sgd"
learning_rate = 1e-3
warm_up = 1
steps = 3
"""
LIMIT_S = 240


def write(
    folder: Path, name: str, network: str, widths: tuple[int, ...], patch: tuple[int, ...], batch: int
) -> str:
    path = folder / f"{name}.toml"
    path.write_text(RECIPE.format(network=network, widths=list(widths), patch=list(patch), batch=batch))
    return str(path)


def run(processes: int, *arguments: str) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] * (processes > 1)
    command = [sys.executable, *launch, "-m", "training.cli.main", *arguments, "--workers", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("step 3 ") == 1


def rows(path: Path) -> list[dict[str, float]]:
    with path.with_suffix(".csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def assert_same(one: Path, two: Path, values: tuple[str, ...], fresh: torch.nn.Module) -> None:
    """Same losses and the same steps away from the first weights, as far as float32 batch norms agree."""
    (first,), (second,) = rows(one), rows(two)
    for value in values:
        assert second[value] == pytest.approx(first[value], rel=5e-3, abs=1e-5), value
    alone, together = (torch.load(path, weights_only=True)["network"] for path in (one, two))
    for name, begin in fresh.state_dict().items():
        moved, beside = alone[name].double() - begin, together[name].double() - begin
        assert float((beside - moved).norm()) <= 0.15 * float(moved.norm()) + 1e-6, name


@pytest.mark.timeout(900)
def test_both_stages_of_the_paper_over_two_processes(tmp_path: Path):
    scans = str(write_scans(tmp_path / "scans", 2))
    recipe = write(tmp_path, "paper", "fcn", (4, 4, 4, 8), (10, 30, 30), 8)
    for processes in (1, 2):
        folder = str(tmp_path / f"run-{processes}")
        run(processes, "screening", recipe, "--scans", scans, "--run-folder", folder)
        first = ["--screening", str(tmp_path / "run-1" / "screening.pt")]
        run(processes, "reduction", recipe, "--scans", scans, "--run-folder", folder, *first)
    chosen, values = load_recipe(Path(recipe)), ("loss", "found", "rejected")
    one, two = tmp_path / "run-1", tmp_path / "run-2"
    torch.manual_seed(chosen.seed)
    assert_same(one / "screening.pt", two / "screening.pt", values, make_network(chosen.screening))
    torch.manual_seed(chosen.seed)
    second = ResidualNet(residual_widths(chosen.reduction))
    take_over(second, torch.load(one / "screening.pt", weights_only=True)["average"])
    assert_same(one / "reduction.pt", two / "reduction.pt", values, second)


@pytest.mark.timeout(900)
def test_the_heat_map_over_two_processes(tmp_path: Path):
    scans = str(write_scans(tmp_path / "scans"))
    recipe = write(tmp_path, "heat", "modern", (4, 4, 8, 8, 8), (16, 32, 32), 4)
    for processes in (1, 2):
        run(processes, "screening", recipe, "--scans", scans, "--run-folder", str(tmp_path / f"run-{processes}"))
    one, two = (tmp_path / f"run-{processes}" / "screening.pt" for processes in (1, 2))
    chosen = load_recipe(Path(recipe))
    torch.manual_seed(chosen.seed)
    assert_same(one, two, ("heat", "shape", "p_nodule", "false_cells"), make_network(chosen.screening))


def test_a_batch_that_cannot_be_divided_is_refused_in_a_sentence():
    with pytest.raises(
        UnevenBatchError, match="A batch of 7 cannot be divided among 2 processes; choose a multiple"
    ):
        Team(0, 2).part(7)


def test_a_team_of_one_takes_the_whole_batch_and_leads():
    assert Team().part(6) == slice(0, 6)
    assert Team().leads
    assert not Team(1, 2).leads
