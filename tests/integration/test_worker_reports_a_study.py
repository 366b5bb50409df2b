"""The worker's whole way: images in the ledger, reports at the archives, and the ledger's word on it.

One worker serves four studies and four archives; each test looks at one side of what came of it.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from scp_node.ledger import tables
from scp_node.ledger.states import StudyState
from tests.builders import ChestSeries
from tests.small_archive import COMPREHENSIVE, COMPREHENSIVE_3D, small_archive
from tests.worker_node import WorkerNode, destination, small_series, wait_for

if TYPE_CHECKING:
    from pydicom import Dataset

CHEST, SHORT = small_series("chest"), ChestSeries("too few", slices=8)
LATE = small_series("late images")
MR = ChestSeries("mr", slices=1, extra={"Modality": "MR"})


@dataclass
class Story:
    """What came of the studies: reports by archive, and the ledger's rows."""

    received: dict[str, list[Dataset]]
    studies: dict[str, Any]
    reports: list[Any]
    deliveries: list[Any]
    decisions: dict[str, Any]
    events: list[Any]
    analysed: list[str]

    def reports_of(self, series: ChestSeries, archive: str) -> list[Dataset]:
        return [sr for sr in self.received[archive] if sr.StudyInstanceUID == series.study_uid]

    def deliveries_of(self, series: ChestSeries) -> set[tuple[str, str]]:
        made = {row.sop_instance_uid for row in self.reports if row.study_uid == series.study_uid}
        return {(row.destination, row.state) for row in self.deliveries if row.sop_instance_uid in made}


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("story")
    with (
        small_archive() as modern,
        small_archive() as plain,
        small_archive([COMPREHENSIVE]) as refusing,
        small_archive() as incurious,
    ):
        archives = {"modern": modern, "plain": plain, "refusing": refusing, "incurious": incurious}
        places = (
            destination(modern.port, name="modern")
            + destination(plain.port, name="plain", sr="comprehensive")
            + destination(refusing.port, name="refusing")
            + destination(incurious.port, name="incurious", not_analysed=False)
        )
        with closing(WorkerNode(folder, destinations=places)) as node:
            _live_through(node)
            studies = {row.study_uid: row for row in node.rows(tables.study)}
            yield Story(
                {name: archive.received for name, archive in archives.items()},
                studies,
                node.rows(tables.report),
                node.rows(tables.delivery),
                {row.study_uid: row.decision for row in node.rows(tables.series)},
                node.rows(tables.event),
                [uid for uid, _ in node.detector_starts()],
            )


def _live_through(node: WorkerNode) -> None:
    late = LATE.datasets()
    for datasets in (CHEST.datasets(), SHORT.datasets(), MR.datasets(), late[:-2]):
        node.receive(datasets)
    node.start()

    def all_sent():
        return {row.state for row in node.rows(tables.delivery)} <= {"unverified", "cancelled"}

    def settled():
        states = [node.state(study.study_uid) for study in (CHEST, SHORT, MR, LATE)]
        ends = [StudyState.REPORTED, StudyState.NOT_ANALYSED, StudyState.NO_CT, StudyState.REPORTED]
        return states == ends and all_sent()

    wait_for(settled)
    node.receive(late[-2:])
    wait_for(lambda: len(node.detector_starts()) == 3 and settled())


def test_a_study_becomes_one_report_at_each_destination_in_the_form_it_takes(story):
    (modern,), (plain,), (refusing,) = (story.reports_of(CHEST, name) for name in ("modern", "plain", "refusing"))
    assert modern.SOPClassUID == COMPREHENSIVE_3D
    assert plain.SOPClassUID == refusing.SOPClassUID == COMPREHENSIVE
    assert plain.SOPInstanceUID == refusing.SOPInstanceUID
    assert story.studies[CHEST.study_uid].state == StudyState.REPORTED


def test_a_refused_form_is_cancelled_visibly_and_the_other_one_sent(story):
    assert story.deliveries_of(CHEST) == {
        ("modern", "unverified"),
        ("plain", "unverified"),
        ("incurious", "unverified"),
        ("refusing", "cancelled"),
        ("refusing", "unverified"),
    }
    told = [row.text for row in story.events if row.study_uid == CHEST.study_uid]
    assert "refusing does not take Comprehensive 3D SR; Comprehensive SR is sent instead." in told


def test_the_file_of_a_report_is_what_the_archive_got(story):
    (sr,) = story.reports_of(CHEST, "modern")
    (row,) = (row for row in story.reports if row.sop_instance_uid == sr.SOPInstanceUID)
    assert row.outcome == "findings"
    assert row.path.startswith("reports/")
    assert row.record["study_instance_uid"] == CHEST.study_uid


def test_late_images_make_a_second_report_that_names_the_first(story):
    first, second = story.reports_of(LATE, "modern")
    named = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert second.SOPInstanceUID != first.SOPInstanceUID
    (record,) = (row.record for row in story.reports if row.sop_instance_uid == second.SOPInstanceUID)
    assert "LATE_IMAGES" in {notice["code"] for notice in record["notices"]}
    assert story.studies[LATE.study_uid].revision == 2


def test_a_study_that_cannot_be_analysed_is_reported_as_such_only_where_that_is_wanted(story):
    assert story.deliveries_of(SHORT) >= {("modern", "unverified"), ("plain", "unverified")}
    assert story.reports_of(SHORT, "incurious") == []
    assert story.studies[SHORT.study_uid].codes[0] == "TOO_FEW_SLICES"
    decision = story.decisions[SHORT.study_uid]
    assert decision["rank"] == 1
    assert decision["refusal"]["code"] == "TOO_FEW_SLICES"
    assert SHORT.study_uid not in story.analysed


def test_a_study_without_ct_ends_without_a_report(story):
    assert story.studies[MR.study_uid].state == StudyState.NO_CT
    assert story.studies[MR.study_uid].codes == ["NOT_CT"]
    assert all(story.reports_of(MR, archive) == [] for archive in story.received)
