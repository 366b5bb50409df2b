"""A revision ends once; an old one, or one that new images overtook, moves nothing."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from scp_node.ledger import tables
from scp_node.ledger.states import StudyState
from scp_node.ledger.studies import Studies
from tests.ledgers import add_study, empty_ledger


@pytest.fixture
def engine(tmp_path, ledger_url):
    with empty_ledger(tmp_path, ledger_url) as engine:
        yield engine


def finish(studies, revision=1, state=StudyState.REPORTED, codes=("LUNG_CUT", "LUNG_CUT", "CONTRAST")):
    return studies.finish("1.2", revision, state=state, codes=codes, text="Done.", now=300.0)


@pytest.mark.parametrize("state", [StudyState.QUEUED, StudyState.ANALYSING])
def test_a_revision_at_work_ends_with_its_codes_each_once(engine, state):
    add_study(engine, state=state, revision=1)
    studies = Studies(engine)
    assert finish(studies)
    assert studies.state("1.2") == (StudyState.REPORTED, 1)
    with engine.connect() as connection:
        assert connection.execute(sa.select(tables.study.c.codes)).scalar_one() == ["LUNG_CUT", "CONTRAST"]
        assert connection.execute(sa.select(tables.event.c.kind, tables.event.c.text)).one() == (
            "reported",
            "Done.",
        )


def test_a_revision_ends_once(engine):
    add_study(engine, state=StudyState.ANALYSING, revision=1)
    studies = Studies(engine)
    assert finish(studies)
    assert not finish(studies, state=StudyState.FAILED)
    assert studies.state("1.2") == (StudyState.REPORTED, 1)


def test_an_old_revision_ends_nothing(engine):
    add_study(engine, state=StudyState.ANALYSING, revision=2)
    assert not finish(Studies(engine), revision=1)


def test_a_study_that_is_receiving_again_is_left_alone(engine):
    add_study(engine, state=StudyState.RECEIVING, revision=1)
    assert not finish(Studies(engine))
    assert not Studies(engine).begin("1.2", 1, now=300.0)


def test_a_study_sent_back_to_wait_is_looked_at_no_earlier_than_told(engine):
    add_study(engine, state=StudyState.ANALYSING, revision=1)
    studies = Studies(engine)
    assert studies.wait_again("1.2", 1, until=700.0, why="Slices are missing.", now=300.0)
    (seen,) = studies.waiting()
    assert seen.facts.not_before == 700.0
    assert seen.facts.waiting_since == 100.0  # the longest wait goes on counting


@pytest.mark.parametrize("state", [StudyState.FAILED, StudyState.NOT_ANALYSED, StudyState.REPORTED])
def test_a_person_can_have_a_finished_study_analysed_again(engine, state):
    add_study(engine, state=state, revision=1)
    assert Studies(engine).retry("1.2", now=300.0)
    assert Studies(engine).state("1.2") == (StudyState.RECEIVING, 1)


def test_a_study_at_work_is_not_analysed_twice_at_a_persons_request(engine):
    add_study(engine, state=StudyState.ANALYSING, revision=1)
    assert not Studies(engine).retry("1.2", now=300.0)


def test_the_installation_keeps_its_first_name(engine):
    assert Studies(engine).installation_id("first") == "first"
    assert Studies(engine).installation_id("second") == "first"
