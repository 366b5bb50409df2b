from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from training.cli.main import app

MARKS = "seriesuid,coordX,coordY,coordZ,probability\n"
TRUTH = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
RATES = ["0.125", "0.25", "0.5", "1", "2", "4", "8"]


def judge(folder: Path, submission: str, annotations: str, excluded: str, series: str, out: str = "judged"):
    texts = {"submission": submission, "annotations": annotations, "excluded": excluded, "seriesuids": series}
    arguments = []
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text)
        arguments += [f"--{name}", str(folder / f"{name}.csv")]
    return CliRunner().invoke(app, ["froc", *arguments, "--out", str(folder / out)])


def test_a_submission_is_judged_from_its_tables_alone(tmp_path: Path):
    # The case J19 of the judge: three of four nodules, two false marks that count, one ignored.
    result = judge(
        tmp_path,
        MARKS + "a,0,0,0,.9\na,50,0,0,.6\na,90,0,0,.8\nb,0,0,0,.7\nb,20,0,0,.95\nb,60,0,0,.5\nc,9,9,9,.65\n",
        TRUTH + "a,0,0,0,10\na,50,0,0,10\nb,0,0,0,6\nd,0,0,0,8\n",
        TRUTH + "b,20,0,0,-1\n",
        "a\nb\nc\nd\n",
    )
    assert result.exit_code == 0
    found = json.loads((tmp_path / "judged" / "froc.json").read_text())
    assert list(found["sensitivity"]) == RATES
    assert list(found["sensitivity"].values()) == pytest.approx([0.25, 0.5, 0.75, 0.75, 0.75, 0.75, 0.75])
    assert found["cpm"] == pytest.approx(0.642857, abs=1e-6)
    assert found["counts"] == {"hits": 3, "misses": 1, "false_positives": 3, "ignored": 1, "double": 0}
    drawn = found["bootstrap"]
    assert (drawn["resamples"], list(drawn["sensitivity"])) == (1000, RATES)
    assert 0 <= drawn["cpm"]["low"] < drawn["cpm"]["mean"] < drawn["cpm"]["high"] <= 1
    assert "CPM 0.6429" in result.stdout
    assert "4 nodules in 4 scans: 3 hit, 1 missed; 3 false positives, 1 ignored, 0 double" in result.stdout


def test_the_plot_is_there_as_png_and_svg(tmp_path: Path):
    judge(tmp_path, MARKS + "s,0,0,0,.9\n", TRUTH + "s,0,0,0,10\n", TRUTH, "s\n")
    with Image.open(tmp_path / "judged" / "froc.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) >= 500
    assert "<svg" in (tmp_path / "judged" / "froc.svg").read_text()


def test_the_same_tables_give_the_same_files(tmp_path: Path):
    tables = (MARKS + "s,0,0,0,.9\nt,9,9,9,.3\n", TRUTH + "s,0,0,0,10\n", TRUTH, "s\nt\n")
    for name in ("one", "two"):
        judge(tmp_path, *tables, out=name)
    for file in ("froc.json", "froc.svg"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_name_that_ends_in_json_is_the_file_itself(tmp_path: Path):
    judge(tmp_path, MARKS + "s,0,0,0,.9\n", TRUTH + "s,0,0,0,10\n", TRUTH, "s\n", out="fold-3.json")
    assert {p.name for p in tmp_path.glob("fold-3.*")} == {"fold-3.json", "fold-3.png", "fold-3.svg"}


def test_what_a_reader_should_know_is_said_on_the_screen_and_in_the_file(tmp_path: Path):
    result = judge(tmp_path, MARKS + "s,0,0,0,.9\nzz,0,0,0,.99\n", TRUTH + "s,0,0,0,10\n", TRUTH, "s\n")
    sentence = "1 marks on 1 series that are not listed were dropped, as LUNA16 does; the first series is zz."
    assert result.exit_code == 0
    assert f"warning: {sentence}" in result.stderr
    remarks = json.loads((tmp_path / "judged" / "froc.json").read_text())["remarks"]
    assert [remark.startswith(sentence) for remark in remarks] == [True]


def test_series_that_are_all_unknown_end_the_command(tmp_path: Path):
    result = judge(tmp_path, MARKS + "056,0,0,0,.9\n", TRUTH + "56,0,0,0,10\n", TRUTH, "56\n")
    assert result.exit_code == 2
    assert "none of its 1 series is listed" in result.stderr
    assert "found for example 056, listed is for example 56" in result.stderr
    assert not (tmp_path / "judged").exists()


def test_a_broken_table_ends_the_command_with_file_and_line(tmp_path: Path):
    result = judge(tmp_path, MARKS + "s,0,0,0,nan\n", TRUTH + "s,0,0,0,10\n", TRUTH, "s\n")
    assert result.exit_code == 2
    assert f"{tmp_path / 'submission.csv'}, line 2: probability is 'nan'" in result.stderr


def test_without_the_two_optional_tables_all_series_named_are_judged(tmp_path: Path):
    (tmp_path / "m.csv").write_text(MARKS + "s,0,0,0,.9\nt,5,5,5,.2\n")
    (tmp_path / "a.csv").write_text(TRUTH + "s,0,0,0,10\nu,0,0,0,10\n")
    tables = ["--submission", str(tmp_path / "m.csv"), "--annotations", str(tmp_path / "a.csv")]
    result = CliRunner().invoke(app, ["froc", *tables, "--out", str(tmp_path)])
    assert result.exit_code == 0
    assert json.loads((tmp_path / "froc.json").read_text())["scans"] == 3
    assert "No findings to ignore were given" in result.stderr
    assert "scans with neither nodule nor mark are not counted" in result.stderr


@pytest.mark.parametrize("command", ["froc", "report"])
def test_without_matplotlib_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    tables = ["--submission", "m.csv", "--annotations", "a.csv"] if command == "froc" else [str(tmp_path)]
    result = CliRunner().invoke(app, [command, *tables, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "pip install 'nodule-node[train]'" in result.stderr
