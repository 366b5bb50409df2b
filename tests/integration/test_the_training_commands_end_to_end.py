"""Every training command on a tiny simulated cohort: simulate to report, two folds of cross-validation, resumed.

The networks are far too small and trained for seconds: what is asserted is that the commands fit together, count
right, go on where they were stopped and never judge a scan by a model that saw it; not that anything is found.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pipeline.detect.weights import load_weights
from training.cli.main import app
from training.crossval import judge_fold, plan
from training.download import read_download
from training.folds import LeakError
from training.froc import ScoredMark
from training.judge_tables import read_annotations, read_series, read_submission
from training.recipes import load_recipe
from training.scans import load_scan, subset_of

pytestmark = pytest.mark.timeout(900)

RECIPE = """
name = "tiny"
seed = 3
precision = "fp32"
threads = 1
device = "cpu"

[screening]
network = "modern"
widths = [6, 8, 8, 12, 12]
neck = 8
patch = [16, 32, 32]
batch = 4
learning_rate = 1e-2
warm_up = 2
steps = 8
average = 0.8

[reduction]
ship = true
shared = [4, 4, 6]
deep = [6, 6]
head = 6
batch = 6
learning_rate = 1e-2
warm_up = 2
steps = 4
average = 0.8
"""
PAPER = (
    RECIPE.replace('network = "modern"', 'network = "fcn"')
    .replace("widths = [6, 8, 8, 12, 12]", "widths = [4, 4, 6, 8]")
    .replace("neck = 8", "neck = 0\nfiltering = true")
    .replace("patch = [16, 32, 32]", "patch = [10, 30, 30]")
)
"""The paper's first stage, whose first convolutions the second one takes over."""

LUNA16_TABLES = ("annotations.csv", "annotations_excluded.csv", "candidates_V2.csv", "seriesuids.csv")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the commands of this module work."""

    root: Path

    @property
    def cohort(self) -> Path:
        return self.root / "cohort"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def recipe(self) -> Path:
        return self.root / "tiny.toml"

    @property
    def cv(self) -> Path:
        return self.root / "cv"

    def crossval(self, run: Path, *more: str) -> list[str]:
        where = ("--luna16", str(self.cohort), "--scans", str(self.cache), "--run", str(run), "--workers", "0")
        return ["crossval", str(self.recipe), *where, *more]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    return result.output


def marks_of(folder: Path) -> dict[str, list[ScoredMark]]:
    return read_submission(folder / "submission.csv")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A simulated cohort, prepared."""
    threads = torch.get_num_threads()
    made = Place(tmp_path_factory.mktemp("training"))
    made.recipe.write_text(RECIPE)
    run("simulate", "tiny", "--out", made.cohort, "--workers", 1)
    run("prepare", "--luna16", made.cohort, "--out", made.cache, "--workers", 1)
    torch.set_num_threads(threads)
    return made


KILLED = """
import os, signal, sys
from training.cli.say import Progress

def show(self, done, total, name=""):
    if "fold0: test scans" in self.what:
        os.kill(os.getpid(), signal.SIGKILL)

Progress.show = show
from training.cli.main import app
app(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def interrupted(place: Place) -> dict[Path, int]:
    """A two-fold cross-validation, killed when fold 0 had judged one scan: what was there, and when written."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *place.crossval(place.cv)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (place.cv / "fold0" / "run.json").exists()
    return {p: p.stat().st_mtime_ns for p in (place.cv / "fold0").rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def validated(place: Place, interrupted: dict[Path, int]) -> Path:
    """The pooled folder of the cross-validation, gone on with to its end."""
    threads = torch.get_num_threads()
    run(*place.crossval(place.cv))
    torch.set_num_threads(threads)
    return place.cv / "pooled"


def test_the_cohort_has_luna16s_layout(place: Place):
    assert all((place.cohort / name).is_file() for name in LUNA16_TABLES)
    images = sorted(place.cohort.glob("subset*/*.mhd"))
    assert {p.parent.name for p in images} == {"subset0", "subset1"}
    assert sorted(p.stem for p in images) == sorted(read_series(place.cohort / "seriesuids.csv"))
    truth = table(place.cohort / "truth.csv")
    assert [row["diameter_mm"] for row in truth] == [
        r["diameter_mm"] for r in table(place.cohort / "annotations.csv")
    ]
    assert len(truth) == 16
    assert {row["kind"] for row in truth} == {"solid", "ground-glass"}
    assert {row["place"] for row in truth} == {"free", "pleura"}
    candidates = table(place.cohort / "candidates_V2.csv")
    assert sum(row["class"] == "1" for row in candidates) == 16
    assert sum(row["class"] == "0" for row in candidates) > 50


def test_simulating_and_preparing_again_do_nothing(place: Place):
    before = {p: p.stat().st_mtime_ns for p in (*place.cohort.rglob("*.raw"), *place.cache.glob("*.npz"))}
    run("simulate", "tiny", "--out", place.cohort, "--workers", 1, "--verify")
    run("prepare", "--luna16", place.cohort, "--out", place.cache, "--workers", 1)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert len(list(place.cache.glob("*.npz"))) == 5


def test_the_papers_stages_are_trained_one_by_one_and_gone_on_with(place: Place, tmp_path: Path):
    threads = torch.get_num_threads()
    first, second, recipe = tmp_path / "one", tmp_path / "two", tmp_path / "paper.toml"
    recipe.write_text(PAPER)
    skipped = sorted(p.stem for p in place.cache.glob("*.npz") if not len(load_scan(p).nodules) or subset_of(p))
    common = ("--scans", place.cache, "--workers", 0, *(word for name in skipped for word in ("--skip", name)))
    run("screening", recipe, "--run", first, *common)
    run("reduction", recipe, "--run", second, "--screening", first / "screening.pt", *common)
    assert torch.load(first / "screening.pt", weights_only=True)["step"] == 8
    assert torch.load(second / "reduction.pt", weights_only=True)["step"] == 4
    steps = [row["step"] for row in table(first / "screening.csv")]
    run("screening", recipe, "--run", first, *common)
    assert [row["step"] for row in table(first / "screening.csv")] == steps
    weights = tmp_path / "w.safetensors"
    assert "export it with a second stage" in refused("export", first / "screening.pt", "--out", weights)
    run("export", first / "screening.pt", "--reduction", second / "reduction.pt", "--out", weights, "--floor", 0.4)
    assert load_weights(weights).card.screening.floor == 0.4
    torch.set_num_threads(threads)


def test_two_folds_judge_every_scan_once(place: Place, validated: Path):
    series = read_series(place.cohort / "seriesuids.csv")
    assert sorted(read_series(validated / "seriesuids.csv")) == sorted(series)
    assert set(read_submission(validated / "submission.csv")) <= set(series)
    folds = [place.cv / "fold0", place.cv / "fold1"]
    tested = [set(read_series(f / "seriesuids.csv")) for f in folds]
    assert not tested[0] & tested[1]
    for folder, test in zip(folds, tested, strict=True):
        seen = set(json.loads((folder / "saw.json").read_text())["seen"])
        assert not seen & test
        assert set(read_annotations(folder / "annotations.csv")) <= test
        assert json.loads((folder / "run.json").read_text())["kind"] == "crossval"
        card = load_weights(folder / "weights.safetensors").card
        assert card.reduction is not None
        assert "validation scans of fold" in card.operating_points[0].data_set


def test_the_pooled_judgement_is_sane(validated: Path):
    froc = json.loads((validated / "froc.json").read_text())
    rates = ["0.125", "0.25", "0.5", "1", "2", "4", "8"]
    assert list(froc["sensitivity"]) == rates
    values = [froc["sensitivity"][rate] for rate in rates]
    assert values == sorted(values)
    assert 0 <= froc["cpm"] <= 1
    assert froc["counts"]["hits"] + froc["counts"]["misses"] == 16
    assert (froc["scans"], froc["nodules"]) == (5, 16)
    assert json.loads((validated / "run.json").read_text())["simulated"] is True


def test_a_finished_cross_validation_repeats_no_work(place: Place, validated: Path):
    kept = [p for name in ("fold0", "fold1") for p in (place.cv / name).rglob("*") if p.is_file()]
    assert len(kept) > 20
    before = {p: p.stat().st_mtime_ns for p in kept}
    marks = (validated / "submission.csv").read_bytes()
    said = run(*place.crossval(place.cv))
    assert "was finished" in said
    assert {p: p.stat().st_mtime_ns for p in kept} == before
    assert (validated / "submission.csv").read_bytes() == marks


def test_a_killed_cross_validation_goes_on_where_it_was(
    place: Place, interrupted: dict[Path, int], validated: Path
):
    done = {p.relative_to(place.cv / "fold0").as_posix() for p in interrupted}
    assert {"screening/screening.pt", "reduction/reduction.pt", "weights.safetensors", "chosen.json"} <= done
    assert sum(name.startswith("test/") for name in done) == 1
    after = {p: p.stat().st_mtime_ns for p in interrupted if p.name != "saw.json"}
    assert after == {p: interrupted[p] for p in after}
    assert len(list((place.cv / "fold0" / "test").glob("*.json"))) == 3


def test_models_that_saw_a_test_scan_may_not_judge_it(place: Place, validated: Path, tmp_path: Path):
    leaking = tmp_path / "cv" / "fold0"
    leaking.mkdir(parents=True)
    (leaking.parent / "plan.json").write_bytes((place.cv / "plan.json").read_bytes())
    saw = json.loads((place.cv / "fold0" / "saw.json").read_text())
    saw["seen"].append(read_series(place.cv / "fold0" / "seriesuids.csv")[0])
    (leaking / "saw.json").write_text(json.dumps(saw))
    assert "trained on other scans" in refused(*place.crossval(leaking.parent, "--folds", "0"))
    assert not (leaking / "submission.csv").exists()


def test_weights_may_not_judge_a_scan_that_they_saw(place: Place, validated: Path, tmp_path: Path):
    validation = plan(load_recipe(place.recipe), read_download(place.cohort), place.cache, tmp_path / "cv", "tiny")
    fold = validation.folds[0]
    folder = validation.folder(fold)
    folder.mkdir(parents=True)
    with pytest.raises(LeakError, match="not known what these weights saw"):
        judge_fold(validation, fold, lambda *_: None)
    shutil.copyfile(place.cv / "fold0" / "weights.safetensors", folder / "weights.safetensors")
    (folder / "saw.json").write_text(json.dumps({"seen": [*fold.train, fold.test[1]]}))
    with pytest.raises(LeakError, match=fold.test[1]):
        judge_fold(validation, fold, lambda *_: None)
    assert not (folder / "submission.csv").exists()


def test_a_run_of_another_recipe_is_not_gone_on_with(place: Place, validated: Path):
    assert "begun with another recipe" in refused(*place.crossval(place.cv, "--seed", "4"))


def test_candidates_and_their_recall_are_told(place: Place, validated: Path, tmp_path: Path):
    checkpoint = place.cv / "fold0" / "screening" / "screening.pt"
    said = run("candidates", checkpoint, "--scans", place.cache, "--subset", 0, "--out", tmp_path)
    assert "the paper's threshold" in said
    recall = json.loads((tmp_path / "recall.json").read_text())
    assert recall["scans"] == 3
    assert recall["ours"]["candidates_per_scan"] > 0
    assert recall["ours"]["recall"] >= recall["papers"]["recall"]
    assert {row["seriesuid"] for row in table(tmp_path / "candidates.csv")} <= set(
        read_series(place.cv / "fold0" / "seriesuids.csv")
    )


def test_weights_are_exported_calibrated_evaluated_and_judged(place: Place, validated: Path, tmp_path: Path):
    fold, weights = place.cv / "fold0", tmp_path / "w.safetensors"
    run("export", fold / "screening" / "screening.pt", "--reduction", fold / "reduction" / "reduction.pt",
        "--held-out", validated, "--calibration", "none", "--out", weights)  # fmt: skip
    card = load_weights(weights).card
    assert card.operating_points[0].name == "fp-1"
    assert card.operating_points[0].expected_fp_per_scan <= 1
    assert card.operating_points[0].sensitivity_low is not None
    assert card.operating_points[0].data_set.startswith("cohort tiny")
    out = tmp_path / "judged"
    run("evaluate", "--luna16", place.cohort, "--subset", 0, "--weights", weights, "--out", out)
    strange = ("--weights-for", "nobody=x.safetensors", "--weights", weights, "--out", tmp_path / "none")
    assert "has no scan made from nobody" in refused("evaluate", "--luna16", place.cohort, *strange)
    graded = json.loads((out / "graded.json").read_text())
    assert graded["scans"] == 3
    groups = {row["group"]: row["nodules"] for row in graded["at"]["1"]["groups"]}
    assert groups["all"] == groups["free"] + groups["pleura"] == len(table(out / "annotations.csv"))
    assert "sham" in graded["at"]["1"]["marks_on_controls"]
    worst = table(out / "worst.csv")
    without = set(read_series(out / "seriesuids.csv")) - set(read_annotations(out / "annotations.csv"))
    assert {row["seriesuid"] for row in worst} <= without
    assert len(worst) == min(10, sum(len(rows) for uid, rows in marks_of(out).items() if uid in without))
    assert (out / "worst.png").is_file() is bool(worst)
    run("froc", "--submission", out / "submission.csv", "--annotations", place.cohort / "annotations.csv",
        "--excluded", place.cohort / "annotations_excluded.csv", "--seriesuids", out / "seriesuids.csv",
        "--out", tmp_path / "again")  # fmt: skip
    again = json.loads((tmp_path / "again" / "froc.json").read_text())
    assert again["sensitivity"] == json.loads((out / "froc.json").read_text())["sensitivity"]


def test_the_report_shows_the_runs(validated: Path, tmp_path: Path):
    page = tmp_path / "report.html"
    run("report", validated, "--examples", 0, "--out", page)
    assert "cohort tiny" in page.read_text(encoding="utf-8")


def test_scans_are_left_out_one_by_one(place: Place, tmp_path: Path):
    """Two scans of the cohort stand in for two persons' real scans."""
    truth = read_annotations(place.cohort / "annotations.csv")
    names = sorted(truth)[:2]
    scans, series, run_folder = tmp_path / "scans", tmp_path / "series", tmp_path / "run"
    scans.mkdir()
    series.mkdir()
    for name in names:
        (scans / f"{name}.npz").symlink_to(place.cache / f"{name}.npz")
        for file in place.cohort.glob(f"subset*/{name}.*"):
            (series / file.name).symlink_to(file)
    rows = (
        f"{n},{a.position_mm[0]},{a.position_mm[1]},{a.position_mm[2]},{a.diameter_mm}"
        for n in names
        for a in truth[n]
    )
    (tmp_path / "nodules.csv").write_text("\n".join(("patient,x,y,z,diameter_mm", *rows)))
    (tmp_path / "excluded.csv").write_text("patient,x,y,z,diameter_mm\n")
    where = ("--scans", scans, "--series", series, "--truth", tmp_path, "--run", run_folder, "--workers", 0)
    threads = torch.get_num_threads()
    assert "No seed has all" in run("left-out", place.recipe, *where, "--seeds", 5, "--only", names[0])
    assert "it has" in refused("left-out", place.recipe, *where, "--only", "nobody")
    done = run_folder / "seed5" / names[0]
    assert json.loads((done / "saw.json").read_text()) == {"seen": [names[1]]}
    before = {p: p.stat().st_mtime_ns for p in done.iterdir()}
    said = run("left-out", place.recipe, *where, "--seeds", 5)
    torch.set_num_threads(threads)
    assert {p: p.stat().st_mtime_ns for p in done.iterdir()} == before
    assert "median of 1 seeds" in said
    table = json.loads((run_folder / "left-out.json").read_text())
    assert [row["scan"] for row in table["seeds"]["5"]["nodules"]] == [n for n in names for _ in truth[n]]
    (done / "saw.json").write_text(json.dumps({"seen": names}))
    (done / "seriesuids.csv").unlink()
    assert "cannot be judged" in refused("left-out", place.recipe, *where, "--seeds", 5)
