"""Histories of the simulator keep every promise; and a node that breaks one is found out (decision 0120)."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import structlog

from scp_node.ledger import arrivals, outbox
from scp_node.ledger.arrivals import LedgerUnavailableError, Stored
from scp_node.receive import Answer, Received, Receiver
from tests.simulator.history import silence
from tests.simulator.run import Tally, simulate

ROOT = Path(__file__).parents[2]
SEEDS = 16
ENOUGH = 150
"""A node that breaks a promise is found out within so many histories."""


@pytest.fixture(autouse=True)
def quiet_logs():
    silence()
    yield
    logging.disable(logging.NOTSET)
    structlog.reset_defaults()


class Caught(Exception):  # noqa: N818 - what the test wants
    """A history broke a promise."""


def until_caught(tally):
    def after():
        if tally.broken:
            raise Caught

    return after


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_history_keeps_every_promise(seed):
    """Each in a process of its own, as ``SEED=n`` runs it again (decision 0120 says why)."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.simulator", "--seed", str(seed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 histories, 0 broken" in ran.stdout


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


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("room", "name", "worse"),
    [
        (Receiver, "_store", hasty_store(Receiver._store)),
        (outbox, "after_check", credulous_check),
        (arrivals, "_move_study", deaf_move),
    ],
    ids=["acknowledges before the commit", "believes the archive", "ignores late images"],
)
def test_a_node_that_breaks_a_promise_is_found_out(room, name, worse):
    tally = Tally()
    with mock.patch.object(room, name, worse), pytest.raises(Caught):
        simulate(range(ENOUGH), tally, until_caught(tally))
