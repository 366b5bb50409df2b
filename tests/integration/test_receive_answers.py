"""Every row of the table of C-STORE statuses, as the sender sees it."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace

import pytest
from pynetdicom import AE, build_context, evt

from scp_node.clock import SystemClock
from scp_node.ledger import tables
from scp_node.ledger.arrivals import Arrivals
from scp_node.ledger.engine import make_engine
from scp_node.ledger.states import EventKind
from scp_node.network.library import send_encoded
from scp_node.receive import Answer, Receiver, index_spool
from scp_node.spool import Spool
from tests.builders import ChestSeries
from tests.listening import listening
from tests.raw_sender import association, raw, send_raw

SMALL = ChestSeries(slices=2, rows=32, columns=32)


def one(**changed):
    """One CT image as a request."""
    return raw(SMALL.datasets()[0], **changed)


@pytest.fixture
def node(tmp_path):
    with listening(tmp_path) as running:
        yield running


def answer(port, sent, **titles):
    """Status and error comment of one C-STORE."""
    comments = []
    quiet_ae = AE(ae_title=titles.get("calling", "SENDER"))
    quiet_ae.dimse_timeout = 10

    def seen(event):
        if hasattr(event.message.command_set, "ErrorComment"):
            comments.append(event.message.command_set.ErrorComment)

    opened = quiet_ae.associate(
        "127.0.0.1",
        port,
        [build_context(sent.sop_class_uid, [sent.transfer_syntax_uid])],
        ae_title="NODULE_NODE",
        evt_handlers=[(evt.EVT_DIMSE_RECV, seen)],
    )
    status = send_encoded(
        opened, opened.accepted_contexts[0], sent.sop_class_uid, sent.sop_instance_uid, sent.dataset
    )
    established = opened.is_established
    opened.release()
    assert established, "the association stays up"
    return status, comments[0] if comments else ""


def test_every_comment_fits_its_element_and_no_forbidden_status_is_there():
    for row in Answer:
        assert len(row.comment.format(id="0" * 8)) <= 64
        assert row.comment.isascii()
        assert row.status != 0x0111
        assert row.status & 0xF000 not in (0xB000, 0xF000)


def test_data_set_without_series_uid_is_quarantined_with_a900(node):
    dataset = SMALL.datasets()[0]
    dataset.SeriesInstanceUID = ""
    assert answer(node.port, raw(dataset)) == (0xA900, "SOP, Study or Series UID is missing or unusable")
    assert node.instances() == []
    (kept,) = (node.folder / "quarantine").iterdir()
    assert kept.read_bytes().endswith(raw(dataset).dataset)
    (event,) = node.events()
    assert event.kind == EventKind.QUARANTINED
    assert event.study_uid == SMALL.study_uid
    assert event.text == (
        f"From SENDER (127.0.0.1): instance {dataset.SOPInstanceUID} refused with 0xA900. SOP, Study or Series UID "
        f"is missing or unusable. The bytes are kept as quarantine/{kept.name}."
    )


def test_the_same_refused_bytes_are_quarantined_once(node):
    bad = one(dataset=b"\x08\x00")
    assert send_raw(node.port, [bad, bad]) == [0xC000, 0xC000]
    assert len(list((node.folder / "quarantine").iterdir())) == 1


@pytest.mark.parametrize("field", ["sop_instance_uid", "sop_class_uid"])
def test_command_and_data_set_that_differ_are_a900(node, field):
    assert answer(node.port, one(**{field: "1.2.840.10008.5.1.4.1.1.4"})) == (
        0xA900,
        "SOP UIDs of command and data set differ",
    )
    assert node.instances() == []


@pytest.mark.parametrize(
    "dataset", [b"\x08\x00", b"no data set at all, just text", b"\xff" * 400, one().dataset[:300]]
)
def test_bytes_that_do_not_parse_are_c000(node, dataset):
    assert answer(node.port, one(dataset=dataset)) == (0xC000, "Data set does not parse")
    assert len(list((node.folder / "quarantine").iterdir())) == 1


def test_damage_behind_the_identifiers_does_not_matter(node):
    assert send_raw(node.port, [one(dataset=one().dataset[:-700])]) == [0x0000]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("uid", ["../../../tmp/x", "1.2.3/../../x", "1.2.840\n.5", "1.2;DROP TABLE"])
def test_a_uid_that_is_a_path_is_a900_and_writes_nothing(node, uid):
    before = sorted(p for p in node.folder.rglob("*") if p.suffix == ".dcm")
    assert answer(node.port, one(sop_instance_uid=uid)) == (
        0xA900,
        "SOP Instance or Class UID of the command is not a UID",
    )
    assert sorted(p for p in node.folder.rglob("*") if p.suffix == ".dcm") == before
    (event,) = node.events()
    assert uid not in event.text
    assert "(not a UID)" in event.text


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_leading_zero_in_a_uid_is_stored_and_noted(node):
    dataset = SMALL.datasets()[0]
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.03.4"
    assert send_raw(node.port, [raw(dataset)]) == [0x0000]
    (event,) = node.events()
    assert (event.kind, event.code) == (EventKind.UID_NONCONFORMANT, "UID_NONCONFORMANT")


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_series_uid_of_letters_is_stored_and_noted(node):
    dataset = SMALL.datasets()[0]
    dataset.SeriesInstanceUID = "REM SAMPLES 1"
    assert send_raw(node.port, [raw(dataset)]) == [0x0000]
    assert node.instances()[0].series_uid == "REM SAMPLES 1"
    assert node.events()[0].text == (
        "UIDs from SENDER do not conform to PS3.5 section 9.1; they are taken as they are."
    )


def test_an_object_over_the_limit_is_c001(tmp_path):
    with listening(tmp_path, network="max_object_mib = 1") as node:
        big = one(dataset=one().dataset + b"\0" * 1024 * 1024)
        assert answer(node.port, big) == (0xC001, "Object is larger than this node takes")


def test_no_room_is_a700(node, monkeypatch):
    with association(node.port, [one()]) as opened:
        monkeypatch.setattr(node.spool, "_min_free", 1 << 62)
        sent = one()
        status = send_encoded(
            opened, opened.accepted_contexts[0], sent.sop_class_uid, sent.sop_instance_uid, sent.dataset
        )
    assert status == 0xA700
    assert node.events()[0].code == "NO_ROOM"


def test_a_full_disk_is_a700_and_leaves_nothing_behind(node, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("scp_node.spool.os.fsync", full)
        assert answer(node.port, one()) == (0xA700, "Disk write failed; send again later")
    assert list((node.folder / "incoming").iterdir()) == []
    assert node.instances() == []
    assert send_raw(node.port, [one()]) == [0x0000]


@pytest.mark.parametrize("step", ["_write_aside", "_make_folder"])
def test_an_io_error_at_any_step_is_a700(node, monkeypatch, step):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    shutil.rmtree(node.folder / "objects")  # its folders are made at start, and again where they are gone
    monkeypatch.setattr(Spool, step, broken)
    assert answer(node.port, one())[0] == 0xA700
    assert node.instances() == []


def test_a_locked_database_is_a700_and_the_next_try_succeeds(node):
    holder = sqlite3.connect(node.folder / "node.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        assert answer(node.port, one()) == (0xA700, "Database is busy; send again later")
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    assert send_raw(node.port, [one()]) == [0x0000]
    assert len(list(node.spool.objects())) == 1
    assert len(node.instances()) == 1


def test_running_out_of_memory_is_a700(node, monkeypatch):
    def out(*_args, **_kwargs):
        raise MemoryError

    monkeypatch.setattr(Receiver, "_store", out)
    assert answer(node.port, one()) == (0xA700, "Out of memory; send again later")


def test_a_bug_is_0110_with_an_id_and_the_association_goes_on(node, monkeypatch):
    def bug(*_args, **_kwargs):
        raise KeyError("surprise")

    with monkeypatch.context() as patched:
        patched.setattr(Receiver, "_store", bug)
        status, comment = answer(node.port, one())
    assert status == 0x0110
    assert comment.startswith("Internal error ")
    assert comment.endswith("; see the log of the node")
    assert send_raw(node.port, [one()]) == [0x0000]


def test_a_destination_may_connect_but_not_store(node):
    assert answer(node.port, one(), calling="PACS") == (0x0124, "This AE may not store here")
    assert node.instances() == []


def test_our_own_report_coming_back_is_ignored(node):
    send_raw(node.port, [one()])
    dataset = SMALL.datasets()[1]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    with node.engine.begin() as connection:
        connection.execute(
            tables.report.insert().values(
                sop_instance_uid=dataset.SOPInstanceUID,
                sop_class_uid=dataset.SOPClassUID,
                study_uid=SMALL.study_uid,
                series_uid="1.2",
                revision=1,
                outcome="findings",
                record={},
                path="reports/x.dcm",
                sha256="0" * 64,
                created_at=1.0,
            )
        )
        connection.execute(tables.study.update().values(state="REPORTED", last_received_at=5.0))
    assert send_raw(node.port, [raw(dataset)]) == [0x0000]
    (study,) = node.studies()
    assert (study.state, study.last_received_at) == ("REPORTED", 5.0)
    own = [row for row in node.instances() if row.purpose == "own"]
    assert [row.path for row in own] == [None]
    assert node.events()[-1].kind == EventKind.OWN_REPORT


def test_a_kill_between_name_and_commit_loses_nothing(tmp_path):
    """A child process dies by SIGKILL's likes right after the file has its name; the next start counts it in."""
    (tmp_path / "sent.bin").write_bytes(one().dataset)
    script = textwrap.dedent(
        f"""
        import os
        from pathlib import Path
        from scp_node.clock import SystemClock
        from scp_node.ledger.arrivals import Arrivals
        from scp_node.ledger.engine import make_engine, upgrade
        from scp_node.receive import Incoming, Receiver
        from scp_node.spool import Spool
        url = "sqlite:///" + {str(tmp_path / "node.sqlite")!r}
        upgrade(url)
        spool = Spool(Path({str(tmp_path)!r}))
        spool.prepare()
        arrivals = Arrivals(make_engine(url))
        arrivals.record = lambda arrival: os._exit(9)
        receiver = Receiver(spool, arrivals, SystemClock(), keep_other_objects=True, max_object_bytes=1 << 30)
        dataset = Path({str(tmp_path / "sent.bin")!r}).read_bytes()
        (spool.folder / "incoming" / "999999999-dead.part").write_bytes(b"half")
        receiver.receive(Incoming("{one().sop_class_uid}", "{one().sop_instance_uid}",
            "{one().transfer_syntax_uid}", dataset, "SENDER", "NODULE_NODE", "127.0.0.1"))
        """
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert done.returncode == 9

    engine = make_engine(f"sqlite:///{tmp_path / 'node.sqlite'}")
    spool, arrivals = Spool(tmp_path), Arrivals(engine)
    assert arrivals.paths() == frozenset()
    assert spool.sweep() == 1
    assert index_spool(spool, arrivals, SystemClock(), keep_other_objects=True) == (1, 0)
    assert index_spool(spool, arrivals, SystemClock(), keep_other_objects=True) == (0, 0)
    with engine.connect() as connection:
        (row,) = connection.execute(tables.instance.select()).all()
        (event,) = connection.execute(tables.event.select()).all()
    assert (row.sop_instance_uid, row.calling_ae, row.purpose) == (one().sop_instance_uid, "SENDER", "ct")
    assert event.text == f"Instance {one().sop_instance_uid} was found on disk after a crash and counted in."

    (tmp_path / row.path).unlink()
    assert index_spool(spool, arrivals, SystemClock(), keep_other_objects=True) == (0, 1)
    with engine.connect() as connection:
        (row,) = connection.execute(tables.instance.select()).all()
        event = connection.execute(tables.event.select()).all()[-1]
    assert row.path is None
    assert event.text == (f"The file of instance {one().sop_instance_uid} is gone from the disk; send it again.")
    engine.dispose()


def test_a_lost_file_is_repaired_when_it_is_sent_again(node):
    send_raw(node.port, [one()])
    path = node.instances()[0].path
    (node.folder / path).unlink()
    node.arrivals.forget_file(path, 1.0)
    assert send_raw(node.port, [one()]) == [0x0000]
    (row,) = node.instances()
    assert row.path == path
    assert (node.folder / path).is_file()


def test_the_same_instance_on_many_associations_at_once_is_one_row(node):
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.extend(send_raw(node.port, [one()]))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0x0000] * 6
    assert len(node.instances()) == 1
    assert len(list(node.spool.objects())) == 1
    assert list((node.folder / "incoming").iterdir()) == []


def test_no_patient_data_reaches_the_ledgers_events(node):
    dataset = SMALL.datasets()[0]
    dataset.SeriesInstanceUID = ""
    send_raw(node.port, [raw(dataset), replace(one(), dataset=b"xx")])
    text = " ".join(event.text for event in node.events())
    assert text
    for secret in ("ller", "TEST-0001", "19580407"):
        assert secret not in text
