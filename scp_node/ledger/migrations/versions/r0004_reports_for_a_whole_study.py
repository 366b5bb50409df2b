"""Whether a report replaces the older ones of every series of its study, or those of its own series alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; reports of earlier releases replace those of their own series."""
    op.add_column("nn_report", sa.Column("whole_study", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Take it away again."""
    op.drop_column("nn_report", "whole_study")
