"""What the ledger says of the whole node at one moment: counts, ages, leases, and what went wrong last.

Read-only, behind ``status``, ``/health`` and ``/metrics``. UIDs, AE titles and codes; never patient data.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from scp_node.ledger import associations
from scp_node.ledger.arrivals import LedgerUnavailableError
from scp_node.ledger.destinations import DestinationView
from scp_node.ledger.engine import snapshot
from scp_node.ledger.overview import EventView
from scp_node.ledger.states import FINISHED, DeliveryState
from scp_node.ledger.tables import (
    association,
    delivery,
    destination,
    event,
    lease,
    report,
    step_outcome,
    step_start,
    study,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROBLEMS: Final = (
    "failed",
    "delivery_failed_final",
    "refused",
    "quarantined",
    "rejected_association",
    "tls_refused",
    "file_lost",
    "settings_refused",
)
"""Kinds of events that somebody should know of."""

ON_THE_WAY: Final = (
    DeliveryState.QUEUED,
    DeliveryState.SENDING,
    DeliveryState.SENT,
    DeliveryState.VERIFYING,
)
_ROWS_AT_ONCE: Final = 5000
_SETTLED_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A study that is not finished, and since when it stands where it does."""

    study_uid: str
    state: str
    since: float


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that holds a slot, and when its lease ends; seconds since the epoch."""

    slot: str
    lease_ends_at: float


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A report that was given up, or that its destination refused."""

    study_uid: str
    destination: str
    since: float
    error: str


@dataclass(frozen=True, slots=True)
class Figures:
    """The node at one moment.

    Attributes
    ----------
    studies
        Number by state.
    waiting
        For each unfinished state that occurs, the study that has been longest in it; the oldest of all first.
    deliveries
        Number by destination and state.
    oldest_delivery
        For each destination that has not got all, when its oldest report was ready.
    dead_letters
        The oldest first.
    last_problem
        The newest event of a kind in :data:`PROBLEMS`.
    destinations
        Those that were ever tried, with their circuit breakers.
    open_associations
        Number of associations that may bring images now.
    database_bytes
        Size of the database, the workflow engine's tables included, SQLite's log left out.
    """

    studies: Mapping[str, int]
    waiting: tuple[Waiting, ...]
    deliveries: Mapping[tuple[str, str], int]
    oldest_delivery: Mapping[str, float]
    dead_letters: tuple[DeadLetter, ...]
    workers: tuple[Worker, ...]
    last_problem: EventView | None
    destinations: tuple[DestinationView, ...]
    open_associations: int
    database_bytes: int = 0


def read_figures(engine: sa.Engine) -> Figures:
    """Read everything as it stood at one moment.

    Raises
    ------
    LedgerUnavailableError
        The database cannot be read.
    """
    with reading(engine) as connection:
        return Figures(
            studies=_studies(connection),
            waiting=_waiting(connection),
            deliveries=_deliveries(connection),
            oldest_delivery=_oldest_delivery(connection),
            dead_letters=_dead_letters(connection),
            workers=_workers(connection),
            last_problem=_last_problem(connection),
            destinations=_destinations(connection),
            open_associations=_open_associations(connection),
            database_bytes=_database_bytes(connection),
        )


def _database_bytes(connection: sa.Connection) -> int:
    if connection.dialect.name == "sqlite":
        pages, size = (connection.exec_driver_sql(f"PRAGMA {name}") for name in ("page_count", "page_size"))
        return int(pages.scalar_one()) * int(size.scalar_one())
    return int(connection.execute(sa.func.pg_database_size(sa.func.current_database())).scalar_one())


@dataclass(frozen=True, slots=True)
class NumberedEvent:
    """An event with its number in the ledger, for readers that follow the story."""

    id: int
    at: float
    study_uid: str | None
    kind: str
    code: str | None
    text: str


def events_after(
    engine: sa.Engine, number: int, *, now: float | None, study_uid: str | None = None
) -> tuple[NumberedEvent, ...]:
    """Give the next events after a number, of one study or of all, oldest first, at most some thousands.

    Parameters
    ----------
    now
        The time, for readers that must miss none: PostgreSQL numbers rows before they are committed, so there a
        row is given only when those with smaller numbers must have come. ``None`` gives all that are there.
    """
    query = sa.select(event.c.id, event.c.at, event.c.study_uid, event.c.kind, event.c.code, event.c.text)
    query = query.where(event.c.id > number, settled(engine, event.c.at, now))
    if study_uid is not None:
        query = query.where(event.c.study_uid == study_uid)
    with reading(engine) as connection:
        return tuple(
            NumberedEvent(*row) for row in connection.execute(query.order_by(event.c.id).limit(_ROWS_AT_ONCE))
        )


def settled(engine: sa.Engine, written_at: Any, now: float | None) -> sa.ColumnElement[bool]:
    """Give the condition that no row with a smaller number can come any more; SQLite has one writer at a time."""
    if now is None or engine.dialect.name == "sqlite":
        return sa.true()
    condition: sa.ColumnElement[bool] = written_at < now - _SETTLED_S
    return condition


def detection_seconds(engine: sa.Engine, after: float, until: float) -> tuple[float, ...]:
    """Give how long each analysis took that ended in ``(after, until]``, its last start counting; seconds."""
    began = (
        sa.select(sa.func.max(step_start.c.started_at))
        .where(step_start.c.key == step_outcome.c.key)
        .scalar_subquery()
    )
    query = sa.select(step_outcome.c.created_at - began).where(
        step_outcome.c.key.like("%:analyse"), step_outcome.c.created_at > after, step_outcome.c.created_at <= until
    )
    with reading(engine) as connection:
        return tuple(float(seconds) for seconds in connection.execute(query).scalars() if seconds is not None)


def delivery_seconds(engine: sa.Engine, after: float, until: float) -> tuple[tuple[str, float], ...]:
    """Give destination and time from report to delivery, for deliveries that ended in ``(after, until]``."""
    query = sa.select(delivery.c.destination, delivery.c.state_changed_at - delivery.c.created_at).where(
        delivery.c.state.in_((DeliveryState.DELIVERED, DeliveryState.UNVERIFIED)),
        delivery.c.state_changed_at > after,
        delivery.c.state_changed_at <= until,
    )
    with reading(engine) as connection:
        return tuple((str(name), float(seconds)) for name, seconds in connection.execute(query))


@contextmanager
def reading(engine: sa.Engine, *, write: bool = False) -> Iterator[sa.Connection]:
    """Read one moment, or write; what the database library raises when it cannot becomes one exception of ours.

    Raises
    ------
    LedgerUnavailableError
        The database cannot be reached.
    """
    try:
        with engine.begin() if write else snapshot(engine) as connection:
            yield connection
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as fault:
        raise LedgerUnavailableError(type(fault).__name__) from fault


def _studies(connection: sa.Connection) -> dict[str, int]:
    rows = connection.execute(sa.select(study.c.state, sa.func.count()).group_by(study.c.state))
    return dict(sorted((str(state), int(count)) for state, count in rows))


def _waiting(connection: sa.Connection) -> tuple[Waiting, ...]:
    query = (
        sa.select(study.c.study_uid, study.c.state, study.c.state_changed_at)
        .where(study.c.state.not_in(FINISHED))
        .order_by(study.c.state_changed_at.desc())
    )
    oldest = {row.state: Waiting(*row) for row in connection.execute(query)}
    return tuple(sorted(oldest.values(), key=lambda waiting: waiting.since))


def _deliveries(connection: sa.Connection) -> dict[tuple[str, str], int]:
    columns = (delivery.c.destination, delivery.c.state)
    rows = connection.execute(sa.select(*columns, sa.func.count()).group_by(*columns).order_by(*columns))
    return {(str(destination), str(state)): int(count) for destination, state, count in rows}


def _oldest_delivery(connection: sa.Connection) -> dict[str, float]:
    query = (
        sa.select(delivery.c.destination, sa.func.min(delivery.c.created_at))
        .where(delivery.c.state.in_(ON_THE_WAY))
        .group_by(delivery.c.destination)
    )
    return {str(destination): float(since) for destination, since in connection.execute(query)}


def _dead_letters(connection: sa.Connection) -> tuple[DeadLetter, ...]:
    query = (
        sa.select(report.c.study_uid, delivery.c.destination, delivery.c.state_changed_at, delivery.c.last_error)
        .join_from(delivery, report)
        .where(delivery.c.state == DeliveryState.FAILED_FINAL)
        .order_by(delivery.c.state_changed_at)
    )
    return tuple(
        DeadLetter(row.study_uid, row.destination, row.state_changed_at, row.last_error or "")
        for row in connection.execute(query)
    )


def _workers(connection: sa.Connection) -> tuple[Worker, ...]:
    query = sa.select(lease.c.slot, lease.c.expires_at).order_by(lease.c.slot)
    query = query.where(sa.not_(lease.c.slot.startswith(associations.PREFIX)))
    return tuple(Worker(str(slot), float(ends)) for slot, ends in connection.execute(query))


def _destinations(connection: sa.Connection) -> tuple[DestinationView, ...]:
    columns = destination.c
    query = sa.select(columns.name, columns.failures, columns.opened_at, columns.probe_at, columns.why)
    return tuple(DestinationView(*row) for row in connection.execute(query.order_by(columns.name)))


def _open_associations(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(association)).scalar_one())


def _last_problem(connection: sa.Connection) -> EventView | None:
    query = (
        sa.select(event.c.at, event.c.study_uid, event.c.kind, event.c.code, event.c.text)
        .where(event.c.kind.in_(PROBLEMS))
        .order_by(event.c.id.desc())
        .limit(1)
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else EventView(*row)
