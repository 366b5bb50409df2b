"""A running node is seen from outside: status, events, /health, /metrics and the audit trail, without a patient."""

from __future__ import annotations

import json
import sqlite3
import urllib.error
import urllib.request
from xml.etree import ElementTree as ET

import pytest
from prometheus_client.parser import text_string_to_metric_families

from demo.processes import free_ports
from tests.builders import ChestSeries
from tests.e2e.node import node_and_archive
from tests.e2e.sending import send_until_taken

PATIENT = {"PatientName": "Zyxwold^Quintessa", "PatientID": "PID-77120", "PatientBirthDate": "19471103"}
SERIES = ChestSeries("seen", slices=64, extra=PATIENT)
TRACES = ("Zyxwold", "Quintessa", "PID-77120", "19471103")


def fetch(port: int, page: str) -> tuple[int, str]:
    """Status and body of a page of the node."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def samples(page: str) -> dict[tuple[str, ...], float]:
    """Every sample by name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """One study through a node that is watched; what was seen of it, and the folder that is left."""
    folder = tmp_path_factory.mktemp("seen")
    (port,) = free_ports(1)
    SERIES.write(folder / "series")
    with node_and_archive(folder / "node") as (node, archive):
        node.environment = {"NODULE_NODE__METRICS__PORT": str(port), "NODULE_NODE__AUDIT__POLL_S": "0.2"}
        node.start()
        send_until_taken(folder / "series", node.peer)
        node.wait(archive.reports, "the report in the archive")
        node.wait(lambda: node.delivered(SERIES.study_uid), "delivered")
        node.wait(lambda: fetch(port, "health")[0] == 200, "healthy")
        node.wait(lambda: ("nodule_node_studies", "REPORTED") in samples(fetch(port, "metrics")[1]), "metrics")
        node.wait(
            lambda: (
                samples(fetch(port, "metrics")[1]).get(("nodule_node_studies", "REPORTED")) == 1.0
                and samples(fetch(port, "metrics")[1]).get(("nodule_node_detection_seconds_count",)) == 1.0
            ),
            "the study in the metrics",
        )
        seen = {
            "metrics": fetch(port, "metrics")[1],
            "health": fetch(port, "health")[1],
            "status": node.command("status", "--json").stdout,
            "text": node.command("status").stdout,
            "events": node.command("events", SERIES.study_uid, "--follow").stdout,
            "all events": node.command("events", "--json").stdout,
            "explain": node.command("explain", SERIES.study_uid).stdout,
        }
        assert node.stop() == 0
        seen["log"] = node.log.read_text()
        seen["audit"] = (node.folder / "data" / "audit.log").read_text()
        yield seen, node.folder


def test_status_tells_how_the_node_is(story):
    seen, _ = story
    node = json.loads(seen["status"])["node"]
    assert node["healthy"], node["reasons"]
    assert [listener["answers"] for listener in node["listeners"]] == [True]
    assert [worker["alive"] for worker in node["workers"]] == [True]
    assert node["deliveries"] == [{"destination": "archive", "state": node["deliveries"][0]["state"], "count": 1}]
    assert node["dead_letters"] == []
    assert node["disk"]["free_bytes"] > node["disk"]["floor_bytes"]
    assert "Node NODULE_NODE: well" in seen["text"]


def test_events_tell_the_story_of_a_study_and_end_with_it(story):
    seen, _ = story
    kinds = [line.split()[1] for line in seen["events"].splitlines()]
    assert kinds[:2] == ["study_ready", "analysing"]
    assert "reported" in kinds
    assert any(kind.startswith("delivery_") for kind in kinds)
    told = [json.loads(line) for line in seen["all events"].splitlines()]
    assert told[0]["kind"] == "node_started"
    assert [event["id"] for event in told] == sorted(event["id"] for event in told)


def test_metrics_count_what_happened(story):
    seen, _ = story
    found = samples(seen["metrics"])
    assert found["nodule_node_instances_total", "STORED"] >= 64
    assert found["nodule_node_associations_total", "accepted"] >= 1
    assert found["nodule_node_received_bytes_total",] > 64 * 1000
    assert found["nodule_node_store_seconds_count",] >= 64
    assert found["nodule_node_state_seconds_count", "ANALYSING"] == 1
    assert found["nodule_node_detection_seconds_count",] == 1
    assert found["nodule_node_healthy",] == 1
    assert found["nodule_node_workers_alive",] == 1
    assert found["nodule_node_disk_free_bytes",] > 0


def test_the_audit_trail_tells_start_transfer_export_and_stop(story):
    seen, _ = story
    told = [ET.fromstring(line) for line in seen["audit"].splitlines()]
    codes = [message.find("EventIdentification/EventID").get("csd-code") for message in told]
    assert codes[0] == codes[-1] == "110100"
    types = [message.find("EventIdentification/EventTypeCode") for message in told]
    assert (types[0].get("csd-code"), types[-1].get("csd-code")) == ("110120", "110121")
    assert codes.count("110106") == 1
    transferred = [message for message, code in zip(told, codes, strict=True) if code == "110104"]
    assert sum(int(m.find(".//SOPClass").get("NumberOfInstances")) for m in transferred) == 64
    studies = {m.find("ParticipantObjectIdentification").get("ParticipantObjectID") for m in transferred}
    assert studies == {SERIES.study_uid}


def test_nothing_that_is_told_names_the_patient(story):
    seen, folder = story
    told = dict(seen)
    with sqlite3.connect(folder / "data" / "node.sqlite") as ledger:
        told["database"] = "\n".join(ledger.iterdump())
    ledger.close()
    for path in (folder / "data" / "run").rglob("*"):
        if path.is_file():
            told[path.name] = path.read_bytes().decode("latin-1")
    assert "REPORTED" in told["database"]
    leaks = [(where, trace) for where, text in told.items() for trace in TRACES if trace in text]
    assert leaks == []


def test_what_lies_on_disk_is_the_service_users_alone(story):
    _, folder = story
    data = folder / "data"
    open_to_others = [path for path in data.rglob("*") if path.stat().st_mode & 0o077]
    assert [path.relative_to(data) for path in open_to_others] == []
    assert (data / "node.sqlite").stat().st_mode & 0o777 == 0o600
    assert data.stat().st_mode & 0o777 == 0o700
