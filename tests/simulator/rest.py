"""Whether a ledger is at rest: nothing more happens by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from scp_node.ledger import tables
from scp_node.ledger.states import FINISHED, DeliveryState

if TYPE_CHECKING:
    from sqlalchemy import Engine

ENDS = frozenset(
    {DeliveryState.DELIVERED, DeliveryState.UNVERIFIED, DeliveryState.FAILED_FINAL, DeliveryState.CANCELLED}
)
_STUDY = sa.select(tables.study.c.study_uid).where(tables.study.c.state.not_in(FINISHED)).limit(1)
_DELIVERY = sa.select(tables.delivery.c.id).where(tables.delivery.c.state.not_in(ENDS)).limit(1)


def is_at_rest(engine: Engine) -> bool:
    """Whether every study and every delivery has ended."""
    with engine.connect() as connection:
        return connection.execute(_STUDY).first() is None and connection.execute(_DELIVERY).first() is None
