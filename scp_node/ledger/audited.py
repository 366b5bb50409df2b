"""What the audit trail reads of the ledger: transfers and deliveries, and how far each of its sinks has come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from scp_node.ledger.figures import reading, settled
from scp_node.ledger.states import Purpose
from scp_node.ledger.tables import delivery, installation, instance, report

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROWS_AT_ONCE = 5000


@dataclass(frozen=True, slots=True)
class Transfer:
    """Instances of one class and one study that a peer sent, seen in one look.

    Attributes
    ----------
    at
        When the last of them arrived; seconds since the epoch.
    changed
        Whether one of them took the place of another version.
    """

    study_uid: str
    sop_class_uid: str
    instances: int
    calling_ae: str
    called_ae: str
    peer: str
    at: float
    changed: bool


@dataclass(frozen=True, slots=True)
class Export:
    """One report that reached a destination."""

    study_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    destination: str


def transfers_after(engine: sa.Engine, number: int, *, now: float | None) -> tuple[int, tuple[Transfer, ...]]:
    """Give what arrived after a row number, and the number of the last row that was looked at.

    Parameters
    ----------
    now
        As in :func:`scp_node.ledger.figures.events_after`.
    """
    columns = instance.c
    newest = sa.select(columns.id).where(columns.id > number, settled(engine, columns.received_at, now))
    with reading(engine) as connection:
        numbers = connection.execute(newest.order_by(columns.id).limit(_ROWS_AT_ONCE)).scalars().all()
        if not numbers:
            return number, ()
        rows = connection.execute(_transfers(number, numbers)).all()
    return int(numbers[-1]), tuple(_transfer(row) for row in rows)


def export_at(engine: sa.Engine, study_uid: str, at: float) -> Export | None:
    """Give the delivery of a study whose state changed at a time: the one that an event tells of."""
    query = (
        sa.select(report.c.study_uid, report.c.sop_class_uid, report.c.sop_instance_uid, delivery.c.destination)
        .join_from(delivery, report)
        .where(report.c.study_uid == study_uid, delivery.c.state_changed_at == at)
    )
    with reading(engine) as connection:
        row = connection.execute(query.limit(1)).one_or_none()
    return None if row is None else Export(*row)


def place_of(engine: sa.Engine, sink: str) -> tuple[int, int] | None:
    """Give the last event and the last instance that a sink has got; ``None`` before its first."""
    query = sa.select(installation.c.value).where(installation.c.key == _key(sink))
    with reading(engine) as connection:
        value = connection.execute(query).scalar_one_or_none()
    if value is None:
        return None
    last_event, last_instance = map(int, value.split())
    return last_event, last_instance


def keep_place(engine: sa.Engine, sink: str, place: tuple[int, int]) -> None:
    """Write down how far a sink has come."""
    value = "{} {}".format(*place)
    with reading(engine, write=True) as connection:
        row = installation.update().where(installation.c.key == _key(sink)).values(value=value)
        if connection.execute(row).rowcount == 0:
            connection.execute(installation.insert().values(key=_key(sink), value=value))


def _transfer(row: Sequence[Any]) -> Transfer:
    study_uid, sop_class_uid, instances, calling_ae, called_ae, peer, at, version = row
    return Transfer(study_uid, sop_class_uid, instances, calling_ae, called_ae, peer, at, version > 1)


def _transfers(number: int, numbers: Sequence[int]) -> sa.Select[tuple[str, str, int, str, str, str, float, int]]:
    columns = instance.c
    groups = (columns.study_uid, columns.sop_class_uid, columns.calling_ae, columns.called_ae, columns.peer)
    return (
        sa.select(
            columns.study_uid,
            columns.sop_class_uid,
            sa.func.count().label("instances"),
            columns.calling_ae,
            columns.called_ae,
            columns.peer,
            sa.func.max(columns.received_at).label("at"),
            sa.func.max(columns.version).label("version"),
        )
        .where(columns.id > number, columns.id <= numbers[-1], columns.purpose != Purpose.OWN)
        .group_by(*groups)
        .order_by(sa.func.max(columns.received_at))
    )


def _key(sink: str) -> str:
    return f"audit {sink}"
