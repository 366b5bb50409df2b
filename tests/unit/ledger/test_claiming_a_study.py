"""A complete study is claimed once, with its run; what arrives in between wins."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from scp_node.ledger import tables
from scp_node.ledger.states import Purpose, StudyState
from scp_node.ledger.studies import Studies
from tests.ledgers import add_image, add_study, empty_ledger


@pytest.fixture
def engine(tmp_path, ledger_url):
    with empty_ledger(tmp_path, ledger_url) as engine:
        yield engine


@pytest.fixture
def started():
    return []


@pytest.fixture
def start(started):
    return lambda _connection, study_uid, revision: started.append((study_uid, revision))


def test_claiming_queues_the_study_with_the_next_revision_and_starts_its_run(engine, start, started):
    add_study(engine, revision=4, codes=["THICK_SLICES"])
    studies = Studies(engine)
    (seen,) = studies.waiting()
    assert studies.claim(seen, why="quiet", now=200.0, start=start) == 5
    assert started == [("1.2", 5)]
    assert studies.state("1.2") == (StudyState.QUEUED, 5)
    assert studies.waiting() == ()
    with engine.connect() as connection:
        assert connection.execute(sa.select(tables.event.c.text)).scalars().all() == [
            "Revision 5 is complete: quiet."
        ]
        assert connection.execute(sa.select(tables.study.c.codes)).scalar_one() == []


def test_the_second_of_two_claims_loses(engine, start, started):
    add_study(engine)
    studies = Studies(engine)
    (seen,) = studies.waiting()
    assert studies.claim(seen, why="quiet", now=200.0, start=start) == 1
    assert studies.claim(seen, why="quiet", now=200.0, start=start) is None
    assert started == [("1.2", 1)]


def test_an_image_that_arrives_after_the_look_keeps_the_study_waiting(engine, start, started):
    add_study(engine)
    studies = Studies(engine)
    (seen,) = studies.waiting()
    with engine.begin() as connection:
        connection.execute(tables.study.update().values(last_received_at=199.0))
    assert studies.claim(seen, why="quiet", now=200.0, start=start) is None
    assert started == []
    assert studies.state("1.2") == (StudyState.RECEIVING, 0)


def test_a_run_that_cannot_be_enqueued_leaves_the_study_waiting(engine):
    add_study(engine)
    studies = Studies(engine)
    (seen,) = studies.waiting()

    def fails(*_):
        raise RuntimeError("no engine")

    with pytest.raises(RuntimeError, match="no engine"):
        studies.claim(seen, why="quiet", now=200.0, start=fails)
    assert studies.state("1.2") == (StudyState.RECEIVING, 0)


def test_the_facts_of_a_waiting_study_count_newest_ct_images_only(engine):
    add_study(engine, "1.2", images=0)
    add_image(engine, "1.2", "1.2.1.1", purpose=Purpose.OTHER)
    add_image(engine, "1.2", "1.2.1.2", is_newest=False)
    add_study(engine, "1.3", waiting_since=150.0, last_received_at=160.0, next_look_at=300.0)
    facts = {seen.study_uid: seen.facts for seen in Studies(engine).waiting()}
    assert not facts["1.2"].holds_ct
    assert facts["1.3"].holds_ct
    assert (facts["1.3"].waiting_since, facts["1.3"].last_received_at, facts["1.3"].not_before) == (150, 160, 300)


def test_the_images_are_the_newest_ct_instances_that_have_a_file(engine):
    add_study(engine, images=2)
    add_image(engine, "1.2", "1.2.1.0", version=2, path="objects/new.dcm")
    add_image(engine, "1.2", "1.2.1.8", path=None)
    add_image(engine, "1.2", "1.2.1.9", purpose=Purpose.OTHER)
    with engine.begin() as connection:
        old = sa.and_(tables.instance.c.sop_instance_uid == "1.2.1.0", tables.instance.c.version == 1)
        connection.execute(tables.instance.update().where(old).values(is_newest=False))
    images = Studies(engine).images("1.2")
    assert [(image.sop_instance_uid, image.version) for image in images] == [("1.2.1.0", 2), ("1.2.1.1", 1)]
    assert images[0].path == "objects/new.dcm"
    assert Studies(engine).images("1.2", "9.9") == ()
