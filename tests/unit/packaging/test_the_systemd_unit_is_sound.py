"""The systemd unit is valid, starts what exists, and lets the service see little."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from scp_node.cli.main import COMMANDS
from scp_node.supervisor import EXIT_CANNOT_START

UNIT = Path(__file__).parents[3] / "packaging" / "systemd" / "nodule-node.service"
PROGRAM = "/opt/nodule-node/bin/nodule-node"
EXPOSURE_AT_MOST = 2.0


@pytest.fixture
def service() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(UNIT)
    return parser["Service"]


@pytest.fixture
def unit(tmp_path):
    """The unit with a program that exists here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = re.sub(r"^Documentation=.*$", "", UNIT.read_text(), flags=re.MULTILINE)
    path = tmp_path / UNIT.name
    path.write_text(text.replace(PROGRAM, shutil.which("true")))
    return path


def test_systemd_finds_no_fault_in_it(unit):
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_its_exposure_is_small(unit):
    asked = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    if "offline" in asked.stderr:
        pytest.skip("this systemd-analyze cannot look at a file")
    found = re.search(r"exposure level for \S+ ([0-9.]+)", asked.stdout)
    assert found, asked.stdout + asked.stderr
    assert float(found[1]) <= EXPOSURE_AT_MOST


def test_it_starts_commands_of_ours_and_does_not_repeat_what_cannot_work(service):
    for key in ("ExecStart", "ExecStartPre"):
        program, command, *_ = service[key].split()
        assert program == PROGRAM
        assert command in COMMANDS
    assert service["RestartPreventExitStatus"] == str(EXIT_CANNOT_START)
    assert service["UMask"] == "0077"
    assert service["StateDirectoryMode"] == "0700"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
