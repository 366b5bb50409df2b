"""Who is sending now: the listeners' open associations, and whether the listener that opened them still lives.

A listener renews a lease as workers do (``listener:BOOT``); the associations of one that died count no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from scp_node.ledger.steps import Leases
from scp_node.ledger.tables import association, lease

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.sql.elements import ColumnElement

PREFIX = "listener:"


class OpenAssociations:
    """The associations of one start of a listener, which ``boot`` (random, at most 32 characters) names."""

    def __init__(self, engine: sa.Engine, boot: str) -> None:
        self._engine = engine
        self._boot = boot
        self._leases = Leases(engine)

    def start(self, *, now: float, lease_s: float) -> None:
        """Say that this listener lives, and clear away what listeners left behind that do not."""
        self._leases.take(PREFIX + self._boot, self._boot, now=now, lease_s=lease_s)
        live = sa.select(lease.c.boot).where(lease.c.slot.startswith(PREFIX), lease.c.expires_at >= now)
        with self._engine.begin() as connection:
            connection.execute(association.delete().where(association.c.boot.not_in(live)))

    def beat(self, *, now: float, lease_s: float) -> None:
        """Say that this listener still lives; a lease that was lost is taken again."""
        slot = PREFIX + self._boot
        if not self._leases.renew(slot, self._boot, now=now, lease_s=lease_s):
            self._leases.take(slot, self._boot, now=now, lease_s=lease_s)

    def keep(self, open_now: Mapping[int, str], *, now: float) -> None:
        """Make the rows of this listener those of its open associations: number to calling AE title."""
        ours = association.c.boot == self._boot
        rows = [
            {"boot": self._boot, "number": number, "calling_ae": calling, "opened_at": now}
            for number, calling in open_now.items()
        ]
        with self._engine.begin() as connection:
            connection.execute(association.delete().where(ours, association.c.number.not_in(list(open_now))))
            known = set(connection.execute(sa.select(association.c.number).where(ours)).scalars())
            fresh = [row for row in rows if row["number"] not in known]
            if fresh:
                connection.execute(association.insert(), fresh)

    def stop(self) -> None:
        """Take back the lease and all rows."""
        with self._engine.begin() as connection:
            connection.execute(association.delete().where(association.c.boot == self._boot))
        self._leases.release(PREFIX + self._boot, self._boot)


def somebody_sends(sender: ColumnElement[str], now: ColumnElement[float]) -> ColumnElement[bool]:
    """Whether a living listener has an association open from a sender: a condition for a query."""
    return (
        sa.exists()
        .where(
            association.c.calling_ae == sender,
            lease.c.boot == association.c.boot,
            lease.c.slot.startswith(PREFIX),
            lease.c.expires_at >= now,
        )
        .correlate(sender.table)
    )
