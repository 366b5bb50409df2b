"""A reader is started ahead of its question, answers once, and is replaced when it dies while it waits."""

from __future__ import annotations

import os
from contextlib import closing

import pytest

from pipeline.decision import Decision
from pipeline.domain.limits import SelectionLimits
from scp_node.reader_process import ReaderClient


@pytest.fixture(scope="module")
def client():
    with closing(ReaderClient(SelectionLimits(), timeout_s=240.0, memory_mib=4096)) as made:
        yield made


def waiting(client):
    """The child that waits for the next question; it goes on waiting."""
    child = client._ready.get(timeout=120)
    client._ready.put(child)
    return child


def nothing_decided(client):
    answer = client.decide([], lambda: False)
    return isinstance(answer, Decision) and answer.series == ()


def test_the_child_that_waits_gets_the_question_and_another_one_waits_then(client):
    first = waiting(client)
    assert first.poll() is None
    assert nothing_decided(client)
    assert first.poll() is not None
    assert waiting(client).pid != first.pid


def test_a_decision_after_a_look_at_the_same_files_takes_no_child(client):
    whole = client.look([], lambda: False)
    assert (whole.geometry, whole.lungs) == (False, False)
    child = waiting(client)
    assert nothing_decided(client)
    assert waiting(client) is child
    assert nothing_decided(client)
    assert waiting(client) is not child


def test_a_child_that_died_while_it_waited_is_replaced(client):
    dead = waiting(client)
    dead.kill()
    dead.wait(120)
    assert nothing_decided(client)


def test_closing_leaves_no_child_behind():
    client = ReaderClient(SelectionLimits(), timeout_s=240.0, memory_mib=4096)
    child = waiting(client)
    client.close()
    assert child.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)
