"""Proofs that a study is whole: what the archive holds, whether slices form a volume, whether lungs end in it.

A proof speaks of the images that were here when it was made; the next image makes it void (decision 0105).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from scp_node.ledger.states import Purpose
from scp_node.ledger.tables import instance, proof, report, study
from scp_node.readiness import Counts, Proof

if TYPE_CHECKING:
    from collections.abc import Mapping

# Built once, as in ``arrivals``.
_this_study: Final[sa.BindParameter[str]] = sa.bindparam("this_study")
_LOOKED: Final = sa.select(proof.c.images_at, proof.c.look_again_at).where(proof.c.study_uid == _this_study)
_CHANGE: Final = sa.update(proof).where(proof.c.study_uid == _this_study)
_NEW: Final = sa.insert(proof)
_SPEAKS_OF: Final = (
    sa.select(proof.c.counts, proof.c.text)
    .join_from(proof, study)
    .where(proof.c.study_uid == _this_study, proof.c.images_at == study.c.last_received_at)
)
_HELD: Final = (
    sa.select(instance.c.series_uid, sa.func.count())
    .where(instance.c.study_uid == _this_study, instance.c.is_newest, instance.c.purpose != Purpose.OWN)
    .group_by(instance.c.series_uid)
)
_RECORDS: Final = sa.select(report.c.record).where(report.c.study_uid == _this_study)


@dataclass(frozen=True, slots=True)
class Held:
    """How many instances of a study are here, reports of ours left out: in all series, and in each."""

    series: Mapping[str, int]

    @property
    def total(self) -> int:
        """Instances of the study."""
        return sum(self.series.values())


class Proofs:
    """The proofs of the ledger."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def due(self, study_uid: str, *, images_at: float, now: float) -> bool:
        """Whether the archive is to be asked: never about these images, or long enough ago."""
        with self._engine.connect() as connection:
            row = connection.execute(_LOOKED, {"this_study": study_uid}).one_or_none()
        if row is None or row.images_at != images_at:
            return True
        return row.look_again_at is not None and bool(row.look_again_at <= now)

    def keep(self, study_uid: str, found: Proof, *, text: str, look_again_at: float | None) -> None:
        """Keep a proof; the last one counts."""
        values = {
            "images_at": found.images_at,
            "counts": found.counts.value,
            "geometry": found.geometry,
            "lungs": found.lungs,
            "text": text,
            "look_again_at": look_again_at,
        }
        with self._engine.begin() as connection:
            if connection.execute(_CHANGE, {"this_study": study_uid, **values}).rowcount == 0:
                connection.execute(_NEW, {"study_uid": study_uid, **values})

    def speaks_of(self, study_uid: str) -> tuple[Counts, str]:
        """Give the archive's counts for the images that are here now, and the sentence about them."""
        with self._engine.connect() as connection:
            row = connection.execute(_SPEAKS_OF, {"this_study": study_uid}).one_or_none()
        return (Counts.UNKNOWN, "") if row is None else (Counts(row.counts), str(row.text))

    def held(self, study_uid: str) -> Held:
        """Count what is here of a study."""
        with self._engine.connect() as connection:
            rows = connection.execute(_HELD, {"this_study": study_uid})
            return Held({str(uid): int(count) for uid, count in rows})

    def our_reports(self, study_uid: str) -> tuple[Mapping[str, object], ...]:
        """Give the frozen records of a study's reports: the archive may hold them and count them."""
        with self._engine.connect() as connection:
            return tuple(connection.execute(_RECORDS, {"this_study": study_uid}).scalars())
