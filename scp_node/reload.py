"""Settings are read again on SIGHUP: checked first, taken whole or not at all, by the processes that need them.

The supervisor reads the file and lays the checked values down as a snapshot; the processes read the snapshot alone,
so that a process that is started again never meets a file that somebody is editing (decision 0111).
"""

from __future__ import annotations

import json
import signal
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

import structlog

from scp_node.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

EXIT_RELOAD: Final = 76
"""A process leaves to be started again with other settings."""

WORKER_IGNORES: Final = frozenset({"metrics", "audit"})
RESTARTS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "listen": frozenset({"node", "storage", "network", "tls", "log"}),
        "work": frozenset(Settings.model_fields) - WORKER_IGNORES,
        "metrics": frozenset({"node", "storage", "study", "tls", "log", "metrics", "audit"}),
    }
)
"""Sections that a process can take up only by being started again; running work is finished first."""

SWAPS: Final[Mapping[str, frozenset[str]]] = MappingProxyType({"listen": frozenset({"senders", "destinations"})})
"""Sections that a process takes up as it runs."""

_FIXED: Final = (("storage", "folder"), ("storage", "database_url"))

log = structlog.get_logger()


class Signals:
    """SIGTERM and SIGINT ask to stop, SIGHUP to read the settings again; made once, in the main thread."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._woken = threading.Event()
        self._hangup = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._ask(self.stop))
        signal.signal(signal.SIGHUP, lambda *_: self._ask(self._hangup))

    def wait(self) -> Literal["stop", "reload"]:
        """Wait for the next signal; to stop comes first."""
        self._woken.wait()
        if not self.stop.is_set():
            self._woken.clear()
        return "stop" if self.stop.is_set() else "reload"

    def take_hangup(self) -> bool:
        """Say whether SIGHUP came since the last question."""
        asked = self._hangup.is_set()
        self._hangup.clear()
        return asked

    def _ask(self, event: threading.Event) -> None:
        event.set()
        self._woken.set()


def write_snapshot(settings: Settings, version: int) -> Path:
    """Lay checked settings down for the processes of the node; whole or not at all, for our user alone."""
    folder = settings.run_folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    target, aside = folder / "settings.json", folder / "settings.json.part"
    content = {"source": str(settings.path), "version": version, "values": settings.values}
    aside.unlink(missing_ok=True)
    aside.touch(mode=0o600)
    aside.write_text(json.dumps(content, default=str), encoding="utf-8")
    aside.replace(target)
    return target


def read_again(running: Settings, path: Path) -> Settings | tuple[str, ...]:
    """Read a settings file anew; every fault when it cannot take the place of the running settings."""
    try:
        new = load_settings(path)
    except SettingsError as error:
        return error.faults
    faults = tuple(
        f"{new.path}: {section}.{key} cannot change while the node runs: stop it, and start it again"
        for section, key in _FIXED
        if getattr(getattr(running, section), key) != getattr(getattr(new, section), key)
    )
    return faults or new


def changed(old: Settings, new: Settings) -> frozenset[str]:
    """Give the sections that differ."""
    return frozenset(name for name in Settings.model_fields if getattr(old, name) != getattr(new, name))


def effect(process: str, sections: frozenset[str]) -> Literal["restart", "swap", "nothing"]:
    """Say what changed sections mean for a process."""
    if sections & RESTARTS[process]:
        return "restart"
    return "swap" if sections & SWAPS.get(process, frozenset()) else "nothing"


def take_up(process: str, running: Settings, path: Path) -> tuple[Settings, Literal["restart", "swap", "nothing"]]:
    """Do what a process does on SIGHUP: read, refuse with every fault logged, or say what follows."""
    new = read_again(running, path)
    if isinstance(new, tuple):
        refuse(new)
        return running, "nothing"
    sections = changed(running, new)
    following = effect(process, sections)
    log.info("Settings read again", version=new.version, sections=sorted(sections), then=following)
    return new, following


def refuse(faults: Sequence[str]) -> None:
    """Log every fault of settings that are not taken up."""
    for fault in faults:
        log.error("The settings are refused; the old ones stay in force.", fault=fault)
