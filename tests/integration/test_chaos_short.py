"""A dozen real SIGKILLs on each database lose, double and change no report; ``make chaos`` makes five hundred."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.postgres import NO_SERVER, programs

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3000)  # it takes half a minute of processor time; a slow or busy machine may take its time
@pytest.mark.parametrize(("database", "studies", "kills"), [("sqlite", 3, 8), ("postgresql", 2, 4)])
def test_what_is_killed_loses_doubles_and_changes_no_report(database, studies, kills, tmp_path):
    if database == "postgresql" and programs() is None:
        pytest.skip(NO_SERVER)
    sizes = {"--studies": studies, "--kills": kills, "--kills-in-a-round": kills, "--hits": 0, "--real": 0}
    words = [str(word) for pair in sizes.items() for word in pair]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--database", database, "--out", str(tmp_path), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    ledger = json.loads((tmp_path / f"{database}.json").read_text())
    assert sum(ledger["kills"].values()) >= kills
    assert ledger["reports"] >= ledger["studies"] >= studies
    assert [ledger[fault] for fault in ("lost", "doubled", "different", "other")] == [0, 0, 0, 0]
