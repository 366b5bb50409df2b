"""Starts the node's processes, starts them again when they fail, and stops them cleanly; holds nothing heavy.

On SIGHUP it reads the settings again and tells the processes that need them.

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
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog

from scp_node.counters import forget_counters
from scp_node.ledger.arrivals import Arrivals, LedgerUnavailableError, Note
from scp_node.ledger.engine import has_tables, make_engine, schema_is_current, wait_for_database
from scp_node.ledger.states import EventKind
from scp_node.reload import EXIT_RELOAD, Signals, changed, effect, read_again, refuse, write_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
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
    """One process that has to run, and how it fared.

    Attributes
    ----------
    essential
        Whether the node stops when it cannot be kept running; others are started again for ever, and stopped last.
    """

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_again_at: float = 0.0
    pause_s: float = _FIRST_PAUSE_S
    crashes: deque[float] = field(default_factory=lambda: deque(maxlen=CRASHES_A_MINUTE))
    essential: bool = True

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
        if code in (EXIT_RELOAD, -signal.SIGHUP):  # the latter: it was told before it could listen
            log.info("A process is started again with other settings.", name=self.name)
            self.start_again_at = now
            return None
        if not self.essential:
            log.error("A process ended that the node can do without; it is tried again.", name=self.name, code=code)
            self.start_again_at = now + (_LONGEST_PAUSE_S if code == EXIT_CANNOT_START else _FIRST_PAUSE_S)
            return None
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
        The file they came from, which SIGHUP has read again.

    Returns
    -------
    int
        0 stopped as asked, 1 a process kept failing, 78 the node cannot start as it is set up.
    """
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    signals = Signals()
    try:
        if not wait_for_database(settings.database_url, signals.stop.wait):
            return 0
        problem = _prepare_database(settings, config_path)
        if problem is not None:
            log.error(problem)
            return EXIT_CANNOT_START
        node = _Node(settings, config_path)
        node.start()
        longest_drain_s = max(settings.worker.drain_s, settings.network.drain_s)
        within_s = longest_drain_s + _GRACE_S
        code = supervise(
            node.services,
            signals.stop,
            stop_within_s=within_s,
            each_turn=lambda: node.read_again() if signals.take_hangup() else None,
            before_the_last=node.stopped,
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code


class _Node:
    """The running node: its settings in force, and the processes that they ask for."""

    def __init__(self, settings: Settings, config_path: Path) -> None:
        self.services: list[Service] = []
        self._settings = settings
        self._config_path = config_path
        self._version = 1

    def start(self) -> None:
        """Lay the settings down for the processes, and say in the ledger that the node starts."""
        forget_counters(self._settings.counters_folder)
        snapshot = write_snapshot(self._settings, self._version)
        self.services = [Service(name, command_of(name, snapshot)) for name in ("listen", "work")]
        self._watch(snapshot)
        self._note(EventKind.NODE_STARTED, f"The node starts, version {version('nodule-node')}.")

    def stopped(self) -> None:
        """Say in the ledger that the node stopped."""
        self._note(EventKind.NODE_STOPPED, "The node stopped: it was asked to, or a process kept failing.")

    def read_again(self) -> None:
        """Take up the settings file as it is now, or keep the settings when it has any fault."""
        new = read_again(self._settings, self._config_path)
        if isinstance(new, tuple):
            refuse(new)
            self._note(EventKind.SETTINGS_REFUSED, f"The settings were read again and refused: {'; '.join(new)}")
            return
        sections = changed(self._settings, new)
        self._version += 1
        self._settings = new
        snapshot = write_snapshot(new, self._version)
        log.info("Settings taken up", version=self._version, changed=sorted(sections))
        names = ", ".join(sorted(sections)) or "nothing"
        self._note(
            EventKind.SETTINGS_CHANGED, f"Settings were read again, version {self._version}; changed: {names}."
        )
        for service in self.services:
            if effect(service.name, sections) != "nothing":
                _signal(service, signal.SIGHUP)
        self._watch(snapshot)

    def _watch(self, snapshot: Path) -> None:
        """Have the process that others look at exactly when something is to be seen there."""
        wanted = self._settings.metrics.port or self._settings.audit.file or self._settings.audit.syslog
        running = [service for service in self.services if service.name == "metrics"]
        if wanted and not running:
            self.services.append(Service("metrics", command_of("metrics", snapshot), essential=False))
        if not wanted:
            _stop_all(running, _GRACE_S)
            self.services[:] = [service for service in self.services if service.name != "metrics"]

    def _note(self, kind: EventKind, text: str) -> None:
        engine = make_engine(self._settings.database_url)
        try:
            Arrivals(engine).note([Note(kind, text)], time.time())
        except LedgerUnavailableError:
            log.warning("This could not be noted: the database is not available.", kind=kind.value)
        finally:
            engine.dispose()


def _nothing() -> None:
    """Do nothing."""


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
    each_turn: Callable[[], None] = _nothing,
    before_the_last: Callable[[], None] = _nothing,
) -> int:
    """Keep services running until ``stop`` is set; give the node's exit code.

    ``each_turn`` is called some times a second, ``before_the_last`` between the end of the essential services and
    that of the others, which still see what it does.
    """
    outcome: int | None = None
    while outcome is None and not stop.is_set():
        each_turn()
        outcome = _look_after(services, clock())
        stop.wait(_POLL_S)
    _stop_all([service for service in services if service.essential], stop_within_s)
    before_the_last()
    _stop_all([service for service in services if not service.essential], _GRACE_S)
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


def _stop_all(services: Iterable[Service], within_s: float) -> None:
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
