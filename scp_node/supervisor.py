"""Starts the node's processes, starts them again when they fail, and stops them cleanly; holds nothing heavy.

The kernel kills its children when it dies itself, so nothing of a killed node goes on running beside the next.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from scp_node.ledger.engine import has_tables, make_engine, schema_is_current

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from scp_node.settings import Settings

EXIT_LEASE_LOST = 75
EXIT_CANNOT_START = 78
CRASHES_A_MINUTE = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_STEADY_S = 60.0
_POLL_S = 0.2
_GRACE_S = 10.0

log = structlog.get_logger()


@dataclass(slots=True)
class Service:
    """One process that has to run, and how it fared."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_again_at: float = 0.0
    pause_s: float = _FIRST_PAUSE_S
    crashes: deque[float] = field(default_factory=lambda: deque(maxlen=CRASHES_A_MINUTE))

    def start(self, now: float) -> None:
        """Start the process."""
        self.process = subprocess.Popen(self.command)
        self.started_at = now
        log.info("Process started", name=self.name, pid=self.process.pid)

    def after_exit(self, code: int, now: float) -> int | None:
        """Plan what follows an exit.

        Returns
        -------
        int or None
            The node's exit code when going on makes no sense; ``None``: start again at :attr:`start_again_at`.
        """
        self.process = None
        if code == EXIT_CANNOT_START:
            log.error("A process cannot start as the node is set up; stopping.", name=self.name)
            return EXIT_CANNOT_START
        self.crashes.append(now)
        if len(self.crashes) == CRASHES_A_MINUTE and now - self.crashes[0] < _STEADY_S:
            log.error("A process failed five times within a minute; stopping.", name=self.name, exit_code=code)
            return 1
        if code == EXIT_LEASE_LOST or now - self.started_at >= _STEADY_S:
            self.pause_s = _FIRST_PAUSE_S
        log.warning("A process ended; it is started again.", name=self.name, exit_code=code, in_s=self.pause_s)
        self.start_again_at = now + self.pause_s
        self.pause_s = min(_LONGEST_PAUSE_S, 2 * self.pause_s)
        return None


def run(settings: Settings, config_path: Path) -> int:
    """Run the node in the foreground until SIGTERM or SIGINT.

    Parameters
    ----------
    settings
        Already checked.
    config_path
        The file they came from: each process reads it anew.

    Returns
    -------
    int
        0 stopped as asked, 1 a process kept failing, 78 the node cannot start as it is set up.
    """
    stop = threading.Event()
    before = {n: signal.signal(n, lambda *_: stop.set()) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        problem = _prepare_database(settings, config_path)
        if problem is not None:
            log.error(problem)
            return EXIT_CANNOT_START
        services = [Service(name, command_of(name, config_path)) for name in ("listen", "work")]
        longest_drain_s = max(settings.worker.drain_s, settings.network.drain_s)
        return supervise(services, stop, stop_within_s=longest_drain_s + _GRACE_S)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def command_of(name: str, config_path: Path) -> tuple[str, ...]:
    """Give the command line of a service, which dies with this process."""
    own = (sys.executable, "-m", "scp_node.child", str(os.getpid()))
    return (*own, "scp_node.cli.main", name, "--config", str(config_path))


def supervise(
    services: Sequence[Service],
    stop: threading.Event,
    *,
    stop_within_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Keep services running until ``stop`` is set; give the node's exit code."""
    outcome: int | None = None
    while outcome is None and not stop.is_set():
        outcome = _look_after(services, clock())
        stop.wait(_POLL_S)
    _stop_all(services, stop_within_s)
    return outcome or 0


def _look_after(services: Sequence[Service], now: float) -> int | None:
    for service in services:
        if service.process is None:
            if now >= service.start_again_at:
                service.start(now)
        elif (code := service.process.poll()) is not None:
            outcome = service.after_exit(code, now)
            if outcome is not None:
                return outcome
    return None


def _stop_all(services: Sequence[Service], within_s: float) -> None:
    """Ask all to stop, wait, and kill who does not: that must always be safe."""
    running = [service for service in services if service.process is not None]
    for service in running:
        _signal(service, signal.SIGTERM)
    deadline = time.monotonic() + within_s
    for service in running:
        if service.process is None:
            continue
        try:
            code = service.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("A process did not stop in time; it is killed.", name=service.name)
            _signal(service, signal.SIGKILL)
            code = service.process.wait()
        log.info("Process stopped", name=service.name, exit_code=code)


def _signal(service: Service, number: signal.Signals) -> None:
    if service.process is not None and service.process.poll() is None:
        service.process.send_signal(number)


def _prepare_database(settings: Settings, config_path: Path) -> str | None:
    """Create the tables of a new database; an older one is left to ``nodule-node db upgrade``, after a backup."""
    settings.storage.folder.mkdir(parents=True, exist_ok=True)
    engine = make_engine(settings.database_url)
    try:
        made_before = has_tables(engine, "nn_study", "dbos_migrations")
        current = schema_is_current(engine)
    finally:
        engine.dispose()
    if not made_before:
        command = (sys.executable, "-m", "scp_node.cli.main", "db", "upgrade", "--config", str(config_path))
        made = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0
        return None if made else "The database could not be created; 'nodule-node db upgrade' says why."
    if not current:
        return "The database is of another version: make a backup, then run 'nodule-node db upgrade'."
    return None
