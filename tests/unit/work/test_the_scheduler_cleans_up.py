"""Once an hour: images after their time and records of old runs go; what misses its images asks for all of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from scp_node.ledger import tables
from scp_node.ledger.engine import make_engine
from scp_node.ledger.states import StudyState
from scp_node.settings import load_settings
from scp_node.workflow import Scheduler
from tests.ledgers import add_image, add_study

HUNDRED = 100


@pytest.fixture
def site(tmp_path):
    """A finished study without CT, long ago, with one file; give its scheduler, folder and rows."""

    def make(keep_days):
        (tmp_path / "node.toml").write_text(f'[storage]\nfolder = "."\nkeep_days = {keep_days}\n')
        settings = load_settings(tmp_path / "node.toml")
        engine = make_engine(settings.database_url)
        engines.append(engine)
        tables.metadata.create_all(engine)
        add_study(engine, images=0, state=StudyState.NO_CT)
        (tmp_path / "objects").mkdir()
        file = tmp_path / "objects" / "a.dcm"
        file.write_bytes(b"image")
        add_image(engine, "1.2", "1.2.1.0", path="objects/a.dcm")
        left = [HUNDRED, HUNDRED, 7]
        runs = SimpleNamespace(forget_old=lambda _now: left.pop(0))
        return SimpleNamespace(
            scheduler=Scheduler(settings, engine, runs, None, None), file=file, engine=engine, left=left
        )

    engines = []
    yield make
    for engine in engines:
        engine.dispose()


def one(site, table):
    with site.engine.connect() as connection:
        return connection.execute(sa.select(table)).one()


def test_images_stay_for_ever_unless_the_settings_say_how_long(site):
    site = site(0.0)
    site.scheduler.delete_old_images()
    assert site.file.exists()


def test_images_go_after_their_time(site):
    site = site(1.0)
    site.scheduler.delete_old_images()
    assert not site.file.exists()
    assert one(site, tables.instance).path is None
    assert one(site, tables.study).state == StudyState.NO_CT


def test_a_study_that_misses_deleted_images_asks_for_the_whole_of_it_and_reports_nothing(site):
    site = site(1.0)
    site.scheduler.delete_old_images()
    with site.engine.begin() as connection:
        connection.execute(tables.study.update().values(state=StudyState.RECEIVING))
    site.scheduler.take_ready_studies()
    assert one(site, tables.study).state == StudyState.NOT_ANALYSED
    with site.engine.connect() as connection:
        story = connection.execute(sa.select(tables.event.c.text).order_by(tables.event.c.id)).scalars().all()
    assert story[-1] == "Images of this study were deleted after their time; send the whole study again."


def test_all_records_of_old_runs_are_deleted_a_hundred_at_a_time(site):
    site = site(0.0)
    site.scheduler.forget_old_runs()
    assert site.left == []
