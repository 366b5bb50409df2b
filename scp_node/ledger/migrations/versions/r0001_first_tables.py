"""The first tables: what arrived, what was decided, what was reported, what was delivered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    "nn_study",
    "nn_series",
    "nn_instance",
    "nn_report",
    "nn_delivery",
    "nn_step_outcome",
    "nn_step_start",
    "nn_event",
    "nn_lease",
    "nn_installation",
)


def upgrade() -> None:
    """Create them all."""
    _what_arrived()
    _what_went_out()
    _what_the_engine_needs()


def downgrade() -> None:
    """Drop them all, those that refer to others first."""
    for table in reversed(TABLES):
        op.drop_table(table)


def _row_id() -> sa.Column[int]:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column("id", kind, primary_key=True, autoincrement=True)


def _uid(name: str, *more: sa.ForeignKey, nullable: bool = False, primary_key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(64), *more, nullable=nullable, primary_key=primary_key)


def _what_arrived() -> None:
    op.create_table(
        "nn_study",
        _uid("study_uid", primary_key=True),
        sa.Column("state", sa.String(24), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("codes", sa.JSON(), nullable=False),
        sa.Column("sender", sa.String(16), nullable=False),
        sa.Column("first_received_at", sa.Double(), nullable=False),
        sa.Column("last_received_at", sa.Double(), nullable=False),
        sa.Column("next_look_at", sa.Double()),
        sa.Column("state_changed_at", sa.Double(), nullable=False),
        sa.Index("nn_study_state", "state"),
    )
    op.create_table(
        "nn_series",
        _uid("study_uid", sa.ForeignKey("nn_study.study_uid"), primary_key=True),
        _uid("series_uid", primary_key=True),
        sa.Column("holds_ct", sa.Boolean(), nullable=False),
        sa.Column("last_received_at", sa.Double(), nullable=False),
        sa.Column("decision", sa.JSON()),
        sa.Column("analysis", sa.JSON()),
    )
    op.create_table(
        "nn_instance",
        _row_id(),
        _uid("sop_instance_uid"),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("is_newest", sa.Boolean(), nullable=False),
        _uid("study_uid", sa.ForeignKey("nn_study.study_uid")),
        _uid("series_uid"),
        _uid("sop_class_uid"),
        _uid("transfer_syntax_uid"),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.String(255)),
        sa.Column("purpose", sa.String(12), nullable=False),
        sa.Column("calling_ae", sa.String(16), nullable=False),
        sa.Column("called_ae", sa.String(16), nullable=False),
        sa.Column("peer", sa.String(64), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.UniqueConstraint("sop_instance_uid", "version", name="nn_instance_version"),
        sa.Index("nn_instance_series", "study_uid", "series_uid"),
    )


def _what_went_out() -> None:
    op.create_table(
        "nn_report",
        _uid("sop_instance_uid", primary_key=True),
        _uid("sop_class_uid"),
        _uid("study_uid", sa.ForeignKey("nn_study.study_uid")),
        _uid("series_uid"),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.Column("path", sa.String(255), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Index("nn_report_study", "study_uid"),
    )
    op.create_table(
        "nn_delivery",
        _row_id(),
        _uid("sop_instance_uid", sa.ForeignKey("nn_report.sop_instance_uid")),
        sa.Column("destination", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", sa.Double()),
        sa.Column("last_status", sa.Integer()),
        sa.Column("last_error", sa.Text()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("state_changed_at", sa.Double(), nullable=False),
        sa.UniqueConstraint("sop_instance_uid", "destination", name="nn_delivery_once"),
        sa.Index("nn_delivery_due", "state", "next_attempt_at"),
    )


def _what_the_engine_needs() -> None:
    op.create_table(
        "nn_step_outcome",
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.Column("executor", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_table(
        "nn_step_start",
        _row_id(),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("executor", sa.String(64), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Index("nn_step_start_key", "key"),
    )
    op.create_table(
        "nn_event",
        _row_id(),
        sa.Column("at", sa.Double(), nullable=False),
        _uid("study_uid", nullable=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("code", sa.String(32)),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Index("nn_event_study", "study_uid"),
    )
    op.create_table(
        "nn_lease",
        sa.Column("slot", sa.String(64), primary_key=True),
        sa.Column("boot", sa.String(32), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
    )
    op.create_table(
        "nn_installation",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text(), nullable=False),
    )
