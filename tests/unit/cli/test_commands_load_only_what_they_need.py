"""Torch and the workflow engine stay out of processes that do not use them; static contracts cannot see this."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "dbos", "highdicom", "SimpleITK")

SCRIPT = """
import json, sys
from scp_node.cli import main
for line in {lines!r}:
    try:
        main.main(line)
    except SystemExit:
        pass
for module in {modules!r}:
    __import__(module)
print("LOADED " + json.dumps(sorted(set(sys.modules) & set({heavy!r}))))
"""


def loaded(tmp_path: Path, lines: list[list[str]], modules: tuple[str, ...] = ()) -> list[str]:
    """Which heavy packages a fresh process holds after these command lines and imports."""
    script = SCRIPT.format(lines=lines, modules=modules, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("LOADED "))
    answer: list[str] = json.loads(line.removeprefix("LOADED "))
    return answer


def test_light_commands_load_nothing_heavy(tmp_path: Path) -> None:
    lines = [
        ["--help"],
        ["status"],
        ["status", "--json"],
        ["explain", "1.2"],
        ["events", "1.2"],
        ["retry", "1.2"],
        ["reprocess", "1.2"],
        ["conformance", "--out", "conformance.md"],
        ["config", "check"],
    ]
    assert loaded(tmp_path, lines) == []


def test_the_listener_loads_nothing_heavy(tmp_path: Path) -> None:
    assert loaded(tmp_path, [], ("scp_node.cli.listen", "scp_node.network.listener")) == []


def test_the_process_that_others_look_at_loads_nothing_heavy(tmp_path: Path) -> None:
    assert loaded(tmp_path, [], ("scp_node.cli.metrics", "scp_node.monitoring.process")) == []


def test_the_supervisor_loads_nothing_heavy(tmp_path: Path) -> None:
    assert loaded(tmp_path, [], ("scp_node.cli.serve", "scp_node.supervisor")) == []


def test_the_probe_notices_a_heavy_package(tmp_path: Path) -> None:
    assert loaded(tmp_path, [], ("SimpleITK",)) == ["SimpleITK"]
