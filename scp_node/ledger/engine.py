"""Opens the ledger's database and brings its schema up to date.

Every connection of every process comes from :func:`make_engine`, so that all of them keep the same promises:
a committed row survives a power cut, and a waiting writer waits instead of failing.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
    from sqlalchemy.pool import ConnectionPoolEntry

VERSION_TABLE = "nn_alembic_version"
PREFIX = "nn_"
ENGINE_SCHEMA = "dbos"
"""Where the workflow engine keeps its tables on PostgreSQL; in a SQLite file they stand beside ours."""
UNREACHABLE = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)
"""What the database library raises when the database is gone, starting or busy: it may pass by itself."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 2.0
_MIGRATION_LOCK = 0x6E6F64756C65  # "nodule": starters of one database queue here

T = TypeVar("T")

log = structlog.get_logger()


def make_engine(url: str, *, busy_timeout_s: float = 30.0, reconnect_s: float = 0.0) -> sa.Engine:
    """Open a database.

    Parameters
    ----------
    url
        SQLAlchemy URL; ``sqlite:///file`` or ``postgresql+psycopg://...``.
    busy_timeout_s
        How long a writer waits for another one before it fails.
    reconnect_s
        How long a connection to a server that does not answer is tried again before it fails.

    Notes
    -----
    SQLite gets WAL, ``synchronous=FULL``, foreign keys and IMMEDIATE transactions (decision 0040). In the
    driver's IMMEDIATE mode a transaction begins at the first *write*: whoever reads and then writes puts a
    write first.
    """
    if sa.make_url(url).get_backend_name() != "sqlite":
        server = sa.create_engine(
            url,
            pool_pre_ping=True,
            pool_size=10,
            max_overflow=20,
            pool_timeout=busy_timeout_s,
            connect_args=_server_patience(busy_timeout_s),
        )
        if reconnect_s:
            _connect_patiently(server, reconnect_s)
        return server
    # The connection used last goes first: it still knows the pages of the file, as long as nobody else wrote.
    engine = sa.create_engine(url, pool_size=10, max_overflow=30, pool_timeout=busy_timeout_s, pool_use_lifo=True)

    @sa.event.listens_for(engine, "connect")
    def _keep_promises(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = "IMMEDIATE"
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={int(busy_timeout_s * 1000)}")
        _write_ahead(cursor, busy_timeout_s)
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


def _write_ahead(cursor: DBAPICursor, limit_s: float) -> None:
    """Switch a new file to WAL. Processes that do so at once are told that it is locked, without any wait."""
    cursor.execute("PRAGMA journal_mode")
    if cursor.fetchone() != ("wal",):
        locked = (sqlite3.OperationalError,)
        patiently(lambda: cursor.execute("PRAGMA journal_mode=WAL"), limit_s=limit_s, while_raising=locked)


def _connect_patiently(engine: sa.Engine, limit_s: float) -> None:
    """Let every new connection wait for a server that is away, so that each use of the engine does."""

    @sa.event.listens_for(engine, "do_connect")
    def _connect(dialect: sa.Dialect, _record: Any, arguments: Any, options: dict[str, Any]) -> Any:
        gone = dialect.loaded_dbapi.OperationalError
        return patiently(lambda: dialect.connect(*arguments, **options), limit_s=limit_s, while_raising=(gone,))


def _server_patience(busy_timeout_s: float) -> dict[str, Any]:
    """Time limits of a connection to a server: one that is gone, or a process that was stopped, holds up nobody.

    A server that vanished without a word is noticed after about 15 s; a row that a stopped process keeps locked in
    mid transaction is free again after 10 s.
    """
    return {
        "application_name": "nodule-node",
        "connect_timeout": 5,
        "keepalives_idle": 5,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
        "options": f"-c lock_timeout={int(busy_timeout_s * 1000)} -c idle_in_transaction_session_timeout=10000",
    }


def patiently(
    work: Callable[[], T],
    *,
    limit_s: float,
    sleep: Callable[[float], None] = time.sleep,
    while_raising: tuple[type[Exception], ...] = UNREACHABLE,
) -> T:
    """Repeat a piece of database work while the database cannot be reached.

    A restart or fail-over of the database must not become the verdict on a study. What the work raised last is
    raised after ``limit_s`` seconds.
    """
    waited, pause = 0.0, _FIRST_PAUSE_S
    while True:
        try:
            return work()
        except while_raising:
            if waited >= limit_s:
                raise
        sleep(pause)
        waited, pause = waited + pause, min(_LONGEST_PAUSE_S, 2 * pause)


class DatabaseClock:
    """Time as all workers of one database see it: the server's clock, or this machine's for a file (guard-rail 6).

    Asking takes a while, so what comes back is never ahead: a lease ends a little early, not late.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def now(self) -> float:
        """Seconds since the epoch, UTC."""
        if self._engine.dialect.name == "sqlite":
            return time.time()
        server_time = sa.func.extract("epoch", sa.func.clock_timestamp())
        with self._engine.connect() as connection:
            return float(connection.execute(sa.select(server_time)).scalar_one())


def wait_for_database(url: str, stop: Callable[[float], bool], *, pause_s: float = 2.0) -> bool:
    """Wait until a database server answers: after a power cut the node may be up before it.

    Parameters
    ----------
    stop
        Waits so many seconds and says whether to give up, as ``threading.Event.wait`` does.

    Returns
    -------
    bool
        ``False`` when told to stop before it answered.
    """
    if sa.make_url(url).get_backend_name() == "sqlite":
        return True
    engine, said = make_engine(url), False
    try:
        while True:
            try:
                with engine.connect():
                    return True
            except UNREACHABLE as fault:
                if not said:
                    log.warning("The database cannot be reached; waiting for it.", kind=type(fault).__name__)
                said = True
            if stop(pause_s):
                return False
    finally:
        engine.dispose()


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
            else:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
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
    inspector = sa.inspect(engine)
    present = set(inspector.get_table_names())
    if engine.dialect.name != "sqlite":
        present.update(inspector.get_table_names(schema=ENGINE_SCHEMA))
    return set(names) <= present


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
