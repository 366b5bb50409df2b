"""What an arrival does to its study, for each state that the study may be in."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from scp_node.ledger import tables
from scp_node.ledger.arrivals import Arrival, Arrivals, LedgerUnavailableError, Note, Stored
from scp_node.ledger.engine import make_engine
from scp_node.ledger.states import EventKind, Purpose, StudyState

LATER = [state for state in StudyState if state is not StudyState.RECEIVING]


@pytest.fixture
def engine(tmp_path, ledger_url):
    engine = make_engine(ledger_url or f"sqlite:///{tmp_path / 'node.sqlite'}", busy_timeout_s=0.2)
    tables.metadata.create_all(engine)
    yield engine
    engine.dispose()


def arrival(**changed) -> Arrival:
    values = {
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "sop_instance_uid": "1.1",
        "study_uid": "2.1",
        "series_uid": "3.1",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "sha256": "a" * 64,
        "size_bytes": 10,
        "path": "objects/aa/a.dcm",
        "purpose": Purpose.CT,
        "calling_ae": "SENDER",
        "called_ae": "NODE",
        "peer": "127.0.0.1",
        "received_at": 100.0,
    }
    return Arrival(**{**values, **changed})


def one(engine, table):
    with engine.connect() as connection:
        return connection.execute(sa.select(table)).one()


def put_into(engine, state):
    with engine.begin() as connection:
        connection.execute(sa.update(tables.study).values(state=state, state_changed_at=150.0, next_look_at=999.0))


def test_the_first_instance_makes_study_and_series(engine):
    assert Arrivals(engine).record(arrival()) is Stored.NEW
    study = one(engine, tables.study)
    assert (study.state, study.revision, study.sender) == ("RECEIVING", 0, "SENDER")
    assert (study.first_received_at, study.last_received_at, study.state_changed_at) == (100.0, 100.0, 100.0)
    series = one(engine, tables.series)
    assert (series.holds_ct, series.last_received_at, series.decision) == (True, 100.0, None)


@pytest.mark.parametrize("state", LATER)
@pytest.mark.parametrize(
    ("again", "stored"),
    [({"sop_instance_uid": "1.2", "sha256": "b" * 64}, Stored.NEW), ({"sha256": "c" * 64}, Stored.CHANGED)],
)
def test_a_new_or_changed_ct_image_takes_any_study_back_to_receiving(engine, state, again, stored):
    arrivals = Arrivals(engine)
    arrivals.record(arrival())
    put_into(engine, state)
    assert arrivals.record(arrival(received_at=200.0, **again)) is stored
    study = one(engine, tables.study)
    assert (study.state, study.first_received_at, study.last_received_at) == ("RECEIVING", 100.0, 200.0)
    assert (study.state_changed_at, study.next_look_at) == (200.0, None)


@pytest.mark.parametrize("state", list(StudyState))
def test_a_duplicate_moves_nothing(engine, state):
    arrivals = Arrivals(engine)
    arrivals.record(arrival())
    put_into(engine, state)
    before = one(engine, tables.study), one(engine, tables.series), one(engine, tables.instance)
    assert arrivals.record(arrival(received_at=200.0, calling_ae="OTHER")) is Stored.DUPLICATE
    assert (one(engine, tables.study), one(engine, tables.series), one(engine, tables.instance)) == before


@pytest.mark.parametrize("state", LATER)
def test_an_image_whose_file_was_lost_wakes_its_study_when_it_comes_again(engine, state):
    arrivals = Arrivals(engine)
    arrivals.record(arrival())
    arrivals.forget_file("objects/aa/a.dcm", 150.0)
    put_into(engine, state)
    assert arrivals.record(arrival(received_at=200.0)) is Stored.DUPLICATE
    assert one(engine, tables.instance).path == "objects/aa/a.dcm"
    study = one(engine, tables.study)
    assert (study.state, study.last_received_at, study.next_look_at) == ("RECEIVING", 200.0, None)


@pytest.mark.parametrize("state", LATER)
def test_other_objects_do_not_wake_a_study(engine, state):
    arrivals = Arrivals(engine)
    arrivals.record(arrival())
    put_into(engine, state)
    before = one(engine, tables.study)
    other = arrival(sop_instance_uid="1.9", series_uid="3.9", purpose=Purpose.OTHER, received_at=200.0)
    assert arrivals.record(other) is Stored.NEW
    assert one(engine, tables.study) == before


def test_other_objects_prolong_a_wait_that_is_on(engine):
    arrivals = Arrivals(engine)
    arrivals.record(arrival())
    arrivals.record(arrival(sop_instance_uid="1.9", series_uid="3.9", purpose=Purpose.OTHER, received_at=200.0))
    study = one(engine, tables.study)
    assert (study.state, study.first_received_at, study.last_received_at) == ("RECEIVING", 100.0, 200.0)


def test_a_series_holds_ct_once_one_image_of_it_is(engine):
    arrivals = Arrivals(engine)
    arrivals.record(arrival(purpose=Purpose.OTHER, path=None))
    assert one(engine, tables.series).holds_ct is False
    arrivals.record(arrival(sop_instance_uid="1.2"))
    arrivals.record(arrival(sop_instance_uid="1.3", purpose=Purpose.OTHER, path=None))
    assert one(engine, tables.series).holds_ct is True


def test_bytes_that_go_back_to_an_older_version_are_a_new_version(engine):
    arrivals = Arrivals(engine)
    for letter, stored in (("a", Stored.NEW), ("b", Stored.CHANGED), ("a", Stored.CHANGED)):
        assert arrivals.record(arrival(sha256=letter * 64)) is stored
    with engine.connect() as connection:
        rows = connection.execute(sa.select(tables.instance).order_by(tables.instance.c.version)).all()
    assert [(row.version, row.sha256[0], row.is_newest) for row in rows] == [
        (1, "a", False),
        (2, "b", False),
        (3, "a", True),
    ]


def test_one_uid_in_two_studies_belongs_to_both(engine):
    arrivals = Arrivals(engine)
    arrivals.record(arrival())
    assert arrivals.record(arrival(study_uid="2.2", sha256="b" * 64)) is Stored.CHANGED
    with engine.connect() as connection:
        rows = connection.execute(sa.select(tables.instance)).all()
    assert {(row.study_uid, row.is_newest) for row in rows} == {("2.1", True), ("2.2", True)}


def test_series_notes_are_kept_once_a_series(engine):
    arrivals = Arrivals(engine)
    note = Note(EventKind.PRIVATE_CLASS, "A private class.", study_uid="2.1")
    for number in range(3):
        arrivals.record(arrival(sop_instance_uid=f"1.{number + 1}", series_notes=(note,)))
    event = one(engine, tables.event)
    assert (event.kind, event.text, event.at) == ("private_class", "A private class.", 100.0)


def test_a_locked_database_is_named_as_such_and_nothing_is_recorded(engine):
    arrivals = Arrivals(engine)
    with engine.connect() as holder:
        is_file = engine.dialect.name == "sqlite"
        holder.exec_driver_sql("BEGIN IMMEDIATE" if is_file else "LOCK TABLE nn_study IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(LedgerUnavailableError, match="OperationalError"):
            arrivals.record(arrival())
        holder.rollback()
    with engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(tables.study)).scalar_one() == 0
