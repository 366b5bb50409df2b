"""Opens the ledger's database and brings its schema up to date.

Every connection of every process comes from :func:`make_engine`, so that all of them keep the same promises:
a committed row survives a power cut, and a waiting writer waits instead of failing.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

VERSION_TABLE = "nn_alembic_version"
PREFIX = "nn_"


def make_engine(url: str, *, busy_timeout_s: float = 30.0) -> sa.Engine:
    """Open a database.

    Parameters
    ----------
    url
        SQLAlchemy URL; ``sqlite:///file`` or ``postgresql+psycopg://...``.
    busy_timeout_s
        How long a SQLite writer waits for another one before it fails.

    Notes
    -----
    SQLite gets WAL, ``synchronous=FULL``, foreign keys and IMMEDIATE transactions (decision 0040). In the
    driver's IMMEDIATE mode a transaction begins at the first *write*: whoever reads and then writes puts a
    write first.
    """
    if sa.make_url(url).get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=20)
    engine = sa.create_engine(url, pool_size=10, max_overflow=30, pool_timeout=busy_timeout_s)

    @sa.event.listens_for(engine, "connect")
    def _keep_promises(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = "IMMEDIATE"
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={int(busy_timeout_s * 1000)}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


@contextmanager
def snapshot(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Read several tables as they stood at one moment; nothing may be written.

    Without it each query sees what was committed last, so a report could appear whose delivery does not.
    """
    is_sqlite = engine.dialect.name == "sqlite"
    options: dict[str, Any] = {} if is_sqlite else {"isolation_level": "REPEATABLE READ"}
    with engine.connect().execution_options(**options) as connection:
        if is_sqlite:
            connection.exec_driver_sql("BEGIN DEFERRED")  # the driver would begin at the first write only
        yield connection
        connection.rollback()


def upgrade(url: str) -> None:
    """Create the ledger's tables or bring them to this version; safe to repeat."""
    _make_folder(url)
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                # The driver would run DDL outside any transaction: two starters would both see an empty file.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    finally:
        engine.dispose()


def prepare_schema(url: str) -> bool:
    """Make the tables of a database that has none of ours; say whether the schema is now that of this version.

    An older schema is left as it is: ``nodule-node db upgrade`` changes it, after a backup.
    """
    _make_folder(url)
    engine = make_engine(url)
    try:
        is_new = not any(is_ours(name, "table") for name in sa.inspect(engine).get_table_names())
        if is_new:
            upgrade(url)
        return schema_is_current(engine)
    finally:
        engine.dispose()


def has_tables(engine: sa.Engine, *names: str) -> bool:
    """Whether these tables are there; the workflow engine's may be asked for too."""
    return set(names) <= set(sa.inspect(engine).get_table_names())


def schema_is_current(engine: sa.Engine) -> bool:
    """Whether the ledger's tables are those of this version."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return context.get_current_heads() == tuple(ScriptDirectory.from_config(_config()).get_heads())


def is_ours(name: str | None, kind: str, _parents: Any = None) -> bool:
    """Alembic's ``include_name``: leave the workflow engine's tables, which share the database, alone."""
    return kind != "table" or (name or "").startswith(PREFIX)


def _make_folder(url: str) -> None:
    """Make the folder of a SQLite file, which the driver does not."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "scp_node.ledger:migrations")
    return config
