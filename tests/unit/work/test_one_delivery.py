"""One attempt at one destination: what is sent, what is not, and what follows."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from random import Random

import pytest
import sqlalchemy as sa

from pipeline.domain.outcome import Outcome
from pipeline.domain.result import Analysis
from scp_node.children import WrittenReport
from scp_node.deliver import Deliveries
from scp_node.ledger import tables
from scp_node.ledger.destinations import Destinations
from scp_node.ledger.outbox import Outbox, put
from scp_node.ledger.steps import Steps
from scp_node.ledger.studies import Studies
from scp_node.ports import SendResult
from scp_node.settings import load_settings
from sr_writer.record import SOP_CLASS_UIDS, NodeIdentity, freeze
from tests.ledgers import add_study, empty_ledger, new_report, retry_policy

PLAIN = SOP_CLASS_UIDS["comprehensive"]
CONTENT = b"the report's bytes"
STORED = SendResult("delivered", 0, "Stored.")
NOT_SUPPORTED = SendResult("refused", 0x0122, "PACS does not accept Comprehensive 3D SR.")
GONE = SendResult("retry", None, "No connection.")
SETTINGS = """
[storage]
folder = "storage"
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 104
"""


class Clock:
    """It is always 100 s."""

    def now(self) -> float:
        return 100.0


class CannedArchive:
    """Answers as told; keeps what it was sent."""

    def __init__(self, result=STORED, accepted=frozenset()):
        self.result, self.accepted = result, accepted
        self.got = []

    def store(self, dicom):
        self.got.append(dicom)
        return self.result

    def accepts(self, sop_class_uids):
        return self.accepted


class CannedReader:
    """Writes a report's SOP Class UID as its file."""

    def write_report(self, record, images, target, cancelled):
        content = record.sop_class_uid.encode()
        target.write_bytes(content)
        return WrittenReport(hashlib.sha256(content).hexdigest())


def frozen_record():
    return freeze(
        Analysis("1.2", "1.2.1", Outcome.NO_FINDINGS),
        study_instance_uid="1.2",
        evidence_uids=["1.2.1.0"],
        sr="comprehensive3d",
        finished_at=datetime(2026, 11, 23, tzinfo=UTC),
        node=NodeIdentity("NODULE", "installation", "0.1"),
    )


@pytest.fixture
def box(tmp_path):
    (tmp_path / "node.toml").write_text(SETTINGS)
    (tmp_path / "storage" / "reports").mkdir(parents=True)
    (tmp_path / "storage" / "reports" / "x.dcm").write_bytes(CONTENT)
    with empty_ledger(tmp_path) as engine:
        add_study(engine)
        yield Box(engine, tmp_path)


class Box:
    """One report in the outbox and the use case that delivers it."""

    def __init__(self, engine, folder):
        self.engine = engine
        self.settings = load_settings(folder / "node.toml")
        self.file = folder / "storage" / "reports" / "x.dcm"
        record = frozen_record()
        report = new_report(
            record.sop_instance_uid,
            sop_class_uid=record.sop_class_uid,
            record=record.to_json(),
            sha256=hashlib.sha256(CONTENT).hexdigest(),
        )
        self.put(report)

    def put(self, report):
        with self.engine.begin() as connection:
            put(connection, [report], now=100.0)

    def attempt(self, archive):
        """Make the attempts that are due, each step twice, as the engine may."""
        outbox = Outbox(self.engine)
        deliveries = Deliveries(
            self.settings,
            studies=Studies(self.engine),
            outbox=outbox,
            destinations=Destinations(self.engine),
            steps=Steps(self.engine, executor="worker-0", clock=Clock(), retry_s=0.0),
            reader=CannedReader(),
            archive_of=lambda _: archive,
            policy=retry_policy(),
            clock=Clock(),
            rng=Random(1),
        )
        for number, attempt in outbox.claim_due(now=1e6, start=lambda *_: None) * 2:
            deliveries.attempt(number, attempt, lambda: False)

    def deliveries(self):
        with self.engine.connect() as connection:
            return connection.execute(sa.select(tables.delivery).order_by(tables.delivery.c.id)).all()


def test_the_bytes_on_disk_are_sent_once_though_the_step_is_repeated(box):
    archive = CannedArchive()
    box.attempt(archive)
    assert archive.got == [CONTENT]
    assert [row.state for row in box.deliveries()] == ["sent"]


def test_an_archive_that_is_gone_is_tried_again_with_the_same_bytes(box):
    gone, back = CannedArchive(GONE), CannedArchive()
    box.attempt(gone)
    (row,) = box.deliveries()
    assert (row.state, row.next_attempt_at, row.last_error) == ("queued", 130.0, "No connection.")
    box.attempt(back)
    assert gone.got == back.got == [CONTENT]
    assert [row.state for row in box.deliveries()] == ["sent"]


def test_an_archive_without_3d_sr_gets_the_same_result_as_comprehensive_sr(box):
    box.attempt(CannedArchive(NOT_SUPPORTED, frozenset({PLAIN})))
    old, new = box.deliveries()
    assert (old.state, new.state) == ("cancelled", "queued")
    assert old.last_error == "pacs does not take Comprehensive 3D SR; Comprehensive SR is sent instead."
    assert new.sop_instance_uid == replace(frozen_record(), sr="comprehensive").sop_instance_uid
    archive = CannedArchive()
    box.attempt(archive)
    assert archive.got == [PLAIN.encode()]
    assert [row.state for row in box.deliveries()] == ["cancelled", "sent"]


def test_an_archive_that_takes_no_report_at_all_is_a_refusal(box):
    box.attempt(CannedArchive(NOT_SUPPORTED))
    (row,) = box.deliveries()
    assert (row.state, row.last_error) == ("failed_final", "PACS does not accept Comprehensive 3D SR.")


def test_an_archive_that_cannot_be_asked_for_the_other_form_is_tried_again(box):
    box.attempt(CannedArchive(NOT_SUPPORTED, GONE))
    assert [row.state for row in box.deliveries()] == ["queued"]


def test_a_report_whose_file_is_gone_is_given_up_with_its_reason(box):
    box.file.unlink()
    box.attempt(CannedArchive())
    (row,) = box.deliveries()
    assert (row.state, row.last_error) == (
        "failed_final",
        "The report's file is gone from the disk; it is not sent.",
    )


def test_a_report_that_was_changed_on_disk_is_not_sent(box):
    box.file.write_bytes(b"something else")
    archive = CannedArchive()
    box.attempt(archive)
    (row,) = box.deliveries()
    assert archive.got == []
    assert (row.state, row.last_error) == ("failed_final", "The report's file was changed on disk; it is not sent.")


def test_a_destination_that_was_taken_out_of_the_settings_ends_the_delivery(box):
    box.put(new_report("9.9", series_uid="1.2.7", destinations=("former",)))
    archive = CannedArchive()
    box.attempt(archive)
    assert archive.got == [CONTENT]
    (row,) = (row for row in box.deliveries() if row.destination == "former")
    assert row.last_error == "Destination former is no longer in the settings."
