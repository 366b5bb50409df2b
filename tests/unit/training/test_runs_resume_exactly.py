from __future__ import annotations

import csv
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.detect.nets.fcn import FCN
from pipeline.detect.nets.residual import ResidualNet
from tests.unit.training.tiny import CANDIDATES, MODERN, PAPER, SECOND, recipe, write_scans
from training import loop, runs
from training.insertion import Look
from training.recipes import RecipeError, ReductionRecipe, ScreeningRecipe, load_recipe
from training.reduction import residual_widths, take_over, train_reduction
from training.runs import Average, Log, save_checkpoint
from training.scans import load_scan
from training.screening import train_screening

CONFIG = Path(__file__).parents[3] / "config" / "recipes"
TIMED = {"minutes", "samples_s"}
STAGES = [MODERN, PAPER, SECOND, replace(SECOND, network="deepnet", filtering=False)]
NAMES = ["modern", "paper", "second stage", "deepnet"]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    return write_scans(tmp_path / "scans")


def train(stage: ScreeningRecipe | ReductionRecipe, scans: Path, run: Path) -> Path:
    if isinstance(stage, ScreeningRecipe):
        return train_screening(recipe(screening=stage), scans, (), run, workers=0)
    return train_reduction(recipe(reduction=stage), scans, (), CANDIDATES, run)


def state(path: Path) -> dict[str, object]:
    return torch.load(path, weights_only=True)


def log_of(path: Path) -> list[dict[str, str]]:
    with path.with_suffix(".csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(file)]


class Killed(BaseException):
    pass


def log_every_step_and_save_every_other(patch: pytest.MonkeyPatch) -> None:
    def save(path, recipe, clock, **rest):
        if clock.step % 2 == 0:
            save_checkpoint(path, recipe, clock, **rest)

    patch.setattr(loop, "Log", partial(Log, every=1))
    patch.setattr(loop, "CHECKPOINT_EVERY_S", -1.0)
    patch.setattr(loop, "save_checkpoint", save)


def kill_in(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let the run end without warning, after the weights and the log of a step have changed."""
    add = Log.add

    def add_and_die(self, clock, *rest):
        add(self, clock, *rest)
        if clock.step == step:
            raise Killed

    patch.setattr(Log, "add", add_and_die)


def assert_same_end(through: Path, broken: Path) -> None:
    one, other = state(through), state(broken)
    for part in ("network", "average"):
        for name, tensor in one[part].items():
            assert torch.equal(tensor, other[part][name]), name
    assert str(one["optimiser"]) == str(other["optimiser"])
    assert log_of(through) == log_of(broken)


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
def test_a_run_killed_at_any_step_ends_with_the_same_weights_and_log(
    stage: ScreeningRecipe | ReductionRecipe,
    step: int,
    scans: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    log_every_step_and_save_every_other(monkeypatch)
    through = train(stage, scans, tmp_path / "through")
    with monkeypatch.context() as patched:
        kill_in(step, patched)
        with pytest.raises(Killed):
            train(stage, scans, tmp_path / "broken")
    broken = tmp_path / "broken" / through.name
    assert broken.exists() == (step == 3)
    assert len(log_of(broken)) == step
    assert_same_end(through, train(stage, scans, tmp_path / "broken"))
    assert len(log_of(through)) == 4


def test_a_row_of_the_log_that_a_kill_cut_in_two_is_the_same_row(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    log_every_step_and_save_every_other(monkeypatch)
    monkeypatch.setattr(loop, "Log", partial(Log, every=3))
    through = train(PAPER, scans, tmp_path / "through")
    with monkeypatch.context() as patched:
        kill_in(2, patched)
        patched.setattr(loop, "save_checkpoint", save_checkpoint)
        patched.setattr(loop, "CHECKPOINT_EVERY_S", -1.0)
        with pytest.raises(Killed):
            train(PAPER, scans, tmp_path / "broken")
    assert state(tmp_path / "broken" / "screening.pt")["step"] == 1
    assert_same_end(through, train(PAPER, scans, tmp_path / "broken"))


@pytest.mark.parametrize("stage", [MODERN, SECOND], ids=["modern", "second stage"])
def test_a_run_by_the_clock_goes_on_with_the_time_it_had_spent(
    stage: ScreeningRecipe | ReductionRecipe, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    log_every_step_and_save_every_other(monkeypatch)
    now = [0.0]
    update = Average.update

    def a_second_a_step(self, network, step):
        update(self, network, step)
        now[0] += 1.0

    monkeypatch.setattr(Average, "update", a_second_a_step)
    for module in (runs, loop):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    timed = replace(stage, steps=0, minutes=4 / 60)
    through = train(timed, scans, tmp_path / "through")
    assert state(through)["step"] == 4
    now[0] = 1000.0
    with monkeypatch.context() as patched:
        kill_in(3, patched)
        with pytest.raises(Killed):
            train(timed, scans, tmp_path / "broken")
    now[0] = 5000.0
    assert_same_end(through, train(timed, scans, tmp_path / "broken"))


def test_the_log_has_a_row_for_the_end_of_the_run(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train(MODERN, scans, tmp_path / "run")
    rows = (tmp_path / "run" / "screening.csv").read_text().splitlines()
    assert rows[0] == "step,minutes,rate,samples_s,heat,shape,p_nodule,false_cells"
    assert rows[1].startswith("4,")
    assert float(rows[1].split(",")[3]) > 0
    assert capsys.readouterr().out.startswith("step 4 minutes ")


def test_tensorboard_shows_the_values_of_the_csv(scans: Path, tmp_path: Path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_screening(recipe(screening=PAPER), scans, (), tmp_path / "run", workers=0, tensorboard=True)
    board = events.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    (seen,) = board.Scalars("screening/loss")
    (row,) = log_of(tmp_path / "run" / "screening.pt")
    assert seen.step == 4
    assert seen.value == pytest.approx(float(row["loss"]), rel=1e-6)


def test_stage_2_trains_on_candidates_from_the_first_layers_of_stage_1(scans: Path, tmp_path: Path):
    first = FCN((4, 4, 4, 8)).state_dict()
    path = train_reduction(recipe(reduction=SECOND), scans, (), CANDIDATES, tmp_path / "run", shared_from=first)
    network = ResidualNet(residual_widths(SECOND))
    network.load_state_dict(state(path)["network"])
    fresh = ResidualNet(residual_widths(SECOND))
    take_over(fresh, first)
    for name in ("conv1", "conv2", "conv3"):
        key = f"{name}.conv.weight"
        torch.testing.assert_close(fresh.shared.state_dict()[key], first[f"shared.{key}"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("network", "skips", "regression"),
    [("deepnet", False, False), ("resnet", True, False), ("resnet-hl", True, True)],
)
def test_the_second_stages_of_the_paper_are_chosen_by_name(network: str, skips: bool, regression: bool):
    widths = residual_widths(replace(SECOND, network=network))
    assert (widths.skips, widths.regression) == (skips, regression)
    assert (ResidualNet(widths).regress is not None) == regression


def test_a_prepared_scan_reads_back_as_it_was(scans: Path):
    scan = load_scan(scans / "phantom-1.npz")
    assert scan.is_phantom
    assert scan.look == Look((0.6, 0.6, 0.6), 20.0, (0.5, 0.6, 0.6))
    assert scan.nodules.tolist() == [[22.5, 43.5, 43.5, 6.0]]
    assert set(scan.places) == {"free", "pleura", "vessel", "any"}


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.toml")), ids=lambda path: path.stem)
def test_each_shipped_recipe_trains_two_steps_of_both_stages(path: Path, scans: Path, tmp_path: Path):
    shipped = load_recipe(path)
    assert shipped.name == path.stem
    narrow = (4, 4, 8, 8, 8) if shipped.screening.network == "modern" else (4, 4, 4, 8)
    patch = (16, 32, 32) if shipped.screening.network == "modern" else shipped.screening.patch
    first = replace(shipped.screening, widths=narrow, neck=8, patch=patch, batch=4, steps=2, minutes=0)
    second = replace(shipped.reduction, shared=(4, 4, 4), deep=(8, 8), head=8, batch=6, steps=2, minutes=0)
    small = replace(shipped, screening=first, reduction=second, threads=1, device="cpu")
    one = train_screening(small, scans, (), tmp_path / "run", workers=0)
    takes_over = state(one)["average"] if first.network == "fcn" else None
    two = train_reduction(small, scans, (), CANDIDATES, tmp_path / "run", shared_from=takes_over)
    assert state(one)["step"] == state(two)["step"] == 2
    assert shipped.screening.network == "modern" or shipped.reduction.shared == shipped.screening.widths[:3]


def test_an_unknown_key_of_a_recipe_is_named(tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text('name = "x"\n[screening]\nbatchsize = 4\n')
    with pytest.raises(RecipeError, match=r"unknown key screening\.batchsize; known are average, batch"):
        load_recipe(path)
