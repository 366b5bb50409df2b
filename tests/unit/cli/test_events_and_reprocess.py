"""``events`` tells a study's story; ``reprocess`` begins it anew."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Site


def test_events_of_one_study_are_told_oldest_first(site: Site) -> None:
    site.study("1.1", "REPORTED")
    site.event("study_ready", "Revision 1 is complete.", study_uid="1.1")
    site.event("study_ready", "Another.", study_uid="1.2")
    site.event("reported", "Analysed; 2 findings reported.", study_uid="1.1", code="CONTRAST")
    assert site.run("events", "1.1").stdout.splitlines() == [
        "2026-11-23T12:00:01Z  study_ready  Revision 1 is complete.",
        "2026-11-23T12:00:01Z  reported [CONTRAST]  Analysed; 2 findings reported.",
    ]
    told = [json.loads(line) for line in site.run("events", "--json").stdout.splitlines()]
    assert [event["study_uid"] for event in told] == ["1.1", "1.2", "1.1"]


def test_following_a_finished_study_ends_by_itself(site: Site) -> None:
    site.study("1.1", "NOT_ANALYSED")
    site.event("not_analysed", "Too thick.", study_uid="1.1")
    result = site.run("events", "1.1", "--follow")
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)


def test_an_unknown_study_is_said_to_be_unknown(site: Site) -> None:
    for words in (("events", "9.9"), ("events", "9.9", "--follow"), ("reprocess", "9.9")):
        result = site.run(*words)
        assert result.exit_code == 1
        assert result.stderr == "The ledger knows no study 9.9; 'nodule-node status' lists those it knows.\n"


def test_reprocess_takes_a_finished_study_back_to_receiving(site: Site) -> None:
    site.study("1.1", "REPORTED")
    assert site.run("reprocess", "1.1").stdout == "The study will be analysed again.\n"
    study = json.loads(site.run("status", "--json").stdout)["studies"][0]
    assert (study["state"], study["revision"]) == ("RECEIVING", 1)
    again = site.run("reprocess", "1.1")
    assert again.exit_code == 1
    assert again.stderr == "The study is RECEIVING: it is not finished, so there is nothing to repeat.\n"
