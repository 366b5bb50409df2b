"""``status`` begins with the node itself: what answers, who works, what waits, what was given up, what to do."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.cli.conftest import Site


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port on which somebody answers, as the node's own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("NODULE_NODE__NODE__PORT", str(server.getsockname()[1]))
        monkeypatch.setenv("NODULE_NODE__STORAGE__MIN_FREE_MIB", "0")
        monkeypatch.setenv("NODULE_NODE__STORAGE__MIN_FREE_PERCENT", "0.0")
        yield server.getsockname()[1]


def node_of(site: Site) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(site.run("status", "--json").stdout)["node"]
    return answer


def test_a_node_with_listener_and_worker_is_well(site: Site, port: int) -> None:
    site.add("lease", slot="worker-0", boot="b", expires_at=time.time() + 3600)
    site.add("lease", slot="listener:abc", boot="abc", expires_at=time.time() + 3600)
    node = node_of(site)
    assert (node["healthy"], node["reasons"]) == (True, [])
    assert node["listeners"] == [{"host": "127.0.0.1", "port": port, "answers": True}]
    assert [(worker["slot"], worker["alive"]) for worker in node["workers"]] == [("worker-0", True)]
    assert site.run("status").stdout.startswith("Node NODULE_NODE: well\n")


def test_a_dead_worker_and_a_silent_port_are_named_with_what_to_do(
    site: Site, monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_at_once:
        silent = closed_at_once.getsockname()[1]
    monkeypatch.setenv("NODULE_NODE__NODE__PORT", str(silent))
    site.add("lease", slot="worker-0", boot="b", expires_at=time.time() - 60)
    node = node_of(site)
    texts = [reason["text"] for reason in node["reasons"]]
    assert f"Nobody listens on 127.0.0.1, port {silent}." in texts
    assert "No worker is alive (last seen: worker-0): studies wait." in texts
    assert all(reason["what_to_do"].endswith(".") for reason in node["reasons"])
    assert "Worker worker-0: dead, its lease ended at" in site.run("status").stdout


def test_the_longest_waiting_and_the_given_up_are_named(site: Site, port: int) -> None:
    site.study("1.1", "RECEIVING", state_changed_at=time.time() - 100)
    site.study("1.2", "RECEIVING", state_changed_at=time.time() - 10)
    site.study("1.3", "REPORTED")
    site.report("2.25.1", "1.3")
    site.delivery("2.25.1", "pacs", "failed_final", last_error="PACS does not know our AE title.")
    node = node_of(site)
    assert [(waiting["study_uid"], waiting["state"]) for waiting in node["waiting"]] == [("1.1", "RECEIVING")]
    assert 100 <= node["waiting"][0]["age_s"] < 1000
    assert [(d["study_uid"], d["destination"], d["error"]) for d in node["dead_letters"]] == [
        ("1.3", "pacs", "PACS does not know our AE title.")
    ]
    assert node["deliveries"] == [{"destination": "pacs", "state": "failed_final", "count": 1}]
    text = site.run("status").stdout
    assert "Longest RECEIVING: 1.1, for " in text
    assert "Reports given up: 1. 'nodule-node retry STUDY' sends them again:\n  1.3 to pacs: PACS does not" in text


def test_a_study_that_waits_too_long_makes_the_node_not_well(site: Site, port: int) -> None:
    site.add("lease", slot="worker-0", boot="b", expires_at=time.time() + 3600)
    site.study("1.1", "QUEUED", state_changed_at=time.time() - 3600 - 3600 - 60)
    reasons = [reason["text"] for reason in node_of(site)["reasons"]]
    assert len(reasons) == 1
    assert reasons[0].startswith("Study 1.1 has been QUEUED for 72")


def test_the_last_problem_is_told_with_what_to_do(site: Site, port: int) -> None:
    site.event("reported", "Analysed; 2 findings reported.")
    site.event("refused", "From X (10.0.0.7): instance 1.2 refused with 0x0124.", code="NOT_AUTHORISED")
    problem = node_of(site)["last_problem"]
    assert problem["text"] == "From X (10.0.0.7): instance 1.2 refused with 0x0124."
    assert problem["what_to_do"] == "The sender should: give up, ask the administrator."
    site.event("failed", "The series could not be analysed.", code="DETECTOR_FAILED")
    assert node_of(site)["last_problem"]["what_to_do"].endswith(".")


def test_a_destination_that_is_away_is_named(site: Site, port: int) -> None:
    site.add("destination", name="pacs", failures=3, opened_at=time.time(), probe_at=time.time() + 60, why="Away.")
    assert node_of(site)["destinations"][0]["away_since"]
    assert "pacs is away since" in site.run("status").stdout
