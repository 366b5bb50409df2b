"""Histories of the simulator keep every promise; and a node that breaks one is found out (decision 0120)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from scp_node.ledger import arrivals, outbox
from scp_node.ledger.arrivals import LedgerUnavailableError, Stored
from scp_node.receive import Answer, Received, Receiver
from tests.simulator.fingerprint import fingerprint
from tests.simulator.history import History
from tests.simulator.run import Tally, simulate, yard

ROOT = Path(__file__).parents[2]
PART = 500
ENOUGH = 150
"""A node that breaks a promise is found out within so many histories."""


class Caught(Exception):  # noqa: N818 - what the test wants
    """A history broke a promise."""


def until_caught(tally):
    def after():
        if tally.broken:
            raise Caught

    return after


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", [0, 500])
def test_histories_keep_every_promise(first, quiet_simulator):
    """The other thousand is another worker's: ``test_no_later_history_loses_a_study.py``."""
    tally = simulate(range(first, first + PART), Tally())
    assert tally.histories == PART
    assert tally.broken == {}
    assert tally.happened["reports"] > PART


def test_a_seed_gives_one_history_alone_and_behind_others(quiet_simulator):
    with yard() as place:
        behind = [fingerprint(History(seed, place).live()) for seed in (10, 13, 13)]
    assert behind[0] != behind[1] == behind[2]
    alone = subprocess.run(
        [sys.executable, "-m", "tests.simulator", "--seed", "13"],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "5"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert f"fingerprint {behind[1]}" in alone.stdout


def hasty_store(honest):
    """Says Success whether or not the image is safe."""

    def store(self, incoming, identifiers):
        try:
            return honest(self, incoming, identifiers)
        except (LedgerUnavailableError, OSError):
            return Received(0, "", Answer.STORED, Stored.NEW)

    return store


def credulous_check(check, due, **_rest):
    """Takes whatever an archive says for a proof."""
    return {"state": "delivered", "next_attempt_at": None, "verified_by": "query", "last_error": None}


def deaf_move(connection, arrival):
    """Does not take a study back that has ended."""


def hurried(connection, delivery_id, state=outbox.DeliveryState.QUEUED):
    """Sends a report although a newer one was filed."""
    return state


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("room", "name", "worse"),
    [
        (Receiver, "_store", hasty_store(Receiver._store)),
        (outbox, "after_check", credulous_check),
        (arrivals, "_move_study", deaf_move),
        (outbox, "_unless_overtaken", hurried),
    ],
    ids=["acknowledges before the commit", "believes the archive", "ignores late images", "keeps no order"],
)
def test_a_node_that_breaks_a_promise_is_found_out(room, name, worse, quiet_simulator):
    tally = Tally()
    with mock.patch.object(room, name, worse), pytest.raises(Caught):
        simulate(range(ENOUGH), tally, until_caught(tally))
