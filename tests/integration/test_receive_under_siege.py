"""A thousand idle and half-open connections of one peer, and an honest one from the same host among them."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import threading
import time

import pytest

from scp_node.network.guard import raise_file_limit
from tests.integration.test_receive_admission import VERIFICATION, ask
from tests.integration.test_receive_guard import request
from tests.listening import listening

CROWD = 1000
FILES_NEEDED = 2200
ANSWERED_S = 15.0  # on an idle machine it takes 0.05 s; nothing here times out sooner than after 120 s


@pytest.fixture
def many_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES_NEEDED:
        pytest.skip(f"this system allows {hard} open files, {FILES_NEEDED} are needed")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def crowd():
    """Start a crowd in a process of its own; ends it afterwards."""
    processes = []

    def start(port):
        command = [sys.executable, "-m", "tests.idle_crowd", str(port), str(CROWD), request()[:40].hex()]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == f"held {CROWD}\n"

    yield start
    for process in processes:
        process.communicate(timeout=60)


def answered_in(port) -> float:
    started = time.monotonic()
    assert ask(port, sop_class=VERIFICATION) is None
    return time.monotonic() - started


@pytest.mark.parametrize("per_host", [2000, 200])
def test_an_honest_echo_is_answered_beside_a_thousand_idle_connections(tmp_path, many_files, crowd, per_host):
    limits = f"acse_timeout_s = 120.0\nhalf_open_per_host = {per_host}"
    with listening(tmp_path, network=limits) as node:
        threads = threading.active_count()
        crowd(node.port)
        seconds = [answered_in(node.port) for _ in range(5)]
        assert statistics.median(seconds) < ANSWERED_S
        assert threading.active_count() <= threads + 10  # a connection that says nothing costs no thread
        assert node.events() == []


def test_when_files_run_out_the_oldest_idle_connection_goes(tmp_path, many_files, crowd):
    with listening(tmp_path, network="acse_timeout_s = 120.0\nhalf_open_per_host = 2000") as node:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
        crowd(node.port)
        deadline = time.monotonic() + 60
        served = False
        while not served and time.monotonic() < deadline:
            try:
                served = ask(node.port, sop_class=VERIFICATION) is None
            except (OSError, AttributeError):  # our own side of this process has no file left either
                time.sleep(0.1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        assert served
        assert answered_in(node.port) < ANSWERED_S


def test_the_file_limit_is_raised_as_far_as_it_goes(many_files):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    assert raise_file_limit(200) == 300
    assert raise_file_limit(1000) == 1000
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1000
    if hard != resource.RLIM_INFINITY:
        assert raise_file_limit(hard + 1) == hard


def test_a_limit_below_what_the_settings_want_is_said_at_start(tmp_path, many_files, capsys):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("this system sets no limit on open files")
    with listening(tmp_path, network=f"half_open = {hard}"):
        assert "raise LimitNOFILE of the service, or lower network.half_open" in capsys.readouterr().out
