from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.detect.nets.fcn import FCN
from pipeline.detect.nets.residual import ResidualNet
from training import runs, screening
from training.insertion import Look
from training.recipes import Recipe, RecipeError, ReductionRecipe, ScreeningRecipe, load_recipe
from training.reduction import residual_widths, take_over, train_reduction
from training.scans import TrainingScan, load_scan, save_scan
from training.screening import train_screening

RECIPES = Path(__file__).parents[3] / "config" / "recipes"
MODERN = ScreeningRecipe(
    widths=(4, 4, 8, 8, 8), neck=8, patch=(16, 32, 32), batch=2, steps=4, warm_up=2, average=0.9
)
PAPER = ScreeningRecipe(
    network="fcn", widths=(4, 4, 4, 8), patch=(10, 30, 30), batch=8, steps=4, optimiser="sgd", filtering=True
)
SECOND = ReductionRecipe(shared=(4, 4, 8), deep=(8, 8), head=8, batch=8, steps=2)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    hu = (-850 + rng.normal(0, 30, (60, 90, 90))).astype(np.int16)
    hu[20:26, 40:48, 40:48] = 20
    places = np.array([[30, 60, 60], [40, 30, 30]], np.int16)
    scan = TrainingScan(
        name="phantom-1",
        hu=hu,
        slice_distance_mm=1.25,
        look=Look((0.6, 0.6, 0.6), 20.0, (0.5, 0.6, 0.6)),
        nodules=np.array([[22.5, 43.5, 43.5, 6.0]]),
        ignored=np.array([[50.0, 70.0, 20.0, 8.0]]),
        mimics=np.array([[40.0, 30.0, 30.0]]),
        places=dict.fromkeys(("free", "pleura", "vessel", "any"), places),
    )
    save_scan(scan, tmp_path / "scans")
    return tmp_path / "scans"


def trained(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["network"]


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every step write a checkpoint, and the run end by Ctrl-C in a step."""
    add = runs.Log.add

    def add_or_stop(self, clock, rate, values):
        if clock.step == step:
            raise KeyboardInterrupt
        add(self, clock, rate, values)

    monkeypatch.setattr(runs.Log, "add", add_or_stop)
    monkeypatch.setattr(screening, "CHECKPOINT_EVERY_S", 0.0)


@pytest.mark.parametrize("stage", [MODERN, PAPER], ids=["modern", "paper"])
def test_an_interrupted_run_ends_with_the_same_weights(
    stage: ScreeningRecipe, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = Recipe("t", precision="fp32", threads=1, screening=stage)
    through = train_screening(recipe, scans, (), tmp_path / "through", workers=0)
    with monkeypatch.context() as patched:
        interrupted_at(3, patched)
        with pytest.raises(KeyboardInterrupt):
            train_screening(recipe, scans, (), tmp_path / "broken", workers=0)
    assert torch.load(tmp_path / "broken" / "screening.pt", weights_only=True)["step"] == 2
    broken = train_screening(recipe, scans, (), tmp_path / "broken", workers=0)
    for name, tensor in trained(through).items():
        assert torch.equal(tensor, trained(broken)[name]), name


def test_the_log_has_a_row_for_the_end_of_the_run(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = Recipe("t", precision="fp32", threads=1, screening=MODERN)
    train_screening(recipe, scans, (), tmp_path / "run", workers=0)
    rows = (tmp_path / "run" / "screening.csv").read_text().splitlines()
    assert rows[0] == "step,minutes,rate,heat,shape,p_nodule,false_cells"
    assert rows[1].startswith("4,")
    assert capsys.readouterr().out.startswith("step 4 minutes ")


def test_stage_2_trains_on_candidates_from_the_first_layers_of_stage_1(scans: Path, tmp_path: Path):
    recipe = Recipe("t", precision="fp32", threads=1, reduction=SECOND)
    candidates = {"phantom-1": np.array([[22.0, 44.0, 43.0], [40.0, 60.0, 60.0], [50.0, 70.0, 20.0]])}
    first = FCN((4, 4, 8, 8)).state_dict()
    path = train_reduction(recipe, scans, (), candidates, tmp_path / "run", shared_from=first)
    network = ResidualNet(residual_widths(SECOND))
    network.load_state_dict(trained(path))
    fresh = ResidualNet(residual_widths(SECOND))
    take_over(fresh, first)
    torch.testing.assert_close(fresh.shared.conv1.conv.weight, first["shared.conv1.conv.weight"])


def test_a_prepared_scan_reads_back_as_it_was(scans: Path):
    scan = load_scan(scans / "phantom-1.npz")
    assert scan.is_phantom
    assert scan.look == Look((0.6, 0.6, 0.6), 20.0, (0.5, 0.6, 0.6))
    assert scan.nodules.tolist() == [[22.5, 43.5, 43.5, 6.0]]
    assert set(scan.places) == {"free", "pleura", "vessel", "any"}


@pytest.mark.parametrize("name", ["modern", "modern-longer", "paper", "paper-fast"])
def test_each_shipped_recipe_can_be_read(name: str):
    recipe = load_recipe(RECIPES / f"{name}.toml")
    assert recipe.name == name
    shared = recipe.screening.widths[:3]
    assert recipe.screening.network == "modern" or recipe.reduction.shared == shared


def test_an_unknown_key_of_a_recipe_is_named(tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text('name = "x"\n[screening]\nbatchsize = 4\n')
    with pytest.raises(RecipeError, match=r"unknown key screening\.batchsize; known are average, batch"):
        load_recipe(path)
