"""The ledger's tables: what arrived, what was decided, what was reported, what was delivered.

Ours start with ``nn_``; the workflow engine keeps its own beside them. Times are UTC, as seconds since the epoch.
No patient name, identifier or birth date is kept here: those stay in the instances on disk.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

metadata = MetaData()

_UID = String(64)
_ROW_ID = BigInteger().with_variant(Integer, "sqlite")

study = Table(
    "nn_study",
    metadata,
    Column("study_uid", _UID, primary_key=True),
    Column("state", String(24), nullable=False),
    Column("revision", Integer, nullable=False, default=0),
    Column("codes", JSON, nullable=False, default=list),
    Column("sender", String(16), nullable=False),
    Column("first_received_at", Double, nullable=False),
    Column("last_received_at", Double, nullable=False),
    Column("next_look_at", Double),
    Column("state_changed_at", Double, nullable=False),
    Column("waiting_since", Double),
    Column("counted_from", Integer, nullable=False, default=0, server_default="0"),
    Index("nn_study_state", "state"),
)

series = Table(
    "nn_series",
    metadata,
    Column("study_uid", _UID, ForeignKey("nn_study.study_uid"), primary_key=True),
    Column("series_uid", _UID, primary_key=True),
    Column("holds_ct", Boolean, nullable=False),
    Column("last_received_at", Double, nullable=False),
    Column("decision", JSON),
    Column("analysis", JSON),
)

instance = Table(
    "nn_instance",
    metadata,
    Column("id", _ROW_ID, primary_key=True, autoincrement=True),
    Column("sop_instance_uid", _UID, nullable=False),
    Column("version", Integer, nullable=False, default=1),
    Column("is_newest", Boolean, nullable=False, default=True),
    Column("study_uid", _UID, ForeignKey("nn_study.study_uid"), nullable=False),
    Column("series_uid", _UID, nullable=False),
    Column("sop_class_uid", _UID, nullable=False),
    Column("transfer_syntax_uid", _UID, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("path", String(255)),
    Column("purpose", String(12), nullable=False),
    Column("calling_ae", String(16), nullable=False),
    Column("called_ae", String(16), nullable=False),
    Column("peer", String(64), nullable=False),
    Column("received_at", Double, nullable=False),
    Column("content_sha256", String(64)),
    Column("removed_at", Double),
    UniqueConstraint("sop_instance_uid", "version", name="nn_instance_version"),
    Index("nn_instance_series", "study_uid", "series_uid"),
)

report = Table(
    "nn_report",
    metadata,
    Column("sop_instance_uid", _UID, primary_key=True),
    Column("sop_class_uid", _UID, nullable=False),
    Column("study_uid", _UID, ForeignKey("nn_study.study_uid"), nullable=False),
    Column("series_uid", _UID, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("record", JSON, nullable=False),
    Column("path", String(255), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("whole_study", Boolean, nullable=False, default=False, server_default=false()),
    Index("nn_report_study", "study_uid"),
)

delivery = Table(
    "nn_delivery",
    metadata,
    Column("id", _ROW_ID, primary_key=True, autoincrement=True),
    Column("sop_instance_uid", _UID, ForeignKey("nn_report.sop_instance_uid"), nullable=False),
    Column("destination", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_attempt_at", Double),
    Column("last_status", Integer),
    Column("last_error", Text),
    Column("created_at", Double, nullable=False),
    Column("state_changed_at", Double, nullable=False),
    Column("sent_at", Double),
    Column("verified_by", String(16)),
    Column("transaction_uid", _UID),
    Column("checks", Integer, nullable=False, default=0, server_default="0"),
    Column("feeds", Integer, nullable=False, default=0, server_default="0"),
    UniqueConstraint("sop_instance_uid", "destination", name="nn_delivery_once"),
    Index("nn_delivery_due", "state", "next_attempt_at"),
    Index("nn_delivery_transaction", "transaction_uid"),
)

destination = Table(
    "nn_destination",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("failures", Integer, nullable=False, default=0, server_default="0"),
    Column("opened_at", Double),
    Column("probe_at", Double),
    Column("why", Text),
    Column("offers", JSON),
    Column("asked_at", Double),
)

step_outcome = Table(
    "nn_step_outcome",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("value", JSON, nullable=False),
    Column("executor", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
)

step_start = Table(
    "nn_step_start",
    metadata,
    Column("id", _ROW_ID, primary_key=True, autoincrement=True),
    Column("key", String(255), nullable=False),
    Column("executor", String(64), nullable=False),
    Column("started_at", Double, nullable=False),
    Index("nn_step_start_key", "key"),
)

event = Table(
    "nn_event",
    metadata,
    Column("id", _ROW_ID, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("study_uid", _UID),
    Column("kind", String(32), nullable=False),
    Column("code", String(32)),
    Column("text", Text, nullable=False),
    Index("nn_event_study", "study_uid"),
)

lease = Table(
    "nn_lease",
    metadata,
    Column("slot", String(64), primary_key=True),
    Column("boot", String(32), nullable=False),
    Column("expires_at", Double, nullable=False),
)

association = Table(
    "nn_association",
    metadata,
    Column("boot", String(32), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("calling_ae", String(16), nullable=False),
    Column("opened_at", Double, nullable=False),
)

proof = Table(
    "nn_proof",
    metadata,
    Column("study_uid", _UID, ForeignKey("nn_study.study_uid"), primary_key=True),
    Column("images_at", Double, nullable=False),
    Column("counts", String(8), nullable=False),
    Column("geometry", Boolean),
    Column("lungs", Boolean),
    Column("text", Text, nullable=False),
    Column("look_again_at", Double),
)

installation = Table(
    "nn_installation",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
