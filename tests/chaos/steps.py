"""Where each study stands on the path, read from outside: from the ledger, and from who is sending."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa

from scp_node.ledger.states import FINISHED, StudyState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

STEPS = {
    "receiving": "images are going out to the listener",
    "waiting": "nobody sends; the quiet time runs",
    "queued": "the study is claimed, its run is not taken yet",
    "deciding": "the reader's child looks at the headers",
    "decided": "the decision is kept, the analysis has not begun",
    "analysing": "the detector's child works",
    "analysed": "the analysis is kept, the report has not begun",
    "reporting": "the reader's child writes the report",
    "reported": "the report is in the outbox, the study has not ended",
    "outbox": "the study has ended, its report waits for the archive",
    "sending": "an attempt to send it is claimed",
    "sent": "the archive said Success, no proof is asked for yet",
    "proving": "a question for the report is claimed",
}
"""The steps of the path in order; a study that has none of them is at rest."""

_DELIVERIES = {"queued": "outbox", "sending": "sending", "sent": "sent", "verifying": "proving"}
_PHASES = {  # of a study that is being analysed, the last one first: what lies in the ledger, and the step
    ("kept", "report"): "reported",
    ("begun", "report"): "reporting",
    ("kept", "analyse"): "analysed",
    ("begun", "analyse"): "analysing",
    ("kept", "decide"): "decided",
}


class LedgerView:
    """Reads the ledger of a running node without leaving a trace.

    A file is opened for reading and closed again each time, so that what is left of a killed node is found by the
    next one alone: a connection of ours would keep SQLite from the recovery that we are here to test.
    """

    def __init__(self, url: str) -> None:
        place = sa.make_url(url)
        self._file = place.database if place.get_backend_name() == "sqlite" else None
        self._server: psycopg.Connection[Any] | None = None
        if self._file is None:
            host = place.query["host"]
            self._server = psycopg.connect(
                f"user={place.username} dbname={place.database} host={host}", autocommit=True
            )

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Ask a question; nothing before the tables are there."""
        try:
            if self._server is not None:
                return self._server.execute(query.encode()).fetchall()
            with closing(sqlite3.connect(f"file:{self._file}?mode=ro", uri=True, timeout=30.0)) as file:
                return file.execute(query).fetchall()
        except (sqlite3.OperationalError, psycopg.errors.UndefinedTable):
            return []

    def size(self) -> int:
        """Bytes of the database."""
        if self._file is not None:
            return Path(self._file).stat().st_size
        return int(self.rows("SELECT pg_database_size(current_database())")[0][0])

    def close(self) -> None:
        """Let the server go."""
        if self._server is not None:
            self._server.close()


@dataclass(frozen=True)
class Scene:
    """What the ledger says at one moment.

    The step of each study that is not at rest, and when any step of it was begun last (seconds since the epoch);
    which studies have ended; and the life of the worker that holds the slot, or held it last.
    """

    steps: Mapping[str, str]
    begun_at: Mapping[str, float]
    ended: frozenset[str]
    boot: str

    def at(self, step: str) -> list[str]:
        """The studies that stand at a step."""
        return sorted(uid for uid, where in self.steps.items() if where == step)


def look(ledger: LedgerView, sending: Collection[str]) -> Scene:
    """Say where the studies stand; ``sending`` are those whose images are going out now."""
    studies = ledger.rows("SELECT study_uid, state, revision FROM nn_study")
    begun = dict(ledger.rows("SELECT key, max(started_at) FROM nn_step_start GROUP BY key"))
    keys = {
        "begun": set(begun),
        "kept": {key for (key,) in ledger.rows("SELECT key FROM nn_step_outcome")},
    }
    steps = dict.fromkeys(sending, "receiving")
    for uid, state in ledger.rows(
        "SELECT r.study_uid, d.state FROM nn_delivery d JOIN nn_report r USING (sop_instance_uid)"
    ):
        if state in _DELIVERIES:
            steps.setdefault(uid, _DELIVERIES[state])
    for uid, state, revision in studies:
        if state == StudyState.RECEIVING:
            steps[uid] = "receiving" if uid in sending else "waiting"
        elif state == StudyState.QUEUED:
            steps[uid] = "queued"
        elif state == StudyState.ANALYSING:
            steps[uid] = _phase(f"{uid}:{revision}:", keys)
    ended = frozenset(uid for uid, state, _ in studies if state in FINISHED and uid not in steps)
    begun_at: dict[str, float] = {}
    for key, at in begun.items():
        uid = key.split(":")[0]
        begun_at[uid] = max(at, begun_at.get(uid, 0.0))
    boot = next((boot for (boot,) in ledger.rows("SELECT boot FROM nn_lease WHERE slot = 'worker-0'")), "")
    return Scene(steps, begun_at, ended, boot)


def _phase(run: str, keys: Mapping[str, set[str]]) -> str:
    for (how, step), phase in _PHASES.items():
        if any(key.startswith(run) and key.endswith(step) for key in keys[how]):
            return phase
    return "deciding"
