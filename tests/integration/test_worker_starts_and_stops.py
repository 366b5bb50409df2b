"""One live worker for each slot, a clean stop, and a refusal to work on tables of another version."""

from __future__ import annotations

import signal
import time
from contextlib import closing

import sqlalchemy as sa

from scp_node.ledger import tables
from scp_node.ledger.states import StudyState
from tests.worker_node import WorkerNode, small_series, wait_for


def test_a_second_worker_of_a_live_slot_refuses_to_start(tmp_path):
    with closing(WorkerNode(tmp_path)) as node:
        assert node.engine
        node.start()
        wait_for(lambda: "Worker ready" in node.log())
        assert node.start().wait(120) == 78
        assert "The slot is held by a live worker; give this one another worker.slot." in node.log()


def test_sigterm_lets_the_running_study_finish_and_takes_no_new_one(tmp_path):
    running, waiting = small_series("running"), small_series("waiting")
    with closing(WorkerNode(tmp_path, worker="drain_s = 100.0")) as node:
        node.receive(running.datasets())
        (tmp_path / "hold").touch()
        worker = node.start()
        wait_for(node.detector_starts)
        worker.send_signal(signal.SIGTERM)
        wait_for(lambda: "Worker stops" in node.log())
        node.receive(waiting.datasets())
        (tmp_path / "hold").unlink()
        assert worker.wait(140) == 0
        assert node.state(running.study_uid) == StudyState.REPORTED
        assert node.state(waiting.study_uid) == StudyState.RECEIVING
        assert node.rows(tables.lease) == []


def test_a_study_that_outlasts_the_drain_goes_on_at_the_next_start(tmp_path):
    series = small_series("outlasts the drain")
    with closing(WorkerNode(tmp_path, worker="drain_s = 1.0")) as node:
        node.receive(series.datasets())
        (tmp_path / "hold").touch()
        worker = node.start()
        wait_for(node.detector_starts)
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(120) == 0
        assert time.monotonic() - began < 6
        (tmp_path / "hold").unlink()
        node.start()
        wait_for(lambda: node.state(series.study_uid) == StudyState.REPORTED)
        assert len(node.detector_starts()) == 2


def test_a_run_that_is_out_of_time_is_stopped_and_its_study_fails(tmp_path):
    series = small_series("out of time")
    with closing(WorkerNode(tmp_path, worker="run_timeout_s = 4.0")) as node:
        node.receive(series.datasets())
        (tmp_path / "hold").touch()
        node.start()
        wait_for(lambda: node.state(series.study_uid) == StudyState.FAILED)
        # a very busy machine is out of time before the detector was reached
        expected = "DETECTOR_FAILED" if node.detector_starts() else "INTERNAL_BUG"
        assert node.codes(series.study_uid) == [expected]
        story = [row.text for row in node.rows(tables.event)]
        assert story[-1] == "The run was cancelled or out of time."
        assert "[error" not in node.log()


def test_a_worker_refuses_an_older_schema(tmp_path):
    with closing(WorkerNode(tmp_path)) as node:
        with node.engine.begin() as connection:
            connection.execute(sa.text("UPDATE nn_alembic_version SET version_num = '0000'"))
        assert node.start().wait(120) == 78
        assert "run 'nodule-node db upgrade'" in node.log()
