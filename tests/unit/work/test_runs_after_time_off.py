"""Runs that a dead process left behind get their whole time again; a database that restarts is waited for."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from scp_node.children import TransientFaultError
from scp_node.ledger.engine import ENGINE_SCHEMA, make_engine
from scp_node.settings import load_settings
from scp_node.work import Run
from scp_node.workflow import _PATIENT_STEP, Runs, upgrade_database

LONG_AGO_MS = 1000
MOST_OF_A_PAYLOAD = 512  # characters; the rule is 4 KB


@pytest.fixture
def runs(tmp_path, new_database_url):
    lines = (
        f'[storage]\ndatabase_url = "{new_database_url}"',
        '[detector]\nimplementation = "tests.detectors:staged_detector"\n',
    )
    (tmp_path / "node.toml").write_text("\n".join(lines))
    settings = load_settings(tmp_path / "node.toml")
    upgrade_database(settings.database_url)
    engine = make_engine(settings.database_url)
    yield Runs(settings, engine), engine
    engine.dispose()


def status_table(engine):
    return "workflow_status" if engine.dialect.name == "sqlite" else f"{ENGINE_SCHEMA}.workflow_status"


def leave_behind(runs, engine, study_uid, executor, status):
    """A run that was under way when its worker died, its time long over."""
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE nn_study SET state = state"))  # SQLite's transaction begins at a write
        runs.start_study(connection, Run(study_uid, 1))
        connection.execute(
            sa.text(
                f"UPDATE {status_table(engine)} SET status = :status, executor_id = :executor, "
                "workflow_deadline_epoch_ms = :deadline WHERE workflow_uuid = :run"
            ),
            {"status": status, "executor": executor, "deadline": LONG_AGO_MS, "run": f"study:{study_uid}:1"},
        )


def deadlines(engine):
    with engine.connect() as connection:
        columns = "workflow_uuid, workflow_deadline_epoch_ms"
        rows = connection.execute(sa.text(f"SELECT {columns} FROM {status_table(engine)}"))
        return {row.workflow_uuid: row.workflow_deadline_epoch_ms for row in rows}


def test_unfinished_runs_of_a_dead_worker_get_their_whole_time_again(runs):
    runs, engine = runs
    leave_behind(runs, engine, "1.1", "worker-0", "PENDING")
    leave_behind(runs, engine, "1.2", "worker-0", "ENQUEUED")
    leave_behind(runs, engine, "1.3", "worker-0", "CANCELLED")
    leave_behind(runs, engine, "1.4", "worker-1", "PENDING")
    assert runs.renew_deadlines("worker-0") == 2
    assert deadlines(engine) == {
        "study:1.1:1": None,
        "study:1.2:1": None,
        "study:1.3:1": LONG_AGO_MS,
        "study:1.4:1": LONG_AGO_MS,
    }


def test_missing_tables_of_the_engine_are_left_to_its_own_complaint(tmp_path):
    (tmp_path / "node.toml").write_text('[detector]\nimplementation = "tests.detectors:staged_detector"\n')
    settings = load_settings(tmp_path / "node.toml")
    settings.storage.folder.mkdir()
    engine = make_engine(settings.database_url)
    assert Runs(settings, engine).renew_deadlines("worker-0") == 0
    engine.dispose()


@pytest.mark.parametrize(
    ("fault", "again"),
    [
        (TransientFaultError("The reader was killed."), True),
        (sa.exc.OperationalError("SELECT 1", {}, Exception("database is locked")), True),
        (sa.exc.InterfaceError("SELECT 1", {}, Exception("connection closed")), True),
        (ValueError("a bug"), False),
    ],
)
def test_a_step_is_tried_again_after_a_fault_that_may_pass(fault, again):
    assert _PATIENT_STEP["should_retry"](fault) is again


def test_what_the_engine_keeps_of_a_run_is_identifiers_of_a_few_hundred_bytes(runs):
    runs, engine = runs
    longest = "1." * 31 + "12"
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE nn_study SET state = state"))
        runs.start_study(connection, Run(longest, 2**31, timed_out=True))
        runs.start_delivery(connection, 2**31, 2**31)
    runs.start_series(Run(longest, 2**31, timed_out=True), longest)
    with engine.connect() as connection:
        inputs = status_table(engine).replace("workflow_status", "workflow_input")
        kept = connection.execute(sa.text(f"SELECT inputs FROM {inputs}")).scalars().all()
    assert len(kept) == 3
    assert max(map(len, kept)) < MOST_OF_A_PAYLOAD


def test_one_series_in_two_studies_has_a_run_in_each(runs):
    runs, engine = runs
    for study_uid in ("1.1", "1.2"):
        runs.start_series(Run(study_uid, 1), "1.9")
    names = list(deadlines(engine))
    assert [name.split(":")[:3] for name in names] == [["1.1", "1.9", "1"], ["1.2", "1.9", "1"]]
