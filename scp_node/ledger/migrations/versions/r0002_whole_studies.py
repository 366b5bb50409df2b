"""What tells whether a study is whole: how long it waits, who is still sending, what the archive holds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and tables; a study that waits goes on waiting since it changed its state."""
    op.add_column("nn_study", sa.Column("waiting_since", sa.Double()))
    op.add_column("nn_study", sa.Column("counted_from", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("nn_instance", sa.Column("content_sha256", sa.String(64)))
    op.execute("UPDATE nn_study SET waiting_since = state_changed_at")
    op.create_table(
        "nn_association",
        sa.Column("boot", sa.String(32), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("calling_ae", sa.String(16), nullable=False),
        sa.Column("opened_at", sa.Double(), nullable=False),
    )
    op.create_table(
        "nn_proof",
        sa.Column("study_uid", sa.String(64), sa.ForeignKey("nn_study.study_uid"), primary_key=True),
        sa.Column("images_at", sa.Double(), nullable=False),
        sa.Column("counts", sa.String(8), nullable=False),
        sa.Column("geometry", sa.Boolean()),
        sa.Column("lungs", sa.Boolean()),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("look_again_at", sa.Double()),
    )


def downgrade() -> None:
    """Take them away again; nothing of a study's images or results is lost."""
    op.drop_table("nn_proof")
    op.drop_table("nn_association")
    for table, column in (
        ("nn_instance", "content_sha256"),
        ("nn_study", "counted_from"),
        ("nn_study", "waiting_since"),
    ):
        op.drop_column(table, column)
