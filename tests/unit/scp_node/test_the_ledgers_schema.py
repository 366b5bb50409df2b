"""The ledger's database: migrations match the tables, connections keep their promises; both databases."""

from __future__ import annotations

import sqlite3
import threading
import time

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from scp_node.ledger import engine as ledger_engine
from scp_node.ledger.engine import (
    VERSION_TABLE,
    DatabaseClock,
    _write_ahead,
    is_ours,
    make_engine,
    schema_is_current,
    upgrade,
)
from scp_node.ledger.tables import metadata


@pytest.fixture
def url(new_database_url):
    return new_database_url


@pytest.fixture
def engine(url):
    engine = make_engine(url)
    yield engine
    engine.dispose()


def test_the_migrations_lead_to_exactly_the_tables_of_this_version(url, engine):
    upgrade(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "include_name": is_ours, "compare_type": True}
        )
        assert compare_metadata(context, metadata) == []


def test_a_new_file_is_not_current_and_an_upgraded_one_is(url, engine):
    assert not schema_is_current(engine)
    upgrade(url)
    assert schema_is_current(engine)


def test_upgrading_twice_changes_nothing(url, engine):
    upgrade(url)
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO nn_installation VALUES ('id', 'kept')"))
    upgrade(url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT value FROM nn_installation")).scalar_one() == "kept"


def test_several_starters_at_once_all_find_the_schema(url, engine):
    faults: list[BaseException] = []

    def start() -> None:
        try:
            upgrade(url)
        except Exception as fault:  # noqa: BLE001 - collected and asserted on below
            faults.append(fault)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert schema_is_current(engine)


def test_tables_of_the_workflow_engine_are_left_alone(url, engine):
    upgrade(url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE workflow_status (id INTEGER)"))
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "include_name": is_ours}
        )
        assert compare_metadata(context, metadata) == []


def test_the_way_back_drops_our_tables_only(url, engine):
    upgrade(url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE workflow_status (id INTEGER)"))
    with engine.connect() as connection:
        config = ledger_engine._config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        connection.commit()
    assert set(sa.inspect(engine).get_table_names()) == {"workflow_status", VERSION_TABLE}


def test_a_database_of_the_first_release_goes_up_and_back_with_its_rows(url, engine):
    config = ledger_engine._config()
    study = (
        "INSERT INTO nn_study (study_uid, state, revision, codes, sender, first_received_at, last_received_at, "
        "state_changed_at) VALUES ('1.2', 'RECEIVING', 1, '[]', 'S', 100.0, 120.0, 110.0)"
    )
    image = (
        "INSERT INTO nn_instance (sop_instance_uid, version, is_newest, study_uid, series_uid, sop_class_uid, "
        "transfer_syntax_uid, sha256, size_bytes, purpose, calling_ae, called_ae, peer, received_at) "
        "VALUES ('1.3', 1, true, '1.2', '1.4', 'c', 't', 'h', 1, 'ct', 'S', 'N', 'p', 100.0)"
    )
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for row in (study, image):
            connection.execute(sa.text(row))
        command.upgrade(config, "head")
        kept = connection.execute(sa.text("SELECT waiting_since, counted_from FROM nn_study")).one()
        command.downgrade(config, "0001")
        left = connection.execute(sa.text("SELECT study_uid, state FROM nn_study")).one()
        images = connection.execute(sa.text("SELECT count(*) FROM nn_instance")).scalar_one()
        connection.commit()
    assert tuple(kept) == (110.0, 0)
    assert tuple(left) == ("1.2", "RECEIVING")
    assert images == 1
    assert "nn_proof" not in sa.inspect(engine).get_table_names()


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 30000)]
)
def test_every_connection_to_a_file_keeps_the_promises(tmp_path, pragma, value):
    engine = make_engine(f"sqlite:///{tmp_path / 'node.sqlite'}")
    with engine.connect() as first, engine.connect() as second:
        assert first.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() == value
        assert second.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() == value
    engine.dispose()


def test_a_connection_to_a_server_waits_for_a_lock_as_long_as_told_and_is_cut_off_in_mid_transaction(postgres):
    engine = make_engine(postgres.new_database(), busy_timeout_s=7.0)
    with engine.connect() as connection:
        shown = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("lock_timeout", "idle_in_transaction_session_timeout", "synchronous_commit")
        }
    engine.dispose()
    assert shown == {
        "lock_timeout": "7s",
        "idle_in_transaction_session_timeout": "10s",
        "synchronous_commit": "on",
    }


def test_the_clock_is_the_servers_where_there_is_one(engine):
    asked_at = time.time()
    assert abs(DatabaseClock(engine).now() - asked_at) < 60.0


class LockedOnce:
    """A cursor on a new file that another starter switches to WAL at this moment: the first try is refused."""

    def __init__(self, mode: str) -> None:
        self.mode, self.tries = mode, 0

    def execute(self, statement: str) -> None:
        if statement.endswith("=WAL"):
            self.tries += 1
            if self.tries == 1:
                raise sqlite3.OperationalError("database is locked")
            self.mode = "wal"

    def fetchone(self) -> tuple[str]:
        return (self.mode,)


def test_a_starter_that_is_locked_out_of_a_new_file_tries_again():
    cursor = LockedOnce("delete")
    _write_ahead(cursor, 30.0)
    assert (cursor.mode, cursor.tries) == ("wal", 2)


def test_a_file_that_is_in_wal_already_is_not_switched():
    cursor = LockedOnce("wal")
    _write_ahead(cursor, 30.0)
    assert cursor.tries == 0
