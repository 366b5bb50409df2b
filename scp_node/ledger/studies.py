"""What becomes of a study after it was received: claimed, analysed, finished; and the images it consists of.

Every move is one conditional UPDATE that reports whether this process won. A move of an old revision, or of a
study that is receiving images again, changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from scp_node.ledger.associations import somebody_sends
from scp_node.ledger.states import FINISHED, Purpose, StudyState
from scp_node.ledger.tables import event, installation, instance, proof, report, series, study
from scp_node.readiness import Counts, Proof, StudyFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Start = Callable[[sa.Connection, str, int], None]
    """Enqueues the run of a study's revision in the caller's transaction."""

_AT_WORK = (StudyState.QUEUED, StudyState.ANALYSING)
RUN_LOST = "run_lost"
OVERDUE = "study_overdue"


@dataclass(frozen=True, slots=True)
class WaitingStudy:
    """A study that is being received."""

    study_uid: str
    facts: StudyFacts


@dataclass(frozen=True, slots=True)
class StudyAtWork:
    """A study whose revision has a run, or should have one."""

    study_uid: str
    revision: int


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
    content
        SHA-256 of the first bytes with this content: equal for two versions that differ in their encoding alone.
    changed
        Whether an earlier version had other content.
    """

    series_uid: str
    sop_instance_uid: str
    path: str
    version: int
    content: str = ""
    changed: bool = False


@dataclass(frozen=True, slots=True)
class NewVersion:
    """An image that came again with other bytes, not yet compared with what came before.

    Attributes
    ----------
    row
        Its row in the ledger.
    sha256, path
        Of the new bytes.
    earlier_content, earlier_path
        Of the version before it.
    """

    row: int
    sha256: str
    path: str
    earlier_content: str
    earlier_path: str


class Studies:
    """The studies of the ledger, seen from the worker."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def waiting(self, *, now: float = 0.0) -> tuple[WaitingStudy, ...]:
        """Give the studies that are being received, the longest waiting first.

        Associations of a listener whose lease ran out before ``now`` count as closed.
        """
        holds_ct = sa.exists().where(
            instance.c.study_uid == study.c.study_uid, instance.c.purpose == Purpose.CT, instance.c.is_newest
        )
        query = (
            sa.select(
                study,
                holds_ct.label("holds_ct"),
                somebody_sends(study.c.sender, now).label("association_open"),
                proof.c.images_at,
                proof.c.counts,
                proof.c.geometry,
                proof.c.lungs,
            )
            .select_from(study.outerjoin(proof))
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
                    waiting_since=row.first_received_at if row.waiting_since is None else row.waiting_since,
                    last_received_at=row.last_received_at,
                    not_before=row.next_look_at,
                    association_open=row.association_open,
                    proof=None
                    if row.images_at is None
                    else Proof(row.images_at, Counts(row.counts), row.geometry, row.lungs),
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

    def close_exhausted(self, seen: WaitingStudy, *, code: str, why: str, now: float) -> bool:
        """Finish a study that has been reported too often already; a person may ask for more."""
        with self._engine.begin() as connection:
            won = self._move_waiting(connection, seen, StudyState.NOT_ANALYSED, now, codes=[code])
            if won:
                note(connection, seen.study_uid, "not_analysed", why, code=code, at=now)
        return won

    def revisions_reported(self, study_uid: str, *, before: int | None = None) -> int:
        """Count the revisions that ended with a report since a person last asked for one."""
        query = (
            sa.select(sa.func.count(sa.distinct(report.c.revision)))
            .join_from(report, study)
            .where(report.c.study_uid == study_uid, report.c.revision > study.c.counted_from)
        )
        if before is not None:
            query = query.where(report.c.revision < before)
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def at_work(self) -> tuple[StudyAtWork, ...]:
        """Give the studies that are queued or being analysed, the longest waiting first."""
        query = (
            sa.select(study.c.study_uid, study.c.revision)
            .where(study.c.state.in_(_AT_WORK))
            .order_by(study.c.state_changed_at)
        )
        with self._engine.connect() as connection:
            return tuple(StudyAtWork(*row) for row in connection.execute(query))

    def send_back(self, study_uid: str, revision: int, *, why: str, now: float) -> bool:
        """Send a study whose run is gone back to be taken again; how long it has waited goes on counting."""
        values = {"state": StudyState.RECEIVING, "next_look_at": None, "state_changed_at": now}
        with self._engine.begin() as connection:
            won = _move(connection, study_uid, revision, _AT_WORK, **values)
            if won:
                note(connection, study_uid, RUN_LOST, why, at=now)
        return won

    def runs_lost(self, study_uid: str) -> int:
        """Count how often a run of the study vanished since it began to wait."""
        query = (
            sa.select(sa.func.count())
            .select_from(event)
            .join(study, study.c.study_uid == event.c.study_uid)
            .where(event.c.study_uid == study_uid, event.c.kind == RUN_LOST, event.c.at >= _waiting_since())
        )
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def note_overdue(self, *, alarm_s: float, now: float) -> tuple[str, ...]:
        """Write an event, once, for each study that has not ended for so long; give their UIDs."""
        known = sa.exists().where(
            event.c.study_uid == study.c.study_uid, event.c.kind == OVERDUE, event.c.at >= _waiting_since()
        )
        query = sa.select(study.c.study_uid, study.c.state).where(
            study.c.state.not_in(FINISHED), _waiting_since() <= now - alarm_s, ~known
        )
        with self._engine.connect() as connection:
            late = connection.execute(query).all()
        for row in late:
            text = f"The study has not ended for {alarm_s:.0f} s; it is {row.state}. See 'nodule-node status'."
            with self._engine.begin() as connection:
                note(connection, row.study_uid, OVERDUE, text, at=now)
        return tuple(row.study_uid for row in late)

    def begin(self, study_uid: str, revision: int, *, now: float) -> bool:
        """Say that a queued study is being analysed."""
        with self._engine.begin() as connection:
            won = _move(
                connection,
                study_uid,
                revision,
                (StudyState.QUEUED,),
                state=StudyState.ANALYSING,
                state_changed_at=now,
            )
            if won:
                note(connection, study_uid, "analysing", f"Revision {revision} is being analysed.", at=now)
        return won

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
        values = {
            "state": StudyState.RECEIVING,
            "next_look_at": None,
            "state_changed_at": now,
            "waiting_since": now,
            "counted_from": study.c.revision,
        }
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
        alike = instance.alias()
        same_content = (
            sa.select(sa.func.count())
            .where(
                alike.c.sop_instance_uid == instance.c.sop_instance_uid,
                alike.c.study_uid == instance.c.study_uid,
                _content(alike) == _content(instance),
            )
            .correlate(instance)
            .scalar_subquery()
        )
        query = (
            sa.select(
                instance.c.series_uid,
                instance.c.sop_instance_uid,
                instance.c.path,
                instance.c.version,
                _content(instance),
                sa.case((instance.c.version == 1, False), else_=instance.c.version > same_content),
            )
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
            rows = connection.execute(query).all()
        return tuple(
            ImageFile(series_uid, uid, path, version, content, bool(changed))
            for series_uid, uid, path, version, content, changed in rows
        )

    def new_versions(self, study_uid: str) -> tuple[NewVersion, ...]:
        """Give the images that came again and were not yet compared; both files are there."""
        earlier = instance.alias()
        same_image = sa.and_(
            earlier.c.sop_instance_uid == instance.c.sop_instance_uid,
            earlier.c.study_uid == instance.c.study_uid,
            earlier.c.version == instance.c.version - 1,
        )
        query = (
            sa.select(instance.c.id, instance.c.sha256, instance.c.path, _content(earlier), earlier.c.path)
            .join_from(instance, earlier, same_image)
            .where(
                instance.c.study_uid == study_uid,
                instance.c.purpose == Purpose.CT,
                instance.c.content_sha256.is_(None),
                instance.c.path.is_not(None),
                earlier.c.path.is_not(None),
            )
            .order_by(instance.c.version, instance.c.sop_instance_uid)
        )
        with self._engine.connect() as connection:
            return tuple(NewVersion(*row) for row in connection.execute(query))

    def keep_content(self, row: int, content: str) -> None:
        """Write down which content a version has: its own, or that of the version before it."""
        with self._engine.begin() as connection:
            connection.execute(instance.update().where(instance.c.id == row).values(content_sha256=content))

    def last_reported(self, study_uid: str, *, before: int) -> int | None:
        """Give the last revision with a report since a person last asked for one; ``None`` when there is none."""
        query = (
            sa.select(sa.func.max(report.c.revision))
            .join_from(report, study)
            .where(
                report.c.study_uid == study_uid,
                report.c.revision > study.c.counted_from,
                report.c.revision < before,
            )
        )
        with self._engine.connect() as connection:
            found = connection.execute(query).scalar_one()
        return None if found is None else int(found)

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


def _content(version: sa.FromClause) -> sa.ColumnElement[str]:
    return sa.func.coalesce(version.c.content_sha256, version.c.sha256)


def _waiting_since() -> sa.Function[float]:
    return sa.func.coalesce(study.c.waiting_since, study.c.first_received_at)


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
