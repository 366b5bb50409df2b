"""Two workers on one PostgreSQL database: they share the work, take over from each other, and double nothing."""

from __future__ import annotations

import signal
import time
from contextlib import closing

import psutil
import pytest

from scp_node.clock import SystemClock
from scp_node.ledger import tables
from scp_node.ledger.states import StudyState
from tests.small_archive import small_archive
from tests.worker_node import BEAT_S, POLL_S, WorkerNode, destination, small_series, wait_for

LEASE_S, LONG_LEASE_S = 4.0, 10.0
SLOTS = ("worker-a", "worker-b")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def archive():
    with small_archive() as archive:
        yield archive


@pytest.fixture
def node(postgres, archive, tmp_path, request):
    """Two workers that are ready; ``node.workers`` by slot."""
    settings = {
        "destinations": destination(archive.port),
        "database_url": postgres.new_database(),
        "lease_s": getattr(request, "param", LEASE_S),
    }
    with closing(WorkerNode(tmp_path, **settings)) as node:
        assert node.engine
        node.workers = {slot: node.start(slot) for slot in SLOTS}
        wait_for(lambda: node.log().count("Worker ready") == len(SLOTS))
        yield node


def arrive(node, series):
    """The study is complete the moment the running workers can see all of it."""
    node.receive(series.datasets(), ago_s=-1e6)
    ago = SystemClock().now() - 10.0
    times = dict.fromkeys(("first_received_at", "last_received_at", "state_changed_at", "waiting_since"), ago)
    with node.engine.begin() as connection:
        of_study = tables.study.c.study_uid == series.study_uid
        connection.execute(tables.study.update().where(of_study).values(times))


def hold(node):
    (node.folder / "hold").touch()


def let_go(node):
    (node.folder / "hold").unlink()


def owner_of(node, start):
    """The slot whose detector made this start."""
    _, detector = node.detector_starts()[start]
    parent = psutil.Process(detector).ppid()
    return next(slot for slot, process in node.workers.items() if process.pid == parent)


def outcomes_of(node, series):
    keys = [row.key for row in node.rows(tables.step_outcome)]
    return [key.rsplit(":", 1)[1] for key in keys if key.startswith(series.study_uid)]


def reports_of(archive, series):
    return [sr for sr in archive.received if sr.StudyInstanceUID == series.study_uid]


def reported(node, archive, *series):
    def all_reported():
        states = {node.state(one.study_uid) for one in series}
        return states == {StudyState.REPORTED} and all(reports_of(archive, one) for one in series)

    wait_for(all_reported)
    time.sleep(2.0)  # a second report would come now
    assert [len(reports_of(archive, one)) for one in series] == [1] * len(series)


def test_both_work_and_what_one_leaves_behind_when_it_is_killed_the_other_ends(node, archive, capsys):
    first, second, third = (small_series(name) for name in ("share 1", "share 2", "killed"))
    hold(node)
    arrive(node, first)
    arrive(node, second)
    wait_for(lambda: len(node.detector_starts()) == 2)
    assert {owner_of(node, 0), owner_of(node, 1)} == set(SLOTS)
    let_go(node)
    reported(node, archive, first, second)

    hold(node)
    arrive(node, third)
    wait_for(lambda: len(node.detector_starts()) == 3)
    owner = node.workers[owner_of(node, 2)]
    owner.send_signal(signal.SIGKILL)
    killed_at = time.monotonic()
    wait_for(lambda: len(node.detector_starts()) == 4, pause_s=0.05)
    took_s = time.monotonic() - killed_at
    expected_s = LEASE_S + BEAT_S + POLL_S
    with capsys.disabled():
        print(
            f"\n  killed in mid inference -> inference runs on the other: {took_s:.1f} s (sum {expected_s:.1f} s)"
        )
    let_go(node)
    reported(node, archive, third)
    assert node.detector_starts()[3][0] == third.study_uid
    outcomes = outcomes_of(node, third)
    assert len(set(outcomes)) == len(outcomes)
    assert {"decide", "analyse", "report"} <= set(outcomes)


@pytest.mark.parametrize("node", [LONG_LEASE_S], indirect=True)
def test_a_worker_that_was_stopped_past_its_lease_leaves_and_doubles_nothing(node, archive):
    series = small_series("zombie")
    hold(node)
    arrive(node, series)
    wait_for(node.detector_starts)
    zombie = node.workers[owner_of(node, 0)]
    zombie.send_signal(signal.SIGSTOP)
    wait_for(lambda: len(node.detector_starts()) == 2)
    let_go(node)
    wait_for(lambda: node.state(series.study_uid) == StudyState.REPORTED)
    zombie.send_signal(signal.SIGCONT)
    assert zombie.wait(120) == 75
    reported(node, archive, series)
    assert outcomes_of(node, series).count("analyse") == 1
    assert "The lease on our slot was taken away; leaving." in node.log()


@pytest.mark.parametrize("node", [LONG_LEASE_S], indirect=True)
def test_a_database_that_is_gone_for_longer_than_a_lease_costs_no_study_and_no_worker(node, archive, postgres):
    running, waiting = small_series("outage"), small_series("after the outage")
    hold(node)
    arrive(node, running)
    wait_for(node.detector_starts)
    postgres.stop()
    try:
        time.sleep(LONG_LEASE_S / 2)
        let_go(node)  # the analysis ends while nobody can write it down
        time.sleep(LONG_LEASE_S)
    finally:
        postgres.start()
    arrive(node, waiting)
    reported(node, archive, running, waiting)
    assert [process.poll() for process in node.workers.values()] == [None, None]
    assert sorted(uid for uid, _ in node.detector_starts()) == sorted([running.study_uid, waiting.study_uid])
