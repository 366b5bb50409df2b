"""Run by a test: works on a study in children of its own, each of which dies by SIGKILL at a moment it is told.

A process of its own, because only one without threads may be forked; and one for all moments, because starting
takes longer than a study.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.analysis import Decision
from scp_node.ledger.engine import make_engine
from tests.unit.work.test_one_study_becomes_reports import NODULE, Box, analysed, verdict

if TYPE_CHECKING:
    import sqlalchemy as sa

SERIES = "1.2.1"
BEGUN, WORKED, WRITING, STORED = "begun", "worked", "in its transaction", "stored"


def node(engine: sa.Engine, folder: Path) -> Box:
    """A process that has just started."""
    box = Box(engine, folder, "best")
    box.reader.decision = Decision((verdict(SERIES),))
    box.detector.answers = [analysed(SERIES, NODULE)]
    return box


def die() -> None:
    """End as by the kernel's hand."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_step(box: Box, step: str, moment: str) -> None:
    """Let it die at a moment of a step."""
    steps = box.work._steps
    note, store = steps._note_start, steps._store

    def reached(key: str, here: str) -> None:
        if key.endswith(f":{step}") and here == moment:
            die()

    def note_start(key):
        note(key)
        reached(key, BEGUN)

    def store_outcome(key, value, rows):
        reached(key, WORKED)
        writing = rows and (lambda connection, kept: (rows(connection, kept), reached(key, WRITING)))
        store(key, value, writing)
        reached(key, STORED)

    steps._note_start, steps._store = note_start, store_outcome


def kill_after_move(box: Box, move: str) -> None:
    """Let it die after a move of the study."""
    moved = getattr(box.studies, move)
    setattr(box.studies, move, lambda *values, **named: (moved(*values, **named), die()))


def how_it_ended(url: str, folder: str, what: str, moment: str) -> int:
    """Work on the study in a child; gives its exit code, which is negative for a signal."""
    child = os.fork()
    if not child:
        try:
            box = node(make_engine(url), Path(folder))
            if moment:
                kill_in_step(box, what, moment)
            else:
                kill_after_move(box, what)
            box.run()
        finally:
            os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Answer one order a line with how it ended."""
    for line in sys.stdin:
        print(how_it_ended(*json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
