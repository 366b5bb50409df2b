from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.detect.detector import load_detector
from pipeline.detect.weights import load_weights
from pipeline.domain.finding import Finding
from training.evaluate import Evaluated, at_threshold, summarise, truth_rows, write_evaluation
from training.export import choose_points, export
from training.froc import Annotation
from training.judge_tables import read_submission
from training.recipes import Recipe, ReductionRecipe, ScreeningRecipe
from training.runs import Average, Clock, make_optimiser, save_checkpoint
from training.screening import make_network

STAGE = ScreeningRecipe(widths=(4, 4, 8, 8, 8), neck=8)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    recipe = Recipe("tiny", seed=9, screening=STAGE, reduction=ReductionRecipe())
    network = make_network(STAGE)
    path = tmp_path / "screening.pt"
    optimiser = make_optimiser(STAGE, network)
    average = Average(network, 0.9)
    save_checkpoint(path, recipe, Clock(STAGE), network=network, average=average, optimiser=optimiser)
    return path


def scan(name: str, marks: list[tuple[float, float]], nodules: int = 1) -> Evaluated:
    """Nodules of 10 mm at x = 0, 100, ...; marks are (x, probability)."""
    findings = tuple(Finding((x, 0.0, 0.0), 9.0, p) for x, p in sorted(marks, key=lambda m: -m[1]))
    truth = tuple(Annotation((100.0 * k, 0.0, 0.0), 10.0) for k in range(nodules))
    return Evaluated(name, f"uid-{name}", truth, (), findings)


def test_the_card_of_a_single_stage_says_so(checkpoint: Path, tmp_path: Path):
    out = tmp_path / "w.safetensors"
    export(checkpoint, out, model_version="7")
    card = load_weights(out).card
    assert card.recipe == "tiny, first stage alone"
    assert (card.version, card.seed, card.reduction) == ("7", 9, None)
    assert {d.licence for d in card.training_data} == {"CC BY 3.0", "CC BY 4.0", "Apache-2.0"}
    assert any("0003, 0004, 0006, 0007, 0008" in d.name for d in card.training_data)
    assert load_detector(out, device="cpu").operating_points[0].threshold == 0.3
    assert out.stat().st_mode & 0o044 == 0o044


def test_the_averaged_weights_are_exported(checkpoint: Path, tmp_path: Path):
    export(checkpoint, tmp_path / "w.safetensors", model_version="7")
    average = torch.load(checkpoint, weights_only=True)["average"]
    written = load_weights(tmp_path / "w.safetensors").screening.state_dict()
    torch.testing.assert_close(written["out.weight"], average["out.weight"].bfloat16().float())


def test_the_threshold_lets_one_false_mark_a_scan_through():
    scans = [scan("a", [(0, 0.9), (50, 0.8), (60, 0.4)]), scan("b", [(0, 0.7), (50, 0.6), (60, 0.3)])]
    default = choose_points(scans, "two scans")[0]
    found, total, false = at_threshold(scans, default.threshold)
    assert default.name == "fp-1"
    assert 0.4 < default.threshold < 0.401
    assert (found, total, false) == (2, 2, 2)
    assert (default.expected_fp_per_scan, default.sensitivity, default.data_set) == (1.0, 1.0, "two scans")


def test_a_stricter_point_has_a_higher_threshold():
    scans = [scan("a", [(0, 0.9), (50, 0.8)]), scan("b", [(0, 0.7), (50, 0.6)])]
    points = {p.name: p.threshold for p in choose_points(scans, "x")}
    assert points["fp-0.25"] > points["fp-0.5"] > points["fp-1"] >= points["fp-4"]


def test_the_table_of_truth_counts_false_marks_before_each_nodule():
    first, second = truth_rows(scan("a", [(0, 0.5), (50, 0.8), (101, 0.4), (102, 0.3)], nodules=2))
    assert (first.rank, first.false_before, first.probability) == (2, 1, 0.5)
    assert (second.rank, second.false_before, second.distance_mm) == (3, 1, 1.0)
    missed = truth_rows(scan("b", [(50, 0.8)]))[0]
    assert (missed.rank, missed.probability) == (None, None)


def test_the_summary_counts_found_nodules_and_false_marks(tmp_path: Path):
    scans = [scan("a", [(0, 0.9), (50, 0.8)]), scan("b", [(50, 0.2)])]
    summary = summarise(scans, 0.5)
    assert (summary["found"], summary["nodules"], summary["false_per_scan"]) == (1, 2, 0.5)
    assert summary["diameter_bias_mm"] == -1.0
    write_evaluation(tmp_path, scans, 0.5)
    marks = read_submission(tmp_path / "submission.csv")
    assert [m.probability for m in marks["uid-a"]] == [0.9, 0.8]
    assert np.isclose(marks["uid-b"][0].position_mm[0], 50)
    assert (tmp_path / "truth.csv").read_text().splitlines()[2].startswith("b,1,10.0,,")
