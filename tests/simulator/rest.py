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


def is_at_rest(engine: Engine) -> bool:
    """Whether every study and every delivery has ended."""
    study = sa.select(tables.study.c.study_uid).where(tables.study.c.state.not_in(FINISHED)).limit(1)
    delivery = sa.select(tables.delivery.c.id).where(tables.delivery.c.state.not_in(ENDS)).limit(1)
    with engine.connect() as connection:
        return connection.execute(study).first() is None and connection.execute(delivery).first() is None
