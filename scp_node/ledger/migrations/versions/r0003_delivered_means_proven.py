"""What proves that a report is at its destination, which destinations are away, and which images were removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table; what was called delivered had been sent, and nobody had asked further."""
    op.add_column("nn_delivery", sa.Column("sent_at", sa.Double()))
    op.add_column("nn_delivery", sa.Column("verified_by", sa.String(16)))
    op.add_column("nn_delivery", sa.Column("transaction_uid", sa.String(64)))
    op.add_column("nn_delivery", sa.Column("checks", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("nn_delivery", sa.Column("feeds", sa.Integer(), nullable=False, server_default="0"))
    op.create_index("nn_delivery_transaction", "nn_delivery", ["transaction_uid"])
    op.add_column("nn_instance", sa.Column("removed_at", sa.Double()))
    op.create_table(
        "nn_destination",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("failures", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("opened_at", sa.Double()),
        sa.Column("probe_at", sa.Double()),
        sa.Column("why", sa.Text()),
        sa.Column("offers", sa.JSON()),
        sa.Column("asked_at", sa.Double()),
    )
    op.execute("UPDATE nn_delivery SET state = 'unverified', sent_at = state_changed_at WHERE state = 'delivered'")


def downgrade() -> None:
    """Take them away again; a report that was stored counts as delivered, one that is missing is sent again."""
    op.execute("UPDATE nn_delivery SET state = 'delivered' WHERE state IN ('sent', 'verifying', 'unverified')")
    op.drop_table("nn_destination")
    op.drop_index("nn_delivery_transaction", "nn_delivery")
    for table, column in (
        ("nn_instance", "removed_at"),
        ("nn_delivery", "feeds"),
        ("nn_delivery", "checks"),
        ("nn_delivery", "transaction_uid"),
        ("nn_delivery", "verified_by"),
        ("nn_delivery", "sent_at"),
    ):
        op.drop_column(table, column)
