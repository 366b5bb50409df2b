"""The outbox: finished reports, and for each destination when it is tried next, or asked whether it has them.

A report and its deliveries are written in one transaction. At most one delivery is under way for a destination,
so a dead one never holds up another. A report is delivered when that is proven (decision 0117).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from scp_node.ledger import destinations
from scp_node.ledger.states import STORED, DeliveryState
from scp_node.ledger.studies import note
from scp_node.ledger.tables import delivery, destination, report

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from random import Random

    from scp_node.ports import Check, SendResult

    Start = Callable[[sa.Connection, int, int], None]
    """Enqueues one attempt of a delivery in the caller's transaction."""


_UNDER_WAY = (DeliveryState.SENDING, DeliveryState.VERIFYING)
_WORDS = {
    DeliveryState.SENT: "sent, proof follows",
    DeliveryState.UNVERIFIED: "sent, not verified",
}
FEEDS = 3
"""How often a report that its destination lost is sent again."""


def _replaced_by() -> sa.ScalarSelect[int]:
    """The newest revision whose report takes the place of a delivery's own at its destination; NULL: none does."""
    own, newer, there = report.alias(), report.alias(), delivery.alias()
    same_matter = sa.or_(
        newer.c.whole_study, newer.c.series_uid == own.c.series_uid, own.c.outcome == "not_analysed"
    )
    is_newer = sa.and_(newer.c.study_uid == own.c.study_uid, newer.c.revision > own.c.revision, same_matter)
    return (
        sa.select(sa.func.max(newer.c.revision))
        .select_from(own.join(newer, is_newer).join(there, there.c.sop_instance_uid == newer.c.sop_instance_uid))
        .where(own.c.sop_instance_uid == delivery.c.sop_instance_uid, there.c.destination == delivery.c.destination)
        .correlate(delivery)
        .scalar_subquery()
    )


def _due() -> sa.ColumnElement[bool]:
    """Whether a delivery is to be taken at the time ``at``: no other one is under way to its destination."""
    other = delivery.alias()
    return sa.and_(
        delivery.c.state.in_((DeliveryState.QUEUED, DeliveryState.SENT)),
        delivery.c.next_attempt_at <= sa.bindparam("at"),
        delivery.c.destination.not_in(sa.select(other.c.destination).where(other.c.state.in_(_UNDER_WAY))),
        delivery.c.destination.not_in(destinations.AWAY),
    )


# Built once, as in ``arrivals``.
_this: Final = delivery.c.id == sa.bindparam("this_id")
_of_study: Final[sa.BindParameter[str]] = sa.bindparam("of_study")
_to = delivery.c.destination == sa.bindparam("to")
_waits = delivery.c.state == DeliveryState.QUEUED
_REPLACED_BY: Final = _replaced_by()
_DUE: Final = _due()
_DUE_PLACES: Final = sa.select(delivery.c.destination).where(_DUE).distinct()
_OLDEST_DUE: Final = (
    sa.select(delivery.c.id, delivery.c.attempts, delivery.c.destination)
    .where(_DUE, _to)
    .order_by(delivery.c.created_at, delivery.c.id)
    .limit(1)
)
_CLAIM: Final = (
    sa.update(delivery)
    .where(_DUE, _this, delivery.c.attempts == sa.bindparam("attempts_before"))
    .values(state=sa.case((_waits, DeliveryState.SENDING.value), else_=DeliveryState.VERIFYING.value))
)
_DELIVERY: Final = (
    sa.select(
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
        delivery.c.sent_at,
        delivery.c.checks,
        delivery.c.feeds,
        delivery.c.transaction_uid,
        destination.c.opened_at.is_not(None).label("away"),
    )
    .select_from(delivery.join(report).outerjoin(destination, destination.c.name == delivery.c.destination))
    .where(_this)
)
_SETTLE: Final = sa.update(delivery).where(
    _this, delivery.c.state.in_(_UNDER_WAY), delivery.c.attempts == sa.bindparam("attempt")
)
_REPLACEMENT: Final = sa.select(_REPLACED_BY).where(_this, _waits)
_CANCEL: Final = sa.update(delivery).where(_this, _waits)
_CANCEL_OLDER: Final = sa.update(delivery).where(
    _waits,
    _to,
    delivery.c.sop_instance_uid.in_(
        sa.select(report.c.sop_instance_uid).where(
            report.c.study_uid == _of_study,
            report.c.revision < sa.bindparam("before"),
            sa.or_(
                sa.bindparam("whole_study", type_=sa.Boolean),
                report.c.series_uid == sa.bindparam("of_series"),
                report.c.outcome == "not_analysed",
            ),
        )
    ),
)
_KNOWN_REPORT: Final = sa.select(report.c.sop_instance_uid).where(
    report.c.sop_instance_uid == sa.bindparam("this_uid")
)
_NEW_REPORT: Final = sa.insert(report)
_KNOWN_DELIVERY: Final = sa.select(delivery.c.id).where(
    delivery.c.sop_instance_uid == sa.bindparam("this_uid"), _to
)
_NEW_DELIVERY: Final = sa.insert(delivery)
_ASKED: Final = sa.and_(delivery.c.transaction_uid == sa.bindparam("transaction"), delivery.c.state.in_(STORED))
_WAITS_FOR_ANSWER: Final = sa.select(delivery.c.id).where(_ASKED)
_ANSWERED: Final = sa.update(delivery).where(_this, _ASKED, delivery.c.state != DeliveryState.DELIVERED)
_LAST_DELIVERED: Final = (
    sa.select(report.c.record)
    .join_from(delivery, report)
    .where(
        _to,
        delivery.c.state.in_(STORED),
        report.c.study_uid == _of_study,
        report.c.revision < sa.bindparam("before"),
    )
    .order_by(report.c.revision.desc(), delivery.c.id.desc())
    .limit(1)
)
_LAST_DELIVERED_OF_SERIES: Final = _LAST_DELIVERED.where(report.c.series_uid == sa.bindparam("of_series"))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When an unreachable destination is tried again, and when one that said Success is asked for the report.

    Attributes
    ----------
    retry_s
        Waits between attempts; the last one repeats; seconds.
    jitter
        Part by which each wait is made longer or shorter, in [0, 1].
    give_up_s
        Age at which a report is given up; seconds.
    breaker_failures, probe_s
        Failures in a row after which a destination is away; how often it is asked then; seconds.
    verify_after_s
        Waits before each question whether a report is there; seconds.
    commitment_timeout_s
        How long the answer to a storage commitment request is waited for; seconds.
    """

    retry_s: tuple[float, ...]
    jitter: float
    give_up_s: float
    breaker_failures: int
    probe_s: float
    verify_after_s: tuple[float, ...]
    commitment_timeout_s: float

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
    whole_study
        Whether it replaces the older reports of every series of the study, not of its own alone.
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
    whole_study: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """One report on its way to one destination.

    Attributes
    ----------
    sent_at
        When the destination said that it stored the report; seconds since the epoch.
    checks, feeds
        How often it was looked for since, and how often it was sent again because it was missing.
    transaction_uid
        Of the storage commitment request that is open, or was not answered.
    away
        The destination is away: ask whether it is back before anything else.
    """

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
    sent_at: float | None
    checks: int
    feeds: int
    transaction_uid: str | None
    away: bool

    def is_open(self, attempt: int) -> bool:
        """Whether this attempt is under way: nobody has settled it."""
        return self.attempts == attempt and self.state in _UNDER_WAY


class Outbox:
    """Reports and deliveries of the ledger."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def claim_due(self, *, now: float, start: Start) -> tuple[tuple[int, int], ...]:
        """Take for each free destination its oldest delivery that is due, and enqueue its next attempt.

        Destinations that are away are left alone until they are to be asked.

        Returns
        -------
        tuple
            ``(delivery id, attempt)`` for each one taken.
        """
        with self._engine.connect() as connection:
            names = connection.execute(_DUE_PLACES, {"at": now}).scalars().all()
            oldest = [
                connection.execute(_OLDEST_DUE, {"at": now, "to": name}).one_or_none() for name in sorted(names)
            ]
        claimed = [(row.id, row.attempts + 1, row.destination) for row in oldest if row is not None]
        return tuple(
            (number, attempt)
            for number, attempt, name in claimed
            if self._claim(number, attempt, name, now=now, start=start)
        )

    def delivery(self, delivery_id: int) -> Delivery:
        """Give one delivery with its report."""
        with self._engine.connect() as connection:
            row = connection.execute(_DELIVERY, {"this_id": delivery_id}).one()
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
        provable: bool,
    ) -> DeliveryState | None:
        """Write down how an attempt ended and when the next one is due.

        Parameters
        ----------
        provable
            Whether the destination will be asked for the report; what it stored is ``unverified`` otherwise.

        Returns
        -------
        DeliveryState or None
            The new state; ``None`` when this attempt was settled before.
        """
        due = self.delivery(delivery_id)
        state, next_at = after_attempt(
            result,
            attempts=attempt,
            created_at=due.created_at,
            policy=policy,
            rng=rng,
            now=now,
            provable=provable,
        )
        values: dict[str, Any] = {"state": state, "next_attempt_at": next_at, "last_status": result.status}
        values["last_error"] = None if state is DeliveryState.SENT else result.text
        if state in STORED:
            values |= {"sent_at": now, "checks": 0, "transaction_uid": None}
        text = f"Report to {due.destination}, attempt {attempt}: {_WORDS.get(state, state.value)}. {result.text}"
        away = result.kind == "retry" and result.status is None
        return self._move(due, attempt, values, text, away=result.text if away else None, policy=policy, now=now)

    def still_away(
        self, delivery_id: int, attempt: int, result: SendResult, *, policy: RetryPolicy, now: float
    ) -> DeliveryState | None:
        """Put a delivery back whose destination did not answer the question whether it is back."""
        due = self.delivery(delivery_id)
        too_old = due.sent_at is None and now - due.created_at > policy.give_up_s
        state = _waiting(due.state)
        values: dict[str, Any] = {"state": state}
        if too_old:
            state = DeliveryState.FAILED_FINAL
            values = {"state": state, "next_attempt_at": None, "last_error": result.text}
        text = f"Report to {due.destination}: given up. {result.text}" if too_old else None
        return self._move(due, attempt, values, text, away=result.text, policy=policy, now=now)

    def settle_check(
        self, delivery_id: int, attempt: int, check: Check, *, policy: RetryPolicy, rng: Random, now: float
    ) -> DeliveryState | None:
        """Write down whether a stored report was found at its destination, and what follows.

        Returns
        -------
        DeliveryState or None
            The new state; ``None`` when this attempt was settled before, by the archive's own answer perhaps.
        """
        due = self.delivery(delivery_id)
        values = after_check(check, due, policy=policy, rng=rng, now=now)
        text = None
        if values["state"] != DeliveryState.SENT or check.kind == "unreachable":
            name = _WORDS.get(values["state"], values["state"].value)
            text = f"Report to {due.destination}: {name}. {check.text}"
        away = check.text if check.kind == "unreachable" else None
        return self._move(due, attempt, values, text, away=away, policy=policy, now=now)

    def note_transaction(self, delivery_id: int, attempt: int, transaction_uid: str) -> None:
        """Remember a storage commitment request before it is made: its answer may come at once."""
        with self._engine.begin() as connection:
            _settle(connection, delivery_id, attempt, {"transaction_uid": transaction_uid})

    def answered(
        self, transaction_uid: str, committed: Collection[str], missing: Mapping[str, str], *, now: float
    ) -> DeliveryState | None:
        """Take an archive's answer to a storage commitment request.

        Parameters
        ----------
        committed
            SOP Instance UIDs that it keeps.
        missing
            SOP Instance UIDs that it does not have, each with the reason; a sentence.

        Returns
        -------
        DeliveryState or None
            The delivery's new state; ``None`` when no delivery waits for this transaction.
        """
        with self._engine.connect() as connection:
            known = connection.execute(_WAITS_FOR_ANSWER, {"transaction": transaction_uid}).scalars().first()
        if known is None:
            return None
        due = self.delivery(known)
        values, text = _after_answer(due, committed, missing, now)
        values |= {"this_id": due.id, "transaction": transaction_uid, "state_changed_at": now}
        with self._engine.begin() as connection:
            destinations.lock(connection, due.destination)
            if connection.execute(_ANSWERED, values).rowcount != 1:
                return due.state
            state = DeliveryState(values["state"])
            note(connection, due.study_uid, f"delivery_{state.value}", text, at=now)
            return _back_in_line(connection, due, state, now)

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
        query = _LAST_DELIVERED if series_uid is None else _LAST_DELIVERED_OF_SERIES
        values = {"to": destination, "of_study": study_uid, "before": before_revision, "of_series": series_uid}
        with self._engine.connect() as connection:
            record: Mapping[str, Any] | None = connection.execute(query, values).scalar_one_or_none()
        return record

    def retry(self, study_uid: str, *, now: float) -> int:
        """Make the failed deliveries of a study due again, at a person's request; give how many.

        One that a newer report replaces stays as it is.
        """
        of_study = sa.select(report.c.sop_instance_uid).where(report.c.study_uid == study_uid)
        failed = sa.and_(
            delivery.c.state == DeliveryState.FAILED_FINAL,
            delivery.c.sop_instance_uid.in_(of_study),
            _REPLACED_BY.is_(None),
        )
        values = {"state": DeliveryState.QUEUED, "next_attempt_at": now, "created_at": now, "state_changed_at": now}
        values |= {"feeds": 0, "checks": 0, "transaction_uid": None, "sent_at": None}
        with self._engine.begin() as connection:
            return connection.execute(delivery.update().where(failed).values(values)).rowcount

    def _claim(self, delivery_id: int, attempt: int, name: str, *, now: float, start: Start) -> bool:
        still_due = {"this_id": delivery_id, "attempts_before": attempt - 1, "at": now}
        values = {"attempts": attempt, "state_changed_at": now}
        try:
            with self._engine.begin() as connection:
                destinations.lock(connection, name)
                if connection.execute(_CLAIM, still_due | values).rowcount != 1:
                    return False
                start(connection, delivery_id, attempt)
        except sa.exc.IntegrityError:  # another worker made the destination's row in this moment
            return False
        return True

    def _move(
        self,
        due: Delivery,
        attempt: int,
        values: Mapping[str, Any],
        text: str | None,
        *,
        away: str | None,
        policy: RetryPolicy,
        now: float,
    ) -> DeliveryState | None:
        """End an attempt once, tell the study's story, and keep the destination's own state."""
        state = DeliveryState(values["state"])
        with self._engine.begin() as connection:
            destinations.lock(connection, due.destination)
            if not _settle(connection, due.id, attempt, dict(values, state_changed_at=now)):
                return None
            if text is not None:
                note(connection, due.study_uid, f"delivery_{state.value}", text, at=now)
            state = _back_in_line(connection, due, state, now)
            if away is None:
                destinations.reached(connection, due.destination, now=now)
            else:
                destinations.not_reached(
                    connection,
                    due.destination,
                    away,
                    failures_allowed=policy.breaker_failures,
                    probe_s=policy.probe_s,
                    now=now,
                )
        return state


def put(connection: sa.Connection, reports: Sequence[NewReport], *, now: float) -> None:
    """Write reports and their deliveries, due at once; what is there already stays as it is.

    An older report on the same matter that still waits for the same destination is cancelled: the new one
    replaces it. A run that was overtaken files its report too, and that one is not sent.
    """
    for name in sorted({name for new in reports for name in new.destinations}):
        destinations.lock_known(connection, name)  # an older report that comes back from an attempt waits here
    for new in reports:
        known = connection.execute(_KNOWN_REPORT, {"this_uid": new.sop_instance_uid}).first()
        if known is None:
            connection.execute(_NEW_REPORT, _row(new, now))
        for name in new.destinations:
            _cancel_older(connection, new, name, now)
            _unless_overtaken(connection, _put_delivery(connection, new.sop_instance_uid, name, now))


def after_attempt(
    result: SendResult,
    *,
    attempts: int,
    created_at: float,
    policy: RetryPolicy,
    rng: Random,
    now: float,
    provable: bool,
) -> tuple[DeliveryState, float | None]:
    """Say what follows an attempt: the state, and when the next exchange is due (``None``: never)."""
    if result.kind == "delivered":
        return (
            (DeliveryState.SENT, now + policy.verify_after_s[0]) if provable else (DeliveryState.UNVERIFIED, None)
        )
    if result.kind == "refused":
        return DeliveryState.FAILED_FINAL, None
    next_at = now + policy.wait_s(attempts, rng)
    if next_at - created_at > policy.give_up_s:
        return DeliveryState.FAILED_FINAL, None
    return DeliveryState.QUEUED, next_at


def after_check(check: Check, due: Delivery, *, policy: RetryPolicy, rng: Random, now: float) -> dict[str, Any]:
    """Say what follows a question for a stored report: the values that its delivery gets."""
    match check.kind:
        case "proven":
            return _proven(check.by)
        case "asked":
            return {
                "state": DeliveryState.SENT,
                "checks": due.checks + 1,
                "next_attempt_at": now + policy.commitment_timeout_s,
            }
        case "missing" if due.checks + 1 < len(policy.verify_after_s) and check.by == "query":
            checks = due.checks + 1  # indexing may be late: look again
            return {
                "state": DeliveryState.SENT,
                "checks": checks,
                "next_attempt_at": now + policy.verify_after_s[checks],
            }
        case "missing":
            return _fed_again(due, check.text, now)
        case "unreachable" if now - (due.sent_at or now) <= policy.give_up_s:
            wait_s = policy.wait_s(due.checks + 1, rng)
            return {"state": DeliveryState.SENT, "next_attempt_at": now + wait_s, "last_error": check.text}
    return {"state": DeliveryState.UNVERIFIED, "next_attempt_at": None, "last_error": check.text}


def _after_answer(
    due: Delivery, committed: Collection[str], missing: Mapping[str, str], now: float
) -> tuple[dict[str, Any], str]:
    """Say what follows an archive's answer: the delivery's values, and a sentence for the study's story."""
    if due.sop_instance_uid in committed:
        return _proven("commitment"), f"Report to {due.destination}: delivered. The archive committed itself to it."
    if due.sop_instance_uid in missing:
        why = missing[due.sop_instance_uid]
        values = _fed_again(due, why, now)
        return values, f"Report to {due.destination}: {_WORDS.get(values['state'], values['state'].value)}. {why}"
    why = "The archive's answer to our storage commitment request does not name the report."
    return {"state": DeliveryState.SENT, "next_attempt_at": now}, f"Report to {due.destination}: sent. {why}"


def _proven(by: str | None) -> dict[str, Any]:
    return {"state": DeliveryState.DELIVERED, "next_attempt_at": None, "verified_by": by, "last_error": None}


def _fed_again(due: Delivery, why: str, now: float) -> dict[str, Any]:
    """Send a report again that its destination said it stored and does not have; not for ever."""
    if due.feeds >= FEEDS:
        text = f"Stored with Success {due.feeds + 1} times, and never there. {why}"
        return {"state": DeliveryState.FAILED_FINAL, "next_attempt_at": None, "last_error": text}
    return {
        "state": DeliveryState.QUEUED,
        "next_attempt_at": now,
        "created_at": now,
        "feeds": due.feeds + 1,
        "checks": 0,
        "transaction_uid": None,
        "sent_at": None,
        "last_error": why,
    }


def _waiting(under_way: DeliveryState) -> DeliveryState:
    return DeliveryState.SENT if under_way is DeliveryState.VERIFYING else DeliveryState.QUEUED


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
        "whole_study": new.whole_study,
    }


def _put_delivery(connection: sa.Connection, sop_instance_uid: str, destination: str, now: float) -> int:
    """Write a delivery unless it is there; give its number."""
    known = {"this_uid": sop_instance_uid, "to": destination}
    number = connection.execute(_KNOWN_DELIVERY, known).scalar_one_or_none()
    if number is None:
        values = {
            "sop_instance_uid": sop_instance_uid,
            "destination": destination,
            "state": DeliveryState.QUEUED,
            "attempts": 0,
            "next_attempt_at": now,
            "created_at": now,
            "state_changed_at": now,
        }
        connection.execute(_NEW_DELIVERY, values)
        number = connection.execute(_KNOWN_DELIVERY, known).scalar_one()
    return int(number)


def _cancel_older(connection: sa.Connection, new: NewReport, destination: str, now: float) -> None:
    """Cancel what an older revision still has to say: of the same series, of the whole study, or "not analysed"."""
    older = {"of_study": new.study_uid, "of_series": new.series_uid, "before": new.revision, "to": destination}
    values = _cancelled(new.revision) | {"state_changed_at": now}
    connection.execute(_CANCEL_OLDER, {"whole_study": new.whole_study, **older, **values})


def _back_in_line(connection: sa.Connection, due: Delivery, state: DeliveryState, now: float) -> DeliveryState:
    """Let a report that waits again wait, or cancel it and say so."""
    state = _unless_overtaken(connection, due.id, state)
    if state is DeliveryState.CANCELLED:
        text = f"Report to {due.destination}: cancelled. A newer one replaces it."
        note(connection, due.study_uid, f"delivery_{state.value}", text, at=now)
    return state


def _unless_overtaken(
    connection: sa.Connection, delivery_id: int, state: DeliveryState = DeliveryState.QUEUED
) -> DeliveryState:
    """Cancel a report that would be sent now although a newer one was filed for the same destination."""
    if state is not DeliveryState.QUEUED:
        return state
    revision = connection.execute(_REPLACEMENT, {"this_id": delivery_id}).scalar_one_or_none()
    if revision is None:
        return state
    connection.execute(_CANCEL, {"this_id": delivery_id, **_cancelled(revision)})
    return DeliveryState.CANCELLED


def _cancelled(revision: int) -> dict[str, Any]:
    why = f"Replaced by the report of revision {revision} before it could be sent."
    return {"state": DeliveryState.CANCELLED, "next_attempt_at": None, "last_error": why}


def _settle(connection: sa.Connection, delivery_id: int, attempt: int, values: Mapping[str, Any]) -> bool:
    ours = {"this_id": delivery_id, "attempt": attempt}
    return connection.execute(_SETTLE, {**ours, **values}).rowcount == 1
