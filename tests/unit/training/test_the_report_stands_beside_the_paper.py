from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.training.run_folders import CARD, make_run
from training import report_page
from training.bootstrap import Interval
from training.report import (
    FinishedRun,
    curve_rows,
    fold_sentences,
    judged_of,
    missing,
    order_sentences,
    reduction_rows,
    screening_rows,
    why_not_comparable,
    without_pooled_folds,
)
from training.report_page import find_runs, load_run
from training.run_folder import CandidateCount, RunFolderError, write_candidate_count

LUNA16 = replace(CARD, kind="crossval", data_set="LUNA16", simulated=False, folds=10)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory):
    folder = make_run(tmp_path_factory.mktemp("run") / "one")
    return judged_of(json.loads((folder / "froc.json").read_text()))


def at_1(judged, sensitivity: float):
    """The judgement with another sensitivity at 1 false positive a scan."""
    return replace(judged, sensitivity=(*judged.sensitivity[:3], sensitivity, *judged.sensitivity[4:]))


def published() -> dict:
    return tomllib.loads((Path(report_page.__file__).parent / "published.toml").read_text())


def test_the_published_rows_are_those_of_the_paper_and_their_cpm_is_their_mean():
    tables = published()
    rows = [*tables["table_1"]["rows"], *tables["since"]["rows"]]
    for row in rows:
        assert np.mean(row["sensitivity"]) == pytest.approx(row["cpm"], abs=6e-4), row["name"]
    paper = next(row for row in rows if row.get("paper"))
    assert paper["sensitivity"] == [0.659, 0.745, 0.819, 0.865, 0.906, 0.933, 0.946]
    assert tables["table_2"]["reduction"]["resnet-hl"]["sensitivity_at_1"] == 0.905


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, ""),
        ({"simulated": True}, "simulated"),
        ({"data_set": "LIDC-IDRI"}, "other data (LIDC-IDRI)"),
        ({"fold": 3}, "not ten folds; single folds differ by more than methods do"),
        ({"folds": 2}, "not ten folds; single folds differ by more than methods do"),
        ({"kind": "evaluate"}, "not ten folds; single folds differ by more than methods do"),
    ],
)
def test_only_ten_folds_over_luna16_stand_in_table_1(judged, changed: dict, why: str):
    run = FinishedRun("one", replace(LUNA16, **changed), replace(judged, scans=888), None)
    assert why_not_comparable(run) == why
    assert [row.why_not for row in curve_rows([run])] == [why]


def test_a_part_of_luna16_is_not_luna16(judged):
    run = FinishedRun("one", LUNA16, replace(judged, scans=882), None)
    assert why_not_comparable(run) == "882 of LUNA16's 888 scans"


def test_everything_that_no_run_shows_is_said_to_be_missing(judged):
    assert missing([FinishedRun("one", CARD, None, None)]) == [
        "one: not judged; its folder has no froc.json.",
        "Table 1, our row: no finished ten-fold cross-validation over the 888 scans of LUNA16.",
        "Table 2, screening: no run of kind candidates for FCN.",
        "Table 2, screening: no run of kind candidates for FCN + online sample filtering.",
        "Table 2, reduction: no judged run for deepnet.",
        "Table 2, reduction: no judged run for resnet.",
        "Table 2, reduction: no judged run for resnet-hl.",
        "Figure 2, curves: no judged run.",
    ]
    count = CandidateCount(2, 4, 4, 200, 0.5)
    whole = [FinishedRun("cv", replace(LUNA16), replace(judged, scans=888), None)]
    whole += [FinishedRun(r, replace(CARD, reduction=r), judged, None) for r in ("deepnet", "resnet")]
    whole += [FinishedRun(s, replace(CARD, screening=s), None, count) for s in ("fcn", "fcn+osf")]
    assert [line for line in missing(whole) if "not judged" not in line] == []


def test_candidates_are_counted_a_scan():
    (row,) = screening_rows([FinishedRun("c", replace(CARD, fold=9), None, CandidateCount(10, 8, 6, 2191, 0.7))])
    assert (row.count.sensitivity, row.count.per_scan, row.data) == (0.75, 219.1, "cohort tiny, fold 9")


def test_a_second_stage_is_compared_with_the_next_simpler_one_on_the_same_scans(tmp_path: Path):
    folders = {
        "plain": make_run(tmp_path / "plain", hits=1, reduction="deepnet"),
        "full": make_run(tmp_path / "full", hits=3, reduction="resnet-hl"),
        "other-scans": make_run(tmp_path / "other", hits=3, listed=5, reduction="resnet"),
        "other-seed": make_run(tmp_path / "seed", hits=2, seed=1, reduction="resnet"),
    }
    rows = {row.run: row for row in reduction_rows([load_run(name, folder) for name, folder in folders.items()])}
    assert rows["full"].against == "deepnet"
    assert rows["full"].difference.mean == pytest.approx(0.5, abs=0.02)
    assert rows["full"].difference.low >= 0
    assert [rows[name].difference for name in ("plain", "other-scans", "other-seed")] == [None, None, None]


def test_the_order_of_the_second_stages_is_told_as_it_is(judged):
    def runs(*values: float) -> list[FinishedRun]:
        names = ("deepnet", "resnet", "resnet-hl")
        cards = [replace(CARD, reduction=r) for r in names]
        return [FinishedRun(c.reduction, c, at_1(judged, v), None) for c, v in zip(cards, values, strict=True)]

    (said,) = order_sentences(reduction_rows(runs(0.8, 0.85, 0.9)))
    assert said == (
        "cohort tiny: DeepNet 0.800, ResNet 0.850, ResNet with hybrid loss 0.900 (one seed): as in the paper."
    )
    assert order_sentences(reduction_rows(runs(0.85, 0.85, 0.9)))[0].endswith("not the paper's order.")
    assert order_sentences(reduction_rows(runs(0.8, 0.85, 0.9)[:2])) == []


def test_single_folds_are_told_as_a_range_and_not_as_rows(judged):
    pooled = FinishedRun("pooled", LUNA16, judged, None)
    cpms = {0: 0.8, 1: 0.81, 2: 0.82}
    folds = [FinishedRun(f"f{k}", replace(LUNA16, fold=k), replace(judged, cpm=c), None) for k, c in cpms.items()]
    assert without_pooled_folds([pooled, *folds]) == [pooled]
    assert without_pooled_folds(folds) == folds
    assert fold_sentences([pooled, *folds]) == [
        "pooled: CPM of its 3 single folds 0.800 to 0.820, median 0.810; the row judges all their scans together."
    ]


def test_a_run_reads_back_from_its_folder(tmp_path: Path):
    folder = make_run(tmp_path / "runs" / "one")
    write_candidate_count(folder, CandidateCount(4, 4, 4, 800, 0.4))
    run = load_run("one", folder)
    assert (run.card, run.candidates.per_scan) == (CARD, 200)
    assert run.judged.counts == {"hits": 3, "misses": 1, "false_positives": 1, "ignored": 0, "double": 0}
    assert isinstance(run.judged.cpm_interval, Interval)
    assert run.series == ("s0", "s1", "s2", "s3")


def test_runs_are_named_by_their_way_from_the_folder_given(tmp_path: Path):
    for name in ("a/pooled", "a/fold0", "b"):
        make_run(tmp_path / name)
    assert list(find_runs([tmp_path])) == ["a/fold0", "a/pooled", "b"]
    assert list(find_runs([tmp_path / "b", tmp_path / "a"])) == ["b", "fold0", "pooled"]


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("run.json", "{", r"run\.json is not JSON"),
        ("run.json", '{"kind": "evaluate"}', r"run\.json: missing or unknown: data_set, fold, folds, recipe"),
        ("froc.json", "{}", r"froc\.json is not a judgement \(KeyError\('bootstrap'\)\)"),
        ("candidates.json", '{"scans": 1}', r"candidates\.json: missing or unknown: candidates, found, nodules"),
        ("submission.csv", "", r"submission\.csv: the file is empty"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_file(tmp_path: Path, file: str, text: str, sentence: str):
    folder = make_run(tmp_path / "one")
    (folder / file).write_text(text)
    with pytest.raises(RunFolderError, match=sentence):
        load_run("one", folder)


def test_an_unknown_stage_is_refused(tmp_path: Path):
    folder = make_run(tmp_path / "one", reduction="transformer")
    with pytest.raises(RunFolderError, match="reduction is 'transformer'; known are none, deepnet"):
        load_run("one", folder)
