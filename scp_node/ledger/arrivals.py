"""Records what arrived: one instance, one transaction, one of three outcomes.

A study's state is touched here only towards ``RECEIVING``; all other moves belong to the worker's rooms.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from pipeline.domain.outcome import Code
from scp_node.ledger import tables
from scp_node.ledger.prepared import DRIVER_FAULTS, NOT_UNIQUE, Prepared
from scp_node.ledger.states import EventKind, Purpose, StudyState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ATTEMPTS: Final = 3
MAX_TEXT: Final = 1024
MAX_GROUP: Final = 64  # arrivals in one transaction
_LIBRARY_FAULTS: Final = (
    sa.exc.OperationalError,
    sa.exc.InterfaceError,
    sa.exc.InternalError,
    sa.exc.TimeoutError,
)


class LedgerUnavailableError(Exception):
    """The database did not take the row: locked for too long, full, or not reachable."""


class Stored(StrEnum):
    """What an arrival was."""

    NEW = "new"
    DUPLICATE = "duplicate"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Note:
    """A row for ``nn_event``: ``text`` is one sentence without patient data."""

    kind: EventKind
    text: str
    code: str | None = None
    study_uid: str | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """One instance that lies safely on disk, or is only noted (``path`` is ``None``).

    ``sha256`` is the hash of the encoded data set, without the file meta information in front of it.
    ``notes`` are noted unless it is a duplicate, ``series_notes`` with the first instance of its series only.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    transfer_syntax_uid: str
    sha256: str
    size_bytes: int
    path: str | None
    purpose: Purpose
    calling_ae: str
    called_ae: str
    peer: str
    received_at: float
    notes: tuple[Note, ...] = ()
    series_notes: tuple[Note, ...] = ()


# Built once: building a statement takes several times as long as executing it, and each image needs five of these.
_at_study: Final[sa.BindParameter[str]] = sa.bindparam("at_study")
_at: Final[sa.BindParameter[float]] = sa.bindparam("at")
_this_study = tables.study.c.study_uid == _at_study
_this_series = sa.and_(
    tables.series.c.study_uid == _at_study, tables.series.c.series_uid == sa.bindparam("at_series")
)
_receives = tables.study.c.state == StudyState.RECEIVING
_LOCK_STUDY: Final = Prepared(sa.update(tables.study).where(_this_study).values(study_uid=tables.study.c.study_uid))
_NEW_STUDY: Final = sa.insert(tables.study)
_VERSIONS: Final = Prepared(
    sa.select(tables.instance.c.version, tables.instance.c.is_newest, tables.instance.c.sha256).where(
        tables.instance.c.sop_instance_uid == sa.bindparam("at_instance")
    )
)
_counted = sa.update(tables.series).where(_this_series).values(last_received_at=_at)
_COUNT_SERIES: Final = Prepared(_counted)
_COUNT_CT_SERIES: Final = Prepared(_counted.values(holds_ct=True))
_NEW_SERIES: Final = sa.insert(tables.series)
_INSTANCE_COLUMNS: Final = (
    "sop_instance_uid",
    "version",
    "is_newest",
    "study_uid",
    "series_uid",
    "sop_class_uid",
    "transfer_syntax_uid",
    "sha256",
    "size_bytes",
    "path",
    "purpose",
    "calling_ae",
    "called_ae",
    "peer",
    "received_at",
)
_NEW_INSTANCE: Final = Prepared(sa.insert(tables.instance), *_INSTANCE_COLUMNS)
_PROLONG: Final = Prepared(
    sa.update(tables.study).where(_this_study, _receives).values(last_received_at=_at, next_look_at=sa.null())
)
_RECEIVE_AGAIN: Final = (
    sa.update(tables.study)
    .where(_this_study, sa.not_(_receives))
    .values(
        state=StudyState.RECEIVING,
        last_received_at=_at,
        state_changed_at=_at,
        waiting_since=_at,
        next_look_at=sa.null(),
    )
)


@dataclass(slots=True)
class _Ticket:
    """An arrival that waits to be recorded, and then what became of it."""

    arrival: Arrival
    outcome: Stored | Exception | None = None


class Arrivals:
    """The ledger as the listener sees it.

    Parameters
    ----------
    engine
        Its database.
    keeps_connection
        Whether images in turn use one connection (SQLite) until the engine is disposed of: taking one from the pool
        costs as much as the statements of an image.
    """

    def __init__(self, engine: sa.Engine, *, keeps_connection: bool = False) -> None:
        self._engine = engine
        # SQLite's waiting writers poll the file; threads of one process queue here instead, and share a commit.
        self._groups = engine.dialect.name == "sqlite"
        self._turn = threading.Lock() if self._groups else nullcontext()
        self._waiting: deque[_Ticket] = deque()
        self._keeps = keeps_connection and self._groups
        self._kept: sa.Connection | None = None  # belongs to whoever has the turn
        if self._keeps:
            sa.event.listen(engine, "engine_disposed", self._let_go)

    def is_our_report(self, sop_instance_uid: str) -> bool:
        """Whether this node wrote the instance itself."""
        query = sa.select(tables.report.c.sop_instance_uid).where(
            tables.report.c.sop_instance_uid == sop_instance_uid
        )
        with _translated(), self._engine.connect() as connection:
            return connection.execute(query).first() is not None

    def record(self, arrival: Arrival) -> Stored:
        """Count an instance in, or recognise it.

        Returns
        -------
        Stored
            ``DUPLICATE``: the same data set is there already, nothing changed. ``CHANGED``: other bytes under a
            known SOP Instance UID; both rows stay, the new one is the newest.

        Raises
        ------
        LedgerUnavailableError
            Nothing was recorded.
        """
        if not self._groups:
            return self._record_alone(arrival)
        ticket = _Ticket(arrival)
        self._waiting.append(ticket)
        with self._turn:
            while ticket.outcome is None:  # else whoever had the turn before us has taken it along
                self._record_waiting()
        if isinstance(ticket.outcome, Stored):
            return ticket.outcome
        raise ticket.outcome

    def _record_waiting(self) -> None:
        """Record in one transaction whatever waits: one sync of the disk for the images of all senders."""
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_GROUP))]
        try:
            with _translated(), self._begin() as connection:
                outcomes = [_record(connection, ticket.arrival) for ticket in batch]
        except NOT_UNIQUE:  # another process was faster with one of them
            for ticket in batch:
                ticket.outcome = self._outcome_alone(ticket.arrival)
        except Exception as fault:  # noqa: BLE001 - each who waits has to hear of it
            for ticket in batch:
                ticket.outcome = fault
        else:
            for ticket, outcome in zip(batch, outcomes, strict=True):
                ticket.outcome = outcome

    @contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        """Begin a transaction for whoever has the turn."""
        if not self._keeps:
            with self._engine.begin() as connection:
                yield connection
            return
        connection = self._kept = self._kept or self._engine.connect()
        try:
            with connection.begin():
                yield connection
        except BaseException:
            self._close_kept()
            raise

    def _let_go(self, _engine: sa.Engine) -> None:
        with self._turn:
            self._close_kept()

    def _close_kept(self) -> None:
        """Close the connection instead of giving it back: the pool may be gone, or it of no more use."""
        kept, self._kept = self._kept, None
        if kept is not None:
            if not kept.invalidated:
                kept.detach()
            kept.close()

    def _outcome_alone(self, arrival: Arrival) -> Stored | Exception:
        try:
            return self._record_alone(arrival)
        except Exception as fault:  # noqa: BLE001 - for the one who waits
            return fault

    def _record_alone(self, arrival: Arrival) -> Stored:
        with _translated():
            for attempt in range(ATTEMPTS):
                try:
                    with self._engine.begin() as connection:
                        return _record(connection, arrival)
                except NOT_UNIQUE:
                    if attempt == ATTEMPTS - 1:  # another process inserted the same row first, again and again
                        raise
        raise AssertionError("unreachable: the loop returns or raises")

    def note(self, notes: Sequence[Note], now: float) -> None:
        """Add events."""
        with self._turn, _translated(), self._engine.begin() as connection:
            _note(connection, notes, now)

    def paths(self) -> frozenset[str]:
        """All paths that rows point to."""
        query = sa.select(tables.instance.c.path).where(tables.instance.c.path.is_not(None))
        with _translated(), self._engine.connect() as connection:
            return frozenset(connection.execute(query).scalars())

    def leaving(self) -> frozenset[str]:
        """The paths of images that are being deleted on purpose (:mod:`scp_node.ledger.retention`)."""
        query = sa.select(tables.instance.c.path).where(
            tables.instance.c.path.is_not(None), tables.instance.c.removed_at.is_not(None)
        )
        with _translated(), self._engine.connect() as connection:
            return frozenset(connection.execute(query).scalars())

    def forget_file(self, path: str, now: float) -> None:
        """Note that the file behind a row is gone."""
        instance = tables.instance
        lost = sa.select(instance.c.study_uid, instance.c.sop_instance_uid).where(instance.c.path == path)
        with self._turn, _translated(), self._engine.begin() as connection:
            # A write first: SQLite's transaction begins there.
            connection.execute(sa.update(instance).where(instance.c.path == path).values(path=path))
            notes = [
                Note(
                    EventKind.FILE_LOST,
                    f"The file of instance {row.sop_instance_uid} is gone from the disk; send it again.",
                    study_uid=row.study_uid,
                )
                for row in connection.execute(lost)
            ]
            connection.execute(sa.update(instance).where(instance.c.path == path).values(path=None))
            _note(connection, notes, now)


def _record(connection: sa.Connection, arrival: Arrival) -> Stored:
    _take_study(connection, arrival)
    known = _known(connection, arrival)
    if any(is_newest and sha256 == arrival.sha256 for _, is_newest, sha256 in known):
        if _repair_path(connection, arrival):
            _move_study(connection, arrival)
        return Stored.DUPLICATE
    _count_series(connection, arrival)
    if known:
        _supersede(connection, arrival)
    _insert_instance(connection, arrival, 1 + max((version for version, _, _ in known), default=0))
    _note(connection, arrival.notes, arrival.received_at)
    _move_study(connection, arrival)
    return Stored.CHANGED if known else Stored.NEW


def _take_study(connection: sa.Connection, arrival: Arrival) -> None:
    """Lock the study's row, or make it. A write comes first, so that SQLite's transaction begins here."""
    if _LOCK_STUDY.run(connection, {"at_study": arrival.study_uid}).rowcount == 0:
        values = {
            "study_uid": arrival.study_uid,
            "state": StudyState.RECEIVING,
            "revision": 0,
            "codes": [],
            "sender": arrival.calling_ae,
            "first_received_at": arrival.received_at,
            "last_received_at": arrival.received_at,
            "state_changed_at": arrival.received_at,
            "waiting_since": arrival.received_at,
        }
        connection.execute(_NEW_STUDY, values)


def _known(connection: sa.Connection, arrival: Arrival) -> Sequence[tuple[int, bool, str]]:
    """Give what is known of an instance: version, whether it is the newest, and hash of the data set."""
    return _VERSIONS.run(connection, {"at_instance": arrival.sop_instance_uid}).fetchall()


def _repair_path(connection: sa.Connection, arrival: Arrival) -> bool:
    """Point the row of a duplicate at the file that is there now; say whether the old one had been lost.

    An image whose file was lost counts as new when it comes again: its study was decided without it. Images that
    were deleted after their time wake their study when the last of them is back.
    """
    instance = tables.instance
    if arrival.path is None:
        return False
    same = sa.and_(
        instance.c.sop_instance_uid == arrival.sop_instance_uid,
        instance.c.study_uid == arrival.study_uid,
        instance.c.sha256 == arrival.sha256,
        instance.c.is_newest,
    )
    kept = instance.c.removed_at.is_(None)
    lost = connection.execute(
        sa.update(instance).where(same, kept, instance.c.path.is_(None)).values(path=arrival.path)
    )
    removed = connection.execute(
        sa.update(instance).where(same, sa.not_(kept)).values(path=arrival.path, removed_at=None)
    )
    moved = instance.c.path.is_distinct_from(arrival.path)
    connection.execute(sa.update(instance).where(same, moved).values(path=arrival.path))
    return lost.rowcount > 0 or (removed.rowcount > 0 and not _misses_removed(connection, arrival.study_uid))


def _misses_removed(connection: sa.Connection, study_uid: str) -> bool:
    """Whether images of a study are still gone that were deleted after their time, and are coming again."""
    instance = tables.instance
    gone = sa.select(instance.c.id).where(
        instance.c.study_uid == study_uid,
        instance.c.is_newest,
        instance.c.purpose == Purpose.CT,
        instance.c.removed_at.is_not(None),
    )
    return connection.execute(gone.limit(1)).first() is not None


def _count_series(connection: sa.Connection, arrival: Arrival) -> None:
    is_ct = arrival.purpose is Purpose.CT
    here = {"at_study": arrival.study_uid, "at_series": arrival.series_uid, "at": arrival.received_at}
    if (_COUNT_CT_SERIES if is_ct else _COUNT_SERIES).run(connection, here).rowcount == 0:
        values = {
            "study_uid": arrival.study_uid,
            "series_uid": arrival.series_uid,
            "holds_ct": is_ct,
            "last_received_at": arrival.received_at,
        }
        connection.execute(_NEW_SERIES, values)
        _note(connection, arrival.series_notes, arrival.received_at)


def _supersede(connection: sa.Connection, arrival: Arrival) -> None:
    """Make room for a newer version; the same UID in another study is another study's matter."""
    instance = tables.instance
    connection.execute(
        sa.update(instance)
        .where(instance.c.sop_instance_uid == arrival.sop_instance_uid, instance.c.study_uid == arrival.study_uid)
        .values(is_newest=False)
    )
    text = (
        f"Instance {arrival.sop_instance_uid} arrived again from {arrival.calling_ae} with other content; "
        "both are kept, the newest counts."
    )
    note = Note(EventKind.CHANGED, text, Code.INSTANCE_CHANGED, arrival.study_uid)
    _note(connection, [note], arrival.received_at)


def _insert_instance(connection: sa.Connection, arrival: Arrival, version: int) -> None:
    values = {name: getattr(arrival, name, None) for name in _INSTANCE_COLUMNS}
    _NEW_INSTANCE.run(
        connection, {**values, "version": version, "is_newest": True, "purpose": arrival.purpose.value}
    )


def _move_study(connection: sa.Connection, arrival: Arrival) -> None:
    """Take the study back to RECEIVING for a CT instance; anything else only prolongs a wait that is on."""
    here = {"at_study": arrival.study_uid, "at": arrival.received_at}
    if arrival.purpose is Purpose.OWN:
        return
    waits_on = _PROLONG.run(connection, here).rowcount
    if arrival.purpose is Purpose.CT and not waits_on:
        connection.execute(_RECEIVE_AGAIN, here)


def _note(connection: sa.Connection, notes: Sequence[Note], now: float) -> None:
    rows = [
        {"at": now, "study_uid": n.study_uid, "kind": n.kind, "code": n.code, "text": n.text[:MAX_TEXT]}
        for n in notes
    ]
    if rows:
        connection.execute(sa.insert(tables.event), rows)


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what the database library raises when the database cannot into one exception of ours."""
    try:
        yield
    except (*_LIBRARY_FAULTS, *DRIVER_FAULTS) as fault:
        raise LedgerUnavailableError(type(fault).__name__) from fault
