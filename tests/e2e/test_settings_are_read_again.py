"""SIGHUP on a running node: checked first, taken whole or not at all, and running work keeps what it began with."""

from __future__ import annotations

import signal

import pytest

from demo.dicom_client import Peer, echo
from demo.processes import free_ports
from scp_node.ledger import overview
from tests.builders import ChestSeries
from tests.e2e.detectors import DIARY
from tests.e2e.node import ARCHIVE, node_and_archive, settings_text
from tests.e2e.sending import send_until_taken

SERIES = ChestSeries("reload", slices=52)


@pytest.fixture
def node(tmp_path):
    with node_and_archive(tmp_path / "node") as (node, _):
        node.start()
        node.wait(lambda: "Worker ready" in node.log.read_text(), "the worker is ready")
        yield node


def hang_up(node, text: str, sign: str) -> None:
    """Write the settings file anew, send SIGHUP, and wait for one more of a sign in the log."""
    before = node.log.read_text().count(sign)
    node.settings.write_text(text)
    node.process.send_signal(signal.SIGHUP)
    node.wait(lambda: node.log.read_text().count(sign) > before, sign)


def pids(node) -> dict[str, int]:
    return {word: node.children(word)[0].pid for word in ("listen", "work") if node.children(word)}


def kinds(node) -> list[str]:
    engine = overview.open_ledger(f"sqlite:///{node.folder / 'data' / 'node.sqlite'}")
    try:
        return [event.kind for event in overview.events(engine)]
    finally:
        engine.dispose()


def test_a_new_sender_is_let_in_without_a_break_and_a_bad_file_changes_nothing(node):
    before = pids(node)
    stranger = Peer("NODULE_NODE", node.port, calling="SECOND_CT")
    assert not echo(stranger)
    good = node.settings.read_text() + '\n[[senders]]\nae_title = "SECOND_CT"\n'
    hang_up(node, good, "Settings read again")
    node.wait(lambda: echo(stranger), "the new sender is let in")
    assert pids(node)["listen"] == before["listen"], "the listener took it up as it ran"

    bad = good.replace("quiet_s = 2", "quiet_s = 0.5").replace("max_starts", "max_stars")
    hang_up(node, bad, "The settings are refused")
    log = node.log.read_text()
    assert "study.quiet_s = 0.5" in log
    assert "worker.max_stars" in log
    assert echo(stranger)
    assert kinds(node)[-2:] == ["settings_changed", "settings_refused"]

    starts = node.log.read_text().count("listening ")
    node.children("listen")[0].kill()
    node.wait(lambda: node.log.read_text().count("listening ") > starts, "the listener is started again")
    assert echo(stranger), "a process that is started again beside the bad file has the good settings"
    assert node.stop() == 0


def test_a_study_at_work_is_finished_by_the_worker_that_began_it(tmp_path):
    SERIES.write(tmp_path / "series")
    detector = "tests.e2e.detectors:held_detector"
    with node_and_archive(tmp_path / "node", detector=detector) as (node, archive):
        diary = tmp_path / "diary"
        node.environment = {DIARY: str(diary)}
        node.start()
        send_until_taken(tmp_path / "series", node.peer)
        node.wait(diary.exists, "the detector works on the study")
        before = pids(node)
        other = settings_text(node.port, ARCHIVE, node.archive_port, detector="tests.fakes:scripted_detector")
        hang_up(node, other, "Worker stops")
        assert pids(node)["work"] == before["work"], "it stays until its study is finished"
        assert archive.reports() == []
        diary.with_name("diary.go").touch()
        node.wait(lambda: node.state(SERIES.study_uid) == "REPORTED", "the study is finished")
        node.wait(archive.reports, "the report of the study that was at work")
        node.wait(lambda: node.log.read_text().count("Worker ready") == 2, "the worker with the new settings")
        assert pids(node)["work"] != before["work"]
        assert pids(node)["listen"] == before["listen"]
        log = node.log.read_text()
        assert log.index("Study finished") < log.rindex("Worker ready")
        assert "settings=2" in log
        assert node.stop() == 0


def test_what_cannot_change_while_the_node_runs_is_refused(node):
    (port,) = free_ports(1)
    elsewhere = node.settings.read_text().replace('folder = "data"', 'folder = "elsewhere"')
    hang_up(node, elsewhere, "The settings are refused")
    assert "storage.folder cannot change while the node runs" in node.log.read_text()
    hang_up(
        node,
        elsewhere.replace('"elsewhere"', '"data"').replace(f"port = {node.port}", f"port = {port}"),
        "listening",
    )
    node.wait(lambda: echo(Peer("NODULE_NODE", port, calling="E2E_CT")), "the listener is on its new port")
    assert node.stop() == 0
