"""Who may open an association, what the others are told, and what the administrator reads about it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from pynetdicom import AE, build_context

from scp_node.ledger.engine import make_engine, upgrade
from scp_node.ledger.states import EventKind
from scp_node.network.library import send_encoded
from scp_node.network.listener import run_listener
from tests.builders import ChestSeries
from tests.listening import listening, settings_for
from tests.raw_sender import association, raw, send_raw

CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"


def ask(port, *, calling="SENDER", called="NODULE_NODE", sop_class=CT):
    """Ask for an association; gives ``None`` when accepted, else (result, source, reason)."""
    ae = AE(ae_title=calling)
    ae.acse_timeout = 5
    opened = ae.associate("127.0.0.1", port, [build_context(sop_class)], ae_title=called)
    if opened.is_established:
        opened.release()
        return None
    answer = opened.acceptor.primitive
    return (answer.result, answer.result_source, answer.diagnostic) if opened.is_rejected else "aborted"


@pytest.fixture
def node(tmp_path):
    with listening(tmp_path) as running:
        yield running


def test_a_known_sender_is_accepted(node):
    assert ask(node.port) is None
    assert node.events() == []


def test_a_wrong_called_title_is_rejected_with_a_hint(node):
    assert ask(node.port, called="nodule_node") == (1, 1, 7)
    (event,) = node.events(1)
    assert (event.kind, event.code) == (EventKind.REJECTED_ASSOCIATION, "1/1/7")
    assert event.text == (
        "SENDER at 127.0.0.1 called nodule_node and was rejected (1/1/7). The called AE title is not ours. "
        "Did you mean NODULE_NODE? Call NODULE_NODE at the sender, or change node.ae_title."
    )


def test_an_unknown_calling_title_is_rejected_with_what_to_change(node):
    assert ask(node.port, calling="STRANGER") == (1, 1, 3)
    assert node.events(1)[0].text == (
        "STRANGER at 127.0.0.1 called NODULE_NODE and was rejected (1/1/3). The calling AE title is not known. "
        "Add a [[senders]] block with ae_title = STRANGER, or correct the sender."
    )


def test_a_title_that_differs_by_case_only_is_rejected_with_a_hint(node):
    assert ask(node.port, calling="sender") == (1, 1, 3)
    assert "Did you mean SENDER?" in node.events(1)[0].text


def test_spaces_around_a_title_do_not_matter(node):
    assert ask(node.port, calling=" SENDER ", called=" NODULE_NODE ") is None


def test_the_same_rejection_is_noted_once_a_minute(node):
    for calling in ("STRANGER", "STRANGER", "STRANGER", "OTHER"):
        ask(node.port, calling=calling)
    assert [event.text.split()[0] for event in node.events(2)] == ["STRANGER", "OTHER"]


@pytest.mark.parametrize(("host", "code"), [("192.0.2.1", (1, 1, 3)), ("127.0.0.1", None), ("localhost", None)])
def test_a_sender_must_call_from_its_host(tmp_path, host, code):
    with listening(tmp_path, senders=f'[[senders]]\nae_title = "SENDER"\nhost = "{host}"') as node:
        assert ask(node.port) == code
        if code:
            assert (
                "SENDER may not call from 127.0.0.1. Correct host of [[senders]] SENDER" in node.events(1)[0].text
            )


def test_with_no_senders_nobody_may_store_and_that_is_said(tmp_path, capsys):
    with listening(tmp_path, senders="") as node:
        assert ask(node.port) == (1, 1, 3)
    assert "nobody may store here: add a [[senders]] block" in capsys.readouterr().out


def test_a_destination_may_ask_whether_we_are_there(node):
    assert ask(node.port, calling="PACS", sop_class=VERIFICATION) is None


def test_too_many_associations_are_told_to_come_later(tmp_path):
    one = raw(ChestSeries(slices=1, rows=32, columns=32).datasets()[0])
    with listening(tmp_path, node="max_associations = 2") as node:
        with association(node.port, [one]) as first, association(node.port, [one]) as second:
            assert first.is_established
            assert second.is_established
            assert ask(node.port) == (2, 3, 2)
        deadline = time.monotonic() + 5
        while ask(node.port) is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ask(node.port) is None


def test_below_the_disk_floor_images_come_later_but_echo_is_answered(node, monkeypatch):
    monkeypatch.setattr(node.spool, "_min_free", 1 << 62)
    assert ask(node.port) == (2, 3, 1)
    assert ask(node.port, sop_class=VERIFICATION) is None
    assert "The disk is below its limit of free space." in node.events(1)[0].text


def test_while_stopping_new_associations_come_later_and_open_ones_finish(node):
    one = raw(ChestSeries(slices=1, rows=32, columns=32).datasets()[0])
    with association(node.port, [one]) as opened:
        port = node.port
        stopper = threading.Thread(target=node.listener.stop, args=(10.0,))
        stopper.start()
        time.sleep(0.2)
        assert ask(port) == (2, 3, 1)
        context = opened.accepted_contexts[0]
        assert send_encoded(opened, context, one.sop_class_uid, one.sop_instance_uid, one.dataset) == 0x0000
    stopper.join(10)
    assert not stopper.is_alive()
    assert len(node.instances()) == 1


def test_a_bug_while_deciding_rejects(node, monkeypatch):
    def bug(*_):
        raise KeyError("surprise")

    monkeypatch.setattr(node.listener, "_check_titles", bug)
    assert ask(node.port) == (2, 1, 1)


def start(tmp_path, port):
    path = tmp_path / "node.toml"
    settings_for(tmp_path, node=f"port = {port}")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from scp_node.settings import load_settings\n"
        "from scp_node.network.listener import run_listener\n"
        "code = run_listener(load_settings(Path(sys.argv[1])))\n"
        "heavy = {'torch', 'SimpleITK', 'highdicom', 'dbos'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), flush=True)\n"
        "sys.exit(code)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until_it_answers(port):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if ask(port, sop_class=VERIFICATION) is None:
            return
        time.sleep(0.1)
    raise AssertionError("the listener did not answer within 30 s")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_process_stops_cleanly_on_sigterm_and_never_loads_the_heavy_libraries(tmp_path):
    port = free_port()
    process = start(tmp_path, port)
    try:
        until_it_answers(port)
        one = raw(ChestSeries(slices=1, rows=32, columns=32).datasets()[0])
        assert send_raw(port, [one]) == [0x0000]
        second = start(tmp_path, port)
        output, _ = second.communicate(timeout=60)
        assert second.returncode == 78
        assert "cannot listen" in output
        os.kill(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "HEAVY []" in output
        assert "stopped" in output
    finally:
        process.kill()
        process.communicate()


def test_an_older_database_stops_the_process_with_what_to_do(tmp_path, monkeypatch, capsys):
    settings = settings_for(tmp_path)
    settings.storage.folder.mkdir()
    upgrade(settings.database_url)
    engine = make_engine(settings.database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE nn_alembic_version SET version_num = '0000'"))
    engine.dispose()
    no_signals = SimpleNamespace(signal=lambda *_: None, SIGTERM=1, SIGINT=2, SIGHUP=3)
    monkeypatch.setattr("scp_node.reload.signal", no_signals)
    assert run_listener(settings) == 78
    assert "run: nodule-node db upgrade" in capsys.readouterr().out
