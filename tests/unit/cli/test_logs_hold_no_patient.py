"""Logs go one way, whoever writes them, and no patient data gets through."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
import structlog
from pydicom.dataset import Dataset
from pydicom.valuerep import PersonName

from scp_node.cli.logging import configure_logging, log_warnings
from scp_node.settings import load_settings


def configured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log_format: str, level: str = "info"
) -> io.StringIO:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NODULE_NODE__LOG__FORMAT", log_format)
    monkeypatch.setenv("NODULE_NODE__LOG__LEVEL", level)
    stream = io.StringIO()
    configure_logging(load_settings(), "worker", stream)
    return stream


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_fields_of_the_patient_are_dropped_at_any_depth(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log_format: str
) -> None:
    stream = configured(monkeypatch, tmp_path, log_format)
    dataset = Dataset()
    dataset.PatientName = "DOE^JANE"
    structlog.get_logger().info(
        "Stored",
        patient_name="DOE^JANE",
        PatientID="DOE1",
        birth_date="DOE2",
        header={"Patient's Name": "DOE3", "nested": {"patientBirthDate": "DOE4", "series": "1.2"}},
        dataset=dataset,
        name_value=PersonName("DOE^JANE"),
        study="1.2.3",
    )
    assert "DOE" not in stream.getvalue()
    assert "1.2.3" in stream.getvalue()
    assert "(Dataset not logged)" in stream.getvalue()


def test_json_is_one_object_a_line_with_time_level_and_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stream = configured(monkeypatch, tmp_path, "json")
    structlog.get_logger().info("Study ready", study="1.2")
    structlog.get_logger().warning("Late", path=Path("/x"))
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert {key: first[key] for key in ("event", "study", "level", "process")} == {
        "event": "Study ready",
        "study": "1.2",
        "level": "info",
        "process": "worker",
    }
    assert first["timestamp"].endswith("Z")
    assert second["path"] == "/x"


def test_text_is_readable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stream = configured(monkeypatch, tmp_path, "text")
    structlog.get_logger().info("Study ready", study="1.2")
    assert stream.getvalue().endswith("Z [info     ] Study ready study=1.2 process=worker\n")


def test_libraries_take_the_same_way_and_the_talkative_ones_are_quiet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stream = configured(monkeypatch, tmp_path, "json", "debug")
    logging.getLogger("somebody").warning("disk %s is slow", "sda")
    logging.getLogger("pynetdicom.acse").warning("a PDU")
    logging.getLogger("pydicom").error("Invalid value DOE^JANE")
    logging.getLogger("dbos").info("polling")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["event"] == "disk sda is slow"
    assert json.loads(line)["process"] == "worker"


def test_the_level_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stream = configured(monkeypatch, tmp_path, "text", "warning")
    structlog.get_logger().info("not this")
    structlog.get_logger().warning("this")
    assert "not this" not in stream.getvalue()
    assert "this" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_peer_can_write_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log_format: str
) -> None:
    stream = configured(monkeypatch, tmp_path, log_format)
    structlog.get_logger().info("Rejected", calling="X\n2026 [info] All is well\x1b[2J", comment="y" * 5000)
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()
    assert "y" * 1025 not in stream.getvalue()


def test_a_traceback_is_logged_without_local_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stream = configured(monkeypatch, tmp_path, "json")
    hidden = "DOE^JANE"
    try:
        _ = {}[len(hidden)]
    except KeyError:
        structlog.get_logger().exception("Step failed")
    assert "KeyError: 8" in json.loads(stream.getvalue())["exception"]
    assert hidden not in stream.getvalue().replace('hidden = "DOE^JANE"', "")


def test_the_message_of_a_library_that_reads_dicom_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stream = configured(monkeypatch, tmp_path, "json")
    dataset = Dataset()
    try:
        try:
            dataset.add_new("DOE^JANE", "PN", "x")
        except ValueError as fault:
            raise RuntimeError("The header cannot be read") from fault
    except RuntimeError:
        structlog.get_logger().exception("Step failed")
    text = json.loads(stream.getvalue())["exception"]
    assert "RuntimeError: The header cannot be read" in text
    assert "ValueError: (message not logged)" in text
    assert "DOE^JANE" not in text.replace('dataset.add_new("DOE^JANE", "PN", "x")', "")


def test_warnings_of_the_settings_are_logged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stream = configured(monkeypatch, tmp_path, "json")
    log_warnings(load_settings())
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert "No [[senders]] are listed: nobody may store images." in events
