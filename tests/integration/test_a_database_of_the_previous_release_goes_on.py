"""After an update the database is copied, upgraded, and the run that was under way is ended by the new release."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from scp_node.cli.main import application
from scp_node.ledger import tables
from scp_node.ledger.engine import make_engine, schema_is_current
from scp_node.ledger.states import StudyState
from tests.builders import as_bytes
from tests.small_archive import small_archive
from tests.worker_node import WorkerNode, destination, small_series, wait_for

DUMP = Path(__file__).parents[1] / "releases" / "0.1.0.sql"
UNDER_WAY, REPORTED = (small_series(f"{what} by the previous release") for what in ("made", "reported"))


@pytest.fixture
def archive():
    with small_archive() as archive:
        yield archive


@pytest.fixture
def node(archive, tmp_path):
    """The previous release's folder: its database, and the images of the study that was under way."""
    node = WorkerNode(tmp_path, destinations=destination(archive.port))
    storage = node.settings.storage.folder
    with closing(sqlite3.connect(storage / "node.sqlite")) as old:
        old.executescript(DUMP.read_text())
        paths = dict(old.execute("SELECT sop_instance_uid, path FROM nn_instance"))
    for dataset in UNDER_WAY.datasets():
        path = storage / paths[dataset.SOPInstanceUID]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(as_bytes(dataset))
    with closing(node):
        yield node


def upgrade(node):
    done = CliRunner().invoke(application(["db"]), ["db", "upgrade", "--config", str(node.config)])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_run_that_was_under_way_is_ended_and_reported_once(node, archive):
    old = make_engine(node.settings.database_url)
    assert not schema_is_current(old)
    with old.connect() as connection:
        pending = connection.execute(
            sa.text("SELECT workflow_uuid FROM workflow_status WHERE status = 'PENDING' AND name = 'series'")
        )
        assert pending.scalar_one().startswith(UNDER_WAY.study_uid)
    old.dispose()

    said = upgrade(node)
    (copy,) = (node.settings.storage.folder / "backups").iterdir()
    assert f"The database as it was: {copy}" in said.replace("\n", "")
    with closing(sqlite3.connect(copy)) as kept:
        assert kept.execute("SELECT version_num FROM nn_alembic_version").fetchone() == ("0001",)
    assert schema_is_current(node.engine)
    assert [row.state for row in node.rows(tables.delivery)] == ["unverified"]

    node.start()
    wait_for(lambda: node.state(UNDER_WAY.study_uid) == StudyState.REPORTED)
    wait_for(lambda: archive.received)
    assert [sr.StudyInstanceUID for sr in archive.received] == [UNDER_WAY.study_uid]
    starts = [row.key for row in node.rows(tables.step_start)]
    assert starts.count(f"{UNDER_WAY.study_uid}:1:decide") == 1
    assert node.state(REPORTED.study_uid) == StudyState.REPORTED
    assert [uid for uid, _ in node.detector_starts()] == [UNDER_WAY.study_uid]


def test_a_worker_refuses_to_work_before_the_upgrade(node):
    assert node.start().wait(120) == 78
    assert "run 'nodule-node db upgrade'" in node.log()
