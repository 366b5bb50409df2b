"""``status``: a visible state for each study, from its first image on, and for what was refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from scp_node.cli.main import application

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Site

NOON = 1_795_435_200.0


def fill(site: Site) -> None:
    site.study("1.1", "REPORTED", codes=["THICK_SLICES", "CONTRAST"], state_changed_at=NOON + 100)
    site.instances("1.1", "1.1.1", 3)
    site.instances("1.1", "1.1.2", 1, "other")
    site.instances("1.1", "1.1.3", 2, is_newest=False)
    site.report("2.25.1", "1.1")
    site.delivery("2.25.1", "pacs", "delivered")
    site.delivery(
        "2.25.1", "backup", "queued", attempts=3, next_attempt_at=NOON + 500, last_error="No connection to h:104."
    )
    site.study("1.2", "RECEIVING", revision=0, state_changed_at=NOON + 200)
    site.instances("1.2", "1.2.1", 1)
    site.study("1.3", "NOT_ANALYSED", codes=["SLICES_TOO_THICK"])
    site.report("2.25.2", "1.3", "not_analysed")
    site.event("quarantined", "An object was kept aside: Data set does not parse.", study_uid="1.9")
    site.event("rejected_association", "'X' from 10.0.0.7 was rejected: not in [[senders]].", at=NOON + 2)
    site.event("study_ready", "Revision 1 is complete: quiet.", study_uid="1.1")


def test_the_text_tells_state_codes_images_reports_and_deliveries(site: Site) -> None:
    fill(site)
    result = site.run("status")
    assert result.exit_code == 0
    node, _, studies = result.stdout.partition("\n\n")
    assert node.splitlines()[0] == "Node NODULE_NODE: not well"
    assert studies.splitlines() == [
        "1.2  RECEIVING",
        "  since 2026-11-23T12:03:20Z, revision 0, from CT_ROUTER, holds 1 ct",
        "1.1  REPORTED",
        "  since 2026-11-23T12:01:40Z, revision 1, from CT_ROUTER, holds 3 ct, 1 other",
        "  codes: THICK_SLICES, CONTRAST",
        "  report of revision 1 (findings): pacs delivered; backup queued after 3 tries, next 2026-11-23T12:08:20Z "
        "(No connection to h:104.)",
        "1.3  NOT_ANALYSED",
        "  since 2026-11-23T12:01:20Z, revision 1, from CT_ROUTER, holds nothing",
        "  codes: SLICES_TOO_THICK",
        "  report of revision 1 (not_analysed): sent nowhere",
        "Refused, rejected or kept aside:",
        "  2026-11-23T12:00:01Z  quarantined  An object was kept aside: Data set does not parse.",
        "  2026-11-23T12:00:02Z  rejected_association  'X' from 10.0.0.7 was rejected: not in [[senders]].",
        "In all: 1 NOT_ANALYSED, 1 RECEIVING, 1 REPORTED",
    ]


def test_json_tells_the_same_to_machines(site: Site) -> None:
    fill(site)
    document = json.loads(site.run("status", "--json").stdout)
    assert document["schema"] == 1
    assert document["counts"] == {"NOT_ANALYSED": 1, "RECEIVING": 1, "REPORTED": 1}
    assert document["studies"][1] == {
        "study_uid": "1.1",
        "state": "REPORTED",
        "codes": ["THICK_SLICES", "CONTRAST"],
        "revision": 1,
        "sender": "CT_ROUTER",
        "instances": {"ct": 3, "other": 1, "own": 0},
        "first_received_at": "2026-11-23T12:00:00Z",
        "last_received_at": "2026-11-23T12:00:10Z",
        "state_since": "2026-11-23T12:01:40Z",
        "reports": [
            {
                "sop_instance_uid": "2.25.1",
                "series_uid": "1.2.3",
                "revision": 1,
                "outcome": "findings",
                "created_at": "2026-11-23T12:01:30Z",
                "deliveries": [
                    {
                        "id": 1,
                        "destination": "pacs",
                        "state": "delivered",
                        "attempts": 1,
                        "next_attempt_at": None,
                        "last_error": None,
                    },
                    {
                        "id": 2,
                        "destination": "backup",
                        "state": "queued",
                        "attempts": 3,
                        "next_attempt_at": "2026-11-23T12:08:20Z",
                        "last_error": "No connection to h:104.",
                    },
                ],
            }
        ],
    }
    assert [event["kind"] for event in document["events"]] == ["quarantined", "rejected_association"]


def test_one_study_can_be_asked_for(site: Site) -> None:
    fill(site)
    document = json.loads(site.run("status", "1.3", "--json").stdout)
    assert [study["study_uid"] for study in document["studies"]] == ["1.3"]
    assert document["events"] == []
    assert site.run("status", "1.77").exit_code == 1


@pytest.mark.parametrize(("limit", "count"), [("1", 1), ("2", 2), ("0", 3)])
def test_the_last_ones_come_first_and_zero_means_all(site: Site, limit: str, count: int) -> None:
    fill(site)
    studies = json.loads(site.run("status", "--json", "--limit", limit).stdout)["studies"]
    assert [study["study_uid"] for study in studies] == ["1.2", "1.1", "1.3"][:count]


def test_before_the_first_start_there_are_no_studies_and_no_file_is_made(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text("")
    words = ["status", "--config", str(config)]
    assert CliRunner().invoke(application(), words).stdout == "The node has not run here yet: no studies.\n"
    document = json.loads(CliRunner().invoke(application(), [*words, "--json"]).stdout)
    assert document == {"schema": 1, "counts": {}, "studies": [], "events": []}
    assert [path.name for path in tmp_path.iterdir()] == ["node.toml"]


def test_a_ledger_of_another_version_is_refused(site: Site) -> None:
    with site.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE nn_alembic_version SET version_num = '0000'")
    result = site.run("status")
    assert result.exit_code == 78
    assert result.stderr == "The database is of another version: run 'nodule-node db upgrade'.\n"


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('[storage]\nfolder = "."\n')
    (tmp_path / "node.sqlite").write_bytes(b"not a database" * 100)
    result = CliRunner().invoke(application(), ["status", "--config", str(config)])
    assert result.exit_code == 78
    assert result.stderr == "The database cannot be opened: file is not a database.\n"
