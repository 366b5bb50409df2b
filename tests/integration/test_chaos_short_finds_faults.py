"""What ``make chaos`` looks for it finds: a report that is lost, doubled, different, too late or left behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scp_node.identifiers import split_file
from scp_node.spool import INCOMING
from tests.chaos.archive import Archive, Arrived
from tests.chaos.checker import Undisturbed, compare
from tests.chaos.node import settings_text
from tests.chaos.studies import Study, studies_of


@dataclass
class Told:
    """A node's folder and ledger, and an archive, as they stand after a round of one study."""

    folder: Path
    study: Study
    archive: Archive
    reports: list = field(default_factory=list)
    events: list = field(default_factory=list)

    def rows(self, query):
        if "nn_report" in query:
            return self.reports
        return self.events if "nn_event" in query else []

    def file(self, content, revision=1):
        """Write a report down as the node does, and let it arrive; gives its UID."""
        uid = split_file(content).sop_instance_uid
        path = f"{uid}.dcm"
        (self.folder / "data" / path).write_bytes(content)
        self.reports.append((uid, self.study.uid, revision, path))
        self.arrive(uid, content)
        return uid

    def arrive(self, uid, content):
        one = Arrived(uid, self.study.uid, content[split_file(content).dataset_at :], is_implicit=False)
        self.archive.arrived.append(one)
        self.archive.kept[uid] = one

    def faults(self):
        """The counts of lost, doubled, different and other, in this order."""
        verdict = compare([self.study], self.archive, self, self.folder)
        return [len(part) for part in (verdict.lost, verdict.doubled, verdict.different, verdict.other)]


@pytest.fixture
def told(tmp_path):
    (tmp_path / "node.toml").write_text(settings_text(20001, 20002, ["CT_ONE"]))
    (tmp_path / "data" / INCOMING).mkdir(parents=True)
    study = next(study for study in studies_of("checked", 1) if study.late_s is None)
    study.acknowledged.update(study.images)
    return Told(tmp_path, study, Archive(20002))


@pytest.fixture
def true_report(told):
    undisturbed = Undisturbed(told.folder)
    return lambda **changes: undisturbed.report(told.study, **changes)


def test_a_true_report_that_came_twice_is_no_fault(told, true_report):
    uid = told.file(true_report())
    told.arrive(uid, true_report())
    assert told.faults() == [0, 0, 0, 0]


def test_a_study_without_a_report_is_lost(told):
    assert told.faults() == [1, 0, 0, 0]


def test_a_study_whose_last_report_is_not_in_the_archive_is_lost(told, true_report):
    told.file(true_report())
    told.archive.kept.pop(told.file(true_report(revision_text="Again."), revision=2))
    assert told.faults()[0] == 1


def test_a_newest_report_that_leaves_images_out_is_lost(told, true_report):
    some = tuple((uid, None) for uid in sorted(told.study.images)[:20])
    told.file(true_report(analysed=some, marks=()))
    assert told.faults()[0] == 1


def test_a_second_document_for_the_same_images_is_doubled(told, true_report):
    told.file(true_report())
    told.file(true_report(revision_text="Again."), revision=2)
    assert told.faults()[1] == 1


def test_a_report_with_other_marks_is_different(told, true_report):
    told.file(true_report(marks=(), marks_found=0))
    assert told.faults() == [0, 0, 1, 0]


def test_other_bytes_than_were_filed_are_different(told, true_report):
    uid = told.file(true_report())
    told.arrive(uid, true_report(site_texts=("Another sentence.",)))
    assert told.faults()[2] >= 1


def test_a_report_of_which_the_ledger_knows_nothing_is_different(told, true_report):
    told.file(true_report())
    told.reports.clear()
    assert told.faults()[2] == 1


def test_an_older_report_after_a_newer_one_is_a_fault(told, true_report):
    told.file(true_report(revision_text="Again."), revision=2)
    told.file(true_report(), revision=1)
    assert told.faults()[3] == 1


def test_failed_studies_and_half_written_files_are_faults(told, true_report):
    told.file(true_report())
    told.events.append((told.study.uid, "The detector failed."))
    (told.folder / "data" / INCOMING / "1-2.part").touch()
    assert told.faults() == [0, 0, 0, 2]
