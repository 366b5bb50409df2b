"""The detector's process from its client's side: kept between series, replaced, and killed when it must be."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipeline.domain.limits import SelectionLimits
from pipeline.domain.outcome import Outcome
from scp_node.children import ChildFailure, RunCancelledError
from scp_node.detector_process import DetectorClient
from scp_node.settings import load_settings
from tests.detectors import FOLDER_VARIABLE
from tests.worker_node import small_series, wait_for


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.chdir(Path(__file__).parents[2])
    return tmp_path


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return small_series("detector child").write(tmp_path_factory.mktemp("series"))


@contextmanager
def client(*, timeout_s=240.0, restart_after=0, implementation="tests.detectors:staged_detector"):
    detector = load_settings().detector.model_copy(update={"implementation": implementation})
    made = DetectorClient(detector, SelectionLimits(), timeout_s=timeout_s, restart_after=restart_after)
    try:
        yield made
    finally:
        made.close()


def starts(folder):
    noted = folder / "starts"
    return [int(line.split()[1]) for line in noted.read_text().splitlines()] if noted.exists() else []


def test_the_child_serves_several_series_and_is_replaced_after_so_many(folder, paths):
    with client(restart_after=2) as detector:
        outcomes = [detector.analyse(paths, lambda: False).outcome for _ in range(3)]
    assert outcomes == [Outcome.FINDINGS] * 3
    first, second, third = starts(folder)
    assert first == second != third
    assert not psutil.pid_exists(third)


def test_a_cancelled_run_kills_the_child_within_seconds(folder, paths):
    (folder / "hold").touch()
    with client() as detector:
        with pytest.raises(RunCancelledError, match="cancelled while the detector worked on it"):
            detector.analyse(paths, lambda: bool(starts(folder)))
        (pid,) = starts(folder)
        wait_for(lambda: not psutil.pid_exists(pid), within_s=10)


def test_a_detector_that_hangs_is_killed_by_the_watchdog(folder, paths):
    (folder / "hold").touch()
    with client(timeout_s=3.0) as detector:
        began = time.monotonic()
        answer = detector.analyse(paths, lambda: False)
    assert isinstance(answer, ChildFailure)
    assert answer.text == "the detector gave no answer in 3 s"
    assert 3 <= time.monotonic() - began < 30


def test_a_detector_that_cannot_be_made_is_named_without_its_message(folder, paths):
    with client(implementation="tests.detectors:no_such_detector") as detector:
        answer = detector.analyse(paths, lambda: False)
    assert isinstance(answer, ChildFailure)
    assert answer.during == "loading the networks"
    assert answer.text.startswith("AttributeError at detector_process.py:")
