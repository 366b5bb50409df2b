"""``detect``: one scan from disk, exit code by outcome, JSON whenever PATH could be opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate
from typer.testing import CliRunner

import pipeline
from scp_node.cli.main import application
from tests.builders import ChestSeries

SCHEMA = json.loads((Path(str(pipeline.__file__)).parent / "schemas" / "detect-1.json").read_text())


@pytest.fixture(scope="session")
def chest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chest")
    ChestSeries(slices=60, slice_step=2.5).write(folder)
    return folder


def run(folder: Path, *words: str, implementation: str = "tests.fakes:scripted_detector") -> tuple[Any, Any]:
    """The command's result, and what it wrote."""
    config, out = folder / "node.toml", folder / "out.json"
    config.write_text(f'[detector]\nimplementation = "{implementation}"\n')
    result = CliRunner().invoke(
        application(["detect"]), ["detect", *words, "--json", str(out), "--config", str(config)]
    )
    document = json.loads(out.read_text()) if out.exists() else None
    if document is not None:
        validate(document, SCHEMA)
    return result, document


def test_findings_are_written_and_shown(tmp_path: Path, chest: Path) -> None:
    result, document = run(tmp_path, str(chest))
    assert result.exit_code == 0, result.output
    assert document["outcome"] == "findings"
    assert document["series_instance_uid"] == ChestSeries().series_uid
    assert document["findings"] == [
        {"position_lps_mm": [-40.0, 10.0, 20.0], "diameter_mm": 8.0, "probability": 0.92},
        {"position_lps_mm": [35.0, -15.0, -30.0], "diameter_mm": 5.5, "probability": 0.61},
    ]
    assert result.stdout.splitlines()[:4] == [
        "2 findings at operating point balanced (probability 0.500 or more)",
        "   no  probability  diameter mm   centre x, y, z in LPS mm",
        "    1        0.920          8.0      -40.0     10.0     20.0",
        "    2        0.610          5.5       35.0    -15.0    -30.0",
    ]
    assert result.stderr == ""


@pytest.mark.parametrize(("threshold", "outcome", "count"), [("0.9", "findings", 1), ("0.95", "no_findings", 0)])
def test_the_threshold_cuts(tmp_path: Path, chest: Path, threshold: str, outcome: str, count: int) -> None:
    result, document = run(tmp_path, str(chest), "--threshold", threshold)
    assert result.exit_code == 0
    assert (document["outcome"], len(document["findings"])) == (outcome, count)
    assert document["operating_point"]["name"] == "custom"


def test_what_is_not_analysed_exits_3_with_its_reason(tmp_path: Path) -> None:
    ChestSeries(slices=40, slice_step=5.0, thickness=5.0).write(tmp_path / "thick")
    result, document = run(tmp_path, str(tmp_path / "thick"))
    assert result.exit_code == 3
    assert document["outcome"] == "not_analysed"
    assert document["reason"]["code"] == "SLICES_TOO_THICK"
    assert result.stdout.startswith("Not analysed, SLICES_TOO_THICK: ")


def test_a_folder_without_images_exits_3_and_is_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result, document = run(tmp_path, str(tmp_path / "empty"))
    assert result.exit_code == 3
    assert document["outcome"] == "not_analysed"


def test_a_path_that_is_not_there_exits_2_and_nothing_is_written(tmp_path: Path) -> None:
    result, document = run(tmp_path, str(tmp_path / "gone"))
    assert result.exit_code == 2
    assert document is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threshold", "1.5"], "Invalid value for '--threshold'"),
        (["--device", "gpu"], "'gpu' is not auto, cpu, cuda or cuda:1."),
        (["--weights", "/nowhere.safetensors"], "does not exist"),
    ],
)
def test_options_out_of_range_exit_2(tmp_path: Path, chest: Path, words: list[str], said: str) -> None:
    result, document = run(tmp_path, str(chest), *words)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert document is None


def test_a_target_whose_folder_is_missing_is_said_before_any_work(tmp_path: Path, chest: Path) -> None:
    words = ["detect", str(chest), "--json", str(tmp_path / "no" / "out.json")]
    result = CliRunner().invoke(application(["detect"]), words)
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


def test_a_target_that_is_a_folder_is_said_before_any_work(tmp_path: Path, chest: Path) -> None:
    result = CliRunner().invoke(application(["detect"]), ["detect", str(chest), "--json", str(tmp_path)])
    assert result.exit_code == 2
    assert "is a folder; name a file" in " ".join(result.stderr.replace("│", " ").split())


def test_a_detector_that_cannot_start_exits_1_and_is_written(tmp_path: Path, chest: Path) -> None:
    result, document = run(tmp_path, str(chest), implementation="tests.fakes:nobody")
    assert result.exit_code == 1
    assert document["reason"]["code"] == "DETECTOR_FAILED"
    assert document["reason"]["text"].startswith("The detector cannot be started: ")


def test_a_detector_that_breaks_exits_1_and_keeps_its_message_to_the_log(tmp_path: Path, chest: Path) -> None:
    result, document = run(tmp_path, str(chest), implementation=f"{__name__}:broken_detector")
    assert result.exit_code == 1
    assert document["reason"]["code"] == "DETECTOR_FAILED"
    assert "DOE^JANE" not in json.dumps(document) + result.stdout
    assert "RuntimeError" in document["reason"]["text"]


class BrokenDetector:
    operating_points = ("one",)
    model = None

    def detect(self, *_: object) -> None:
        raise RuntimeError("DOE^JANE")


def broken_detector() -> BrokenDetector:
    from pipeline.domain.finding import OperatingPoint

    detector = BrokenDetector()
    detector.operating_points = (OperatingPoint("one", 0.5),)  # type: ignore[assignment]
    return detector
