"""A report that was under way when a newer one was filed does not arrive after it."""

from __future__ import annotations

from random import Random

from scp_node.ledger.outbox import Outbox, put
from scp_node.ledger.states import DeliveryState
from scp_node.ports import SendResult
from tests.ledgers import add_study, empty_ledger, new_report, retry_policy

NO_ANSWER = SendResult("retry", None, "No answer.")


def nothing(*_):
    """Start nothing."""


def test_an_attempt_that_failed_is_not_repeated_when_a_newer_report_waits(tmp_path, ledger_url):
    with empty_ledger(tmp_path, ledger_url) as engine:
        add_study(engine, "1.2")
        outbox = Outbox(engine)
        with engine.begin() as connection:
            put(connection, [new_report("9.1", revision=1)], now=100.0)
        ((first, attempt),) = outbox.claim_due(now=100.0, start=nothing)
        with engine.begin() as connection:
            put(connection, [new_report("9.2", revision=2)], now=101.0)
        outbox.settle(first, attempt, NO_ANSWER, policy=retry_policy(), rng=Random(1), now=102.0, provable=True)
        assert outbox.delivery(first).state is DeliveryState.CANCELLED
        ((second, _),) = outbox.claim_due(now=1000.0, start=nothing)
        assert outbox.delivery(second).revision == 2
