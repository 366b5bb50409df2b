"""Statements compiled once do the same through SQLite's driver as through the library."""

from __future__ import annotations

import sqlite3

import pytest
import sqlalchemy as sa

from scp_node.ledger import prepared, tables
from scp_node.ledger.engine import make_engine, upgrade
from scp_node.ledger.prepared import Prepared
from scp_node.ledger.states import StudyState

COLUMNS = ("study_uid", "series_uid", "holds_ct", "last_received_at")
SERIES = {"study_uid": "1.2", "series_uid": "1.2.1", "holds_ct": True, "last_received_at": 5.0}
NEW_SERIES = Prepared(sa.insert(tables.series), *COLUMNS)
READ = Prepared(
    sa.select(tables.series.c.series_uid, tables.series.c.holds_ct).where(
        tables.series.c.study_uid == sa.bindparam("at_study")
    )
)


@pytest.fixture
def engine(tmp_path):
    url = f"sqlite:///{tmp_path / 'node.sqlite'}"
    upgrade(url)
    made = make_engine(url, busy_timeout_s=5.0)
    with made.begin() as connection:
        study = {
            "study_uid": "1.2",
            "state": StudyState.RECEIVING,
            "sender": "S",
            "first_received_at": 1.0,
            "last_received_at": 1.0,
            "state_changed_at": 1.0,
        }
        connection.execute(sa.insert(tables.study), study)
    yield made
    made.dispose()


@pytest.fixture(params=["driver", "library"])
def way(request, monkeypatch):
    """Both ways of executing; the library's is that of PostgreSQL."""
    if request.param == "library":
        monkeypatch.setattr(prepared, "BY_DRIVER", frozenset())
    return request.param


def test_rows_are_written_and_read_in_one_transaction(engine, way):
    with engine.begin() as connection:
        assert NEW_SERIES.run(connection, SERIES).rowcount == 1
        assert READ.run(connection, {"at_study": "1.2"}).fetchall() == [("1.2.1", 1)]
    with engine.connect() as connection:
        assert connection.execute(sa.select(*[tables.series.c[name] for name in COLUMNS])).all() == [
            tuple(SERIES.values())
        ]


def test_what_a_transaction_wrote_is_gone_when_it_fails(engine, way):
    def write_and_fail():
        with engine.begin() as connection:
            NEW_SERIES.run(connection, SERIES)
            raise KeyError

    with pytest.raises(KeyError):
        write_and_fail()
    with engine.connect() as connection:
        assert READ.run(connection, {"at_study": "1.2"}).fetchall() == []


def test_a_row_that_is_there_already_is_told_by_either_name(engine, way):
    with engine.begin() as connection:
        NEW_SERIES.run(connection, SERIES)
    with pytest.raises(prepared.NOT_UNIQUE), engine.begin() as connection:
        NEW_SERIES.run(connection, SERIES)


def test_a_locked_database_is_told_by_either_name(tmp_path, engine, way):
    holder = sqlite3.connect(tmp_path / "node.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    hasty = make_engine(f"sqlite:///{tmp_path / 'node.sqlite'}", busy_timeout_s=0.05)
    try:
        with (
            pytest.raises((sa.exc.OperationalError, *prepared.DRIVER_FAULTS)),
            hasty.begin() as connection,
        ):
            NEW_SERIES.run(connection, SERIES)
    finally:
        hasty.dispose()
        holder.execute("ROLLBACK")
        holder.close()


def test_enumerations_within_a_statement_reach_the_driver_as_their_text(engine, way):
    receives = Prepared(
        sa.update(tables.study).where(tables.study.c.state == StudyState.RECEIVING).values(sender="T")
    )
    with engine.begin() as connection:
        assert receives.run(connection, {}).rowcount == 1


def test_a_value_that_is_missing_is_a_fault_and_no_null(engine, way):
    without = {name: value for name, value in SERIES.items() if name != "last_received_at"}
    with pytest.raises((KeyError, sa.exc.StatementError)), engine.begin() as connection:
        NEW_SERIES.run(connection, without)
