"""Which images may be deleted: those whose reports are known to be where they belong, some days later.

Results, reports and events stay. Deleting takes two steps, so that a crash in between is told from a lost file:
images are marked as leaving, and forgotten when their files are gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from scp_node.ledger.states import DeliveryState, Purpose, StudyState
from scp_node.ledger.studies import note
from scp_node.ledger.tables import delivery, instance, report, study

if TYPE_CHECKING:
    from collections.abc import Callable

_AT_ONCE = 100
_PROVEN = (DeliveryState.DELIVERED, DeliveryState.CANCELLED)
_ENDED = (StudyState.REPORTED, StudyState.NOT_ANALYSED, StudyState.NO_CT)


class Retention:
    """The images of the ledger, as whoever frees the disk sees them."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def due(self, *, keep_s: float, now: float) -> tuple[str, ...]:
        """Give studies that ended so long ago, and whose reports were all proven to be there by then; some at once.

        A study that FAILED waits for a person. One that was reported has to have been delivered somewhere.
        """
        old = now - keep_s
        of_study = delivery.c.sop_instance_uid.in_(
            sa.select(report.c.sop_instance_uid).where(report.c.study_uid == study.c.study_uid)
        )
        open_or_young = sa.exists().where(
            of_study, sa.or_(delivery.c.state.not_in(_PROVEN), delivery.c.state_changed_at > old)
        )
        delivered = sa.exists().where(of_study, delivery.c.state == DeliveryState.DELIVERED)
        on_disk = sa.exists().where(instance.c.study_uid == study.c.study_uid, instance.c.path.is_not(None))
        query = (
            sa.select(study.c.study_uid)
            .where(
                study.c.state.in_(_ENDED),
                study.c.state_changed_at <= old,
                study.c.last_received_at <= old,
                on_disk,
                ~open_or_young,
                sa.or_(study.c.state != StudyState.REPORTED, delivered),
            )
            .order_by(study.c.state_changed_at)
            .limit(_AT_ONCE)
        )
        with self._engine.connect() as connection:
            return tuple(connection.execute(query).scalars())

    def mark(self, study_uid: str, *, now: float) -> int:
        """Say that the images of a study leave; nothing when it has gone on meanwhile. Gives their number."""
        leaves = sa.and_(instance.c.study_uid == study_uid, instance.c.path.is_not(None))
        with self._engine.begin() as connection:
            if not _lock(connection, study_uid, ended=True):
                return 0
            marked = connection.execute(
                instance.update().where(leaves, instance.c.removed_at.is_(None)).values(removed_at=now)
            ).rowcount
            if marked:
                text = f"{marked} images were deleted; results and events stay."
                note(connection, study_uid, "images_deleted", text, at=now)
        return marked

    def leaving(self) -> tuple[str, ...]:
        """Give the studies with images that leave."""
        query = sa.select(instance.c.study_uid).where(_leaves()).distinct()
        with self._engine.connect() as connection:
            return tuple(connection.execute(query).scalars())

    def forget(self, study_uid: str, delete: Callable[[str], None]) -> None:
        """Delete the files of images that leave, and forget their paths.

        The study's row is locked meanwhile, a few images at a time: an image that comes again just then is kept.
        """
        some = sa.select(instance.c.id, instance.c.path).where(_leaves(), instance.c.study_uid == study_uid)
        while True:
            with self._engine.begin() as connection:
                if not _lock(connection, study_uid, ended=False):
                    return
                rows = connection.execute(some.limit(_AT_ONCE)).all()
                for path in {row.path for row in rows}:
                    delete(path)
                ids = [row.id for row in rows]
                connection.execute(instance.update().where(instance.c.id.in_(ids)).values(path=None))
            if len(rows) < _AT_ONCE:
                return

    def has_gone(self, study_uid: str) -> bool:
        """Whether images of a study, as they count now, were deleted: it cannot be analysed without them."""
        query = sa.select(instance.c.id).where(
            instance.c.study_uid == study_uid,
            instance.c.purpose == Purpose.CT,
            instance.c.is_newest,
            instance.c.removed_at.is_not(None),
        )
        with self._engine.connect() as connection:
            return connection.execute(query.limit(1)).first() is not None


def _leaves() -> sa.ColumnElement[bool]:
    return sa.and_(instance.c.removed_at.is_not(None), instance.c.path.is_not(None))


def _lock(connection: sa.Connection, study_uid: str, *, ended: bool) -> bool:
    """Lock a study's row as arrivals do, so that they queue behind us; whether it is there, and has ended."""
    row = study.update().where(study.c.study_uid == study_uid).values(study_uid=study_uid)
    if ended:
        row = row.where(study.c.state.in_(_ENDED))
    return connection.execute(row).rowcount == 1
