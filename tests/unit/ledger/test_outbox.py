"""The outbox: deliveries written with their report, taken one at a time for each destination, settled once."""

from __future__ import annotations

from random import Random

import pytest
import sqlalchemy as sa

from scp_node.ledger import tables
from scp_node.ledger.outbox import Outbox, put
from scp_node.ledger.states import DeliveryState
from scp_node.ports import SendResult
from tests.ledgers import add_study, empty_ledger, new_report, retry_policy

POLICY = retry_policy()
STORED = SendResult("delivered", 0, "Stored.")
NO_CONNECTION = SendResult("retry", None, "No connection.")
REFUSED = SendResult("refused", 0xA900, "The archive refuses this report (0xA900).")


@pytest.fixture
def engine(tmp_path, ledger_url):
    with empty_ledger(tmp_path, ledger_url) as engine:
        add_study(engine)
        yield engine


def put_all(engine, *reports, now=100.0):
    with engine.begin() as connection:
        put(connection, reports, now=now)


def claim(engine, now=100.0):
    started = []
    claimed = Outbox(engine).claim_due(now=now, start=lambda _c, number, attempt: started.append((number, attempt)))
    assert list(claimed) == started
    return claimed


def settle(engine, delivery_id, attempt, result, now=100.0, provable=True):
    return Outbox(engine).settle(
        delivery_id, attempt, result, policy=POLICY, rng=Random(1), now=now, provable=provable
    )


def states(engine):
    with engine.connect() as connection:
        rows = connection.execute(sa.select(tables.delivery).order_by(tables.delivery.c.id))
        return [(row.destination, row.state) for row in rows]


def test_a_report_and_its_deliveries_are_written_once(engine):
    report = new_report(destinations=("pacs", "archive"))
    put_all(engine, report)
    put_all(engine, report)
    assert states(engine) == [("pacs", "queued"), ("archive", "queued")]


def test_a_destination_gets_one_report_at_a_time_the_longest_due_first(engine):
    put_all(engine, new_report("9.1"), now=90.0)
    put_all(engine, new_report("9.2", series_uid="1.2.2"), now=80.0)
    ((first, attempt),) = claim(engine)
    assert Outbox(engine).delivery(first).sop_instance_uid == "9.2"
    assert claim(engine) == ()
    settle(engine, first, attempt, STORED)
    ((second, _),) = claim(engine)
    assert Outbox(engine).delivery(second).sop_instance_uid == "9.1"


def test_a_destination_that_hangs_holds_up_no_other(engine):
    put_all(engine, new_report("9.1", destinations=("dead",)))
    assert len(claim(engine)) == 1
    put_all(engine, new_report("9.2", series_uid="1.2.2", destinations=("dead", "alive")))
    ((taken, _),) = claim(engine)
    assert Outbox(engine).delivery(taken).destination == "alive"


def test_nothing_is_taken_before_it_is_due(engine):
    put_all(engine, new_report(), now=101.0)
    assert claim(engine, now=100.9) == ()
    assert len(claim(engine, now=101.0)) == 1


def test_an_unreachable_destination_is_tried_again_later_with_the_next_attempt(engine):
    put_all(engine, new_report())
    ((number, attempt),) = claim(engine)
    assert settle(engine, number, attempt, NO_CONNECTION) == DeliveryState.QUEUED
    assert claim(engine, now=129.0) == ()
    assert claim(engine, now=130.0) == ((number, 2),)


def test_an_attempt_is_settled_once(engine):
    put_all(engine, new_report())
    ((number, attempt),) = claim(engine)
    assert settle(engine, number, attempt, STORED) == DeliveryState.SENT
    assert settle(engine, number, attempt, NO_CONNECTION) is None
    assert states(engine) == [("pacs", "sent")]


def test_a_refusal_stops_and_says_why_until_a_person_asks_again(engine):
    put_all(engine, new_report())
    ((number, attempt),) = claim(engine)
    assert settle(engine, number, attempt, REFUSED) == DeliveryState.FAILED_FINAL
    with engine.connect() as connection:
        row = connection.execute(sa.select(tables.delivery)).one()
        story = connection.execute(sa.select(tables.event.c.text)).scalars().all()
    assert (row.last_status, row.last_error) == (0xA900, "The archive refuses this report (0xA900).")
    assert story == ["Report to pacs, attempt 1: failed_final. The archive refuses this report (0xA900)."]
    assert claim(engine, now=1e9) == ()
    assert Outbox(engine).retry("1.2", now=200.0) == 1
    assert claim(engine, now=200.0) == ((number, 2),)


def test_a_newer_report_of_a_series_cancels_the_one_that_still_waits(engine):
    put_all(engine, new_report("9.1"))
    put_all(engine, new_report("9.2", revision=2))
    assert states(engine) == [("pacs", "cancelled"), ("pacs", "queued")]


def test_a_report_on_its_way_is_not_cancelled_by_a_newer_one(engine):
    put_all(engine, new_report("9.1"))
    claim(engine)
    put_all(engine, new_report("9.2", revision=2))
    assert states(engine) == [("pacs", "sending"), ("pacs", "queued")]


def test_another_form_takes_the_place_of_a_refused_one(engine):
    put_all(engine, new_report("9.1"))
    ((number, attempt),) = claim(engine)
    other = new_report("9.2", sop_class_uid="1.2.840.10008.5.1.4.1.1.88.33")
    assert Outbox(engine).replace(number, attempt, other, why="pacs takes no 3D SR.", now=100.0)
    assert not Outbox(engine).replace(number, attempt, other, why="pacs takes no 3D SR.", now=100.0)
    assert states(engine) == [("pacs", "cancelled"), ("pacs", "queued")]


def test_only_a_stored_report_of_an_earlier_revision_is_a_predecessor(engine):
    outbox = Outbox(engine)
    put_all(engine, new_report("9.1"))
    assert outbox.last_delivered("pacs", "1.2", before_revision=2) is None
    ((number, attempt),) = claim(engine)
    settle(engine, number, attempt, STORED)
    assert outbox.last_delivered("pacs", "1.2", before_revision=2) == {"made": "9.1"}
    assert outbox.last_delivered("pacs", "1.2", before_revision=1) is None
    assert outbox.last_delivered("elsewhere", "1.2", before_revision=2) is None
    assert outbox.last_delivered("pacs", "1.2", before_revision=2, series_uid="1.2.7") is None
