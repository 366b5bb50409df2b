"""A workflow engine that does what ours relies on in the real one, in one thread and with a clock of its own.

It keeps its runs in the caller's SQLite database under the real engine's table names. What it has to do is written
down in ``tests/contracts/test_workflow_engine.py``, which holds for both.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from dbos import error as engine_error

from scp_node.ledger.engine import has_tables, make_engine, upgrade

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    Step = Callable[..., Any]

TABLES = """
CREATE TABLE IF NOT EXISTS dbos_migrations (version INTEGER);
INSERT INTO dbos_migrations SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM dbos_migrations);
CREATE TABLE IF NOT EXISTS workflow_status (
    workflow_uuid TEXT PRIMARY KEY, name TEXT, queue_name TEXT, status TEXT, executor_id TEXT,
    application_version TEXT, recovery_attempts INTEGER, timeout_s REAL, workflow_deadline_epoch_ms REAL,
    created_at REAL, owner INTEGER);
CREATE INDEX IF NOT EXISTS workflow_status_status ON workflow_status (status, queue_name);
CREATE TABLE IF NOT EXISTS workflow_input (workflow_uuid TEXT PRIMARY KEY, inputs TEXT);
CREATE TABLE IF NOT EXISTS operation_outputs (
    workflow_uuid TEXT, function_id INTEGER, output TEXT, error TEXT, PRIMARY KEY (workflow_uuid, function_id));
"""
POLL_S = 0.02
_status = sa.Table(
    "workflow_status",
    sa.MetaData(),
    sa.Column("workflow_uuid", sa.Text, primary_key=True),
    sa.Column("status", sa.Text),
    sa.Column("executor_id", sa.Text),
    sa.Column("recovery_attempts", sa.Integer),
    sa.Column("workflow_deadline_epoch_ms", sa.Float),
)


def upgrade_simulated(url: str) -> None:
    """Create the ledger's tables and this engine's; safe to repeat."""
    upgrade(url)
    engine = make_engine(url)
    with engine.begin() as connection:
        for statement in filter(str.strip, TABLES.split(";")):
            connection.exec_driver_sql(statement)
    engine.dispose()


class LostRun(BaseException):
    """This execution is no longer the one that owns its run; it ends without a trace."""


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as the list of runs gives it."""

    workflow_id: str
    name: str
    status: str
    queue_name: str
    executor_id: str | None
    app_version: str | None
    recovery_attempts: int
    input: dict[str, Any] | None


@dataclass(slots=True)
class _Execution:
    run_id: str
    owner: int
    next_step: int = 0


_owners = count(1)


class Store:
    """The runs in the database.

    It speaks to the driver itself: a history uses it some hundred times. ``own`` gives a transaction that is the
    engine's alone, ``owners`` number the executions.
    """

    def __init__(
        self,
        engine: sa.Engine,
        now: Callable[[], float] = time.time,
        own: Callable[[], AbstractContextManager[sqlite3.Connection]] | None = None,
        owners: Iterator[int] = _owners,
    ) -> None:
        self.engine, self.now, self.owners = engine, now, owners
        self.transaction = own or self._transaction

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self.engine.begin() as connection:
            yield drivers(connection)

    def enqueue(self, connection: sqlite3.Connection, options: dict[str, Any], arguments: Sequence[Any]) -> None:
        """Write a run down; one with a known id stays as it is."""
        row = (
            options["workflow_id"],
            options["workflow_name"],
            options["queue_name"],
            options.get("app_version"),
            options.get("workflow_timeout"),
            self.now(),
        )
        written = connection.execute(
            "INSERT OR IGNORE INTO workflow_status VALUES (?, ?, ?, 'ENQUEUED', NULL, ?, 0, ?, NULL, ?, NULL)", row
        )
        if written.rowcount == 1:
            inputs = json.dumps({"positionalArgs": list(arguments), "namedArgs": {}})
            connection.execute("INSERT INTO workflow_input VALUES (?, ?)", (row[0], inputs))

    def runs(
        self,
        *,
        status: str | list[str] | None = None,
        workflow_ids: list[str] | None = None,
        name: list[str] | None = None,
        end_time: str | None = None,
        limit: int | None = None,
    ) -> list[RunView]:
        """Give runs, the oldest first."""
        conditions: list[str] = ["1"]
        values: list[Any] = []
        for column, wanted in (
            ("status", [status] if isinstance(status, str) else status),
            ("w.workflow_uuid", workflow_ids),
            ("name", name),
        ):
            if wanted is not None:
                conditions.append(f"{column} IN ({', '.join('?' * len(wanted))})")
                values += wanted
        if end_time is not None:
            conditions.append("created_at <= ?")
            values.append(datetime.fromisoformat(end_time).timestamp())
        query = (
            "SELECT w.workflow_uuid, name, status, queue_name, executor_id, application_version, "
            "recovery_attempts, inputs FROM workflow_status w "
            "LEFT JOIN workflow_input i ON i.workflow_uuid = w.workflow_uuid "
            f"WHERE {' AND '.join(conditions)} ORDER BY created_at, w.rowid LIMIT {limit or -1}"
        )
        with self.transaction() as connection:
            rows = connection.execute(query, values).fetchall()
        return [_view(*row) for row in rows]

    def put_back(self, executors: Sequence[str]) -> list[str]:
        """Give the runs of dead executors back to their queues."""
        marks = ", ".join("?" * len(executors))
        with self.transaction() as connection:
            found = connection.execute(
                "UPDATE workflow_status SET status = 'ENQUEUED', owner = NULL "
                f"WHERE status = 'PENDING' AND executor_id IN ({marks}) RETURNING workflow_uuid",
                tuple(executors),
            )
            return [str(row[0]) for row in found.fetchall()]

    def cancel_expired(self) -> int:
        """Cancel the runs whose time is out."""
        now_ms = self.now() * 1000
        with self.transaction() as connection:
            return connection.execute(
                "UPDATE workflow_status SET status = 'CANCELLED' "
                "WHERE status IN ('PENDING', 'ENQUEUED') AND workflow_deadline_epoch_ms <= ?",
                (now_ms,),
            ).rowcount

    def delete(self, run_ids: Sequence[str]) -> None:
        """Forget runs."""
        marks = ", ".join("?" * len(run_ids))
        with self.transaction() as connection:
            for table in ("operation_outputs", "workflow_input", "workflow_status"):
                connection.execute(f"DELETE FROM {table} WHERE workflow_uuid IN ({marks})", tuple(run_ids))


class SimulatedClient:
    """What ``DBOSClient`` is to the real engine; made with the same arguments."""

    def __init__(self, system_database_engine: sa.Engine, store: Store | None = None, **_options: Any) -> None:
        self._store = store or Store(system_database_engine)
        self._sys_db = _Database(system_database_engine)

    def enqueue(self, options: dict[str, Any], *arguments: Any) -> None:
        with self._store.transaction() as connection:
            self._store.enqueue(connection, options, arguments)

    def enqueue_in_transaction(self, connection: sa.Connection, options: dict[str, Any], *arguments: Any) -> None:
        self._store.enqueue(drivers(connection), options, arguments)

    def list_workflows(self, *, load_input: bool = True, load_output: bool = True, **wanted: Any) -> list[RunView]:
        return self._store.runs(**wanted)

    def delete_workflows(self, run_ids: Sequence[str]) -> None:
        self._store.delete(run_ids)


class _Database:
    def __init__(self, engine: sa.Engine) -> None:
        self.engine, self.schema = engine, None
        self.tables = _Tables()


class _Tables:
    workflow_status = _status


class SimulatedEngine:
    """One executor: what the class ``DBOS`` is to the real engine.

    Called with a configuration it is the real one's stand-in and works in threads; :meth:`work_on` is for callers
    that have time in their own hands.
    """

    def __init__(
        self,
        executor: str = "local",
        version: str = "",
        store: Store | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._executor, self._version = executor, version
        self._store, self._sleep = store, sleep
        self._runs: dict[str, tuple[Step, int]] = {}
        self._queues: dict[str, int] = {}
        self._busy: dict[str, int] = {}
        self._here = threading.local()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __call__(self, *, config: dict[str, Any]) -> SimulatedEngine:
        self._executor, self._version = config["executor_id"], config["application_version"]
        self._store = Store(config["system_database_engine"])
        self._stop = threading.Event()
        return self

    def workflow(self, *, name: str, max_recovery_attempts: int) -> Callable[[Step], Step]:
        """Register a kind of run."""

        def register(function: Step) -> Step:
            self._runs[name] = (function, max_recovery_attempts)
            return function

        return register

    def step(
        self,
        *,
        name: str,
        retries_allowed: bool = False,
        max_attempts: int = 3,
        interval_seconds: float = 1.0,
        backoff_rate: float = 2.0,
        should_retry: Callable[[Exception], bool] = lambda fault: True,
    ) -> Callable[[Step], Step]:
        """Register a step: its outcome is kept, and it is repeated after faults that may pass."""
        tries = max_attempts if retries_allowed else 1

        def once(function: Step, arguments: tuple[Any, ...]) -> Any:
            for number in range(tries):
                try:
                    return function(*arguments)
                except Exception as fault:
                    if number == tries - 1 or not should_retry(fault):
                        raise
                self._sleep(interval_seconds * backoff_rate**number)
            raise AssertionError("unreachable: the loop returns or raises")

        def register(function: Step) -> Step:
            return lambda *arguments: self._step(lambda: once(function, arguments))

        return register

    def launch(self) -> None:
        """Put back our own runs of an earlier life, and begin to work on what is in the queues."""
        store = self._known()
        if not has_tables(store.engine, "workflow_status"):
            raise engine_error.DBOSInitializationError("the tables are missing")
        store.put_back([self._executor])
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._serve, self._watch)]
        for thread in self._threads:
            thread.start()

    def start(self) -> None:
        """As :meth:`launch`, for callers that work on the queues themselves."""
        self._known().put_back([self._executor])

    def register_queue(self, name: str, *, worker_concurrency: int, **_options: Any) -> None:
        self._queues[name] = worker_concurrency

    def list_workflows(self, *, load_input: bool = True, load_output: bool = True, **wanted: Any) -> list[RunView]:
        return self._known().runs(**wanted)

    def _recover_pending_workflows(self, executors: list[str]) -> list[str]:
        return self._known().put_back(executors)

    def destroy(self, *, destroy_registry: bool = False) -> None:
        """Stop working."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._threads = []
        if destroy_registry:
            self._runs, self._queues = {}, {}

    def free_queues(self) -> list[str]:
        """The queues from which this executor could take a run."""
        return [name for name, places in self._queues.items() if self._busy.get(name, 0) < places]

    def work_on(self, queue: str) -> bool:
        """Take one run from a queue and work on it to its end; ``False`` when there is none."""
        taken = self._take(queue)
        if taken is None:
            return False
        execution, name = taken
        self._busy[queue] = self._busy.get(queue, 0) + 1
        try:
            self._execute(execution, name)
        finally:
            self._busy[queue] -= 1
        return True

    def _take(self, queue: str) -> tuple[_Execution, str] | None:
        store = self._known()
        now_ms, owner = store.now() * 1000, next(store.owners)
        with store.transaction() as connection:
            row = connection.execute(
                "UPDATE workflow_status SET status = 'PENDING', executor_id = ?, owner = ?, "
                "recovery_attempts = recovery_attempts + 1, "
                "workflow_deadline_epoch_ms = coalesce(workflow_deadline_epoch_ms, ? + timeout_s * 1000) "
                "WHERE workflow_uuid = (SELECT workflow_uuid FROM workflow_status WHERE status = 'ENQUEUED' "
                "AND queue_name = ? AND (application_version IS NULL OR application_version = ?) "
                "ORDER BY created_at, rowid LIMIT 1) RETURNING workflow_uuid, name, recovery_attempts",
                (self._executor, owner, now_ms, queue, self._version),
            ).fetchall()
            if not row:
                return None
            ((run_id, name, starts),) = row
            if starts > self._runs[name][1] + 1:
                self._end(connection, _Execution(run_id, owner), "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
                return _Execution(run_id, 0), ""
        return _Execution(run_id, owner), str(name)

    def _execute(self, execution: _Execution, name: str) -> None:
        if not name:
            return  # given up when it was taken
        store = self._known()
        with store.transaction() as connection:
            (inputs,) = connection.execute(
                "SELECT inputs FROM workflow_input WHERE workflow_uuid = ?", (execution.run_id,)
            ).fetchone()
        outer, self._here.execution = getattr(self._here, "execution", None), execution
        try:
            self._runs[name][0](*json.loads(inputs)["positionalArgs"])
        except (LostRun, engine_error.DBOSWorkflowCancelledError):
            return
        except Exception:  # noqa: BLE001 - whatever a run ends with is its end
            status = "ERROR"
        else:
            status = "SUCCESS"
        finally:
            self._here.execution = outer
        with store.transaction() as connection:
            self._end(connection, execution, status)

    def _end(self, connection: sqlite3.Connection, execution: _Execution, status: str) -> None:
        connection.execute(
            "UPDATE workflow_status SET status = ? WHERE workflow_uuid = ? AND status = 'PENDING' AND owner = ?",
            (status, execution.run_id, execution.owner),
        )

    def _step(self, work: Callable[[], Any]) -> Any:
        execution: _Execution = self._here.execution
        number, execution.next_step = execution.next_step, execution.next_step + 1
        known = self._outcome(execution, number)
        if known is not None:
            output, error = known
            if error is not None:
                raise RuntimeError(error)
            return json.loads(output)
        try:
            value = work()
        except Exception as fault:
            self._keep(execution, number, None, type(fault).__name__)
            raise
        self._keep(execution, number, json.dumps(value), None)
        return value

    def _outcome(self, execution: _Execution, number: int) -> tuple[str, str | None] | None:
        with self._known().transaction() as connection:
            run = connection.execute(
                "SELECT status, owner, output, error, o.function_id FROM workflow_status w LEFT JOIN "
                "operation_outputs o ON o.workflow_uuid = w.workflow_uuid AND o.function_id = ? "
                "WHERE w.workflow_uuid = ?",
                (number, execution.run_id),
            ).fetchone()
        _check_owner(run and run[:2], execution)
        _, _, output, error, known = run
        return None if known is None else (output, error)

    def _keep(self, execution: _Execution, number: int, output: str | None, error: str | None) -> None:
        with self._known().transaction() as connection:
            connection.execute(
                "UPDATE workflow_status SET owner = owner WHERE workflow_uuid = ?", (execution.run_id,)
            )
            run = connection.execute(
                "SELECT status, owner FROM workflow_status WHERE workflow_uuid = ?", (execution.run_id,)
            ).fetchone()
            _check_owner(run, execution)
            connection.execute(
                "INSERT INTO operation_outputs VALUES (?, ?, ?, ?)", (execution.run_id, number, output, error)
            )

    def _serve(self) -> None:
        while not self._stop.wait(POLL_S):
            for queue in list(self._queues):
                while not self._stop.is_set() and self.work_on(queue):
                    pass

    def _watch(self) -> None:
        while not self._stop.wait(POLL_S):
            self._known().cancel_expired()

    def _known(self) -> Store:
        assert self._store is not None, "the engine has no configuration"
        return self._store


def _view(*row: Any) -> RunView:
    *known, inputs = row
    return RunView(*known, {"args": tuple(json.loads(inputs)["positionalArgs"])})


def _check_owner(run: tuple[str, int] | None, execution: _Execution) -> None:
    if run == ("CANCELLED", execution.owner):
        raise engine_error.DBOSWorkflowCancelledError("cancelled")
    if run != ("PENDING", execution.owner):
        raise LostRun


def drivers(connection: sa.Connection) -> sqlite3.Connection:
    """The driver's own connection; what it does belongs to the same transaction."""
    own = connection.connection.dbapi_connection
    assert isinstance(own, sqlite3.Connection)
    return own
