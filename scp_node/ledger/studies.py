"""What becomes of a study after it was received: claimed, analysed, finished; and the images it consists of.

Every move is one conditional UPDATE that reports whether this process won. A move of an old revision, or of a
study that is receiving images again, changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

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


def _content(version: sa.FromClause) -> sa.ColumnElement[str]:
    return sa.func.coalesce(version.c.content_sha256, version.c.sha256)


def _images() -> sa.Select[Any]:
    """Select the CT images of a study as they count now, in the order of their UIDs."""
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
    return (
        sa.select(
            instance.c.series_uid,
            instance.c.sop_instance_uid,
            instance.c.path,
            instance.c.version,
            _content(instance),
            sa.case((instance.c.version == 1, False), else_=instance.c.version > same_content),
        )
        .where(
            instance.c.study_uid == _this_study,
            instance.c.purpose == Purpose.CT,
            instance.c.is_newest,
            instance.c.path.is_not(None),
        )
        .order_by(instance.c.sop_instance_uid)
    )


def _new_versions() -> sa.Select[Any]:
    """Select the images of a study that came again and were not yet compared; both files are there."""
    earlier = instance.alias()
    same_image = sa.and_(
        earlier.c.sop_instance_uid == instance.c.sop_instance_uid,
        earlier.c.study_uid == instance.c.study_uid,
        earlier.c.version == instance.c.version - 1,
    )
    return (
        sa.select(instance.c.id, instance.c.sha256, instance.c.path, _content(earlier), earlier.c.path)
        .join_from(instance, earlier, same_image)
        .where(
            instance.c.study_uid == _this_study,
            instance.c.purpose == Purpose.CT,
            instance.c.content_sha256.is_(None),
            instance.c.path.is_not(None),
            earlier.c.path.is_not(None),
        )
        .order_by(instance.c.version, instance.c.sop_instance_uid)
    )


# Built once, as in ``arrivals``.
_this_study: Final[sa.BindParameter[str]] = sa.bindparam("this_study")
_at: Final[sa.BindParameter[float]] = sa.bindparam("at", type_=sa.Double)
_this: Final = study.c.study_uid == _this_study
_this_revision: Final = sa.and_(_this, study.c.revision == sa.bindparam("this_revision"))
_receives: Final = study.c.state == StudyState.RECEIVING
_waiting_since: Final = sa.func.coalesce(study.c.waiting_since, study.c.first_received_at)
_WAITING: Final = (
    sa.select(
        study,
        sa.exists()
        .where(instance.c.study_uid == study.c.study_uid, instance.c.purpose == Purpose.CT, instance.c.is_newest)
        .label("holds_ct"),
        somebody_sends(study.c.sender, _at).label("association_open"),
        proof.c.images_at,
        proof.c.counts,
        proof.c.geometry,
        proof.c.lungs,
    )
    .select_from(study.outerjoin(proof))
    .where(_receives)
    .order_by(study.c.state_changed_at)
)
_MOVE_WAITING: Final = sa.update(study).where(
    _this, _receives, study.c.last_received_at == sa.bindparam("images_at")
)
_CLAIM: Final = _MOVE_WAITING.values(revision=study.c.revision + 1)
_MOVE_QUEUED: Final = sa.update(study).where(_this_revision, study.c.state == StudyState.QUEUED)
_MOVE_AT_WORK: Final = sa.update(study).where(_this_revision, study.c.state.in_(_AT_WORK))
_RETRY: Final = sa.update(study).where(_this, study.c.state.in_(FINISHED)).values(counted_from=study.c.revision)
_STATE: Final = sa.select(study.c.state, study.c.revision).where(_this)
_TIMES: Final = sa.select(study.c.first_received_at, study.c.last_received_at).where(_this)
_SENDER: Final = sa.select(study.c.sender).where(_this)
_WORKED_ON: Final = (
    sa.select(study.c.study_uid, study.c.revision)
    .where(study.c.state.in_(_AT_WORK))
    .order_by(study.c.state_changed_at)
)
_OF_REPORTS: Final = sa.and_(report.c.study_uid == _this_study, report.c.revision > study.c.counted_from)
_EARLIER: Final = report.c.revision < sa.bindparam("before")
_REPORTED: Final = (
    sa.select(sa.func.count(sa.distinct(report.c.revision))).join_from(report, study).where(_OF_REPORTS)
)
_REPORTED_EARLIER: Final = _REPORTED.where(_EARLIER)
_LAST_REPORTED: Final = (
    sa.select(sa.func.max(report.c.revision)).join_from(report, study).where(_OF_REPORTS, _EARLIER)
)
_RUNS_LOST: Final = (
    sa.select(sa.func.count())
    .select_from(event)
    .join(study, study.c.study_uid == event.c.study_uid)
    .where(event.c.study_uid == _this_study, event.c.kind == RUN_LOST, event.c.at >= _waiting_since)
)
_LATE: Final = sa.select(study.c.study_uid, study.c.state).where(
    study.c.state.not_in(FINISHED),
    _waiting_since <= _at,
    ~sa.exists().where(
        event.c.study_uid == study.c.study_uid, event.c.kind == OVERDUE, event.c.at >= _waiting_since
    ),
)
_IMAGES: Final = _images()
_IMAGES_OF_SERIES: Final = _IMAGES.where(instance.c.series_uid == sa.bindparam("of_series"))
_NEW_VERSIONS: Final = _new_versions()
_CONTENT: Final = sa.update(instance).where(instance.c.id == sa.bindparam("this_id"))
_CHANGE_SERIES: Final = sa.update(series).where(
    series.c.study_uid == _this_study, series.c.series_uid == sa.bindparam("of_series")
)
_NEW_EVENT: Final = sa.insert(event)


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
        with self._engine.connect() as connection:
            rows = connection.execute(_WAITING, {"at": now}).all()
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
            if not _move_waiting(connection, seen, StudyState.QUEUED, now, statement=_CLAIM, codes=[]):
                return None
            revision = int(connection.execute(_STATE, {"this_study": seen.study_uid}).one().revision)
            note(connection, seen.study_uid, "study_ready", f"Revision {revision} is complete: {why}.", at=now)
            start(connection, seen.study_uid, revision)
        return revision

    def close_without_ct(self, seen: WaitingStudy, *, codes: Sequence[str], why: str, now: float) -> bool:
        """Finish a study that holds nothing for this node."""
        with self._engine.begin() as connection:
            won = _move_waiting(connection, seen, StudyState.NO_CT, now, codes=list(codes))
            if won:
                note(connection, seen.study_uid, "no_ct", f"The study holds no CT image; {why}.", at=now)
        return won

    def close_exhausted(self, seen: WaitingStudy, *, code: str, why: str, now: float) -> bool:
        """Finish a study that has been reported too often already; a person may ask for more."""
        with self._engine.begin() as connection:
            won = _move_waiting(connection, seen, StudyState.NOT_ANALYSED, now, codes=[code])
            if won:
                note(connection, seen.study_uid, "not_analysed", why, code=code, at=now)
        return won

    def revisions_reported(self, study_uid: str, *, before: int | None = None) -> int:
        """Count the revisions that ended with a report since a person last asked for one."""
        query = _REPORTED if before is None else _REPORTED_EARLIER
        with self._engine.connect() as connection:
            return int(connection.execute(query, {"this_study": study_uid, "before": before}).scalar_one())

    def at_work(self) -> tuple[StudyAtWork, ...]:
        """Give the studies that are queued or being analysed, the longest waiting first."""
        with self._engine.connect() as connection:
            return tuple(StudyAtWork(*row) for row in connection.execute(_WORKED_ON))

    def send_back(self, study_uid: str, revision: int, *, why: str, now: float) -> bool:
        """Send a study whose run is gone back to be taken again; how long it has waited goes on counting."""
        values = {"state": StudyState.RECEIVING, "next_look_at": None, "state_changed_at": now}
        with self._engine.begin() as connection:
            won = _move(connection, _MOVE_AT_WORK, study_uid, revision, **values)
            if won:
                note(connection, study_uid, RUN_LOST, why, at=now)
        return won

    def runs_lost(self, study_uid: str) -> int:
        """Count how often a run of the study vanished since it began to wait."""
        with self._engine.connect() as connection:
            return int(connection.execute(_RUNS_LOST, {"this_study": study_uid}).scalar_one())

    def note_overdue(self, *, alarm_s: float, now: float) -> tuple[str, ...]:
        """Write an event, once, for each study that has not ended for so long; give their UIDs."""
        with self._engine.connect() as connection:
            late = connection.execute(_LATE, {"at": now - alarm_s}).all()
        for row in late:
            text = f"The study has not ended for {alarm_s:.0f} s; it is {row.state}. See 'nodule-node status'."
            with self._engine.begin() as connection:
                note(connection, row.study_uid, OVERDUE, text, at=now)
        return tuple(row.study_uid for row in late)

    def begin(self, study_uid: str, revision: int, *, now: float) -> bool:
        """Say that a queued study is being analysed."""
        with self._engine.begin() as connection:
            values = {"state": StudyState.ANALYSING, "state_changed_at": now}
            won = _move(connection, _MOVE_QUEUED, study_uid, revision, **values)
            if won:
                note(connection, study_uid, "analysing", f"Revision {revision} is being analysed.", at=now)
        return won

    def wait_again(self, study_uid: str, revision: int, *, until: float, why: str, now: float) -> bool:
        """Send a study back to wait for missing images, at most until a time."""
        with self._engine.begin() as connection:
            values = {"state": StudyState.RECEIVING, "next_look_at": until, "state_changed_at": now}
            won = _move(connection, _MOVE_AT_WORK, study_uid, revision, **values)
            if won:
                note(connection, study_uid, "study_waits", why, at=now)
        return won

    def finish(
        self, study_uid: str, revision: int, *, state: StudyState, codes: Sequence[str], text: str, now: float
    ) -> bool:
        """End a revision; ``False`` when the study has moved on to another one, whose end will count."""
        with self._engine.begin() as connection:
            values = {"state": state, "codes": list(dict.fromkeys(codes)), "state_changed_at": now}
            won = _move(connection, _MOVE_AT_WORK, study_uid, revision, **values)
            if won:
                note(connection, study_uid, state.value.lower(), text, code=codes[0] if codes else None, at=now)
        return won

    def retry(self, study_uid: str, *, now: float) -> bool:
        """Let a finished study be analysed once more, at a person's request."""
        values = {
            "this_study": study_uid,
            "state": StudyState.RECEIVING,
            "next_look_at": None,
            "state_changed_at": now,
            "waiting_since": now,
        }
        with self._engine.begin() as connection:
            won = connection.execute(_RETRY, values).rowcount == 1
            if won:
                note(connection, study_uid, "retry", "A person asked for a new analysis.", at=now)
        return won

    def state(self, study_uid: str) -> tuple[StudyState, int] | None:
        """Give a study's state and revision."""
        with self._engine.connect() as connection:
            row = connection.execute(_STATE, {"this_study": study_uid}).one_or_none()
        return None if row is None else (StudyState(row.state), int(row.revision))

    def times(self, study_uid: str) -> tuple[float, float]:
        """Give when a study's first and last instances arrived."""
        with self._engine.connect() as connection:
            row = connection.execute(_TIMES, {"this_study": study_uid}).one()
        return float(row.first_received_at), float(row.last_received_at)

    def sender(self, study_uid: str) -> str:
        """Give the AE title that sent a study."""
        with self._engine.connect() as connection:
            return str(connection.execute(_SENDER, {"this_study": study_uid}).scalar_one())

    def images(self, study_uid: str, series_uid: str | None = None) -> tuple[ImageFile, ...]:
        """Give the CT images of a study, or of one of its series, in the order of their UIDs."""
        query = _IMAGES if series_uid is None else _IMAGES_OF_SERIES
        with self._engine.connect() as connection:
            rows = connection.execute(query, {"this_study": study_uid, "of_series": series_uid}).all()
        return tuple(
            ImageFile(series_uid, uid, path, version, content, bool(changed))
            for series_uid, uid, path, version, content, changed in rows
        )

    def new_versions(self, study_uid: str) -> tuple[NewVersion, ...]:
        """Give the images that came again and were not yet compared; both files are there."""
        with self._engine.connect() as connection:
            rows = connection.execute(_NEW_VERSIONS, {"this_study": study_uid})
            return tuple(NewVersion(*row) for row in rows)

    def keep_content(self, row: int, content: str) -> None:
        """Write down which content a version has: its own, or that of the version before it."""
        with self._engine.begin() as connection:
            connection.execute(_CONTENT, {"this_id": row, "content_sha256": content})

    def last_reported(self, study_uid: str, *, before: int) -> int | None:
        """Give the last revision with a report since a person last asked for one; ``None`` when there is none."""
        with self._engine.connect() as connection:
            found = connection.execute(_LAST_REPORTED, {"this_study": study_uid, "before": before}).scalar_one()
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


def record_decision(connection: sa.Connection, study_uid: str, decisions: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep, for each series, why it was or was not chosen; series without a row get none."""
    for series_uid, decision in decisions.items():
        values = {"this_study": study_uid, "of_series": series_uid, "decision": dict(decision)}
        connection.execute(_CHANGE_SERIES, values)


def record_analysis(
    connection: sa.Connection, study_uid: str, series_uid: str, analysis: Mapping[str, Any] | None
) -> None:
    """Keep the last analysis of a series."""
    values = {
        "this_study": study_uid,
        "of_series": series_uid,
        "analysis": None if analysis is None else dict(analysis),
    }
    connection.execute(_CHANGE_SERIES, values)


def note(
    connection: sa.Connection, study_uid: str | None, kind: str, text: str, *, at: float, code: str | None = None
) -> None:
    """Write one line of a study's story: ASCII, no patient data."""
    values = {"at": at, "study_uid": study_uid, "kind": kind, "code": code, "text": text}
    connection.execute(_NEW_EVENT, values)


def _move_waiting(
    connection: sa.Connection,
    seen: WaitingStudy,
    state: StudyState,
    now: float,
    *,
    codes: Sequence[str],
    statement: sa.Update = _MOVE_WAITING,
) -> bool:
    """Move a study that is being received, unless an image arrived since it was seen."""
    values = {"this_study": seen.study_uid, "images_at": seen.facts.last_received_at, "codes": codes}
    values |= {"state": state, "next_look_at": None, "state_changed_at": now}
    return connection.execute(statement, values).rowcount == 1


def _move(connection: sa.Connection, statement: sa.Update, study_uid: str, revision: int, **values: Any) -> bool:
    values |= {"this_study": study_uid, "this_revision": revision}
    return connection.execute(statement, values).rowcount == 1
