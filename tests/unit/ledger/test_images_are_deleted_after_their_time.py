"""Images go only when every report is proven to be where it belongs, and some days later; the rest stays."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from scp_node.clock import SystemClock
from scp_node.ledger import tables
from scp_node.ledger.arrivals import Arrival, Arrivals, Stored
from scp_node.ledger.outbox import put
from scp_node.ledger.retention import Retention
from scp_node.ledger.states import DeliveryState, Purpose, StudyState
from scp_node.receive import index_spool
from scp_node.spool import FileHeader, Spool
from tests.ledgers import add_study, empty_ledger, new_report

DAY_S = 86400.0
KEEP_S = 10 * DAY_S
CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture
def engine(tmp_path, ledger_url):
    with empty_ledger(tmp_path, ledger_url) as engine:
        yield engine


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "storage")
    spool.prepare()
    return spool


def arrival(spool, number, *, at=100.0):
    uid = f"1.2.1.{number}"
    path = spool.keep(FileHeader(CT, uid, "1.2.840.10008.1.2.1", "S", "N"), f"image {number}".encode())
    return Arrival(
        sop_class_uid=CT,
        sop_instance_uid=uid,
        study_uid="1.2",
        series_uid="1.2.1",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        sha256=f"{number}" * 64,
        size_bytes=7,
        path=path,
        purpose=Purpose.CT,
        calling_ae="S",
        called_ae="N",
        peer="127.0.0.1",
        received_at=at,
    )


def study(engine, spool, *, state=StudyState.REPORTED, delivered_at=200.0, delivery="delivered", report=True):
    """A study of three images, reported at 200 s."""
    arrivals = Arrivals(engine)
    for number in range(3):
        arrivals.record(arrival(spool, number))
    with engine.begin() as connection:
        if report:
            put(connection, [new_report()], now=200.0)
        connection.execute(tables.delivery.update().values(state=delivery, state_changed_at=delivered_at))
        connection.execute(tables.study.update().values(state=state, state_changed_at=200.0, revision=1))


def delete_old(engine, spool, now):
    retention = Retention(engine)
    for uid in retention.due(keep_s=KEEP_S, now=now):
        retention.mark(uid, now=now)
        retention.forget(uid, spool.delete)


def rows(engine, table=tables.instance):
    with engine.connect() as connection:
        return connection.execute(sa.select(table).order_by(*table.primary_key)).all()


def test_images_go_some_days_after_the_proof_and_everything_else_stays(engine, spool):
    study(engine, spool)
    before = {name: rows(engine, getattr(tables, name)) for name in ("study", "series", "report", "delivery")}
    delete_old(engine, spool, 200.0 + KEEP_S - 1)
    assert len(list(spool.objects())) == 3
    delete_old(engine, spool, 200.0 + KEEP_S)
    assert list(spool.objects()) == []
    assert [row.path for row in rows(engine)] == [None] * 3
    assert before == {name: rows(engine, getattr(tables, name)) for name in before}
    assert rows(engine, tables.event)[-1].text == "3 images were deleted; results and events stay."
    assert Retention(engine).due(keep_s=KEEP_S, now=1e9) == ()


@pytest.mark.parametrize(
    "delivery",
    [state for state in DeliveryState if state not in (DeliveryState.DELIVERED, DeliveryState.CANCELLED)],
)
def test_what_is_not_proven_to_be_delivered_keeps_its_images(engine, spool, delivery):
    study(engine, spool, delivery=delivery)
    assert Retention(engine).due(keep_s=KEEP_S, now=1e9) == ()


@pytest.mark.parametrize(
    ("values", "goes"),
    [
        ({"state": StudyState.FAILED}, False),
        ({"state": StudyState.RECEIVING}, False),
        ({"state": StudyState.ANALYSING}, False),
        ({"report": False}, False),
        ({"delivery": "cancelled"}, False),
        ({"state": StudyState.NO_CT, "report": False}, True),
        ({"state": StudyState.NOT_ANALYSED, "report": False}, True),
    ],
)
def test_a_study_that_failed_goes_on_or_was_sent_nowhere_keeps_its_images(engine, spool, values, goes):
    study(engine, spool, **values)
    assert Retention(engine).due(keep_s=KEEP_S, now=1e9) == (("1.2",) if goes else ())


def test_a_study_that_got_an_image_meanwhile_is_not_marked(engine, spool):
    study(engine, spool)
    Arrivals(engine).record(arrival(spool, 7, at=300.0))
    assert Retention(engine).mark("1.2", now=1e9) == 0


def test_a_crash_while_deleting_is_not_taken_for_lost_files(engine, spool):
    study(engine, spool)
    retention, arrivals = Retention(engine), Arrivals(engine)
    retention.mark("1.2", now=1e9)
    spool.delete(next(spool.objects()))
    assert index_spool(spool, arrivals, SystemClock(), keep_other_objects=True) == (0, 0)
    assert retention.leaving() == ("1.2",)
    retention.forget("1.2", spool.delete)
    assert (list(spool.objects()), retention.leaving()) == ([], ())
    assert "file_lost" not in {row.kind for row in rows(engine, tables.event)}


def test_images_that_come_again_wake_their_study_when_the_last_of_them_is_back(engine, spool):
    study(engine, spool)
    delete_old(engine, spool, 1e9)
    assert Retention(engine).has_gone("1.2")
    arrivals = Arrivals(engine)
    for number in range(3):
        assert rows(engine, tables.study)[0].state == StudyState.REPORTED
        assert arrivals.record(arrival(spool, number, at=2e9)) is Stored.DUPLICATE
    assert rows(engine, tables.study)[0].state == StudyState.RECEIVING
    assert not Retention(engine).has_gone("1.2")
    assert all(spool.exists(row.path) for row in rows(engine))


def test_a_late_image_of_a_deleted_study_is_known_to_miss_the_others(engine, spool):
    study(engine, spool)
    assert not Retention(engine).has_gone("1.2")
    delete_old(engine, spool, 1e9)
    add_study(engine, "1.9")
    Arrivals(engine).record(arrival(spool, 7, at=2e9))
    assert rows(engine, tables.study)[0].state == StudyState.RECEIVING
    assert Retention(engine).has_gone("1.2")
    assert not Retention(engine).has_gone("1.9")
