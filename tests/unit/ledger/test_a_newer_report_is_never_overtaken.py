"""An older report does not come to a destination after a newer one, whichever way it got behind."""

from __future__ import annotations

from random import Random

import pytest
import sqlalchemy as sa

from scp_node.ledger import tables
from scp_node.ledger.outbox import Outbox, put
from scp_node.ledger.states import DeliveryState
from scp_node.ports import Check, SendResult
from tests.ledgers import add_study, empty_ledger, new_report, retry_policy

STORED = SendResult("delivered", 0, "Stored.")
NO_ANSWER = SendResult("retry", None, "No answer.")
REFUSED = SendResult("refused", 0xA900, "Refused.")
MISSING = Check("missing", "commitment", "It has no such instance.")


def nothing(*_):
    """Start nothing."""


class Desk:
    """An outbox with one study; every number of a delivery is that of its filing."""

    def __init__(self, engine):
        self.engine, self.outbox = engine, Outbox(engine)

    def file(self, uid, revision, now=100.0, **values):
        with self.engine.begin() as connection:
            put(connection, [new_report(uid, revision=revision, **values)], now=now)

    def claim(self, now):
        ((number, attempt),) = self.outbox.claim_due(now=now, start=nothing)
        return number, attempt

    def settle(self, number, attempt, result, now):
        return self.outbox.settle(
            number, attempt, result, policy=retry_policy(), rng=Random(1), now=now, provable=True
        )

    def story(self):
        with self.engine.connect() as connection:
            return list(connection.execute(sa.select(tables.event.c.text).order_by(tables.event.c.id)).scalars())

    def state(self, number):
        return self.outbox.delivery(number).state


@pytest.fixture
def desk(tmp_path, ledger_url):
    with empty_ledger(tmp_path, ledger_url) as engine:
        add_study(engine, "1.2")
        yield Desk(engine)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({}, {}),
        ({}, {"series_uid": "1.2.7", "whole_study": True}),
        ({"outcome": "not_analysed"}, {"series_uid": "1.2.7"}),
    ],
    ids=["the same series", "another series, chosen for the study", "a refusal"],
)
def test_an_attempt_that_failed_is_not_repeated_when_a_newer_report_waits(desk, older, newer):
    desk.file("9.1", 1, **older)
    first, attempt = desk.claim(100.0)
    desk.file("9.2", 2, now=101.0, **newer)
    assert desk.settle(first, attempt, NO_ANSWER, 102.0) is DeliveryState.CANCELLED
    assert desk.state(first) is DeliveryState.CANCELLED
    assert desk.story()[-1] == "Report to pacs: cancelled. A newer one replaces it."
    second, _ = desk.claim(1000.0)
    assert desk.outbox.delivery(second).revision == 2


def test_reports_of_two_series_do_not_replace_each_other(desk):
    desk.file("9.1", 1)
    first, attempt = desk.claim(100.0)
    desk.file("9.2", 2, now=101.0, series_uid="1.2.7")
    assert desk.settle(first, attempt, NO_ANSWER, 102.0) is DeliveryState.QUEUED


def test_a_run_that_was_overtaken_files_its_report_and_it_is_not_sent(desk):
    desk.file("9.2", 2)
    desk.file("9.1", 1, now=101.0)
    second, attempt = desk.claim(102.0)
    assert desk.outbox.delivery(second).revision == 2
    desk.settle(second, attempt, STORED, 103.0)
    assert desk.outbox.claim_due(now=104.0, start=nothing) == ()
    assert desk.state(2) is DeliveryState.CANCELLED


def test_a_report_that_its_archive_lost_is_not_sent_again_after_a_newer_one(desk):
    desk.file("9.1", 1)
    first, attempt = desk.claim(100.0)
    desk.settle(first, attempt, STORED, 100.0)
    desk.file("9.2", 2, now=101.0)
    second, attempt = desk.claim(101.0)
    desk.settle(second, attempt, STORED, 101.0)
    number, attempt = desk.claim(105.0)
    assert number == first
    policy = retry_policy()
    state = desk.outbox.settle_check(first, attempt, MISSING, policy=policy, rng=Random(1), now=105.0)
    assert state is DeliveryState.CANCELLED
    assert desk.state(first) is DeliveryState.CANCELLED


def test_nor_when_the_archive_says_later_that_it_lost_it(desk):
    desk.file("9.1", 1)
    first, attempt = desk.claim(100.0)
    desk.settle(first, attempt, STORED, 100.0)
    number, attempt = desk.claim(105.0)
    desk.outbox.note_transaction(number, attempt, "2.25.1")
    desk.file("9.2", 2, now=106.0)
    lost = {"9.1": "It has no such instance."}
    assert desk.outbox.answered("2.25.1", set(), lost, now=107.0) is DeliveryState.CANCELLED
    assert desk.state(first) is DeliveryState.CANCELLED


def test_a_person_who_asks_again_gets_the_newest_only(desk):
    for revision, uid in ((1, "9.1"), (2, "9.2")):
        desk.file(uid, revision, now=100.0 + revision)
        number, attempt = desk.claim(100.0 + revision)
        desk.settle(number, attempt, REFUSED, 100.0 + revision)
    assert desk.outbox.retry("1.2", now=200.0) == 1
    number, _ = desk.claim(200.0)
    assert desk.outbox.delivery(number).revision == 2


def test_a_newer_report_for_another_destination_replaces_nothing(desk):
    desk.file("9.1", 1)
    first, attempt = desk.claim(100.0)
    desk.file("9.2", 2, now=101.0, destinations=("second",))
    assert desk.settle(first, attempt, NO_ANSWER, 102.0) is DeliveryState.QUEUED
