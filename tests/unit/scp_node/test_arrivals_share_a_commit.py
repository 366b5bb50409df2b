"""Images that arrive at the same moment are recorded in one transaction, and each sender hears of its own."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from scp_node.ledger import arrivals as module
from scp_node.ledger import tables
from scp_node.ledger.arrivals import Arrival, Arrivals, LedgerUnavailableError, Stored
from scp_node.ledger.engine import make_engine, upgrade
from scp_node.ledger.states import Purpose

ONE = Arrival(
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    sop_instance_uid="1.2.3",
    study_uid="1.2",
    series_uid="1.2.1",
    transfer_syntax_uid="1.2.840.10008.1.2.1",
    sha256="0" * 64,
    size_bytes=10,
    path="objects/00/a.dcm",
    purpose=Purpose.CT,
    calling_ae="SENDER",
    called_ae="NODULE_NODE",
    peer="127.0.0.1",
    received_at=100.0,
)


@pytest.fixture
def engine(tmp_path):
    url = f"sqlite:///{tmp_path / 'node.sqlite'}"
    upgrade(url)
    made = make_engine(url, busy_timeout_s=5.0)
    yield made
    made.dispose()


def counted(engine) -> list[str]:
    with engine.connect() as connection:
        return sorted(connection.execute(sa.select(tables.instance.c.sop_instance_uid)).scalars())


def together(arrivals, wanted):
    """Record all of them while somebody else has the turn, so that they wait for it at the same time."""
    with ThreadPoolExecutor(len(wanted)) as crowd:
        with arrivals._turn:
            futures = [crowd.submit(arrivals.record, one) for one in wanted]
            arrived = threading.Event()
            while len(arrivals._waiting) < len(wanted):
                arrived.wait(0.01)
        return [future.exception() or future.result() for future in futures]


def several(count):
    return [replace(ONE, sop_instance_uid=f"1.2.3.{number}") for number in range(count)]


def test_who_keeps_no_connection_gives_it_back(engine):
    assert Arrivals(engine).record(ONE) is Stored.NEW
    assert engine.pool.checkedout() == 0


def test_ten_senders_share_one_transaction(engine, monkeypatch):
    transactions = []
    real = module._record

    def spy(connection, arrival):
        transactions.append(id(connection))
        return real(connection, arrival)

    monkeypatch.setattr(module, "_record", spy)
    assert together(Arrivals(engine), several(10)) == [Stored.NEW] * 10
    assert len(set(transactions)) == 1
    assert len(counted(engine)) == 10


def test_a_crowd_larger_than_a_group_is_recorded_in_several(engine, monkeypatch):
    monkeypatch.setattr(module, "MAX_GROUP", 3)
    assert together(Arrivals(engine), several(10)) == [Stored.NEW] * 10
    assert len(counted(engine)) == 10


def test_the_same_instance_twice_in_a_group_is_new_once(engine):
    assert sorted(together(Arrivals(engine), [ONE, ONE, ONE])) == [Stored.DUPLICATE, Stored.DUPLICATE, Stored.NEW]
    assert counted(engine) == ["1.2.3"]


def test_one_that_cannot_be_recorded_does_not_spoil_the_others(engine, monkeypatch):
    real = module._record

    def fails(connection, arrival):
        if arrival.sop_instance_uid == "1.2.3.1":
            raise sa.exc.IntegrityError("", {}, Exception())
        return real(connection, arrival)

    monkeypatch.setattr(module, "_record", fails)
    outcomes = together(Arrivals(engine), several(3))
    assert [outcomes[0], outcomes[2]] == [Stored.NEW, Stored.NEW]
    assert isinstance(outcomes[1], sa.exc.IntegrityError)
    assert counted(engine) == ["1.2.3.0", "1.2.3.2"]


def test_a_database_that_fails_is_told_to_everybody_who_waits(engine, monkeypatch):
    def fails(_connection, _arrival):
        raise sa.exc.OperationalError("", {}, Exception())

    monkeypatch.setattr(module, "_record", fails)
    outcomes = together(Arrivals(engine), several(3))
    assert all(isinstance(outcome, LedgerUnavailableError) for outcome in outcomes)
    assert counted(engine) == []


def test_a_group_is_on_the_disk_before_anybody_hears_of_it(engine, monkeypatch):
    levels = []
    real = module._record

    def spy(connection, arrival):
        levels.append(connection.exec_driver_sql("PRAGMA synchronous").scalar())
        return real(connection, arrival)

    monkeypatch.setattr(module, "_record", spy)
    together(Arrivals(engine), several(3))
    full = 2
    assert levels == [full] * 3


def open_files(folder):
    """The files of a folder that this process holds open (Linux)."""
    targets = [link.resolve() for link in Path("/proc/self/fd").iterdir()]
    return [target for target in targets if target.is_relative_to(folder)]


@pytest.mark.parametrize("fault", [sqlite3.OperationalError("disk I/O error"), KeyError("a bug"), SystemExit(1)])
def test_images_in_turn_share_a_connection_and_a_fault_costs_it(engine, monkeypatch, fault):
    connections = []
    real = module._record

    def spy(connection, arrival):
        connections.append(connection.connection.dbapi_connection)
        if len(connections) == 3:
            raise fault
        return real(connection, arrival)

    monkeypatch.setattr(module, "_record", spy)
    arrivals, wanted = Arrivals(engine, keeps_connection=True), several(5)
    assert [arrivals.record(one) for one in wanted[:2]] == [Stored.NEW] * 2
    with pytest.raises((LedgerUnavailableError, KeyError, SystemExit)):
        arrivals.record(wanted[2])
    assert [arrivals.record(one) for one in wanted[2:]] == [Stored.NEW] * 3
    assert connections[0] is connections[1] is connections[2]
    assert connections[3] is connections[4] is not connections[0]
    assert len(counted(engine)) == 5


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are seen on Linux alone")
def test_nothing_is_open_once_the_engine_is_disposed_of(engine, tmp_path):
    arrivals = Arrivals(engine, keeps_connection=True)
    arrivals.record(ONE)
    assert open_files(tmp_path)
    engine.dispose()
    assert open_files(tmp_path) == []
    assert arrivals.record(ONE) is Stored.DUPLICATE
