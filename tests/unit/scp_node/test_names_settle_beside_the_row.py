"""A file's name is made durable while its row is committed; Success is answered when both are."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from scp_node.clock import SystemClock
from scp_node.ledger import tables
from scp_node.ledger.arrivals import Arrivals, Stored
from scp_node.ledger.engine import make_engine, upgrade
from scp_node.receive import Answer, Incoming, Receiver, index_spool
from scp_node.spool import Spool
from tests.builders import ChestSeries
from tests.raw_sender import raw
from tests.worker_node import wait_for

ONE = raw(ChestSeries(slices=1, rows=32, columns=32).datasets()[0])
INCOMING = Incoming(
    ONE.sop_class_uid,
    ONE.sop_instance_uid,
    ONE.transfer_syntax_uid,
    ONE.dataset,
    "SENDER",
    "NODULE_NODE",
    "127.0.0.1",
)


class Node:
    """A receiver with its spool, its ledger and a thread for the syncs."""

    def __init__(self, folder, beside):
        url = f"sqlite:///{folder / 'node.sqlite'}"
        upgrade(url)
        self.engine = make_engine(url)
        self.spool, self.arrivals = Spool(folder / "spool"), Arrivals(self.engine)
        self.spool.prepare()
        self.receiver = Receiver(
            self.spool,
            self.arrivals,
            SystemClock(),
            keep_other_objects=True,
            max_object_bytes=1 << 30,
            beside=beside,
        )

    def receive(self):
        return self.receiver.receive(INCOMING)

    def rows(self, table=tables.instance):
        with self.engine.connect() as connection:
            return connection.execute(sa.select(table)).all()


@pytest.fixture
def node(tmp_path):
    with ThreadPoolExecutor(1) as beside:
        made = Node(tmp_path, beside)
        yield made
        made.engine.dispose()


def no_sync(_folder):
    raise OSError(errno.EIO, "Input/output error")


def test_success_waits_for_the_name_when_the_row_is_there_already(node, monkeypatch):
    settled = threading.Event()
    monkeypatch.setattr("scp_node.spool._sync_folder", lambda _folder: settled.wait(120))
    with ThreadPoolExecutor(1) as sender:
        answer = sender.submit(node.receive)
        wait_for(node.rows, within_s=120)
        assert not answer.done()
        settled.set()
        assert answer.result(120).answer is Answer.STORED


def test_a_name_that_cannot_be_made_durable_is_a700_and_the_next_try_is_stored_once(node, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr("scp_node.spool._sync_folder", no_sync)
        assert node.receive().answer is Answer.DISK_FAILED
    again = node.receive()
    assert (again.answer, again.stored) == (Answer.STORED, Stored.DUPLICATE)
    assert [row.path for row in node.rows()] == list(node.spool.objects())


def test_a_power_cut_that_takes_the_name_and_leaves_the_row_is_healed_and_told(node, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr("scp_node.spool._sync_folder", no_sync)
        assert node.receive().answer is Answer.DISK_FAILED
    (path,) = node.spool.objects()
    node.spool.delete(path)
    assert index_spool(node.spool, node.arrivals, SystemClock(), keep_other_objects=True) == (0, 1)
    assert [row.path for row in node.rows()] == [None]
    assert "is gone from the disk; send it again." in node.rows(tables.event)[-1].text
    assert node.receive().answer is Answer.STORED
    assert [row.path for row in node.rows()] == list(node.spool.objects()) == [path]


def test_a_database_that_refuses_the_row_is_a700_and_the_file_is_counted_in_later(node, tmp_path):
    with node.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE nn_instance RENAME TO away")
    assert node.receive().answer is Answer.DATABASE_BUSY
    with node.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO nn_instance")
    assert node.rows() == []
    assert index_spool(node.spool, node.arrivals, SystemClock(), keep_other_objects=True) == (1, 0)
    assert len(node.rows()) == 1
