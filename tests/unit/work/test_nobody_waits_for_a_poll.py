"""What is known is acted on at once: a proof wakes the scheduler, and so does a report that waits to be sent."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from unittest import mock

import pytest

from scp_node import workflow
from scp_node.ledger.engine import make_engine
from scp_node.settings import load_settings
from scp_node.work import NextRun
from scp_node.workflow import Nudge, Scheduler

LONG_S = 120.0


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "node.toml").write_text('[storage]\nfolder = "."\n')
    return load_settings(tmp_path / "node.toml")


def test_a_nudge_is_remembered_once():
    nudge = Nudge()
    nudge()
    nudge()
    nudge.wait(LONG_S)
    assert not nudge._news.is_set()


def test_a_scheduler_that_is_nudged_looks_at_once_and_ends_when_told(settings):
    engine = make_engine(settings.database_url)
    worker = settings.worker.model_copy(update={"poll_s": 3600.0})
    scheduler = Scheduler(settings.model_copy(update={"worker": worker}), engine, None, None, None)
    looked, stop = threading.Event(), threading.Event()
    nothing = mock.Mock()
    for task in ("take_ready_studies", "end_broken_runs", "replace_lost_runs", "raise_alarms"):
        setattr(scheduler, task, nothing)
    scheduler.forget_old_runs = scheduler.delete_old_images = nothing
    scheduler.start_due_deliveries = looked.set
    loop = threading.Thread(target=scheduler.loop, args=(stop,), daemon=True)
    loop.start()
    scheduler.nudge()
    assert looked.wait(LONG_S)
    stop.set()
    scheduler.nudge()
    loop.join(LONG_S)
    assert not loop.is_alive()
    engine.dispose()


class RememberedSteps:
    """Stands in for the engine: keeps the functions that are registered with it."""

    def __init__(self):
        self.known = {}

    def step(self, *, name, **_options):
        return lambda function: self.known.setdefault(name, function)

    workflow = step


@pytest.mark.parametrize("step", ["decide", "report", "go_on"])
def test_each_step_that_may_leave_a_report_says_so_after_its_work(settings, step):
    said, engine = [], RememberedSteps()
    work = mock.Mock()
    getattr(work, step).side_effect = lambda *_: said.append("worked") or NextRun()
    runs = SimpleNamespace(cancelled=lambda _run: lambda: False, series_run=lambda *_: "run")
    with mock.patch.object(workflow, "DBOS", engine):
        workflow._register_runs(settings, work, None, runs, lambda: said.append("due"))
    arguments = ("1.2", 1, False, *(["1.2.1"] if step != "decide" else []))
    engine.known[step](*arguments)
    assert said == ["worked", "due"]
