"""What is known of each destination: whether it is away (its circuit breaker) and how it can be asked for proof.

A destination that cannot be reached several times in a row is *away*: its reports wait, and one exchange now and
then begins by asking whether it is back (C-ECHO). When it is, its reports go out one after another, oldest first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from scp_node.ledger.states import DeliveryState
from scp_node.ledger.studies import note
from scp_node.ledger.tables import delivery, destination

if TYPE_CHECKING:
    from collections.abc import Collection

OFFERS_KEPT_S = 86400.0

# Built once, as in ``arrivals``.
_this = destination.c.name == sa.bindparam("this_name")
_LOCK: Final = sa.update(destination).where(_this).values(name=destination.c.name)
_NEW: Final = sa.insert(destination)
_CHANGE: Final = sa.update(destination).where(_this)
_OFFERS: Final = sa.select(destination.c.offers).where(_this, destination.c.asked_at > sa.bindparam("not_before"))
_FAILURES: Final = sa.select(destination.c.failures, destination.c.opened_at).where(_this)
_IS_AWAY: Final = sa.select(destination.c.name).where(_this, destination.c.opened_at.is_not(None))
_DUE_AT_ONCE: Final = sa.update(delivery).where(
    delivery.c.destination == sa.bindparam("this_name"),
    delivery.c.state == DeliveryState.QUEUED,
    delivery.c.next_attempt_at > sa.bindparam("at"),
)
AWAY: Final = sa.select(destination.c.name).where(
    destination.c.opened_at.is_not(None), destination.c.probe_at > sa.bindparam("at")
)
"""The destinations that are away and not to be asked yet, for a query; ``at`` is the time."""


@dataclass(frozen=True, slots=True)
class DestinationView:
    """One destination as an administrator wants to see it.

    Attributes
    ----------
    failures
        Exchanges in a row that did not reach it.
    away_since, next_probe_at
        Seconds since the epoch; ``None`` while it is not away.
    why
        The last reason; a sentence.
    """

    name: str
    failures: int
    away_since: float | None
    next_probe_at: float | None
    why: str | None


class Destinations:
    """The destinations of the ledger."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def views(self) -> tuple[DestinationView, ...]:
        """Give all destinations that were ever tried, by name."""
        columns = destination.c
        query = sa.select(columns.name, columns.failures, columns.opened_at, columns.probe_at, columns.why)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(columns.name)).all()
        return tuple(DestinationView(*row) for row in rows)

    def offers(self, name: str, *, now: float) -> frozenset[str] | None:
        """Give the SOP classes for proof that a destination accepted within the last day; ``None``: ask it."""
        of_today = {"this_name": name, "not_before": now - OFFERS_KEPT_S}
        with self._engine.connect() as connection:
            known = connection.execute(_OFFERS, of_today).scalar_one_or_none()
        return None if known is None else frozenset(known)

    def keep_offers(self, name: str, offers: Collection[str], *, now: float) -> None:
        """Remember what a destination accepted."""
        with self._engine.begin() as connection:
            lock(connection, name)
            _change(connection, name, offers=sorted(offers), asked_at=now)


def lock(connection: sa.Connection, name: str) -> None:
    """Lock a destination's row, or make it: who moves a delivery does this first, so that workers queue here."""
    if not lock_known(connection, name):
        connection.execute(_NEW, {"name": name, "failures": 0})


def lock_known(connection: sa.Connection, name: str) -> bool:
    """Lock a destination's row if there is one; where there is none, nothing was ever under way."""
    return connection.execute(_LOCK, {"this_name": name}).rowcount == 1


def reached(connection: sa.Connection, name: str, *, now: float) -> bool:
    """Write down that a destination answered; what waits for it is due at once. Says whether it had been away."""
    came_back = connection.execute(_IS_AWAY, {"this_name": name}).first() is not None
    _change(connection, name, failures=0, opened_at=None, probe_at=None, why=None)
    if came_back:
        connection.execute(_DUE_AT_ONCE, {"this_name": name, "at": now, "next_attempt_at": now})
        note(connection, None, "destination_back", f"{name} answers again; waiting reports follow.", at=now)
    return came_back


def not_reached(
    connection: sa.Connection, name: str, why: str, *, failures_allowed: int, probe_s: float, now: float
) -> None:
    """Count a failure to reach a destination; after so many in a row it is away."""
    row = connection.execute(_FAILURES, {"this_name": name}).one()
    failures = row.failures + 1
    if failures < failures_allowed and row.opened_at is None:
        _change(connection, name, failures=failures, why=why)
        return
    _change(connection, name, failures=failures, why=why, opened_at=row.opened_at or now, probe_at=now + probe_s)
    if row.opened_at is None:
        text = f"{name} cannot be reached; its reports wait, and it is asked every {probe_s:g} s. {why}"
        note(connection, None, "destination_away", text, at=now)


def _change(connection: sa.Connection, name: str, **values: Any) -> None:
    connection.execute(_CHANGE, {"this_name": name, **values})
