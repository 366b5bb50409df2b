"""Every study at work has one run: the reconciler, and what counts towards giving up."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from scp_node.ledger import tables
from scp_node.ledger.engine import make_engine
from scp_node.ledger.figures import read_figures
from scp_node.ledger.states import StudyState
from scp_node.ledger.steps import Steps
from scp_node.ledger.studies import Studies
from scp_node.settings import load_settings
from scp_node.work import Run
from scp_node.workflow import Runs, Scheduler, upgrade_database
from tests.ledgers import add_study

STUDY = "1.2"


class GivingUp:
    """Work, as far as the reconciler calls it."""

    def __init__(self, studies):
        self.studies = studies

    def give_up(self, run, code, how):
        self.studies.finish(
            run.study_uid, run.revision, state=StudyState.FAILED, codes=[code.value], text=how, now=1.0
        )


class Box:
    """A scheduler over a real database of ledger and engine, without a worker."""

    def __init__(self, folder):
        (folder / "node.toml").write_text('[detector]\nimplementation = "tests.detectors:staged_detector"\n')
        self.settings = load_settings(folder / "node.toml")
        upgrade_database(self.settings.database_url)
        self.engine = make_engine(self.settings.database_url)
        self.studies, self.runs = Studies(self.engine), Runs(self.settings, self.engine)
        self.scheduler = Scheduler(self.settings, self.engine, self.runs, GivingUp(self.studies), None)

    def at_work(self, study_uid=STUDY, revision=1):
        add_study(self.engine, study_uid, state=StudyState.ANALYSING, revision=revision, waiting_since=90.0)

    def start(self, study_uid=STUDY, revision=1):
        with self.engine.begin() as connection:
            connection.execute(tables.study.update().values(codes=[]))  # SQLite's transaction begins at a write
            self.runs.start_study(connection, Run(study_uid, revision))

    def set_run(self, **values):
        pairs = ", ".join(f"{name} = :{name}" for name in values)
        with self.engine.begin() as connection:
            connection.execute(sa.text(f"UPDATE workflow_status SET {pairs}"), values)

    def events(self, kind):
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(tables.event).where(tables.event.c.kind == kind)).all()
        return [row.text for row in rows]


@pytest.fixture
def box(tmp_path):
    box = Box(tmp_path)
    yield box
    box.engine.dispose()


def test_a_study_whose_run_is_gone_is_taken_once_more(box):
    box.at_work()
    box.scheduler.replace_lost_runs()
    assert box.studies.state(STUDY) == (StudyState.RECEIVING, 1)
    assert box.events("run_lost") == ["The run of revision 1 is gone; the study is taken once more."]
    box.scheduler.take_ready_studies()
    assert box.studies.state(STUDY) == (StudyState.QUEUED, 2)
    box.scheduler.replace_lost_runs()
    assert box.studies.state(STUDY) == (StudyState.QUEUED, 2)


@pytest.mark.parametrize("status", ["PENDING", "ENQUEUED", "ERROR", "CANCELLED"])
def test_a_study_with_a_run_is_left_alone_and_one_that_broke_off_to_the_other_sweep(box, status):
    box.at_work()
    box.start()
    box.set_run(status=status)
    box.scheduler.replace_lost_runs()
    assert box.studies.state(STUDY) == (StudyState.ANALYSING, 1)


def test_the_run_of_an_old_revision_is_not_that_of_the_new_one(box):
    box.at_work(revision=2)
    box.start(revision=1)
    box.scheduler.replace_lost_runs()
    assert box.studies.state(STUDY) == (StudyState.RECEIVING, 2)


def test_a_run_that_ended_without_ending_its_study_is_lost_too(box):
    box.at_work()
    box.start()
    box.set_run(status="SUCCESS")
    box.scheduler.replace_lost_runs()
    assert box.studies.state(STUDY) == (StudyState.RECEIVING, 1)


def test_a_study_that_loses_its_run_again_and_again_fails_visibly(box):
    box.at_work()
    for _ in range(box.settings.worker.max_starts - 1):
        box.scheduler.replace_lost_runs()
        with box.engine.begin() as connection:
            connection.execute(tables.study.update().values(state=StudyState.ANALYSING))
    box.scheduler.replace_lost_runs()
    assert box.studies.state(STUDY) == (StudyState.FAILED, 1)


def test_a_study_that_does_not_end_raises_an_alarm_once(box):
    box.at_work()
    box.scheduler.raise_alarms()
    box.scheduler.raise_alarms()
    assert len(box.events("study_overdue")) == 1
    (waiting,) = read_figures(box.engine).waiting
    assert (waiting.study_uid, waiting.state) == (STUDY, "ANALYSING")


def test_a_planned_stop_does_not_count_as_a_start(box):
    box.start()
    box.set_run(status="PENDING", executor_id="worker-0", recovery_attempts=2)
    assert box.runs.forgive("worker-1") == 0
    assert box.runs.forgive("worker-0") == 1
    with box.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT recovery_attempts FROM workflow_status")).scalar_one() == 1


def test_of_the_steps_only_the_open_ones_of_the_stopped_worker_are_forgiven(box):
    ours, other = (Steps(box.engine, executor=name, clock=Clock(), retry_s=0.0) for name in ("w0", "w1"))
    for steps, key in ((ours, "open"), (ours, "open"), (ours, "done"), (other, "elsewhere")):
        steps._note_start(key)
    ours.once("done", lambda: 1)
    assert ours.forgive() == 1
    assert [ours.starts(key) for key in ("open", "done", "elsewhere")] == [1, 2, 1]


class Clock:
    def now(self):
        return 5.0
