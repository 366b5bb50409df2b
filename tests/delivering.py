"""A ledger with reports to deliver, a clock that is set by hand, and an archive in memory that can lose things."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pipeline.domain.outcome import Outcome
from pipeline.domain.result import Analysis
from scp_node.deliver import Deliveries
from scp_node.ledger import tables
from scp_node.ledger.destinations import Destinations
from scp_node.ledger.outbox import Outbox, put
from scp_node.ledger.steps import Steps
from scp_node.ledger.studies import Studies
from scp_node.ports import STORAGE_COMMITMENT, STUDY_ROOT_FIND, Check, SendResult
from scp_node.settings import load_settings
from sr_writer.record import NodeIdentity, freeze
from tests.ledgers import add_study, new_report, retry_policy

if TYPE_CHECKING:
    from pathlib import Path

    from scp_node.ledger.outbox import RetryPolicy
    from scp_node.ports import ProvableArchive

SETTINGS = """
[storage]
folder = "storage"
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}
verify = "{verify}"
"""
NO_CONNECTION = SendResult("retry", None, "No connection.")
BOTH = frozenset({STORAGE_COMMITMENT, STUDY_ROOT_FIND})


@dataclass
class HandClock:
    """It is what it is set to; seconds."""

    at: float = 1000.0

    def now(self) -> float:
        return self.at


@dataclass
class MemoryArchive:
    """Says Success to everything while it is up; ``drops`` of the next objects are lost."""

    offers: frozenset[str] = frozenset()
    drops: int = 0
    up: bool = True
    answers_at_once: bool = True
    kept: list[str] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    echoes: int = 0
    asked: list[str] = field(default_factory=list)
    transactions: list[str] = field(default_factory=list)
    uid_of: dict[bytes, str] = field(default_factory=dict)

    def store(self, dicom: bytes) -> SendResult:
        if not self.up:
            return NO_CONNECTION
        uid = self.uid_of[dicom]
        self.stored.append(uid)
        if self.drops:
            self.drops -= 1
        else:
            self.kept.append(uid)
        return SendResult("delivered", 0, "Stored.")

    def accepts(self, sop_class_uids: Any) -> frozenset[str] | SendResult:
        return self.offers.intersection(sop_class_uids) if self.up else NO_CONNECTION

    def echo(self) -> SendResult:
        self.echoes += 1
        return SendResult("delivered", 0, "C-ECHO answered.") if self.up else NO_CONNECTION

    def commit(self, transaction_uid: str, sop_class_uid: str, sop_instance_uid: str) -> Check:
        self.asked.append("commitment")
        self.transactions.append(transaction_uid)
        if not self.up:
            return Check("unreachable", "commitment", "No connection.")
        if not self.answers_at_once:
            return Check("asked", "commitment", "The archive answers later.")
        if sop_instance_uid in self.kept:
            return Check("proven", "commitment", "Committed.")
        return Check("missing", "commitment", "It has no such instance (0x0112).")

    def holds(self, study_uid: str, series_uid: str, sop_instance_uid: str) -> Check:
        self.asked.append("query")
        if not self.up:
            return Check("unreachable", "query", "No connection.")
        if sop_instance_uid in self.kept:
            return Check("proven", "query", "Found.")
        return Check("missing", "query", "Stored, and not found.")


class Post:
    """Reports in the outbox and the use case that delivers them; :meth:`work` is what a worker would do now."""

    def __init__(
        self, engine: sa.Engine, folder: Path, archive: ProvableArchive, *, verify: str = "auto", port: int = 104
    ) -> None:
        self.engine, self.folder, self.archive = engine, folder, archive
        self.clock = HandClock()
        self.policy: RetryPolicy = retry_policy()
        (folder / "node.toml").write_text(SETTINGS.format(verify=verify, port=port))
        (folder / "storage" / "reports").mkdir(parents=True)
        self.settings = load_settings(folder / "node.toml")
        self.outbox = Outbox(engine)

    def report(self, number: int = 1, content: bytes | None = None) -> str:
        """File a report and queue it; gives its SOP Instance UID."""
        study = f"1.2.{number}"
        record = freeze(
            Analysis(study, f"{study}.1", Outcome.NO_FINDINGS),
            study_instance_uid=study,
            evidence_uids=[f"{study}.1.0"],
            sr="comprehensive3d",
            finished_at=datetime(2026, 11, 23, tzinfo=UTC),
            node=NodeIdentity("NODULE", "installation", "0.1"),
        )
        content = content or f"report {number}".encode()
        path = f"reports/{number}.dcm"
        (self.folder / "storage" / path).write_bytes(content)
        if isinstance(self.archive, MemoryArchive):
            self.archive.uid_of[content] = record.sop_instance_uid
        add_study(self.engine, study)
        filed = new_report(
            record.sop_instance_uid,
            sop_class_uid=record.sop_class_uid,
            study_uid=study,
            series_uid=f"{study}.1",
            record=record.to_json(),
            path=path,
            sha256=hashlib.sha256(content).hexdigest(),
        )
        with self.engine.begin() as connection:
            put(connection, [filed], now=self.clock.now())
        return record.sop_instance_uid

    def work(self) -> int:
        """Take what is due and do it; gives how many exchanges that were."""
        claimed = self.outbox.claim_due(now=self.clock.now(), start=lambda *_: None)
        for number, attempt in claimed:
            self.deliveries.attempt(number, attempt, lambda: False)
        return len(claimed)

    def work_after(self, seconds: float) -> int:
        self.clock.at += seconds
        return self.work()

    @property
    def deliveries(self) -> Deliveries:
        return Deliveries(
            self.settings,
            studies=Studies(self.engine),
            outbox=self.outbox,
            destinations=Destinations(self.engine),
            steps=Steps(self.engine, executor="worker-0", clock=self.clock, retry_s=0.0),
            reader=None,  # type: ignore[arg-type]
            archive_of=lambda _: self.archive,
            policy=self.policy,
            clock=self.clock,
            rng=Random(1),
        )

    def rows(self) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(sa.select(tables.delivery).order_by(tables.delivery.c.id)).all())

    def state(self) -> str:
        (row,) = self.rows()
        return str(row.state)

    def story(self, *kinds: str) -> list[str]:
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(tables.event).order_by(tables.event.c.id)).all()
        return [row.text for row in rows if not kinds or row.kind in kinds]
