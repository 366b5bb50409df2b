"""The ledger's database: migrations match the tables, connections keep their promises."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from scp_node.ledger import engine as ledger_engine
from scp_node.ledger.engine import VERSION_TABLE, is_ours, make_engine, schema_is_current, upgrade
from scp_node.ledger.tables import metadata


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'node.sqlite'}"


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


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 30000)]
)
def test_every_connection_keeps_the_promises(engine, pragma, value):
    with engine.connect() as first, engine.connect() as second:
        assert first.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() == value
        assert second.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() == value
