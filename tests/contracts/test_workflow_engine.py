"""What we rely on in the workflow engine, one test for each call that ``scp_node.workflow`` makes; both databases.

The simulator's engine (``tests/simulator/engine.py``) has to do the same.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer
from dbos import error as engine_error

from scp_node.ledger.engine import ENGINE_SCHEMA, has_tables, make_engine
from scp_node.workflow import upgrade_database, upgrade_engine_schema
from tests.postgres import DATABASES
from tests.simulator.engine import SimulatedClient, SimulatedEngine, upgrade_simulated

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION, EXECUTOR = "contract-1", "slot-a"
NAP_S = 6.0  # a busy machine may be that late with a cancellation
calls: list[tuple[object, ...]] = []


class FleetingError(Exception):
    """Worth another try."""


@dataclass(frozen=True)
class Library:
    """The engine under test: the real one, or the simulator's."""

    engine: Any
    client: Any
    upgrade: Callable[[str], None]
    upgrade_engine: Callable[[str], None]


def register(DBOS):
    """The runs of these tests; the registry lives as long as the module's engine."""

    @DBOS.step(
        name="flaky",
        retries_allowed=True,
        max_attempts=3,
        interval_seconds=0.01,
        should_retry=lambda fault: isinstance(fault, FleetingError),
    )
    def flaky(kind):
        calls.append(("flaky", kind))
        raise FleetingError if kind == "fleeting" else ValueError("final")

    @DBOS.step(name="echo")
    def echo(value):
        calls.append(("echo", value))
        return value

    @DBOS.workflow(name="echoes", max_recovery_attempts=2)
    def echoes(value, flag):
        return [echo(value), flag]

    @DBOS.workflow(name="tries", max_recovery_attempts=2)
    def tries(kind):
        flaky(kind)

    @DBOS.workflow(name="sleeps", max_recovery_attempts=2)
    def sleeps(seconds):
        nap(seconds)
        echo("after the nap")

    @DBOS.step(name="nap")
    def nap(seconds):
        time.sleep(seconds)


@pytest.fixture(scope="module", params=[*DATABASES, "simulated"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def library(kind):
    if kind == "simulated":
        return Library(SimulatedEngine(), SimulatedClient, upgrade_simulated, upgrade_simulated)
    return Library(DBOS, DBOSClient, upgrade_database, upgrade_engine_schema)


@pytest.fixture(scope="module")
def url(request, kind, library, tmp_path_factory):
    if kind != "postgresql":
        url = f"sqlite:///{tmp_path_factory.mktemp('engine') / 'node.sqlite'}"
    else:
        url = request.getfixturevalue("postgres").new_database()
    library.upgrade(url)
    return url


@pytest.fixture(scope="module")
def engine(url):
    engine = make_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def launched(url, library):
    logging.getLogger("dbos").addHandler(logging.NullHandler())
    own = make_engine(url)
    library.engine(config=config(url, own))
    register(library.engine)
    library.engine.launch()
    library.engine.register_queue(
        "work", worker_concurrency=1, polling_interval_sec=0.05, on_conflict="update_if_latest_version"
    )
    yield
    library.engine.destroy(destroy_registry=True)
    own.dispose()


@pytest.fixture
def client(engine, launched, library):
    calls.clear()
    return library.client(
        system_database_engine=engine,
        serializer=DBOSPortableJSONSerializer(),
        application_name="contract",
        lazy=True,
    )


def config(url, own):
    return {
        "name": "contract",
        "application_version": VERSION,
        "executor_id": EXECUTOR,
        "log_level": "CRITICAL",
        "system_database_url": url,
        "system_database_engine": own,
        "serializer": DBOSPortableJSONSerializer(),
        "run_migrations": False,
    }


def options(run_id, name="echoes", queue="work", **more):
    return {
        "workflow_name": name,
        "queue_name": queue,
        "workflow_id": run_id,
        "app_version": VERSION,
        "workflow_timeout": 60.0,
    } | more


def table(engine, name):
    """A table of the engine, by the name that SQL needs."""
    return name if engine.dialect.name == "sqlite" else f"{ENGINE_SCHEMA}.{name}"


def status_of(client, run_id):
    runs = client.list_workflows(workflow_ids=[run_id], load_input=False, load_output=False)
    return runs[0].status if runs else None


def wait(client, run_id, status, within_s=120.0):
    deadline = time.monotonic() + within_s
    while (now := status_of(client, run_id)) != status:
        assert time.monotonic() < deadline, now
        time.sleep(0.02)


def test_migrating_twice_changes_nothing(url, engine, library):
    library.upgrade_engine(url)
    with engine.connect() as connection:
        assert connection.execute(sa.text(f"SELECT count(*) FROM {table(engine, 'dbos_migrations')}")).scalar() == 1


def test_the_engines_tables_are_found_where_it_keeps_them(engine):
    assert has_tables(engine, "nn_study", "dbos_migrations", "workflow_status")
    assert not has_tables(engine, "nn_study", "no_such_table")
    ours = set(sa.inspect(engine).get_table_names())
    assert ("dbos_migrations" in ours) is (engine.dialect.name == "sqlite")


def test_an_enqueued_run_is_done_by_its_queue(client):
    client.enqueue(options("plain"), "hello", True)
    wait(client, "plain", "SUCCESS")
    assert calls == [("echo", "hello")]


def test_a_run_with_a_known_id_is_not_done_again(client):
    client.enqueue(options("twice"), "hello", True)
    wait(client, "twice", "SUCCESS")
    client.enqueue(options("twice"), "other", False)
    time.sleep(0.3)
    assert calls == [("echo", "hello")]


def test_a_run_enqueued_in_our_transaction_exists_only_when_it_commits(client, engine):
    with pytest.raises(KeyError), engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO nn_installation VALUES ('contract', 'rolled back')"))
        client.enqueue_in_transaction(connection, options("together"), "hello", True)
        raise KeyError
    assert status_of(client, "together") is None
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO nn_installation VALUES ('contract', 'committed')"))
        client.enqueue_in_transaction(connection, options("together"), "hello", True)
    wait(client, "together", "SUCCESS")
    with engine.connect() as connection:
        kept = connection.execute(sa.text("SELECT value FROM nn_installation WHERE key = 'contract'"))
        assert kept.scalar_one() == "committed"


def test_arguments_are_kept_as_json_and_read_back_in_order(client, engine):
    client.enqueue(options("json"), "hello", True)
    wait(client, "json", "SUCCESS")
    (run,) = client.list_workflows(workflow_ids=["json"], load_output=False)
    assert tuple(run.input["args"]) == ("hello", True)
    with engine.connect() as connection:
        inputs = table(engine, "workflow_input")
        stored = connection.execute(sa.text(f"SELECT inputs FROM {inputs} WHERE workflow_uuid = 'json'"))
        assert json.loads(stored.scalar_one())["positionalArgs"] == ["hello", True]


def test_a_step_is_repeated_for_faults_that_may_pass_and_for_no_others(client):
    client.enqueue(options("fleeting", "tries"), "fleeting")
    wait(client, "fleeting", "ERROR")
    client.enqueue(options("final", "tries"), "final")
    wait(client, "final", "ERROR")
    assert calls == [("flaky", "fleeting")] * 3 + [("flaky", "final")]


def test_a_run_of_a_dead_executor_stays_pending_until_it_is_put_back(client, engine, library):
    orphan(client, engine, "orphan", recovery_attempts=1)
    time.sleep(0.3)
    assert status_of(client, "orphan") == "PENDING"
    pending = library.engine.list_workflows(status="PENDING", load_input=False, load_output=False)
    assert [run.executor_id for run in pending] == ["dead"]
    assert len(library.engine._recover_pending_workflows(["dead"])) == 1
    assert library.engine._recover_pending_workflows(["dead"]) == []
    wait(client, "orphan", "SUCCESS")
    (run,) = client.list_workflows(workflow_ids=["orphan"])
    assert (run.queue_name, run.recovery_attempts) == ("work", 2)


def test_a_run_that_was_started_three_times_is_given_up(client, engine, library):
    orphan(client, engine, "poison", recovery_attempts=3)
    library.engine._recover_pending_workflows(["dead"])
    wait(client, "poison", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
    assert calls == []


def test_a_run_out_of_time_is_cancelled_at_once_and_its_later_steps_do_not_run(client):
    client.enqueue(options("late", "sleeps", workflow_timeout=0.2), NAP_S)
    wait(client, "late", "CANCELLED")
    time.sleep(NAP_S + 0.5)
    assert calls == []


def test_a_run_of_another_version_never_starts(client):
    client.enqueue(options("stranger", app_version="contract-0"), "hello", True)
    time.sleep(0.3)
    unfinished = client.list_workflows(
        status=["PENDING", "ENQUEUED", "DELAYED"], load_input=False, load_output=False
    )
    assert ("stranger", "contract-0") in [(run.workflow_id, run.app_version) for run in unfinished]
    client.delete_workflows(["stranger"])


def test_finished_runs_are_found_by_age_and_deleted(client):
    client.enqueue(options("old"), "hello", True)
    wait(client, "old", "SUCCESS")

    def older_than(when):
        runs = client.list_workflows(status=["SUCCESS"], end_time=when.isoformat(), limit=100, load_input=False)
        return [run.workflow_id for run in runs]

    now = datetime.now(UTC)
    assert "old" not in older_than(now - timedelta(minutes=5))
    assert "old" in older_than(now + timedelta(minutes=5))
    client.delete_workflows(["old"])
    assert status_of(client, "old") is None


def orphan(client, engine, run_id, *, recovery_attempts):
    """A run that looks as if another executor had died in the middle of it."""
    client.enqueue(options(run_id, queue="nobody listens"), "hello", True)
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                f"UPDATE {table(engine, 'workflow_status')} "
                "SET status = 'PENDING', executor_id = 'dead', queue_name = 'work', "
                "recovery_attempts = :attempts WHERE workflow_uuid = :id"
            ),
            {"attempts": recovery_attempts, "id": run_id},
        )


def test_an_engine_schema_that_is_missing_is_refused_at_launch(engine, library, tmp_path, request):
    """Runs last: the engine is one for a process."""
    library.engine.destroy(destroy_registry=True)
    url = f"sqlite:///{tmp_path / 'empty.sqlite'}"
    if engine.dialect.name != "sqlite":
        url = request.getfixturevalue("postgres").new_database()
    own = make_engine(url)
    with own.connect():
        pass
    library.engine(config=config(url, own))
    with pytest.raises(engine_error.DBOSInitializationError):
        library.engine.launch()
    library.engine.destroy(destroy_registry=True)
    own.dispose()
