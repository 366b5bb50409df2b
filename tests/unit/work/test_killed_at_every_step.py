"""SIGKILL at each moment of each step, on both databases: the next process ends the study once, as if nothing was.

What a step leaves behind is its outcome with its rows, or nothing.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from scp_node.ledger import tables
from scp_node.ledger.states import StudyState
from tests.ledgers import add_image, add_study, empty_ledger
from tests.mortal import BEGUN, SERIES, STORED, WORKED, WRITING, node
from tests.unit.work.test_one_study_becomes_reports import STUDY

STEPS = ("decide", "analyse", "report", "end")
MOMENTS = [(step, moment) for step in STEPS for moment in (BEGUN, WORKED, STORED)]
MOMENTS += [(step, WRITING) for step in STEPS[:3]]


@pytest.fixture(scope="module")
def mortals():
    """The process whose children die."""
    command = [sys.executable, "-m", "tests.mortal"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def study(tmp_path, ledger_url, mortals):
    """A study that is ready, and a process to be killed while it works on it."""
    with empty_ledger(tmp_path, ledger_url) as engine:
        add_study(engine, STUDY, images=0, state=StudyState.QUEUED, revision=1, last_received_at=190.0)
        add_image(engine, STUDY, f"{SERIES}.1", series_uid=SERIES)
        url = engine.url.render_as_string(hide_password=False)

        def killed(what, moment=""):
            mortals.stdin.write(json.dumps([url, str(tmp_path), what, moment]) + "\n")
            mortals.stdin.flush()
            return int(mortals.stdout.readline()) == -signal.SIGKILL

        yield SimpleNamespace(engine=engine, folder=tmp_path, killed=killed)


def ended_once(study):
    """One outcome for each step, one report whose file is what the ledger says, one delivery for each place."""
    box = node(study.engine, study.folder)
    assert box.run() == (StudyState.REPORTED, 1)
    assert Counter(row.key.rpartition(":")[2] for row in box.rows(tables.step_outcome)) == Counter(STEPS)
    (report,) = box.rows(tables.report)
    assert hashlib.sha256((study.folder / "storage" / report.path).read_bytes()).hexdigest() == report.sha256
    assert box.deliveries() == [("pacs", "queued"), ("incurious", "queued")]
    kinds = Counter(row.kind for row in box.rows(tables.event))
    assert (kinds["analysing"], kinds["reported"]) == (1, 1)
    return Counter(row.key.rpartition(":")[2] for row in box.rows(tables.step_start))


@pytest.mark.parametrize(("step", "moment"), MOMENTS)
def test_a_process_that_is_killed_in_a_step_is_made_up_for_by_the_next(study, step, moment):
    assert study.killed(step, moment)
    starts = ended_once(study)
    assert starts[step] == 2


@pytest.mark.parametrize("move", ["begin", "finish"])
def test_a_process_that_is_killed_after_a_move_of_the_study_is_made_up_for_by_the_next(study, move):
    assert study.killed(move)
    ended_once(study)
