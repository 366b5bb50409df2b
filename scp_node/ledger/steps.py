"""Outcomes of steps, kept in our own table, and the leases of workers.

A step of the workflow engine runs at least once; :meth:`Steps.once` makes its outcome single: the first stored
one wins. The engine protects its own rows against a lost connection, ours are protected here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import sqlalchemy as sa

from scp_node.ledger.engine import patiently
from scp_node.ledger.tables import lease, step_outcome, step_start

if TYPE_CHECKING:
    from collections.abc import Callable

    from scp_node.ports import Clock

    Rows = Callable[[sa.Connection, Any], None]
    """Writes the rows that belong to an outcome, in its transaction."""

T = TypeVar("T")

# Built once, as in ``arrivals``: building a statement takes several times as long as executing it.
_this_step: Final[sa.BindParameter[str]] = sa.bindparam("this_step")
_OUTCOME: Final = sa.select(step_outcome.c.value).where(step_outcome.c.key == _this_step)
_STARTS: Final = sa.select(sa.func.count()).select_from(step_start).where(step_start.c.key == _this_step)
_NEW_OUTCOME: Final = sa.insert(step_outcome)
_NEW_START: Final = sa.insert(step_start)

_this_slot: Final = lease.c.slot == sa.bindparam("this_slot")
_at: Final[sa.BindParameter[float]] = sa.bindparam("at")
_ours = sa.and_(_this_slot, lease.c.boot == sa.bindparam("this_boot"))
_NEW_LEASE: Final = sa.insert(lease)
_RENEW: Final = sa.update(lease).where(_ours)
_RELEASE: Final = sa.delete(lease).where(_ours)
_TAKE_AWAY: Final = sa.delete(lease).where(_this_slot, lease.c.expires_at < _at)
_TAKE_ALL_AWAY: Final = sa.delete(lease).where(lease.c.expires_at < _at)
_LIVE: Final = sa.select(lease.c.slot)
_HOLDER: Final = sa.select(lease.c.boot, lease.c.expires_at).where(_this_slot)


class Steps:
    """Outcomes and starts of steps."""

    def __init__(self, engine: sa.Engine, *, executor: str, clock: Clock, retry_s: float = 120.0) -> None:
        self._engine = engine
        self._executor = executor
        self._clock = clock
        self._retry_s = retry_s

    def once(self, key: str, work: Callable[[], Any], rows: Rows | None = None) -> Any:
        """Do a step unless its outcome is known, and keep the outcome.

        Parameters
        ----------
        key
            The step's identity: study or series, revision, step.
        work
            Does the step; gives its outcome as JSON values, not ``None``. It may run more than once.
        rows
            Writes further rows in the outcome's transaction; called again when the transaction is repeated.

        Returns
        -------
        Any
            The outcome that counts: the stored one when another process was first.
        """
        self._patiently(lambda: self._note_start(key))
        known = self.outcome(key)
        if known is not None:
            return known
        value = work()
        try:
            self._patiently(lambda: self._store(key, value, rows))
        except sa.exc.IntegrityError:
            stored = self.outcome(key)
            if stored is None:
                raise
            return stored
        return value

    def outcome(self, key: str) -> Any:
        """Give a step's stored outcome, or ``None``."""

        def read() -> Any:
            with self._engine.connect() as connection:
                return connection.execute(_OUTCOME, {"this_step": key}).scalar()

        return self._patiently(read)

    def starts(self, key: str) -> int:
        """How often a step was started, by any process."""

        def read() -> int:
            with self._engine.connect() as connection:
                return int(connection.execute(_STARTS, {"this_step": key}).scalar_one())

        return self._patiently(read)

    def forgive(self) -> int:
        """Take back the starts of this executor's steps that have no outcome: it is stopped as planned.

        What a person or the service manager stopped did not fail; only what failed counts towards giving up.
        """
        ended = sa.select(step_outcome.c.key)
        open_ones = step_start.c.key.not_in(ended)
        last = sa.select(sa.func.max(step_start.c.id)).where(open_ones).group_by(step_start.c.key)
        ours = sa.and_(step_start.c.executor == self._executor, step_start.c.id.in_(last))
        with self._engine.begin() as connection:
            return connection.execute(step_start.delete().where(ours)).rowcount

    def _note_start(self, key: str) -> None:
        row = {"key": key, "executor": self._executor, "started_at": self._clock.now()}
        with self._engine.begin() as connection:
            connection.execute(_NEW_START, row)

    def _store(self, key: str, value: Any, rows: Rows | None) -> None:
        outcome = {"key": key, "value": value, "executor": self._executor, "created_at": self._clock.now()}
        with self._engine.begin() as connection:
            connection.execute(_NEW_OUTCOME, outcome)
            if rows is not None:
                rows(connection, value)

    def _patiently(self, work: Callable[[], T]) -> T:
        return patiently(work, limit_s=self._retry_s)


class Leases:
    """Which worker holds which slot, and until when. A slot is held by one boot of one process at a time."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def take(self, slot: str, boot: str, *, now: float, lease_s: float) -> bool:
        """Take a slot that nobody holds; ``False`` when a lease on it has not run out."""
        try:
            with self._engine.begin() as connection:
                connection.execute(_TAKE_AWAY, {"this_slot": slot, "at": now})
                connection.execute(_NEW_LEASE, {"slot": slot, "boot": boot, "expires_at": now + lease_s})
        except sa.exc.IntegrityError:
            return False
        return True

    def renew(self, slot: str, boot: str, *, now: float, lease_s: float) -> bool:
        """Prolong our lease; ``False`` when it is no longer ours."""
        values = {"this_slot": slot, "this_boot": boot, "expires_at": now + lease_s}
        with self._engine.begin() as connection:
            return connection.execute(_RENEW, values).rowcount == 1

    def release(self, slot: str, boot: str) -> None:
        """Give a slot back."""
        with self._engine.begin() as connection:
            connection.execute(_RELEASE, {"this_slot": slot, "this_boot": boot})

    def holder(self, slot: str) -> tuple[str, float] | None:
        """Give the boot that holds a slot and the end of its lease."""
        with self._engine.connect() as connection:
            row = connection.execute(_HOLDER, {"this_slot": slot}).one_or_none()
        return None if row is None else (str(row.boot), float(row.expires_at))

    def live(self, *, now: float) -> frozenset[str]:
        """Remove the leases that ran out and give the slots of the others."""
        with self._engine.begin() as connection:
            connection.execute(_TAKE_ALL_AWAY, {"at": now})
            return frozenset(connection.execute(_LIVE).scalars())
