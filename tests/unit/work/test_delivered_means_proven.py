"""An archive's Success is not believed: it commits itself, or finds the report, or "sent, not verified" is said."""

from __future__ import annotations

import pytest

from scp_node.ledger.destinations import Destinations
from scp_node.ports import STORAGE_COMMITMENT, STUDY_ROOT_FIND
from tests.delivering import BOTH, MemoryArchive, Post
from tests.ledgers import empty_ledger

COMMITS, FINDS = frozenset({STORAGE_COMMITMENT}), frozenset({STUDY_ROOT_FIND})


@pytest.fixture
def engine(tmp_path, ledger_url):
    with empty_ledger(tmp_path, ledger_url) as engine:
        yield engine


def sent(engine, folder, archive, **settings):
    """A report that the archive said it stored."""
    post = Post(engine, folder, archive, **settings)
    post.report()
    assert post.work() == 1
    return post


@pytest.mark.parametrize(
    ("offers", "verify", "way"),
    [
        (BOTH, "auto", "commitment"),
        (FINDS, "auto", "query"),
        (BOTH, "query", "query"),
        (BOTH, "commitment", "commitment"),
    ],
)
def test_a_report_is_delivered_when_the_archive_proves_it(engine, tmp_path, offers, verify, way):
    post = sent(engine, tmp_path, MemoryArchive(offers), verify=verify)
    assert post.state() == "sent"
    assert post.work_after(4.9) == 0
    assert post.work_after(0.2) == 1
    (row,) = post.rows()
    assert (row.state, row.verified_by, row.next_attempt_at) == ("delivered", way, None)
    assert post.archive.asked == [way]
    assert post.work_after(1e6) == 0


@pytest.mark.parametrize(
    ("offers", "verify", "why"),
    [
        (frozenset(), "auto", "pacs offers us neither storage commitment nor queries. Sent, not verified."),
        (FINDS, "commitment", "pacs offers us no storage commitment. Sent, not verified."),
        (COMMITS, "query", "pacs offers us no queries. Sent, not verified."),
    ],
)
def test_an_archive_that_cannot_be_asked_leaves_it_at_sent_not_verified(engine, tmp_path, offers, verify, why):
    post = sent(engine, tmp_path, MemoryArchive(offers), verify=verify)
    post.work_after(6)
    (row,) = post.rows()
    assert (row.state, row.last_error) == ("unverified", why)
    assert f"Report to pacs: sent, not verified. {why}" in post.story()


def test_where_nobody_wants_to_know_sent_is_the_end_and_is_called_so(engine, tmp_path):
    post = sent(engine, tmp_path, MemoryArchive(BOTH), verify="none")
    assert post.state() == "unverified"
    assert post.story() == ["Report to pacs, attempt 1: sent, not verified. Stored."]
    assert post.work_after(1e6) == 0
    assert post.archive.asked == []


@pytest.mark.parametrize("offers", [COMMITS, FINDS])
def test_an_archive_that_says_success_and_drops_the_report_gets_it_again(engine, tmp_path, offers):
    post = sent(engine, tmp_path, MemoryArchive(offers, drops=1))
    for _ in range(40):
        post.work_after(30)
    assert len(post.archive.stored) == 2
    assert post.archive.kept == post.archive.stored[:1]
    (row,) = post.rows()
    assert (row.state, row.feeds) == ("delivered", 1)
    assert any(text.startswith("Report to pacs: queued.") for text in post.story("delivery_queued"))


def test_an_archive_that_drops_it_every_time_is_given_up_visibly(engine, tmp_path):
    post = sent(engine, tmp_path, MemoryArchive(COMMITS, drops=1000))
    for _ in range(60):
        post.work_after(30)
    (row,) = post.rows()
    assert (row.state, len(post.archive.stored)) == ("failed_final", 4)
    assert row.last_error == "Stored with Success 4 times, and never there. It has no such instance (0x0112)."
    assert post.outbox.retry("1.2.1", now=post.clock.now()) == 1
    post.archive.drops = 0
    post.work()
    post.work_after(6)
    assert post.state() == "delivered"


def test_a_slow_index_is_waited_for_before_the_report_is_sent_again(engine, tmp_path):
    archive = MemoryArchive(FINDS)
    post = sent(engine, tmp_path, archive)
    kept, archive.kept = archive.kept, []
    post.work_after(6)
    assert post.work_after(29) == 0
    post.work_after(2)
    archive.kept = kept
    post.work_after(301)
    assert archive.asked == ["query"] * 3
    assert (post.state(), len(archive.stored)) == ("delivered", 1)


def test_an_answer_on_a_later_association_settles_the_delivery(engine, tmp_path):
    post = sent(engine, tmp_path, MemoryArchive(BOTH, answers_at_once=False))
    post.work_after(6)
    assert post.state() == "sent"
    (transaction,), (row,) = post.archive.transactions, post.rows()
    now = post.clock.now()
    assert post.outbox.answered("9.9.9", {row.sop_instance_uid}, {}, now=now) is None
    assert post.outbox.answered(transaction, {row.sop_instance_uid}, {}, now=now) == "delivered"
    assert post.state() == "delivered"
    assert post.outbox.answered(transaction, {row.sop_instance_uid}, {}, now=now) == "delivered"
    assert len(post.story("delivery_delivered")) == 1


def test_an_answer_that_the_report_is_missing_feeds_it_again_under_a_new_transaction(engine, tmp_path):
    post = sent(engine, tmp_path, MemoryArchive(COMMITS, answers_at_once=False))
    post.work_after(6)
    (row,) = post.rows()
    missing = {row.sop_instance_uid: "The archive has no such instance (0x0112)."}
    assert post.outbox.answered(row.transaction_uid, set(), missing, now=post.clock.now()) == "queued"
    post.work()
    post.work_after(6)
    assert len(post.archive.stored) == 2
    first, second = post.archive.transactions
    assert first != second


@pytest.mark.parametrize(("offers", "end"), [(BOTH, "delivered"), (COMMITS, "unverified")])
def test_two_answers_that_never_come_are_replaced_by_a_query_or_said_so(engine, tmp_path, offers, end):
    post = sent(engine, tmp_path, MemoryArchive(offers, answers_at_once=False))
    post.work_after(6)
    for _ in range(2):
        assert post.state() == "sent"
        assert post.work_after(86000) == 0
        post.work_after(500)
    assert post.state() == end
    assert post.archive.asked == ["commitment", "commitment", *(["query"] if end == "delivered" else [])]


def test_an_archive_that_forgot_the_question_and_the_report_gets_both_again(engine, tmp_path):
    post = sent(engine, tmp_path, MemoryArchive(COMMITS, answers_at_once=False))
    post.work_after(6)
    post.archive.kept.clear()
    post.archive.answers_at_once = True
    post.work_after(86401)
    post.work()
    post.work_after(6)
    assert (post.state(), len(post.archive.stored)) == ("delivered", 2)


def test_a_question_that_its_asker_did_not_survive_is_no_answer_that_never_comes(engine, tmp_path):
    post = sent(engine, tmp_path, MemoryArchive(COMMITS))
    post.clock.at += 6
    ((number, attempt),) = post.outbox.claim_due(now=post.clock.now(), start=lambda *_: None)
    post.outbox.note_transaction(number, attempt, "2.25.1")
    post.deliveries.attempt(number, attempt, lambda: False)
    assert (post.state(), post.archive.asked) == ("delivered", ["commitment"])


@pytest.mark.parametrize("offers", [FINDS, COMMITS])
def test_an_archive_that_goes_away_before_it_was_asked_is_asked_when_it_is_back(engine, tmp_path, offers):
    post = sent(engine, tmp_path, MemoryArchive(offers))
    Destinations(engine).keep_offers("pacs", offers, now=post.clock.now())
    post.archive.up = False
    for _ in range(5):
        post.work_after(60)
    assert post.state() == "sent"
    post.archive.up = True
    for _ in range(5):
        post.work_after(60)
    assert (post.state(), len(post.archive.stored)) == ("delivered", 1)


def test_a_question_whose_run_is_repeated_after_its_answer_sends_nothing(engine, tmp_path):
    post = sent(engine, tmp_path, MemoryArchive(FINDS))
    post.clock.at += 6
    ((number, attempt),) = post.outbox.claim_due(now=post.clock.now(), start=lambda *_: None)
    for _ in range(2):
        post.deliveries.attempt(number, attempt, lambda: False)
    assert (post.state(), len(post.archive.stored)) == ("delivered", 1)


def test_a_question_whose_run_broke_off_is_asked_again(engine, tmp_path):
    post = sent(engine, tmp_path, MemoryArchive(FINDS))
    post.clock.at += 6
    ((number, attempt),) = post.outbox.claim_due(now=post.clock.now(), start=lambda *_: None)
    assert post.state() == "verifying"
    post.deliveries.interrupted(number, attempt, "The run was cancelled or out of time.")
    assert post.state() == "sent"
    post.work_after(31)
    assert post.state() == "delivered"
