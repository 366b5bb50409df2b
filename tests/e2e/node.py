"""A running node for the end-to-end tests: the product's own commands, a scripted detector, and an archive."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from demo.archive import start_archive
from demo.dicom_client import Peer, echo
from demo.processes import free_ports, tail
from scp_node.ledger import overview
from scp_node.ledger.states import STORED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pynetdicom.transport import ThreadedAssociationServer

ARCHIVE = "E2E_ARCHIVE"
ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("nodule-node")

SETTINGS = """\
[node]
port = {port}
[[senders]]
ae_title = "{sender}"
[[destinations]]
name = "archive"
ae_title = "{archive}"
host = "127.0.0.1"
port = {archive_port}
[storage]
folder = "data"
min_free_mib = 100
min_free_percent = 0.0
[study]
quiet_s = {quiet_s}
max_wait_s = 60
gap_wait_s = 2
[detector]
implementation = "{detector}"
[delivery]
retry_s = [1.0, 2.0]
[worker]
lease_s = 4.0
beat_s = 1.0
poll_s = 0.5
max_starts = 8
"""


def settings_text(
    port: int,
    archive: str,
    archive_port: int,
    sender: str = "E2E_CT",
    detector: str = "tests.fakes:scripted_detector",
    quiet_s: str = "2",
) -> str:
    """The node's settings file: short waits, a scripted detector, one sender, one destination."""
    return SETTINGS.format(
        port=port, archive=archive, archive_port=archive_port, sender=sender, detector=detector, quiet_s=quiet_s
    )


@dataclass
class RunningNode:
    """The node's folder, ports and processes; ``start`` and ``kill_everything`` may follow one another."""

    folder: Path
    port: int
    archive_port: int
    sender: str = "E2E_CT"
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> Path:
        return self.folder / "node.toml"

    @property
    def log(self) -> Path:
        return self.folder / "node.log"

    @property
    def peer(self) -> Peer:
        return Peer("NODULE_NODE", self.port, calling=self.sender)

    def start(self) -> None:
        """Start the node and wait until it answers a C-ECHO."""
        self.launch()
        self.wait(lambda: echo(self.peer), "the node answers a C-ECHO", limit_s=120)

    def launch(self) -> None:
        """Start `nodule-node serve`."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [COMMAND, "serve", "--config", self.settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), **self.environment},
            )

    def wait(self, true: Callable[[], Any], what: str, limit_s: float = 120) -> Any:
        """Wait until something is true; fail with the end of the log."""
        end = time.monotonic() + limit_s
        while not (answer := true()):
            assert time.monotonic() < end, f"after {limit_s} s still not: {what}\n{tail(self.log, 40)}"
            assert self.process is None or self.process.poll() is None, f"the node ended:\n{tail(self.log, 40)}"
            time.sleep(0.2)
        return answer

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another command of the product on the same settings."""
        return subprocess.run(
            [COMMAND, *words, "--config", self.settings],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
        )

    def status(self) -> dict[str, dict[str, Any]]:
        """`nodule-node status --json`, the studies by their UID."""
        asked = self.command("status", "--json", "--limit", "0")
        assert asked.returncode == 0, asked.stderr
        return {study["study_uid"]: study for study in json.loads(asked.stdout)["studies"]}

    def study(self, study_uid: str) -> overview.StudyView | None:
        """The study as the ledger has it; quicker than the command."""
        engine = overview.open_ledger(f"sqlite:///{self.folder / 'data' / 'node.sqlite'}")
        if engine is None:
            return None
        found = overview.studies(engine, study_uid=study_uid)
        engine.dispose()
        return found[0] if found else None

    def state(self, study_uid: str) -> str:
        """The study's state, empty before its first image."""
        study = self.study(study_uid)
        return "" if study is None else study.state

    def deliveries(self, study_uid: str) -> list[overview.DeliveryView]:
        """Every delivery of every report of a study."""
        study = self.study(study_uid)
        return [] if study is None else [d for report in study.reports for d in report.deliveries]

    def delivered(self, study_uid: str) -> bool:
        """Whether there is a delivery, and none of them is still on its way."""
        states = {delivery.state for delivery in self.deliveries(study_uid)}
        return bool(states) and states <= STORED

    def children(self, word: str) -> list[psutil.Process]:
        """The node's processes with a word in their command line: ``work``, ``listen``, a module's name."""
        assert self.process is not None
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [p for p in below if word in _words(p)]

    def kill_everything(self) -> None:
        """SIGKILL for the supervisor and all its children, at once."""
        assert self.process is not None
        everything = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for process in everything:
            process.kill()
        self.process.wait(10)
        psutil.wait_procs(everything, timeout=10)
        self.process = None

    def stop(self) -> int:
        """SIGTERM; gives the exit status, and fails when a process is left."""
        assert self.process is not None
        everything = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        self.process = None
        _, left = psutil.wait_procs(everything, timeout=5)
        assert not left, f"still running after the node stopped: {left}"
        return status


@dataclass
class Archive:
    """The destination, in threads of the test; it can be away for a while."""

    folder: Path
    port: int
    server: ThreadedAssociationServer | None = None
    kept_port: socket.socket | None = None

    def start(self) -> None:
        self.stop()
        self.server = start_archive(self.folder, ARCHIVE, self.port)

    def stop(self) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None
        if self.kept_port is not None:
            self.kept_port.close()
            self.kept_port = None

    def go_away(self) -> None:
        """Stop, and keep the port from other tests' servers: who connects is refused."""
        self.stop()
        self.kept_port = socket.socket()
        self.kept_port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.kept_port.bind(("127.0.0.1", self.port))

    def reports(self) -> list[Path]:
        """The reports that arrived."""
        return sorted(self.folder.glob("*.dcm"))


@contextmanager
def node_and_archive(folder: Path, **settings: str) -> Iterator[tuple[RunningNode, Archive]]:
    """A node that is not yet started, and an archive that is."""
    folder.mkdir(parents=True, exist_ok=True)
    port, archive_port = free_ports(2)
    node = RunningNode(folder, port, archive_port, settings.get("sender", "E2E_CT"))
    node.settings.write_text(settings_text(port, ARCHIVE, archive_port, **settings))
    archive = Archive(folder / "archive", archive_port)
    archive.start()
    try:
        yield node, archive
    finally:
        if node.process is not None:
            node.kill_everything()
        archive.stop()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it ended while we asked
        return []
