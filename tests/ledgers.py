"""An empty ledger for tests, and rows to put into it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scp_node.ledger import tables
from scp_node.ledger.engine import make_engine
from scp_node.ledger.outbox import NewReport, RetryPolicy
from scp_node.ledger.states import Purpose, StudyState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import sqlalchemy as sa


@contextmanager
def empty_ledger(folder: Path, url: str | None = None) -> Iterator[sa.Engine]:
    """A ledger with all tables and no rows: a SQLite file in the folder, or another database."""
    engine = make_engine(url or f"sqlite:///{folder / 'node.sqlite'}")
    tables.metadata.create_all(engine)  # the migrations give the same, but slower
    try:
        yield engine
    finally:
        engine.dispose()


def add_study(engine: sa.Engine, study_uid: str = "1.2", *, images: int = 1, **values: Any) -> None:
    """A study that received its CT images at 100 s."""
    row = {
        "study_uid": study_uid,
        "state": StudyState.RECEIVING,
        "revision": 0,
        "codes": [],
        "sender": "MODALITY",
        "first_received_at": 100.0,
        "last_received_at": 100.0,
        "state_changed_at": 100.0,
    }
    with engine.begin() as connection:
        connection.execute(tables.study.insert().values(row | values))
    for number in range(images):
        add_image(engine, study_uid, f"{study_uid}.1.{number}")


def add_image(engine: sa.Engine, study_uid: str, sop_instance_uid: str, **values: Any) -> None:
    """A CT image of series ``STUDY.1``."""
    row = {
        "sop_instance_uid": sop_instance_uid,
        "version": 1,
        "is_newest": True,
        "study_uid": study_uid,
        "series_uid": f"{study_uid}.1",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "sha256": "0" * 64,
        "size_bytes": 1,
        "path": f"objects/{sop_instance_uid}.dcm",
        "purpose": Purpose.CT,
        "calling_ae": "MODALITY",
        "called_ae": "NODULE",
        "peer": "127.0.0.1",
        "received_at": 100.0,
    }
    with engine.begin() as connection:
        connection.execute(tables.instance.insert().values(row | values))


def new_report(sop_instance_uid: str = "9.1", **values: Any) -> NewReport:
    """A report of study 1.2 for one destination."""
    fields: dict[str, Any] = {
        "sop_instance_uid": sop_instance_uid,
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.88.34",
        "study_uid": "1.2",
        "series_uid": "1.2.1",
        "revision": 1,
        "outcome": "findings",
        "record": {"made": sop_instance_uid},
        "path": "reports/x.dcm",
        "sha256": "0" * 64,
        "destinations": ("pacs",),
    }
    return NewReport(**(fields | values))


def retry_policy(**values: Any) -> RetryPolicy:
    """Waits of 30 s, no jitter; away after three failures, asked every minute; looked for after 5, 30 and 300 s."""
    fields: dict[str, Any] = {
        "retry_s": (30.0,),
        "jitter": 0.0,
        "give_up_s": 3600.0,
        "breaker_failures": 3,
        "probe_s": 60.0,
        "verify_after_s": (5.0, 30.0, 300.0),
        "commitment_timeout_s": 86400.0,
    }
    return RetryPolicy(**(fields | values))
