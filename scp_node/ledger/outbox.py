"""The outbox: finished reports, and for each destination when it is tried next.

A report and its deliveries are written in one transaction. At most one delivery is under way for a destination,
so a dead one never holds up another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from scp_node.ledger.states import DeliveryState
from scp_node.ledger.studies import note
from scp_node.ledger.tables import delivery, report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

    from scp_node.ports import SendResult

    Start = Callable[[sa.Connection, int, int], None]
    """Enqueues one attempt of a delivery in the caller's transaction."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When an unreachable destination is tried again.

    Attributes
    ----------
    retry_s
        Waits between attempts; the last one repeats; seconds.
    jitter
        Part by which each wait is made longer or shorter, in [0, 1].
    give_up_s
        Age at which a report is given up; seconds.
    """

    retry_s: tuple[float, ...]
    jitter: float
    give_up_s: float

    def wait_s(self, attempts: int, rng: Random) -> float:
        """Give the wait after so many attempts; seconds."""
        step = self.retry_s[min(max(attempts, 1), len(self.retry_s)) - 1]
        return step * (1 + self.jitter * rng.uniform(-1, 1))


@dataclass(frozen=True, slots=True)
class NewReport:
    """A report whose file is on disk, and where it goes.

    Attributes
    ----------
    record
        The frozen record as JSON values.
    path
        Relative to the storage folder.
    destinations
        Names; may be empty.
    """

    sop_instance_uid: str
    sop_class_uid: str
    study_uid: str
    series_uid: str
    revision: int
    outcome: str
    record: Mapping[str, Any]
    path: str
    sha256: str
    destinations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One report on its way to one destination."""

    id: int
    destination: str
    state: DeliveryState
    attempts: int
    created_at: float
    sop_instance_uid: str
    sop_class_uid: str
    study_uid: str
    series_uid: str
    revision: int
    record: Mapping[str, Any]
    path: str
    sha256: str


class Outbox:
    """Reports and deliveries of the ledger."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def claim_due(self, *, now: float, start: Start) -> tuple[tuple[int, int], ...]:
        """Take for each free destination the delivery that is due longest, and enqueue its next attempt.

        Returns
        -------
        tuple
            ``(delivery id, attempt)`` for each one taken.
        """
        due = (
            sa.select(delivery.c.id, delivery.c.destination, delivery.c.attempts)
            .where(
                delivery.c.state == DeliveryState.QUEUED,
                delivery.c.next_attempt_at <= now,
                delivery.c.destination.not_in(_busy()),
            )
            .order_by(delivery.c.next_attempt_at, delivery.c.id)
        )
        with self._engine.connect() as connection:
            first = {row.destination: row for row in reversed(connection.execute(due).all())}
        claimed = [(row.id, row.attempts + 1) for row in first.values()]
        return tuple(pair for pair in claimed if self._claim(*pair, now=now, start=start))

    def delivery(self, delivery_id: int) -> Delivery:
        """Give one delivery with its report."""
        query = sa.select(
            delivery.c.id,
            delivery.c.destination,
            delivery.c.state,
            delivery.c.attempts,
            delivery.c.created_at,
            report.c.sop_instance_uid,
            report.c.sop_class_uid,
            report.c.study_uid,
            report.c.series_uid,
            report.c.revision,
            report.c.record,
            report.c.path,
            report.c.sha256,
        ).join_from(delivery, report)
        with self._engine.connect() as connection:
            row = connection.execute(query.where(delivery.c.id == delivery_id)).one()
        return Delivery(**{**row._mapping, "state": DeliveryState(row.state)})

    def settle(
        self,
        delivery_id: int,
        attempt: int,
        result: SendResult,
        *,
        policy: RetryPolicy,
        rng: Random,
        now: float,
    ) -> DeliveryState | None:
        """Write down how an attempt ended and when the next one is due.

        Returns
        -------
        DeliveryState or None
            The new state; ``None`` when this attempt was settled before.
        """
        due = self.delivery(delivery_id)
        state, next_at = after_attempt(
            result, attempts=attempt, created_at=due.created_at, policy=policy, rng=rng, now=now
        )
        values = {
            "state": state,
            "next_attempt_at": next_at,
            "last_status": result.status,
            "last_error": None if state is DeliveryState.DELIVERED else result.text,
            "state_changed_at": now,
        }
        with self._engine.begin() as connection:
            if not _settle(connection, delivery_id, attempt, values):
                return None
            text = f"Report to {due.destination}, attempt {attempt}: {state.value}. {result.text}"
            note(connection, due.study_uid, f"delivery_{state.value}", text, at=now)
        return state

    def replace(self, delivery_id: int, attempt: int, new: NewReport, *, why: str, now: float) -> bool:
        """Send another form of the report instead: the old delivery is cancelled, the new one due at once."""
        values = {
            "state": DeliveryState.CANCELLED,
            "next_attempt_at": None,
            "last_error": why,
            "state_changed_at": now,
        }
        with self._engine.begin() as connection:
            if not _settle(connection, delivery_id, attempt, values):
                return False
            put(connection, [new], now=now)
            note(connection, new.study_uid, "delivery_replaced", why, at=now)
        return True

    def last_delivered(
        self, destination: str, study_uid: str, *, before_revision: int, series_uid: str | None = None
    ) -> Mapping[str, Any] | None:
        """Give the record of the newest report of a study (or of one series) known to be at a destination."""
        query = (
            sa.select(report.c.record)
            .join_from(delivery, report)
            .where(
                delivery.c.destination == destination,
                delivery.c.state == DeliveryState.DELIVERED,
                report.c.study_uid == study_uid,
                report.c.revision < before_revision,
            )
            .order_by(report.c.revision.desc(), delivery.c.id.desc())
            .limit(1)
        )
        if series_uid is not None:
            query = query.where(report.c.series_uid == series_uid)
        with self._engine.connect() as connection:
            record: Mapping[str, Any] | None = connection.execute(query).scalar_one_or_none()
        return record

    def retry(self, study_uid: str, *, now: float) -> int:
        """Make the failed deliveries of a study due again, at a person's request; give how many."""
        of_study = sa.select(report.c.sop_instance_uid).where(report.c.study_uid == study_uid)
        failed = sa.and_(delivery.c.state == DeliveryState.FAILED_FINAL, delivery.c.sop_instance_uid.in_(of_study))
        values = {"state": DeliveryState.QUEUED, "next_attempt_at": now, "created_at": now, "state_changed_at": now}
        with self._engine.begin() as connection:
            return connection.execute(delivery.update().where(failed).values(values)).rowcount

    def _claim(self, delivery_id: int, attempt: int, *, now: float, start: Start) -> bool:
        still_due = sa.and_(
            delivery.c.id == delivery_id,
            delivery.c.state == DeliveryState.QUEUED,
            delivery.c.attempts == attempt - 1,
            delivery.c.destination.not_in(_busy()),
        )
        values = {"state": DeliveryState.SENDING, "attempts": attempt, "state_changed_at": now}
        with self._engine.begin() as connection:
            if connection.execute(delivery.update().where(still_due).values(values)).rowcount != 1:
                return False
            start(connection, delivery_id, attempt)
        return True


def put(connection: sa.Connection, reports: Sequence[NewReport], *, now: float) -> None:
    """Write reports and their deliveries, due at once; what is there already stays as it is.

    An older report of the same series that still waits for the same destination is cancelled: the new one
    replaces it.
    """
    for new in reports:
        known = connection.execute(
            sa.select(report.c.sop_instance_uid).where(report.c.sop_instance_uid == new.sop_instance_uid)
        ).scalar_one_or_none()
        if known is None:
            connection.execute(report.insert().values(_row(new, now)))
        for destination in new.destinations:
            _cancel_older(connection, new, destination, now)
            _put_delivery(connection, new.sop_instance_uid, destination, now)


def after_attempt(
    result: SendResult, *, attempts: int, created_at: float, policy: RetryPolicy, rng: Random, now: float
) -> tuple[DeliveryState, float | None]:
    """Say what follows an attempt: the state, and when the next attempt is due (``None``: never)."""
    if result.kind == "delivered":
        return DeliveryState.DELIVERED, None
    if result.kind == "refused":
        return DeliveryState.FAILED_FINAL, None
    next_at = now + policy.wait_s(attempts, rng)
    if next_at - created_at > policy.give_up_s:
        return DeliveryState.FAILED_FINAL, None
    return DeliveryState.QUEUED, next_at


def _busy() -> sa.Select[tuple[str]]:
    other = delivery.alias()
    return sa.select(other.c.destination).where(other.c.state == DeliveryState.SENDING)


def _row(new: NewReport, now: float) -> dict[str, Any]:
    return {
        "sop_instance_uid": new.sop_instance_uid,
        "sop_class_uid": new.sop_class_uid,
        "study_uid": new.study_uid,
        "series_uid": new.series_uid,
        "revision": new.revision,
        "outcome": new.outcome,
        "record": dict(new.record),
        "path": new.path,
        "sha256": new.sha256,
        "created_at": now,
    }


def _put_delivery(connection: sa.Connection, sop_instance_uid: str, destination: str, now: float) -> None:
    known = sa.and_(delivery.c.sop_instance_uid == sop_instance_uid, delivery.c.destination == destination)
    if connection.execute(sa.select(delivery.c.id).where(known)).scalar_one_or_none() is None:
        connection.execute(
            delivery.insert().values(
                sop_instance_uid=sop_instance_uid,
                destination=destination,
                state=DeliveryState.QUEUED,
                attempts=0,
                next_attempt_at=now,
                created_at=now,
                state_changed_at=now,
            )
        )


def _cancel_older(connection: sa.Connection, new: NewReport, destination: str, now: float) -> None:
    older = sa.select(report.c.sop_instance_uid).where(
        report.c.study_uid == new.study_uid,
        report.c.series_uid == new.series_uid,
        report.c.revision < new.revision,
    )
    waiting = sa.and_(
        delivery.c.state == DeliveryState.QUEUED,
        delivery.c.destination == destination,
        delivery.c.sop_instance_uid.in_(older),
    )
    connection.execute(
        delivery.update()
        .where(waiting)
        .values(
            state=DeliveryState.CANCELLED,
            next_attempt_at=None,
            last_error=f"Replaced by the report of revision {new.revision} before it could be sent.",
            state_changed_at=now,
        )
    )


def _settle(connection: sa.Connection, delivery_id: int, attempt: int, values: Mapping[str, Any]) -> bool:
    ours = sa.and_(
        delivery.c.id == delivery_id,
        delivery.c.state == DeliveryState.SENDING,
        delivery.c.attempts == attempt,
    )
    return connection.execute(delivery.update().where(ours).values(values)).rowcount == 1
