"""The node under chaos: the product's own ``serve``, its processes by name, and SIGKILL."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import socket
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from demo.dicom_client import echo
from tests.chaos.archive import TITLE
from tests.chaos.studies import SELECTION
from tests.e2e.node import RunningNode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

GONE_WITHIN_S, START_WITHIN_S, STOP_WITHIN_S = 120.0, 300.0, 300.0
PORTS = range(20000, 32000)
"""Below those that the system hands out: a port must not be lost while its process is dead."""
_PR_SET_CHILD_SUBREAPER = 36
_WORDS = {
    "listener": "listen",
    "worker": "work",
    "metrics": "metrics",
    "detector": "scp_node.detector_process",
    "reader": "scp_node.reader_process",
}

SETTINGS = """\
[node]
port = {port}
{senders}
[[destinations]]
name = "archive"
ae_title = "{archive}"
host = "127.0.0.1"
port = {archive_port}
[storage]
folder = "data"
database_url = "{database_url}"
min_free_mib = 100
min_free_percent = 0.0
[study]
quiet_s = 2.0
gap_wait_s = 1.0
max_wait_s = 600.0
max_revisions = 100
{selection}
[detector]
implementation = "{detector}"
device = "cpu"
precision = "float32"
threads = 1
[delivery]
retry_s = [0.5, 1.0]
breaker_failures = 3
probe_s = 1.0
verify_after_s = [0.5, 1.0, 2.0, 4.0]
commitment_wait_s = 5.0
commitment_timeout_s = 5.0
[worker]
lease_s = {lease_s}
beat_s = {beat_s}
poll_s = 0.4
max_starts = 1000
drain_s = 5.0
[network]
drain_s = 5.0
[log]
format = "json"
"""
"""Short waits; and no number of kills is enough to give a study up, so that each of them has to be reported."""

SENDER = """\
[[senders]]
ae_title = "{title}"
"""


def settings_text(
    port: int,
    archive_port: int,
    senders: Sequence[str],
    *,
    database_url: str = "",
    detector: str = "tests.chaos.detector:pixel_detector",
    lease_s: float = 1.5,
    more: str = '[audit]\nfile = ""\n',
) -> str:
    """Give the settings of a node for small studies."""
    return (
        SETTINGS.format(
            port=port,
            senders="".join(SENDER.format(title=title) for title in senders),
            archive=TITLE,
            archive_port=archive_port,
            database_url=database_url,
            selection=SELECTION,
            detector=detector,
            lease_s=lease_s,
            beat_s=lease_s / 4,
        )
        + more
    )


def take_in_orphans() -> None:
    """Let the processes of a killed supervisor become ours, so that they are reaped and their time is counted."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def lasting_ports(count: int, rng: Random) -> list[int]:
    """Ports that nobody uses, and that the system gives to nobody."""
    found: list[int] = []
    while len(found) < count:
        port = rng.choice(PORTS)
        with suppress(OSError), socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found


@dataclass
class ChaosNode(RunningNode):
    """A node whose processes are found and killed by name; ``survivors`` are those that outlived their parent."""

    survivors: list[str] = field(default_factory=list)
    starts: int = 0

    def launch(self) -> None:
        super().launch()
        self.starts += 1

    def start(self) -> None:
        """Start, and wait for both processes and an answer to a C-ECHO."""
        self.launch()
        self.wait(self.is_up, "the node is up", START_WITHIN_S)

    def is_up(self) -> bool:
        """Whether both processes run and the listener answers."""
        return bool(self.find("worker") and self.find("listener") and echo(self.peer))

    def stop(self) -> int:
        """SIGTERM, and wait as long as a busy machine may need; gives the exit status."""
        assert self.process is not None
        family = below(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(STOP_WITHIN_S)
        self.process = None
        self._wait_for_the_end_of(family)
        return status

    def ended(self) -> bool:
        """Whether the supervisor is gone."""
        return self.process is None or self.process.poll() is not None

    def find(self, name: str) -> int | None:
        """The process of a name; ``None`` while there is none."""
        if self.ended():
            return None
        assert self.process is not None
        if name == "supervisor":
            return self.process.pid
        return next((pid for pid in below(self.process.pid) if _WORDS[name] in _words_of(pid)), None)

    def born_at(self, name: str) -> float:
        """When the process of a name was started, seconds since the epoch; never, while there is none."""
        try:
            return psutil.Process(self.find(name) or 0).create_time()
        except psutil.Error:
            return math.inf

    def kill(self, name: str, pid: int) -> None:
        """SIGKILL, and wait for the end of all that was below: nothing may work on beside its successor."""
        family = [pid, *below(pid)]
        _signal(pid, signal.SIGKILL)
        for child in family[1:]:  # one held before it asked to die with its parent leaves once awake
            _signal(child, signal.SIGCONT)
        if name == "supervisor":
            assert self.process is not None
            self.process.wait(GONE_WITHIN_S)
            self.process = None
        self._wait_for_the_end_of(family)
        reap_orphans()

    def _wait_for_the_end_of(self, family: list[int]) -> None:
        limit = time.monotonic() + GONE_WITHIN_S
        while alive := [pid for pid in family if _is_alive(pid)]:
            if time.monotonic() > limit:
                self.survivors += [" ".join(_words_of(pid)) for pid in alive]
                for pid in alive:
                    _signal(pid, signal.SIGKILL)
                return
            time.sleep(0.01)


def below(pid: int) -> list[int]:
    """The processes below one."""
    found = [pid]
    for parent in found:
        found.extend(_children_of(parent))
    return found[1:]


@contextmanager
def held(pid: int | None) -> Iterator[None]:
    """Keep a process stopped where it is."""
    if pid is not None:
        _signal(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if pid is not None:
            _signal(pid, signal.SIGCONT)


def reap_orphans() -> None:
    """Collect what ended below us after its own parent had ended."""
    for pid in _children_of(os.getpid()):
        if _state(pid) == "Z" and os.getpgid(pid) != pid:  # whoever leads a group was started by us
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _children_of(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found


def _words_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _is_alive(pid: int) -> bool:
    return _state(pid) not in ("", "Z", "X")
