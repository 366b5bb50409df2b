"""When a report is tried again: the ladder, its spread, the end of patience, the answers that end it at once."""

from __future__ import annotations

from random import Random

import pytest

from scp_node.ledger.outbox import after_attempt
from scp_node.ledger.states import DeliveryState
from scp_node.ports import SendResult
from tests.ledgers import retry_policy

LADDER = (30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
POLICY = retry_policy(retry_s=LADDER, give_up_s=72 * 3600)
NO_ANSWER = SendResult("retry", None, "No connection.")


def follow(result=NO_ANSWER, *, attempts=1, created_at=0.0, now=0.0, policy=POLICY):
    return after_attempt(
        result, attempts=attempts, created_at=created_at, policy=policy, rng=Random(1), now=now, provable=True
    )


@pytest.mark.parametrize(("attempts", "wait_s"), [*enumerate(LADDER, 1), (8, 3600.0), (70, 3600.0)])
def test_the_waits_grow_to_an_hour_and_stay_there(attempts, wait_s):
    assert follow(attempts=attempts, now=1000.0) == (DeliveryState.QUEUED, 1000.0 + wait_s)


def test_each_wait_is_spread_by_a_fifth_both_ways():
    policy, rng = retry_policy(retry_s=LADDER, jitter=0.2, give_up_s=1e9), Random(1)
    waits = [policy.wait_s(1, rng) for _ in range(1000)]
    assert 24.0 <= min(waits) < 25.0
    assert 35.0 < max(waits) <= 36.0


def test_after_72_hours_a_report_is_given_up():
    assert follow(attempts=80, now=72 * 3600 - 3600) == (DeliveryState.QUEUED, 72 * 3600)
    assert follow(attempts=80, now=72 * 3600 - 3599) == (DeliveryState.FAILED_FINAL, None)


def test_a_refusal_ends_the_delivery_at_once():
    refused = SendResult("refused", 0xA900, "The archive refuses this report.")
    assert follow(refused) == (DeliveryState.FAILED_FINAL, None)


def test_a_stored_report_is_asked_for_soon():
    stored = SendResult("delivered", 0, "Stored.")
    assert follow(stored, now=1000.0) == (DeliveryState.SENT, 1000.0 + POLICY.verify_after_s[0])
