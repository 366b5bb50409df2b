"""Every row of the table of real, hard and broken objects, sent to one running node by C-STORE.

The wire answer, the outcome and its code are those of the row; each study has a state that `nodule-node status`
shows; and after all of it the queue goes on.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from demo.dicom_client import send
from scp_node.identifiers import Identifiers, read_identifiers
from tests.builders import ChestSeries
from tests.e2e.node import node_and_archive
from tests.raw_sender import raw_object, send_raw

# The sender's library warns of the very faults that are sent here.
pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore::UserWarning")]

DATA = os.environ.get("NODULE_NODE_TEST_DATA", "")
SUCCESS, MISMATCH, CANNOT_UNDERSTAND = 0x0000, 0xA900, 0xC000
# Single images whose Image Type says LOCALIZER: that check comes first, the table names the next one.
ALSO_RIGHT = {"hard/orthanc_phenix_nonsquare_matrix": {"LOCALIZER_ONLY"}, "hard/orthanc_ts": {"LOCALIZER_ONLY"}}
FINISHED = {"REPORTED", "NOT_ANALYSED", "NO_CT"}
AFTERWARDS = ChestSeries("afterwards", slices=64)


def _rows():
    if not DATA:
        return []
    with (Path(DATA) / "expected.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


@dataclass
class Played:
    """What became of each row: the answers on the wire, and the studies that the node took."""

    answers: dict[str, list[int | None]] = field(default_factory=dict)
    studies: dict[str, set[str]] = field(default_factory=dict)
    status: dict = field(default_factory=dict)
    report_afterwards: bool = False

    def allowed(self, study_uid):
        """The codes that the rows of a study allow: some objects of different rows share a study."""
        rows = [row for row in _rows() if study_uid in self.studies[row["path"]]]
        named = {code for row in rows for code in row["codes"].split("|") if code}
        return named.union(*(ALSO_RIGHT.get(row["path"], set()) for row in rows))

    def analysed(self, study_uid):
        return any(row["detect"] == "analysed" for row in _rows() if study_uid in self.studies[row["path"]])


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    if not DATA:
        pytest.skip("NODULE_NODE_TEST_DATA is not set")
    played = Played()
    folder = tmp_path_factory.mktemp("odd")
    with node_and_archive(folder / "node", quiet_s="5") as (node, archive):
        node.start()
        for row in _rows():
            files = sorted(p for p in (Path(DATA) / row["path"]).rglob("*") if p.is_file() and p.suffix != ".txt")
            objects = [raw_object(path) for path in files]
            played.answers[row["path"]] = send_raw(node.port, objects, calling=node.sender)
            played.studies[row["path"]] = {
                found.study_instance_uid
                for one, answer in zip(objects, played.answers[row["path"]], strict=True)
                if answer == SUCCESS
                and isinstance(found := read_identifiers(one.dataset, one.transfer_syntax_uid), Identifiers)
            }
        taken = set().union(*played.studies.values())
        AFTERWARDS.write(folder / "afterwards")
        send(folder / "afterwards", node.peer, lambda *_: None)
        node.wait(lambda: node.delivered(AFTERWARDS.study_uid), "the queue goes on", limit_s=600)
        node.wait(
            lambda: all(node.state(uid) in FINISHED | {"FAILED"} for uid in taken),
            "every study has ended",
            limit_s=600,
        )
        played.status = node.status()
        played.report_afterwards = any(
            AFTERWARDS.study_uid in p.read_bytes().decode("latin1") for p in archive.reports()
        )
        assert node.stop() == 0
    return played


@pytest.mark.parametrize("row", _rows(), ids=lambda row: row["path"])
def test_the_answer_on_the_wire_is_that_of_the_row(played, row):
    answers = set(played.answers[row["path"]])
    match row["store"]:
        case "success":
            assert answers == {SUCCESS}
        case "failure":
            assert answers == {MISMATCH}
        case _:
            assert answers <= {SUCCESS, MISMATCH, CANNOT_UNDERSTAND}
            assert SUCCESS in answers


@pytest.mark.parametrize("row", _rows(), ids=lambda row: row["path"])
def test_each_study_ends_as_the_row_says_with_one_of_its_codes(played, row):
    for uid in played.studies[row["path"]]:
        study = played.status[uid]
        assert study["state"] in FINISHED
        codes, allowed = set(study["codes"]), played.allowed(uid)
        if played.analysed(uid):
            assert study["state"] == "REPORTED"
            assert allowed <= codes
        else:
            assert study["state"] in {"NOT_ANALYSED", "NO_CT"}
            assert codes & allowed, f"{codes} instead of one of {allowed}"


def test_what_was_refused_has_no_study(played):
    refused = [row["path"] for row in _rows() if row["store"] == "failure"]
    assert refused
    assert all(played.studies[path] == set() for path in refused)


def test_the_queue_goes_on_after_all_of_it(played):
    assert played.status[AFTERWARDS.study_uid]["state"] == "REPORTED"
    assert played.report_afterwards
