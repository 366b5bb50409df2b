"""An archive is away for 72 hours: it is asked now and then, and gets every report afterwards, oldest first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scp_node.ledger.destinations import Destinations
from tests.delivering import MemoryArchive, Post
from tests.ledgers import empty_ledger, retry_policy

HOUR_S = 3600.0
PROBE_S = 3600.0


@pytest.fixture
def engine(tmp_path, ledger_url):
    with empty_ledger(tmp_path, ledger_url) as engine:
        yield engine


@pytest.fixture
def post(engine, tmp_path):
    post = Post(engine, tmp_path, MemoryArchive(up=False))
    post.policy = replace(retry_policy(retry_s=(30.0, 60.0, 3600.0), give_up_s=14 * 24 * HOUR_S), probe_s=PROBE_S)
    return post


def test_three_failures_in_a_row_open_the_breaker_and_only_c_echo_asks_from_then_on(post):
    post.report(1)
    for _ in range(3):
        post.work_after(100)
    ((view),) = Destinations(post.engine).views()
    assert (view.failures, view.away_since, view.next_probe_at) == (3, post.clock.at, post.clock.at + PROBE_S)
    assert post.archive.echoes == 0
    post.report(2)
    assert post.work_after(PROBE_S - 1) == 0
    assert post.work_after(1) == 1
    assert post.archive.echoes == 1
    (told,) = post.story("destination_away")
    assert told == "pacs cannot be reached; its reports wait, and it is asked every 3600 s. No connection."


def test_a_destination_that_is_back_closes_the_breaker_and_everything_waiting_is_due(post):
    for number in (1, 2, 3):
        post.report(number)
    for _ in range(4):
        post.work_after(100)
    post.archive.up = True
    post.work_after(PROBE_S)
    for _ in range(2):
        assert post.work() == 1
    assert len(post.archive.stored) == 3
    ((view),) = Destinations(post.engine).views()
    assert (view.failures, view.away_since) == (0, None)
    assert len(post.story("destination_back")) == 1


def test_after_72_hours_every_report_arrives_oldest_first_and_without_a_storm(post):
    made, exchanges = [], 0
    ends_at = post.clock.at + 72 * HOUR_S
    while post.clock.at < ends_at:
        if len(made) < (post.clock.at - 1000.0) // (2 * HOUR_S) + 1:
            made.append(post.report(len(made)))
        exchanges += post.work_after(PROBE_S / 2)
    assert len(made) == 36
    assert post.archive.stored == []
    assert exchanges <= 72 * HOUR_S / PROBE_S + 3  # one question each time, however many reports wait
    post.archive.up = True
    post.clock.at += PROBE_S
    turns = 0
    while post.work():
        turns += 1
    assert post.archive.stored == made
    assert turns == len(made)  # one after another
    assert len(post.story("destination_away")) == len(post.story("destination_back")) == 1
    assert len(post.story("delivery_queued")) == 3  # what the outage itself wrote into the studies' stories
