"""Read-only queries behind ``nodule-node status`` and ``nodule-node explain``.

Gives what the ledger knows of every study from its first image on; UIDs and codes, never patient data.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from scp_node.ledger.engine import make_engine, schema_is_current, snapshot
from scp_node.ledger.states import Purpose
from scp_node.ledger.tables import delivery, event, instance, report, series, study

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy.sql.elements import ColumnElement


Ledger = sa.Engine
"""An open ledger, for rooms that do not import SQLAlchemy."""


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """One report on its way to one destination; times in seconds since the epoch, UTC."""

    id: int
    destination: str
    state: str
    attempts: int
    next_attempt_at: float | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class ReportView:
    """One report of a study and where it went."""

    sop_instance_uid: str
    series_uid: str
    revision: int
    outcome: str
    created_at: float
    deliveries: tuple[DeliveryView, ...]


@dataclass(frozen=True, slots=True)
class StudyView:
    """One study as an administrator wants to see it.

    Attributes
    ----------
    state, codes
        Where it stands, and the codes of its notices or of its refusal.
    revision
        0 before it was complete for the first time.
    sender
        AE title of the first sender.
    instances
        Number of instances by purpose (``ct``, ``other``, ``own``); replaced versions are not counted.
    first_received_at, last_received_at, state_since
        Seconds since the epoch, UTC.
    """

    study_uid: str
    state: str
    codes: tuple[str, ...]
    revision: int
    sender: str
    instances: Mapping[str, int]
    first_received_at: float
    last_received_at: float
    state_since: float
    reports: tuple[ReportView, ...]


@dataclass(frozen=True, slots=True)
class EventView:
    """One line of a story: what happened, when; ``study_uid`` is ``None`` where no study could be named."""

    at: float
    study_uid: str | None
    kind: str
    code: str | None
    text: str


@dataclass(frozen=True, slots=True)
class SeriesView:
    """One series: what the selection decided, and how its analysis ended.

    Attributes
    ----------
    decision
        JSON of :class:`pipeline.selection.SeriesVerdict`; ``None`` before the study was complete.
    analysis
        JSON of :func:`pipeline.domain.result.to_record`; ``None`` when it was not analysed.
    """

    series_uid: str
    holds_ct: bool
    instances: int
    decision: Mapping[str, Any] | None
    analysis: Mapping[str, Any] | None


class LedgerUnavailable(Exception):  # noqa: N818 (names the state, as the sentence does)
    """The ledger cannot be read; the text says why and what to do."""


def open_ledger(url: str) -> Ledger | None:
    """Open a ledger for reading; ``None`` when the node has never run on this database.

    Raises
    ------
    LedgerUnavailable
        The database cannot be reached, or its schema is not of this version.
    """
    place = sa.make_url(url)
    if place.get_backend_name() == "sqlite" and not Path(place.database or "").is_file():
        return None
    engine = make_engine(url)
    try:
        if not sa.inspect(engine).has_table(study.name):
            return None
        if not schema_is_current(engine):
            raise LedgerUnavailable("The database is of another version: run 'nodule-node db upgrade'.")
    except sa.exc.DatabaseError as error:
        raise LedgerUnavailable(f"The database cannot be opened: {error.orig}.") from None
    return engine


def studies(engine: sa.Engine, *, study_uid: str | None = None, limit: int | None = None) -> tuple[StudyView, ...]:
    """Give the studies, the one that moved last first; at most ``limit``."""
    query = sa.select(study).order_by(study.c.state_changed_at.desc(), study.c.study_uid)
    if study_uid is not None:
        query = query.where(study.c.study_uid == study_uid)
    with snapshot(engine) as connection:
        rows = connection.execute(query.limit(limit)).all()
        uids = [row.study_uid for row in rows] if study_uid or limit else None
        counts = _instances(connection, uids)
        reports = _reports(connection, uids)
    return tuple(
        StudyView(
            study_uid=row.study_uid,
            state=row.state,
            codes=tuple(row.codes),
            revision=row.revision,
            sender=row.sender,
            instances=counts.get(row.study_uid, {purpose.value: 0 for purpose in Purpose}),
            first_received_at=row.first_received_at,
            last_received_at=row.last_received_at,
            state_since=row.state_changed_at,
            reports=tuple(reports.get(row.study_uid, ())),
        )
        for row in rows
    )


def count_by_state(engine: sa.Engine) -> dict[str, int]:
    """Give the number of studies in each state that occurs."""
    with engine.connect() as connection:
        rows = connection.execute(sa.select(study.c.state, sa.func.count()).group_by(study.c.state))
        return dict(sorted((state, count) for state, count in rows))


def events(
    engine: sa.Engine, *, study_uid: str | None = None, kinds: Sequence[str] = (), limit: int | None = None
) -> tuple[EventView, ...]:
    """Give what happened, oldest first: of one study, or of all; of some kinds, or of all; the last ``limit``."""
    query = sa.select(event.c.at, event.c.study_uid, event.c.kind, event.c.code, event.c.text)
    if study_uid is not None:
        query = query.where(event.c.study_uid == study_uid)
    if kinds:
        query = query.where(event.c.kind.in_(kinds))
    with engine.connect() as connection:
        newest_first = connection.execute(query.order_by(event.c.id.desc()).limit(limit)).all()
    return tuple(EventView(*row) for row in reversed(newest_first))


def series_of(engine: sa.Engine, study_uid: str) -> tuple[SeriesView, ...]:
    """Give the series of a study, the best-ranked one first, those without a score last."""
    query = (
        sa.select(series, sa.func.count(instance.c.id).label("instances"))
        .select_from(
            series.outerjoin(
                instance,
                sa.and_(
                    instance.c.study_uid == series.c.study_uid,
                    instance.c.series_uid == series.c.series_uid,
                    instance.c.is_newest,
                ),
            )
        )
        .where(series.c.study_uid == study_uid)
        .group_by(*series.primary_key.columns)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    views = (SeriesView(row.series_uid, row.holds_ct, row.instances, row.decision, row.analysis) for row in rows)
    return tuple(sorted(views, key=_rank))


def _rank(view: SeriesView) -> tuple[bool, float, str]:
    decision = view.decision or {}
    score = decision.get("score")
    return not decision.get("eligible", False), -(score if score is not None else float("-inf")), view.series_uid


def _of(column: ColumnElement[str], uids: Iterable[str] | None) -> ColumnElement[bool]:
    return sa.true() if uids is None else column.in_(list(uids))


def _instances(connection: sa.Connection, uids: Iterable[str] | None) -> dict[str, dict[str, int]]:
    query = (
        sa.select(instance.c.study_uid, instance.c.purpose, sa.func.count())
        .where(instance.c.is_newest, _of(instance.c.study_uid, uids))
        .group_by(instance.c.study_uid, instance.c.purpose)
    )
    counts: dict[str, dict[str, int]] = defaultdict(lambda: {purpose.value: 0 for purpose in Purpose})
    for study_uid, purpose, count in connection.execute(query):
        counts[study_uid][purpose] = count
    return dict(counts)


def _reports(connection: sa.Connection, uids: Iterable[str] | None) -> dict[str, list[ReportView]]:
    deliveries: dict[str, list[DeliveryView]] = defaultdict(list)
    sent = sa.select(delivery).join_from(delivery, report).where(_of(report.c.study_uid, uids))
    for row in connection.execute(sent.order_by(delivery.c.id)):
        deliveries[row.sop_instance_uid].append(
            DeliveryView(row.id, row.destination, row.state, row.attempts, row.next_attempt_at, row.last_error)
        )
    reports: dict[str, list[ReportView]] = defaultdict(list)
    made = sa.select(report).where(_of(report.c.study_uid, uids))
    for row in connection.execute(made.order_by(report.c.created_at, report.c.sop_instance_uid)):
        reports[row.study_uid].append(
            ReportView(
                row.sop_instance_uid,
                row.series_uid,
                row.revision,
                row.outcome,
                row.created_at,
                tuple(deliveries[row.sop_instance_uid]),
            )
        )
    return reports
