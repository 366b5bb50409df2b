"""What Alembic runs: our tables only, on the connection that the caller hands over."""

from __future__ import annotations

from alembic import context

from scp_node.ledger.engine import VERSION_TABLE, is_ours
from scp_node.ledger.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    include_name=is_ours,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
