"""What is killed in the middle of its work is done again, and once only; what kills again and again is given up."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing

import psutil

from scp_node.ledger import tables
from scp_node.ledger.states import StudyState
from tests.small_archive import small_archive
from tests.worker_node import WorkerNode, destination, small_series, wait_for


def test_a_worker_killed_in_mid_detection_leaves_no_orphan_and_the_next_one_reports_once(tmp_path):
    series = small_series("killed worker")
    with (
        small_archive() as archive,
        closing(WorkerNode(tmp_path, destinations=destination(archive.port))) as node,
    ):
        node.receive(series.datasets())
        (tmp_path / "hold").touch()
        worker = node.start()
        (_, detector), *_ = wait_for(node.detector_starts)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        wait_for(lambda: not psutil.pid_exists(detector), within_s=5)

        (tmp_path / "hold").unlink()
        node.start()
        wait_for(lambda: archive.received, within_s=240.0)
        wait_for(lambda: node.state(series.study_uid) == StudyState.REPORTED)
        time.sleep(1.0)  # a second report would come now
        starts = [row.key.rsplit(":", 1)[1] for row in node.rows(tables.step_start)]
        outcomes = [row.key.rsplit(":", 1)[1] for row in node.rows(tables.step_outcome)]
        assert len(node.detector_starts()) == 2
    assert starts.count("decide") == 1
    assert starts.count("analyse") == 2
    assert outcomes.count("analyse") == 1
    assert len(archive.received) == 1


def test_a_killed_detector_is_started_again(tmp_path):
    series = small_series("killed detector")
    with closing(WorkerNode(tmp_path)) as node:
        node.receive(series.datasets())
        (tmp_path / "hold").touch()
        node.start()
        (_, detector), *_ = wait_for(node.detector_starts)
        (tmp_path / "hold").unlink()
        os.kill(detector, signal.SIGKILL)
        wait_for(lambda: node.state(series.study_uid) == StudyState.REPORTED)
        pids = [pid for _, pid in node.detector_starts()]
        assert len(set(pids)) == len(pids) == 2
        assert "the detector stopped without an answer (killed by signal 9)" in node.log()


def test_a_study_that_kills_the_detector_each_time_fails_visibly_and_others_are_served(tmp_path):
    deadly, harmless = small_series("deadly"), small_series("harmless")
    (tmp_path / "poison").write_text(deadly.study_uid)
    with closing(WorkerNode(tmp_path)) as node:
        node.receive(deadly.datasets(), ago_s=20)
        node.receive(harmless.datasets())
        node.start()
        wait_for(lambda: node.state(harmless.study_uid) == StudyState.REPORTED)
        assert wait_for(lambda: node.state(deadly.study_uid) == StudyState.FAILED)
        assert node.codes(deadly.study_uid) == ["DETECTOR_FAILED"]
        story = [row.text for row in node.rows(tables.event) if row.study_uid == deadly.study_uid]
        assert story[-1] == (
            f"Series {deadly.series_uid}: the detector stopped without an answer (killed by signal 9) "
            "during detecting, 2 times."
        )


def test_a_study_that_takes_its_worker_along_three_times_is_given_up(tmp_path):
    series = small_series("takes the worker along")
    with closing(WorkerNode(tmp_path)) as node:
        node.receive(series.datasets())
        (tmp_path / "hold").touch()
        for start in (1, 2, 3):
            worker = node.start()
            wait_for(lambda start=start: len(node.detector_starts()) == start)
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        (tmp_path / "hold").unlink()
        node.start()
        wait_for(lambda: node.state(series.study_uid) == StudyState.FAILED)
        assert node.codes(series.study_uid) == ["DETECTOR_FAILED"]
        story = [row.text for row in node.rows(tables.event)]
        assert story[-1] == "The worker died each time it worked on this; it is given up."
        assert len(node.detector_starts()) == 3
