"""Processes are started, started again, given up, and stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import psutil
import pytest
from structlog.testing import capture_logs

from scp_node.ledger.engine import make_engine
from scp_node.settings import load_settings
from scp_node.supervisor import Service, command_of, run, supervise

SLEEPER = (sys.executable, "-S", "-c", "import time; time.sleep(60)")
DEAF = (
    sys.executable,
    "-S",
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
)


PARENT = """
import os, subprocess, sys, time
command = [sys.executable, "-m", "scp_node.child", str(os.getpid()), "tests.sleeper"]
process = subprocess.Popen(command, stdout=subprocess.PIPE)
print(process.pid, flush=True)
print(process.stdout.readline().decode().strip(), flush=True)
time.sleep(60)
"""


def exiting(code):
    return (sys.executable, "-S", "-c", f"raise SystemExit({code})")


class FastClock:
    """A second for each look, so that pauses pass quickly."""

    def __init__(self, step_s=1.0):
        self.time, self.step_s = 0.0, step_s

    def __call__(self):
        self.time += self.step_s
        return self.time


def test_a_service_that_cannot_start_as_set_up_stops_the_node():
    sleeper = Service("listen", SLEEPER)
    assert supervise([sleeper, Service("work", exiting(78))], threading.Event(), stop_within_s=5) == 78
    assert sleeper.process.returncode == -signal.SIGTERM


def test_five_failures_within_a_minute_stop_the_node():
    crasher = Service("work", exiting(3))
    assert supervise([crasher], threading.Event(), stop_within_s=5, clock=FastClock()) == 1
    assert len(crasher.crashes) == 5


def test_pauses_between_starts_grow_to_a_minute_and_shrink_after_a_steady_time():
    service = Service("work", SLEEPER)
    starts = []
    now = 0.0
    for _ in range(8):
        service.started_at = now
        assert service.after_exit(1, now + 20.0) is None
        starts.append(service.start_again_at - now - 20.0)
        now = service.start_again_at
    assert starts == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    service.started_at = now
    service.after_exit(1, now + 60.0)
    assert service.start_again_at == now + 61.0


def test_a_lost_lease_is_no_reason_to_wait():
    service = Service("work", SLEEPER, pause_s=32.0)
    service.after_exit(75, 10.0)
    assert service.start_again_at == 11.0


def test_when_told_to_stop_it_stops_all_and_says_so():
    stop = threading.Event()
    services = [Service("listen", SLEEPER), Service("work", SLEEPER)]
    threading.Timer(0.5, stop.set).start()
    assert supervise(services, stop, stop_within_s=5) == 0
    assert [service.process.returncode for service in services] == [-signal.SIGTERM] * 2


def test_who_does_not_stop_in_time_is_killed():
    stop = threading.Event()
    stop.set()
    process = subprocess.Popen(DEAF, stdout=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == b"deaf\n"
        assert supervise([Service("work", DEAF, process)], stop, stop_within_s=0.3) == 0
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_a_child_dies_with_the_process_that_started_it(tmp_path):
    log = (tmp_path / "log").open("w")
    with log, subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=log) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        assert parent.stdout.readline() == b"ready\n"
        parent.kill()
    child.wait(30)


def test_the_services_are_the_nodes_own_commands(tmp_path):
    command = command_of("work", tmp_path / "node.toml")
    assert command[0] == sys.executable
    assert command[4:] == ("scp_node.cli.main", "work", "--config", str(tmp_path / "node.toml"))


def test_a_database_of_an_older_version_is_left_alone_and_the_node_does_not_start(tmp_path):
    (tmp_path / "node.toml").write_text('[storage]\nfolder = "storage"\n')
    settings = load_settings(tmp_path / "node.toml")
    settings.storage.folder.mkdir()
    engine = make_engine(settings.database_url)
    with engine.begin() as connection:
        for table in ("nn_study", "dbos_migrations"):
            connection.exec_driver_sql(f"CREATE TABLE {table} (version INTEGER)")
    engine.dispose()
    with capture_logs() as told:
        assert run(settings, settings.path) == 78
    assert told[-1]["event"] == (
        "The database is of another version: make a backup, then run 'nodule-node db upgrade'."
    )


def test_the_longest_drain_of_all_processes_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "node.toml").write_text("[network]\ndrain_s = 50.0\n[worker]\ndrain_s = 5.0\n")
    within = []
    monkeypatch.setattr("scp_node.supervisor._prepare_database", lambda *_: None)
    monkeypatch.setattr(
        "scp_node.supervisor.supervise",
        lambda _services, _stop, *, stop_within_s, **_: within.append(stop_within_s) or 0,
    )
    assert run(load_settings(tmp_path / "node.toml"), tmp_path / "node.toml") == 0
    assert within == [60.0]
