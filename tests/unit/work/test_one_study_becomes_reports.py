"""The worker's use case without processes: which series is analysed next, and how a revision ends."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline.analysis import Decision
from pipeline.domain.finding import Finding, ModelIdentity, OperatingPoint
from pipeline.domain.outcome import Code, Notice, Outcome, Refusal
from pipeline.domain.result import Analysis
from pipeline.selection import SeriesVerdict
from scp_node.children import DECODING, ChildFailure, TransientFaultError, WrittenReport
from scp_node.ledger import tables
from scp_node.ledger.outbox import Outbox
from scp_node.ledger.proofs import Proofs
from scp_node.ledger.states import StudyState
from scp_node.ledger.steps import Steps
from scp_node.ledger.studies import Studies
from scp_node.readiness import Counts, Proof
from scp_node.settings import load_settings
from scp_node.work import Run, Work
from sr_writer.record import NodeIdentity
from tests.ledgers import add_image, add_study, empty_ledger

STUDY, RUN = "1.2", Run("1.2", 1)
SETTINGS = """
[storage]
folder = "storage"
[study]
gap_wait_s = 50.0
series = "{series}"
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 104
[[destinations]]
name = "incurious"
ae_title = "OTHER"
host = "127.0.0.1"
port = 104
not_analysed = false
"""
CRASH = ChildFailure("detecting", "the detector stopped without an answer (killed by signal 9)")


def never():
    return False


class Clock:
    """Told what time it is."""

    time = 200.0

    def now(self) -> float:
        return self.time


class CannedReader:
    """Gives one decision; writes a report's UID as its file."""

    def __init__(self):
        self.decision = Decision(())
        self.written = []
        self.named = []
        self.compared = []
        self.alike = True
        self.broken = False

    def decide(self, paths, cancelled):
        return self.decision

    def same_content(self, pairs, cancelled):
        self.compared = list(pairs)
        return [self.alike] * len(pairs)

    def write_report(self, record, images, target, cancelled):
        if self.broken:
            return ChildFailure("write_report", "OSError No space left on device at reader_process.py:1")
        self.written.append(record)
        self.named.append([path.name for path in images])
        content = record.sop_instance_uid.encode()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        return WrittenReport(hashlib.sha256(content).hexdigest())


class CannedDetector:
    """Gives its answers in turn; remembers the files it was shown."""

    def __init__(self):
        self.answers = []
        self.shown = []

    def analyse(self, paths, cancelled):
        self.shown.append([Path(path).name for path in paths])
        return self.answers.pop(0)


@pytest.fixture
def engine(tmp_path):
    with empty_ledger(tmp_path) as engine:
        add_study(engine, STUDY, images=0, state=StudyState.QUEUED, revision=1, last_received_at=190.0)
        for series in ("1.2.1", "1.2.2"):
            with engine.begin() as connection:
                row = {"study_uid": STUDY, "series_uid": series, "holds_ct": True, "last_received_at": 190.0}
                connection.execute(tables.series.insert().values(row))
            add_image(engine, STUDY, f"{series}.1", series_uid=series)
        yield engine


@pytest.fixture
def node(engine, tmp_path):
    return lambda series="best": Box(engine, tmp_path, series)


class Box:
    """A Work with its stand-ins."""

    def __init__(self, engine, folder, series):
        (folder / "node.toml").write_text(SETTINGS.format(series=series))
        self.engine = engine
        self.clock, self.reader, self.detector = Clock(), CannedReader(), CannedDetector()
        self.studies = Studies(engine)
        self.work = Work(
            load_settings(folder / "node.toml"),
            studies=self.studies,
            proofs=Proofs(engine),
            outbox=Outbox(engine),
            steps=Steps(engine, executor="worker-0", clock=self.clock, retry_s=0.0),
            reader=self.reader,
            detector=self.detector,
            clock=self.clock,
            node=NodeIdentity("NODULE", "installation", "0.1"),
        )

    def run(self, run=RUN):
        """As the workflow does: decide, then each series in turn."""
        following = self.work.decide(run, never)
        while (series := following.series_uid) is not None:
            self.work.analyse(run, series, never)
            self.work.report(run, series, never)
            following = self.work.go_on(run, series, never)
        return self.studies.state(STUDY)

    def rows(self, table):
        with self.engine.connect() as connection:
            return connection.execute(sa.select(table)).all()

    def codes(self):
        return self.rows(tables.study)[0].codes

    def last_event(self):
        return self.rows(tables.event)[-1].text

    def deliveries(self):
        return [(row.destination, row.state) for row in self.rows(tables.delivery)]


def verdict(series, refusal=None, notices=()):
    return SeriesVerdict(
        STUDY, series, 1, refusal is None, 1.0, refusal, tuple(notices), ("Because.",), {"ct_images": 1}
    )


def analysed(series, *findings, notices=()):
    return Analysis(
        STUDY,
        series,
        Outcome.FINDINGS if findings else Outcome.NO_FINDINGS,
        notices=tuple(notices),
        findings=findings,
        model=ModelIdentity("m", "1", "r", "0" * 64),
        operating_point=OperatingPoint("balanced", 0.5, 1.0),
    )


def unusable(series, code=Code.NO_LUNG_FOUND):
    return Analysis(STUDY, series, Outcome.NOT_ANALYSED, reason=Refusal(code, f"Series {series} is unusable."))


NODULE = Finding((1.0, 2.0, 3.0), 6.0, 0.9)


def test_the_best_series_is_analysed_and_reported_to_every_destination(node):
    box = node()
    box.reader.decision = Decision((verdict("1.2.1"), verdict("1.2.2")))
    box.detector.answers = [analysed("1.2.1", NODULE, notices=[Notice(Code.CONTRAST, "With contrast.")])]
    assert box.run() == (StudyState.REPORTED, 1)
    assert box.detector.shown == [["1.2.1.1.dcm"]]
    assert box.codes() == ["CONTRAST"]
    assert box.last_event() == "Analysed; 1 findings reported."
    assert box.deliveries() == [("pacs", "queued"), ("incurious", "queued")]
    (report,) = box.rows(tables.report)
    assert (report.series_uid, report.outcome, report.revision) == ("1.2.1", "findings", 1)
    assert [row.decision["rank"] for row in box.rows(tables.series)] == [1, 2]


def test_running_every_step_again_changes_nothing(node):
    box = node()
    box.reader.decision = Decision((verdict("1.2.1"),))
    box.detector.answers = [analysed("1.2.1")]
    box.run()
    assert box.run() == (StudyState.REPORTED, 1)
    assert len(box.rows(tables.report)) == len(box.reader.written) == 1
    assert len(box.rows(tables.delivery)) == 2


def test_a_series_whose_pixels_are_unusable_gives_way_to_the_next_one(node):
    box = node()
    box.reader.decision = Decision((verdict("1.2.1"), verdict("1.2.2")))
    box.detector.answers = [unusable("1.2.1"), analysed("1.2.2")]
    assert box.run() == (StudyState.REPORTED, 1)
    assert [row.series_uid for row in box.rows(tables.report)] == ["1.2.2"]


def test_when_every_series_is_unusable_the_reason_of_the_best_one_is_reported(node):
    box = node()
    box.reader.decision = Decision((verdict("1.2.1"), verdict("1.2.2")))
    box.detector.answers = [unusable("1.2.1"), unusable("1.2.2", Code.HU_IMPLAUSIBLE)]
    assert box.run() == (StudyState.NOT_ANALYSED, 1)
    assert box.codes() == ["NO_LUNG_FOUND"]
    assert box.deliveries() == [("pacs", "queued")]
    assert [row.series_uid for row in box.rows(tables.report)] == ["1.2.1"]


def test_all_eligible_series_are_analysed_when_the_settings_say_so(node):
    box = node("all")
    box.reader.decision = Decision((verdict("1.2.1"), verdict("1.2.2")))
    box.detector.answers = [analysed("1.2.1"), analysed("1.2.2", NODULE)]
    assert box.run() == (StudyState.REPORTED, 1)
    assert [row.series_uid for row in box.rows(tables.report)] == ["1.2.1", "1.2.2"]


def test_a_study_without_an_eligible_series_is_reported_on_its_best_ct_series(node):
    box = node()
    refusal = Refusal(Code.TOO_FEW_SLICES, "8 slices; send at least 40.")
    box.reader.decision = Decision((verdict("1.2.2", refusal),))
    assert box.run() == (StudyState.NOT_ANALYSED, 1)
    assert box.last_event() == "8 slices; send at least 40."
    assert box.detector.shown == []
    assert [(row.series_uid, row.outcome) for row in box.rows(tables.report)] == [("1.2.2", "not_analysed")]


def test_a_study_whose_images_hold_no_ct_after_all_gets_no_report(node):
    box = node()
    assert box.run() == (StudyState.NOT_ANALYSED, 1)
    assert box.codes() == ["NOT_CT"]
    assert box.rows(tables.report) == []


@pytest.mark.parametrize(
    "best",
    [
        verdict("1.2.1", Refusal(Code.MISSING_SLICES, "5 slices are missing.")),
        verdict("1.2.1", notices=[Notice(Code.SLICES_INTERPOLATED, "1 slice filled.")]),
    ],
)
def test_missing_slices_are_waited_for_once_more_and_then_decided_on(node, best):
    box = node()
    box.reader.decision = Decision((best,))
    box.detector.answers = [analysed("1.2.1")]
    assert box.run() == (StudyState.RECEIVING, 1)
    (seen,) = box.studies.waiting()
    assert seen.facts.not_before == 240.0
    box.clock.time = 240.0
    box.studies.claim(seen, why="quiet", now=240.0, start=lambda *_: None)
    state, revision = box.run(Run(STUDY, 2))
    assert (state, revision) == (StudyState.NOT_ANALYSED if best.refusal else StudyState.REPORTED, 2)


def test_after_the_longest_wait_missing_slices_are_not_waited_for(node):
    box = node()
    box.reader.decision = Decision((verdict("1.2.1", notices=[Notice(Code.SLICES_INTERPOLATED, "1 filled.")]),))
    box.detector.answers = [analysed("1.2.1")]
    assert box.run(Run(STUDY, 1, timed_out=True)) == (StudyState.REPORTED, 1)
    assert box.codes() == ["TIMED_OUT_INCOMPLETE"]


def test_a_detector_that_stops_once_is_asked_again(node):
    box = node()
    box.reader.decision = Decision((verdict("1.2.1"),))
    box.detector.answers = [CRASH, analysed("1.2.1")]
    assert box.run() == (StudyState.REPORTED, 1)


def test_a_detector_that_stops_twice_fails_the_study_visibly_without_a_report(node):
    box = node()
    box.reader.decision = Decision((verdict("1.2.1"), verdict("1.2.2")))
    box.detector.answers = [CRASH, CRASH]
    assert box.run() == (StudyState.FAILED, 1)
    assert box.codes() == ["DETECTOR_FAILED"]
    assert box.last_event() == (
        "Series 1.2.1: the detector stopped without an answer (killed by signal 9) during detecting, 2 times."
    )
    assert box.rows(tables.report) == []


def test_a_crash_in_decoding_is_the_images_fault_and_the_next_series_is_tried(node):
    box = node()
    box.reader.decision = Decision((verdict("1.2.1"), verdict("1.2.2")))
    in_decoder = ChildFailure(DECODING, "the detector stopped without an answer (killed by signal 11)")
    box.detector.answers = [in_decoder, in_decoder, unusable("1.2.2")]
    assert box.run() == (StudyState.NOT_ANALYSED, 1)
    assert box.codes() == ["DECODE_FAILED"]


def test_a_series_that_was_started_too_often_is_given_up_untried(node):
    box = node()
    box.reader.decision = Decision((verdict("1.2.1"),))
    with box.engine.begin() as connection:
        row = {"key": RUN.key("1.2.1", "analyse"), "executor": "x", "started_at": 1.0}
        connection.execute(tables.step_start.insert(), [row] * 3)
    assert box.run() == (StudyState.FAILED, 1)
    assert box.last_event() == "Series 1.2.1: given up after 3 starts."
    assert box.detector.shown == []


def test_a_full_disk_is_left_to_the_engine_to_try_again(node):
    box = node()
    box.reader.decision = Decision((verdict("1.2.1"),))
    box.detector.answers = [analysed("1.2.1")]
    box.reader.broken = True
    with pytest.raises(TransientFaultError, match=r"1\.2\.1: OSError No space left on device"):
        box.run()
    assert box.rows(tables.report) == []
    box.reader.broken = False
    assert box.run() == (StudyState.REPORTED, 1)


def test_images_that_came_again_with_other_content_are_named_in_the_report(node):
    box = node()
    add_image(box.engine, STUDY, "1.2.1.7", series_uid="1.2.1", version=2)
    box.reader.decision = Decision((verdict("1.2.1"),))
    box.detector.answers = [analysed("1.2.1")]
    box.run()
    assert box.codes() == ["INSTANCE_CHANGED"]
    (record,) = box.reader.written
    assert record.notices[0].text == "1 images arrived again with other content; the newest were used."


def test_the_report_of_a_later_revision_names_the_one_that_was_delivered(node):
    box = node()
    box.reader.decision = Decision((verdict("1.2.1"),))
    box.detector.answers = [analysed("1.2.1"), analysed("1.2.1", NODULE)]
    box.run()
    with box.engine.begin() as connection:
        at_pacs = tables.delivery.c.destination == "pacs"
        connection.execute(tables.delivery.update().where(at_pacs).values(state="delivered"))
        connection.execute(tables.study.update().values(state=StudyState.QUEUED, revision=2))
    add_image(box.engine, STUDY, "1.2.1.2", series_uid="1.2.1")
    box.run(Run(STUDY, 2))
    first, to_pacs, to_other = box.reader.written
    assert [p.sop_instance_uid for p in to_pacs.predecessors] == [first.sop_instance_uid]
    assert "LATE_IMAGES" in {notice.code for notice in to_pacs.notices}
    assert to_other.predecessors == ()
    assert ("incurious", "cancelled") in box.deliveries()


def analysed_once(box):
    """A study that is reported, its report still in the outbox."""
    box.reader.decision = Decision((verdict("1.2.1"),))
    box.detector.answers = [analysed("1.2.1", notices=[Notice(Code.CONTRAST, "With contrast.")])]
    box.run()


def come_again(box, revision, *, version=2):
    """An image comes again under its UID with other bytes, and the study is complete once more."""
    box.clock.time += 60.0
    with box.engine.begin() as connection:
        older = tables.instance.c.sop_instance_uid == "1.2.1.1"
        connection.execute(tables.instance.update().where(older).values(is_newest=False))
        connection.execute(tables.study.update().values(state=StudyState.QUEUED, revision=revision, codes=[]))
    row = {
        "series_uid": "1.2.1",
        "version": version,
        "sha256": f"{version}" * 64,
        "path": f"objects/v{version}.dcm",
    }
    add_image(box.engine, STUDY, "1.2.1.1", **row)
    return box.run(Run(STUDY, revision))


def test_an_image_in_another_encoding_is_no_change_and_makes_no_report(node):
    box = node()
    analysed_once(box)
    assert come_again(box, 2) == (StudyState.REPORTED, 2)
    assert box.codes() == ["CONTRAST"]
    assert len(box.rows(tables.report)) == 1
    assert [(one.name, other.name) for one, other in box.reader.compared] == [("1.2.1.1.dcm", "v2.dcm")]
    assert box.last_event() == (
        "Images came again in another encoding, and nothing else: the report that was made counts."
    )


def test_an_image_with_other_content_is_analysed_again(node):
    box = node()
    analysed_once(box)
    box.reader.alike = False
    box.detector.answers = [analysed("1.2.1", NODULE)]
    assert come_again(box, 2) == (StudyState.REPORTED, 2)
    assert len(box.rows(tables.report)) == 2
    assert box.codes() == ["INSTANCE_CHANGED"]


def test_another_encoding_beside_a_new_image_is_analysed_without_a_word_of_change(node):
    box = node()
    analysed_once(box)
    add_image(box.engine, STUDY, "1.2.1.8", series_uid="1.2.1")
    box.detector.answers = [analysed("1.2.1")]
    assert come_again(box, 2) == (StudyState.REPORTED, 2)
    assert box.codes() == []


def test_a_changed_image_that_changes_its_encoding_too_stays_a_changed_one(node):
    box = node()
    analysed_once(box)
    box.reader.alike = False
    box.detector.answers = [analysed("1.2.1"), analysed("1.2.1")]
    come_again(box, 2)
    box.reader.alike = True
    assert come_again(box, 3, version=3) == (StudyState.REPORTED, 3)
    assert len(box.rows(tables.report)) == 2
    assert box.codes() == ["INSTANCE_CHANGED"]


def test_a_person_who_asks_gets_a_new_analysis_of_the_same_images(node):
    box = node()
    analysed_once(box)
    assert box.studies.retry(STUDY, now=300.0)
    with box.engine.begin() as connection:
        connection.execute(tables.study.update().values(state=StudyState.QUEUED, revision=2))
    box.detector.answers = [analysed("1.2.1", NODULE)]
    assert box.run(Run(STUDY, 2)) == (StudyState.REPORTED, 2)
    assert len(box.rows(tables.report)) == 2


def test_after_so_many_reports_a_study_that_changes_again_is_left_to_a_person(node):
    box = node()
    analysed_once(box)
    box.reader.alike = False
    box.detector.answers = [analysed("1.2.1"), analysed("1.2.1")]
    come_again(box, 2)
    come_again(box, 3, version=3)
    assert come_again(box, 4, version=4) == (StudyState.NOT_ANALYSED, 4)
    assert box.codes() == ["TOO_MANY_REVISIONS"]
    assert box.detector.answers == []
    last = box.reader.written[-1]
    assert (last.outcome, last.reason.code) == (Outcome.NOT_ANALYSED, Code.TOO_MANY_REVISIONS)
    assert box.studies.revisions_reported(STUDY) == 4
    with box.engine.begin() as connection:
        connection.execute(tables.study.update().values(state=StudyState.NOT_ANALYSED))
    box.studies.retry(STUDY, now=300.0)
    assert box.studies.revisions_reported(STUDY) == 0


def test_images_that_arrive_while_a_series_is_analysed_are_named_in_its_report(node):
    box = node()
    box.reader.decision = Decision((verdict("1.2.1"),))

    class Interrupted(CannedDetector):
        def analyse(self, paths, cancelled):
            with box.engine.begin() as connection:
                connection.execute(tables.study.update().values(state=StudyState.RECEIVING))
            add_image(box.engine, STUDY, "1.2.1.2", series_uid="1.2.1")
            return analysed("1.2.1")

    box.work._detector = Interrupted()
    assert box.run() == (StudyState.RECEIVING, 1)
    (record,) = box.reader.written
    assert [notice.code for notice in record.notices] == [Code.LATE_IMAGES]


def arrives_late(box):
    """One more image of the series that is looked at."""
    with box.engine.begin() as connection:
        connection.execute(tables.study.update().values(state=StudyState.RECEIVING))
    add_image(box.engine, STUDY, "1.2.1.2", series_uid="1.2.1")


def test_a_series_that_was_not_analysed_is_reported_on_the_images_that_were_decided_on(node):
    box = node()
    box.reader.decision = Decision((verdict("1.2.1", Refusal(Code.TOO_FEW_SLICES, "8 slices.")),))
    box.reader.decide = lambda _paths, _cancelled: arrives_late(box) or box.reader.decision
    assert box.run() == (StudyState.RECEIVING, 1)
    assert box.reader.named == [["1.2.1.1.dcm"]]
    assert box.reader.written[0].evidence_sha256 == hashlib.sha256(b"1.2.1.1").hexdigest()


@pytest.mark.parametrize("answer", [unusable("1.2.1"), ChildFailure(DECODING, "killed")])
def test_a_series_that_could_not_be_analysed_is_reported_on_the_images_that_were_tried(node, answer):
    box = node()
    box.reader.decision = Decision((verdict("1.2.1"),))

    class Interrupted(CannedDetector):
        def analyse(self, paths, cancelled):
            if not self.shown:
                arrives_late(box)
            return super().analyse(paths, cancelled)

    box.work._detector = detector = Interrupted()
    detector.answers = [answer, answer]
    box.run()
    assert box.reader.named == [["1.2.1.1.dcm"]]
    assert box.reader.written[0].evidence_sha256 == hashlib.sha256(b"1.2.1.1").hexdigest()


def test_an_outcome_of_an_earlier_release_is_reported_on_the_series_as_it_is(node):
    box = node()
    box.reader.decision = Decision((verdict("1.2.1", Refusal(Code.TOO_FEW_SLICES, "8 slices.")),))
    with box.engine.begin() as connection:
        decided = {"decision": json.loads(box.reader.decision.to_json()), "decided_at": 200.0, "images": ""}
        row = {"key": RUN.key("decide"), "value": decided, "executor": "x", "created_at": 200.0}
        connection.execute(tables.step_outcome.insert().values(row))
    assert box.run() == (StudyState.NOT_ANALYSED, 1)
    assert box.reader.named == [["1.2.1.1.dcm"]]


def test_late_images_that_were_analysed_all_the_same_make_no_second_report(node):
    """They came after the study was claimed and before its files were read; their own revision has nothing new."""
    box = node()
    box.reader.decision = Decision((verdict("1.2.1"),))
    box.detector.answers = [analysed("1.2.1", NODULE), analysed("1.2.1", NODULE)]
    box.work.decide(RUN, never)
    add_image(box.engine, STUDY, "1.2.1.2", series_uid="1.2.1")
    with box.engine.begin() as connection:
        connection.execute(tables.study.update().values(state=StudyState.QUEUED, revision=2))
    box.work.decide(Run(STUDY, 2), never)
    for run in (RUN, Run(STUDY, 2)):
        box.work.analyse(run, "1.2.1", never)
        box.work.report(run, "1.2.1", never)
        box.work.go_on(run, "1.2.1", never)
    (record,) = box.reader.written
    assert record.notices == ()
    assert box.studies.state(STUDY) == (StudyState.REPORTED, 2)
    assert box.last_event() == "An earlier report says the same."
    assert box.deliveries() == [("pacs", "queued"), ("incurious", "queued")]


def test_images_that_only_the_archive_has_are_named_in_the_report(node):
    box = node()
    text = "The archive holds 412 images of series 1.2.1, 400 arrived."
    Proofs(box.engine).keep(STUDY, Proof(190.0, Counts.MORE), text=text, look_again_at=None)
    analysed_once(box)
    (record,) = box.reader.written
    assert [(notice.code, notice.text) for notice in record.notices] == [
        (Code.CONTRAST, "With contrast."),
        (Code.TIMED_OUT_INCOMPLETE, text),
    ]


@pytest.mark.parametrize(("series", "left"), [("best", []), ("all", [("1.2.2", "queued")])])
def test_a_new_report_takes_the_place_of_all_that_the_study_still_had_to_say(node, series, left):
    """Of a study with one analysed series that is every older report; with all series, that of the same one."""
    box = node(series)
    box.reader.decision = Decision((verdict("1.2.2"),))
    box.detector.answers = [analysed("1.2.2")]
    box.run()
    with box.engine.begin() as connection:
        connection.execute(tables.study.update().values(state=StudyState.QUEUED, revision=2))
    add_image(box.engine, STUDY, "1.2.1.2", series_uid="1.2.1")
    box.reader.decision = Decision((verdict("1.2.1"),))
    box.detector.answers = [analysed("1.2.1", NODULE)]
    box.run(Run(STUDY, 2))
    with box.engine.connect() as connection:
        join = tables.delivery.join(tables.report)
        query = sa.select(tables.report.c.series_uid, tables.delivery.c.state).select_from(join)
        rows = connection.execute(query.where(tables.delivery.c.destination == "pacs")).all()
    assert [tuple(row) for row in rows if row.series_uid == "1.2.2" and row.state == "queued"] == left
    assert ("1.2.1", "queued") in {tuple(row) for row in rows}
