"""What a starting node does with its database, of either kind: make it, leave it alone, or ask for an upgrade."""

from __future__ import annotations

import subprocess
import threading
import time

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from scp_node.ledger.engine import make_engine, wait_for_database
from scp_node.settings import load_settings
from scp_node.supervisor import _prepare_database
from scp_node.work import Run
from scp_node.workflow import STEPS_VERSION, Runs, upgrade_database


@pytest.fixture
def settings(tmp_path, new_database_url):
    lines = (
        f'[storage]\nfolder = "storage"\ndatabase_url = "{new_database_url}"',
        '[detector]\nimplementation = "tests.detectors:staged_detector"\n',
    )
    (tmp_path / "node.toml").write_text("\n".join(lines))
    return load_settings(tmp_path / "node.toml")


def test_a_new_database_is_made_and_one_of_this_version_left_alone(settings, tmp_path, monkeypatch):
    upgraded = []

    def in_this_process(command, **_):
        upgraded.append(command)
        upgrade_database(settings.database_url)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", in_this_process)
    assert _prepare_database(settings, tmp_path / "node.toml") is None
    assert _prepare_database(settings, tmp_path / "node.toml") is None
    assert len(upgraded) == 1


def test_an_older_database_is_left_to_a_person(settings, tmp_path, monkeypatch):
    upgrade_database(settings.database_url)
    engine = make_engine(settings.database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE nn_alembic_version SET version_num = '0001'"))
    engine.dispose()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("upgraded without being asked"))
    assert "run 'nodule-node db upgrade'" in _prepare_database(settings, tmp_path / "node.toml")


def test_runs_of_another_version_are_named_loudly(settings):
    upgrade_database(settings.database_url)
    engine = make_engine(settings.database_url)
    runs = Runs(settings, engine)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE nn_study SET state = state"))  # SQLite's transaction begins at a write
        runs.start_study(connection, Run("1.1", 1))
    with capture_logs() as said:
        runs.warn_of_other_versions()
    assert said == []
    table = "workflow_status" if engine.dialect.name == "sqlite" else "dbos.workflow_status"
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {table} SET application_version = 'node-0'"))
    with capture_logs() as said:
        runs.warn_of_other_versions()
    engine.dispose()
    (line,) = said
    assert line["log_level"] == "error"
    assert (line["runs"], line["versions"], line["ours"]) == (1, ["node-0"], STEPS_VERSION)


def test_a_database_server_that_starts_later_than_the_node_is_waited_for(postgres):
    url = postgres.new_database()
    postgres.stop()
    asked = []

    def stop(_seconds):
        asked.append(True)
        if len(asked) == 2:
            postgres.start()
        return False

    with capture_logs() as said:
        assert wait_for_database(url, stop)
    assert len(asked) >= 2
    assert [line["event"] for line in said] == ["The database cannot be reached; waiting for it."]


def test_waiting_for_a_database_ends_when_the_node_is_stopped(postgres):
    stop = threading.Event()
    stop.set()
    postgres.stop()
    try:
        assert not wait_for_database(postgres.url("any"), stop.wait)
    finally:
        postgres.start()


def test_a_steps_database_call_waits_for_a_server_that_is_away_and_no_longer_than_told(postgres):
    patient = make_engine(postgres.new_database(), reconnect_s=60.0)
    hasty = make_engine(postgres.url("node1"), reconnect_s=0.5)
    with patient.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
    postgres.stop()
    with pytest.raises(sa.exc.OperationalError), hasty.connect():
        pass
    answers = []

    def ask():  # its pooled connection is dead, and a new one cannot be had at once
        with patient.connect() as connection:
            answers.append(connection.execute(sa.text("SELECT 1")).scalar_one())

    asker = threading.Thread(target=ask)
    asker.start()
    time.sleep(1.0)
    postgres.start()
    asker.join(120)
    assert answers == [1]
    patient.dispose()
    hasty.dispose()
