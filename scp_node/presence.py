"""The listener's sign of life in the ledger: a lease, and a row for each association that may bring images.

The worker reads them to know whether somebody is still sending (:mod:`scp_node.readiness`). Level-triggered: what
is written is always the whole present state, so that a write that failed is made up for by the next one.
"""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scp_node.ledger.associations import OpenAssociations
    from scp_node.ports import Clock

LOOK_EVERY_S = 0.25

log = structlog.get_logger()


class Presence:
    """Writes down that this listener lives and who is sending to it.

    Parameters
    ----------
    ledger
        Where.
    open_now
        Gives the open associations: number to calling AE title.
    lease_s, beat_s
        The sign of life is renewed every ``beat_s`` and counts for ``lease_s``.
    """

    def __init__(
        self,
        ledger: OpenAssociations,
        open_now: Callable[[], Mapping[int, str]],
        clock: Clock,
        *,
        lease_s: float,
        beat_s: float,
    ) -> None:
        self._ledger = ledger
        self._open_now = open_now
        self._clock = clock
        self._lease_s, self._beat_s = lease_s, beat_s
        self._written: Mapping[int, str] = {}
        self._beat_at: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="presence", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and take back what was written."""
        self._stop.set()
        self._thread.join()
        try:
            self._ledger.stop()
        except Exception:  # noqa: BLE001 - the lease runs out by itself, and the process ends
            log.warning("The listener's sign of life could not be taken back.")

    def look(self) -> None:
        """Write what has changed since the last look, and the sign of life when it is due."""
        now, present = self._clock.now(), self._open_now()
        if self._beat_at is None:
            self._ledger.start(now=now, lease_s=self._lease_s)
            self._beat_at = now
        elif not self._beat_at <= now < self._beat_at + self._beat_s:
            self._ledger.beat(now=now, lease_s=self._lease_s)
            self._beat_at = now
        if present.keys() != self._written.keys():
            self._ledger.keep(present, now=now)
            self._written = dict(present)

    def _loop(self) -> None:
        failing = False
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self.look()
                failing = False
            except Exception:  # a database that is away: the next look makes up for it
                if not failing:
                    log.exception("The listener's sign of life could not be written; trying again.")
                failing = True


def new_boot() -> str:
    """Name one start of a listener, as no other one is named."""
    return secrets.token_hex(8)
