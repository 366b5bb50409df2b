"""What is asked before an early start, what its answers mean, and that all of it lies in the database."""

from __future__ import annotations

import pytest

from pipeline.wholeness import Wholeness
from scp_node.children import ChildFailure
from scp_node.ledger.associations import OpenAssociations
from scp_node.ledger.proofs import Held, Proofs
from scp_node.ledger.studies import Studies
from scp_node.ports import ArchiveCounts, SendResult
from scp_node.presence import Presence
from scp_node.readiness import Counts, Ready, readiness
from scp_node.settings import load_settings
from scp_node.wholeness import ASK_AGAIN_S, Prover, compare
from sr_writer.record import ReportRecord
from tests.ledgers import add_image, add_study, empty_ledger
from tests.reports import frozen

STUDY, SERIES = "1.2", "1.2.1"
HELD = Held({"1": 400, "2": 1})
SETTINGS = """
[storage]
folder = "storage"
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 104
query = true
[[destinations]]
name = "workstation"
ae_title = "OTHER"
host = "127.0.0.1"
port = 104
"""


@pytest.mark.parametrize(
    ("study", "series", "counts"),
    [
        (401, {"1": 400, "2": 1}, Counts.EQUAL),
        (413, {"1": 412, "2": 1}, Counts.MORE),
        (None, {"1": 412, "2": None}, Counts.MORE),
        (402, {"1": 400, "2": 1, "3": 1}, Counts.OTHER),
        (400, {"1": 399, "2": 1}, Counts.OTHER),
        (400, {"1": 400}, Counts.OTHER),
        (405, {"1": 400, "2": 1}, Counts.OTHER),
        (None, {"1": 400, "2": 1}, Counts.UNKNOWN),
        (401, {"1": None, "2": 1}, Counts.UNKNOWN),
        (0, {}, Counts.OTHER),
    ],
)
def test_counts_are_equal_only_where_study_and_every_series_are(study, series, counts):
    assert compare(HELD, ArchiveCounts(study, series), frozenset()).counts is counts


def test_our_own_reports_at_the_archive_are_not_missing_images():
    counts = ArchiveCounts(402, {"1": 400, "2": 1, "9": 1})
    assert compare(HELD, counts, frozenset({"9"})).counts is Counts.EQUAL
    assert (
        compare(HELD, ArchiveCounts(402, {"1": 400, "2": 1, "9": None}), frozenset({"9"})).counts is Counts.UNKNOWN
    )


class Clock:
    time = 200.0

    def now(self):
        return self.time


class Archive:
    """Answers with its ``answer``; counts the questions."""

    def __init__(self):
        self.answer = ArchiveCounts(2, {SERIES: 2})
        self.asked = []

    def counts(self, study_uid):
        self.asked.append(study_uid)
        return self.answer


class Reader:
    """Says whether the images are whole; counts the questions."""

    def __init__(self):
        self.answer = Wholeness(geometry=True, lungs=True, text="Whole.")
        self.asked = 0

    def look(self, paths, cancelled):
        self.asked += 1
        return self.answer


@pytest.fixture
def node(tmp_path):
    (tmp_path / "node.toml").write_text(SETTINGS)
    with empty_ledger(tmp_path) as engine:
        add_study(engine, STUDY, images=2, last_received_at=199.0, waiting_since=190.0)
        yield Node(engine, load_settings(tmp_path / "node.toml"))


class Node:
    """A prover with its stand-ins."""

    def __init__(self, engine, settings):
        self.engine, self.settings = engine, settings
        self.archive, self.reader, self.clock = Archive(), Reader(), Clock()
        self.places = []
        self.told = []

    def look(self):
        """As another process would: nothing is carried over but the database."""

        def catalogue_of(place):
            self.places.append(place.name)
            return self.archive

        Prover(
            self.settings,
            studies=Studies(self.engine),
            proofs=Proofs(self.engine),
            reader=self.reader,
            catalogue_of=catalogue_of,
            clock=self.clock,
            proved=lambda: self.told.append(self.ready()),
        ).look(lambda: False)

    def ready(self):
        (seen,) = Studies(self.engine).waiting(now=self.clock.now())
        answer = readiness(seen.facts, quiet_s=60.0, max_wait_s=3600.0, gap_wait_s=600.0, now=self.clock.now())
        return isinstance(answer, Ready)


def test_a_whole_study_is_ready_at_once_and_nobody_is_asked_again(node):
    assert not node.ready()
    node.look()
    assert node.ready()
    node.clock.time += 1000.0
    node.look()
    assert (node.archive.asked, node.reader.asked, node.places) == ([STUDY], 1, ["pacs"])


def test_whoever_waits_for_a_proof_is_told_when_it_is_in_the_ledger(node):
    node.look()
    assert node.told == [True]


def test_the_images_are_opened_only_where_the_counts_agree(node):
    node.archive.answer = ArchiveCounts(3, {SERIES: 3})
    node.look()
    assert node.reader.asked == 0
    assert not node.ready()
    assert Proofs(node.engine).speaks_of(STUDY) == (
        Counts.MORE,
        "The archive holds 3 images of series 1.2.1, 2 arrived.",
    )


def test_an_archive_that_differs_is_asked_again_after_a_while(node):
    node.archive.answer = ArchiveCounts(1, {SERIES: 1})
    node.look()
    node.look()
    assert len(node.archive.asked) == 1
    node.clock.time += ASK_AGAIN_S
    node.archive.answer = ArchiveCounts(2, {SERIES: 2})
    node.look()
    assert len(node.archive.asked) == 2
    assert node.ready()


def test_the_next_image_makes_a_proof_void(node):
    node.look()
    add_study_image(node)
    assert not node.ready()
    node.archive.answer = ArchiveCounts(3, {SERIES: 3})
    node.look()
    assert node.ready()


def add_study_image(node):
    from scp_node.ledger import tables

    add_image(node.engine, STUDY, "1.2.1.9")
    with node.engine.begin() as connection:
        connection.execute(tables.study.update().values(last_received_at=200.0))


@pytest.mark.parametrize(
    "answer",
    [
        Wholeness(geometry=False, lungs=False, text="2 slices are missing."),
        Wholeness(geometry=True, lungs=False, text="The lungs reach the last slice."),
        ChildFailure("look", "the reader gave no answer in 300 s"),
    ],
)
def test_images_that_do_not_look_whole_wait_for_the_quiet_time(node, answer):
    node.reader.answer = answer
    node.look()
    assert not node.ready()


def test_an_archive_that_cannot_be_asked_costs_the_quiet_time_and_no_more(node):
    node.archive.answer = SendResult("retry", None, "No connection.")
    node.look()
    assert not node.ready()
    node.clock.time = 260.0
    assert node.ready()


def test_while_the_sender_has_an_association_open_nobody_is_asked(node):
    listener = OpenAssociations(node.engine, "boot")
    listener.start(now=190.0, lease_s=15.0)
    listener.keep({7: "MODALITY"}, now=190.0)
    node.look()
    assert node.archive.asked == []
    listener.keep({}, now=200.0)
    node.look()
    assert node.ready()


def test_an_association_that_opens_after_the_proof_holds_the_study_back(node):
    node.look()
    listener = OpenAssociations(node.engine, "boot")
    listener.start(now=200.0, lease_s=15.0)
    listener.keep({7: "MODALITY"}, now=200.0)
    assert not node.ready()


def test_associations_of_a_dead_listener_and_of_other_senders_do_not_count(node):
    dead, other = OpenAssociations(node.engine, "dead"), OpenAssociations(node.engine, "other")
    dead.start(now=100.0, lease_s=15.0)
    dead.keep({7: "MODALITY"}, now=100.0)
    other.start(now=200.0, lease_s=15.0)
    other.keep({7: "ANOTHER"}, now=200.0)
    node.look()
    assert node.ready()


def test_without_an_archive_to_ask_nothing_is_looked_at(node):
    destinations = tuple(place.model_copy(update={"query": False}) for place in node.settings.destinations)
    node.settings = node.settings.model_copy(update={"destinations": destinations})
    node.look()
    assert (node.archive.asked, node.reader.asked) == ([], 0)


def test_a_report_of_ours_that_the_archive_counts_is_known_by_its_frozen_record(node):
    from scp_node.ledger.outbox import put
    from tests.ledgers import new_report

    record = frozen()
    assert isinstance(record, ReportRecord)
    with node.engine.begin() as connection:
        put(connection, [new_report(record=record.to_json())], now=150.0)
    node.archive.answer = ArchiveCounts(3, {SERIES: 2, record.series_instance_uid: 1})
    node.look()
    assert node.ready()


def test_the_listeners_sign_of_life_follows_what_is_open(node):
    present, clock = {}, Clock()
    presence = Presence(OpenAssociations(node.engine, "boot"), lambda: present, clock, lease_s=15.0, beat_s=2.0)
    sending = lambda: Studies(node.engine).waiting(now=clock.now())[0].facts.association_open  # noqa: E731
    presence.look()
    assert not sending()
    present[7] = "MODALITY"
    presence.look()
    assert sending()
    clock.time += 14.0
    presence.look()
    clock.time += 14.0
    assert sending()
    clock.time += 2.0
    assert not sending()
    presence.look()
    assert sending()
    present.clear()
    presence.look()
    assert not sending()
