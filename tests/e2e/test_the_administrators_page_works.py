"""The commands of docs/administrator.md that are marked as tried are run here, in their order, as they stand."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from demo.processes import free_ports

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "administrator.md"
BLOCK = re.compile(r"<!-- run -->\n```sh\n(.*?)```\n", re.DOTALL)
PORTS = ("11112", "2762", "11180", "11104")
LIMIT_S = 280


def test_the_marked_commands_run_as_they_stand(tmp_path):
    for program in ("curl", "openssl", "bash"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) == 8
    script = "set -euo pipefail\n" + "\n".join(blocks)
    free = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    script = re.sub("|".join(PORTS), lambda found: free[found[0]], script)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "NODULE_NODE__STORAGE__MIN_FREE_MIB": "100",
        "NODULE_NODE__STORAGE__MIN_FREE_PERCENT": "0.0",
    }
    output = tmp_path / "output"
    with output.open("wb") as told:
        bash = subprocess.Popen(
            ["bash", "-x", "-c", script],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = bash.wait(LIMIT_S)
        finally:
            _end_node(tmp_path / "node.pid")
    assert code == 0, output.read_text()[-4000:] + _tail(tmp_path / "node.log")


def test_every_page_that_it_names_is_there():
    links = re.findall(r"\]\(([a-z./]+)\)", PAGE.read_text())
    assert links
    assert [link for link in links if not (PAGE.parent / link).is_file()] == []


def _end_node(pid_file: Path) -> None:
    """Kill a node that a failed script left behind; its processes die with it."""
    if pid_file.is_file():
        try:
            os.kill(int(pid_file.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            return


def _tail(log: Path) -> str:
    return "\nnode.log:\n" + log.read_text()[-4000:] if log.is_file() else ""
