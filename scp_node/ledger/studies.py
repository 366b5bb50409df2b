"""What becomes of a study after it was received: claimed, analysed, finished; and the images it consists of.

Every move is one conditional UPDATE that reports whether this process won. A move of an old revision, or of a
study that is receiving images again, changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from scp_node.ledger.states import FINISHED, Purpose, StudyState
from scp_node.ledger.tables import event, installation, instance, series, study
from scp_node.readiness import StudyFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Start = Callable[[sa.Connection, str, int], None]
    """Enqueues the run of a study's revision in the caller's transaction."""

_AT_WORK = (StudyState.QUEUED, StudyState.ANALYSING)


@dataclass(frozen=True, slots=True)
class WaitingStudy:
    """A study that is being received."""

    study_uid: str
    facts: StudyFacts


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One CT instance as it counts now: the newest version of its UID.

    Attributes
    ----------
    series_uid, sop_instance_uid
        As received.
    path
        Relative to the storage folder.
    version
        Above 1 when other bytes came under the same UID.
    """

    series_uid: str
    sop_instance_uid: str
    path: str
    version: int


class Studies:
    """The studies of the ledger, seen from the worker."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def waiting(self) -> tuple[WaitingStudy, ...]:
        """Give the studies that are being received, the longest waiting first."""
        holds_ct = sa.exists().where(
            instance.c.study_uid == study.c.study_uid, instance.c.purpose == Purpose.CT, instance.c.is_newest
        )
        query = (
            sa.select(study, holds_ct.label("holds_ct"))
            .where(study.c.state == StudyState.RECEIVING)
            .order_by(study.c.state_changed_at)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return tuple(
            WaitingStudy(
                row.study_uid,
                StudyFacts(
                    holds_ct=row.holds_ct,
                    waiting_since=max(row.first_received_at, row.state_changed_at),
                    last_received_at=row.last_received_at,
                    not_before=row.next_look_at,
                ),
            )
            for row in rows
        )

    def claim(self, seen: WaitingStudy, *, why: str, now: float, start: Start) -> int | None:
        """Take a complete study: RECEIVING to QUEUED, a new revision, and its run, in one transaction.

        Returns
        -------
        int or None
            The revision; ``None`` when an image arrived since the study was seen, or another worker was first.
        """
        with self._engine.begin() as connection:
            if not self._move_waiting(
                connection, seen, StudyState.QUEUED, now, revision=study.c.revision + 1, codes=[]
            ):
                return None
            query = sa.select(study.c.revision).where(study.c.study_uid == seen.study_uid)
            revision = int(connection.execute(query).scalar_one())
            note(connection, seen.study_uid, "study_ready", f"Revision {revision} is complete: {why}.", at=now)
            start(connection, seen.study_uid, revision)
        return revision

    def close_without_ct(self, seen: WaitingStudy, *, codes: Sequence[str], why: str, now: float) -> bool:
        """Finish a study that holds nothing for this node."""
        with self._engine.begin() as connection:
            won = self._move_waiting(connection, seen, StudyState.NO_CT, now, codes=list(codes))
            if won:
                note(connection, seen.study_uid, "no_ct", f"The study holds no CT image; {why}.", at=now)
        return won

    def begin(self, study_uid: str, revision: int, *, now: float) -> bool:
        """Say that a queued study is being analysed."""
        with self._engine.begin() as connection:
            return _move(
                connection,
                study_uid,
                revision,
                (StudyState.QUEUED,),
                state=StudyState.ANALYSING,
                state_changed_at=now,
            )

    def wait_again(self, study_uid: str, revision: int, *, until: float, why: str, now: float) -> bool:
        """Send a study back to wait for missing images, at most until a time."""
        with self._engine.begin() as connection:
            won = _move(
                connection,
                study_uid,
                revision,
                _AT_WORK,
                state=StudyState.RECEIVING,
                next_look_at=until,
                state_changed_at=now,
            )
            if won:
                note(connection, study_uid, "study_waits", why, at=now)
        return won

    def finish(
        self, study_uid: str, revision: int, *, state: StudyState, codes: Sequence[str], text: str, now: float
    ) -> bool:
        """End a revision; ``False`` when the study has moved on to another one, whose end will count."""
        with self._engine.begin() as connection:
            won = _move(
                connection,
                study_uid,
                revision,
                _AT_WORK,
                state=state,
                codes=list(dict.fromkeys(codes)),
                state_changed_at=now,
            )
            if won:
                note(connection, study_uid, state.value.lower(), text, code=codes[0] if codes else None, at=now)
        return won

    def retry(self, study_uid: str, *, now: float) -> bool:
        """Let a finished study be analysed once more, at a person's request."""
        finished = sa.and_(study.c.study_uid == study_uid, study.c.state.in_(FINISHED))
        values = {"state": StudyState.RECEIVING, "next_look_at": None, "state_changed_at": now}
        with self._engine.begin() as connection:
            won = connection.execute(study.update().where(finished).values(values)).rowcount == 1
            if won:
                note(connection, study_uid, "retry", "A person asked for a new analysis.", at=now)
        return won

    def state(self, study_uid: str) -> tuple[StudyState, int] | None:
        """Give a study's state and revision."""
        query = sa.select(study.c.state, study.c.revision).where(study.c.study_uid == study_uid)
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else (StudyState(row.state), int(row.revision))

    def times(self, study_uid: str) -> tuple[float, float]:
        """Give when a study's first and last instances arrived."""
        query = sa.select(study.c.first_received_at, study.c.last_received_at).where(study.c.study_uid == study_uid)
        with self._engine.connect() as connection:
            row = connection.execute(query).one()
        return float(row.first_received_at), float(row.last_received_at)

    def sender(self, study_uid: str) -> str:
        """Give the AE title that sent a study."""
        query = sa.select(study.c.sender).where(study.c.study_uid == study_uid)
        with self._engine.connect() as connection:
            return str(connection.execute(query).scalar_one())

    def images(self, study_uid: str, series_uid: str | None = None) -> tuple[ImageFile, ...]:
        """Give the CT images of a study, or of one of its series, in the order of their UIDs."""
        query = (
            sa.select(instance.c.series_uid, instance.c.sop_instance_uid, instance.c.path, instance.c.version)
            .where(
                instance.c.study_uid == study_uid,
                instance.c.purpose == Purpose.CT,
                instance.c.is_newest,
                instance.c.path.is_not(None),
            )
            .order_by(instance.c.sop_instance_uid)
        )
        if series_uid is not None:
            query = query.where(instance.c.series_uid == series_uid)
        with self._engine.connect() as connection:
            return tuple(ImageFile(*row) for row in connection.execute(query))

    def installation_id(self, fresh: str) -> str:
        """Give the random text that names this installation; ``fresh`` becomes it when there is none yet."""
        query = sa.select(installation.c.value).where(installation.c.key == "installation_id")
        try:
            with self._engine.begin() as connection:
                connection.execute(installation.insert().values(key="installation_id", value=fresh))
        except sa.exc.IntegrityError:
            with self._engine.connect() as connection:
                return str(connection.execute(query).scalar_one())
        return fresh

    @staticmethod
    def _move_waiting(
        connection: sa.Connection, seen: WaitingStudy, state: StudyState, now: float, **values: Any
    ) -> bool:
        unchanged = sa.and_(
            study.c.study_uid == seen.study_uid,
            study.c.state == StudyState.RECEIVING,
            study.c.last_received_at == seen.facts.last_received_at,
        )
        move = study.update().where(unchanged)
        return (
            connection.execute(move.values(state=state, next_look_at=None, state_changed_at=now, **values)).rowcount
            == 1
        )


def record_decision(connection: sa.Connection, study_uid: str, decisions: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep, for each series, why it was or was not chosen; series without a row get none."""
    for series_uid, decision in decisions.items():
        row = sa.and_(series.c.study_uid == study_uid, series.c.series_uid == series_uid)
        connection.execute(series.update().where(row).values(decision=dict(decision)))


def record_analysis(
    connection: sa.Connection, study_uid: str, series_uid: str, analysis: Mapping[str, Any] | None
) -> None:
    """Keep the last analysis of a series."""
    row = sa.and_(series.c.study_uid == study_uid, series.c.series_uid == series_uid)
    connection.execute(series.update().where(row).values(analysis=None if analysis is None else dict(analysis)))


def note(
    connection: sa.Connection, study_uid: str | None, kind: str, text: str, *, at: float, code: str | None = None
) -> None:
    """Write one line of a study's story: ASCII, no patient data."""
    connection.execute(event.insert().values(at=at, study_uid=study_uid, kind=kind, code=code, text=text))


def _move(
    connection: sa.Connection, study_uid: str, revision: int, from_states: Sequence[StudyState], **values: Any
) -> bool:
    row = sa.and_(study.c.study_uid == study_uid, study.c.revision == revision, study.c.state.in_(from_states))
    return connection.execute(study.update().where(row).values(**values)).rowcount == 1
