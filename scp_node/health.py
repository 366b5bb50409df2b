"""Whether the node is well: what it should be doing, compared with what is seen of it; reasons in sentences.

``status``, ``/health`` and the alerts ask the same questions here.
"""

from __future__ import annotations

import shutil
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.domain.outcome import CODES, Code
from scp_node.receive import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scp_node.ledger.figures import Figures
    from scp_node.ledger.overview import EventView
    from scp_node.settings import Settings, StorageSettings

_CONNECT_S: Final = 3.0
_WHAT_TO_DO: Final = {
    "delivery_failed_final": "Correct it there, then run 'nodule-node retry STUDY'.",
    "file_lost": "Look at the disk, then send the study again.",
    "quarantined": "Send the instance again from its source; the bytes are kept for inspection.",
    "rejected_association": "Correct the sender, or list it in [[senders]].",
    "tls_refused": "Correct the certificate there, or tls.ca here.",
    "settings_refused": "Correct the settings file, then send SIGHUP again.",
    "failed": "Look into the log, then run 'nodule-node retry STUDY'.",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address on which the node should listen, and whether anybody answers there."""

    host: str
    port: int
    answers: bool


@dataclass(frozen=True, slots=True)
class Disk:
    """Space on the disk of ``storage.folder``; bytes. Below the floor images are refused."""

    free: int
    total: int
    floor: int


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that is not as it should be, and what to do about it."""

    text: str
    what_to_do: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of the node at a time; ``figures`` is ``None`` when the database could not be read."""

    at: float
    endpoints: tuple[Endpoint, ...]
    disk: Disk
    figures: Figures | None


def endpoints(settings: Settings) -> tuple[Endpoint, ...]:
    """Try the ports on which the node listens; connecting and closing costs the listener nothing."""
    node, tls = settings.node, settings.tls
    ports = [*([node.port] if tls.plain else []), *([tls.port] if tls.port else [])]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(node.bind, node.bind)
    return tuple(Endpoint(node.bind, port, _answers(host, port)) for port in ports)


def disk(storage: StorageSettings) -> Disk:
    """Measure the disk of the storage folder, or of the nearest folder above it that exists."""
    place = next(place for place in (storage.folder, *storage.folder.parents) if place.exists())
    usage = shutil.disk_usage(place)
    floor = max(storage.min_free_mib * 2**20, int(usage.total * storage.min_free_percent / 100))
    return Disk(usage.free, usage.total, floor)


def reasons(seen: Seen, settings: Settings) -> tuple[Reason, ...]:
    """Say why the node is not well; nothing when it is."""
    found = [*_port_reasons(seen), *_disk_reasons(seen)]
    if seen.figures is None:
        text = "The database cannot be read."
        return (*found, Reason(text, "See that it runs, and 'nodule-node doctor' for the folder's rights."))
    return (*found, *_worker_reasons(seen, seen.figures), *_waiting_reasons(seen, seen.figures, settings))


def live_workers(seen: Seen) -> tuple[str, ...]:
    """Give the slots whose lease has not run out."""
    workers = () if seen.figures is None else seen.figures.workers
    return tuple(worker.slot for worker in workers if worker.lease_ends_at > seen.at)


def what_to_do(problem: EventView) -> str:
    """Say what a person can do about an event: the code's own page first, else what its kind asks for."""
    code = problem.code or ""
    if code in Code.__members__:
        return CODES[Code[code]].action
    if code in Answer.__members__:
        return f"The sender should: {Answer[code].advice}."
    return _WHAT_TO_DO.get(problem.kind, "See 'nodule-node events STUDY' and the log.")


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            return True
    except OSError:
        return False


def _port_reasons(seen: Seen) -> Iterator[Reason]:
    for endpoint in seen.endpoints:
        if not endpoint.answers:
            text = f"Nobody listens on {endpoint.host}, port {endpoint.port}."
            yield Reason(text, "See that 'nodule-node serve' runs; its log says why the listener does not.")


def _disk_reasons(seen: Seen) -> Iterator[Reason]:
    if seen.disk.free < seen.disk.floor:
        text = (
            f"{seen.disk.free // 2**20} MiB of the disk are free, images are refused below "
            f"{seen.disk.floor // 2**20} MiB."
        )
        yield Reason(text, "Make room, or lower storage.min_free_mib and storage.min_free_percent.")


def _worker_reasons(seen: Seen, figures: Figures) -> Iterator[Reason]:
    if not live_workers(seen):
        last = "; ".join(worker.slot for worker in figures.workers)
        text = f"No worker is alive{f' (last seen: {last})' if last else ''}: studies wait."
        yield Reason(text, "See that 'nodule-node serve' runs; its log says why the worker does not.")


def _waiting_reasons(seen: Seen, figures: Figures, settings: Settings) -> Iterator[Reason]:
    limit_s = settings.study.max_wait_s + settings.metrics.alarm_s
    for waiting in figures.waiting:
        age_s = seen.at - waiting.since
        if age_s > limit_s:
            text = f"Study {waiting.study_uid} has been {waiting.state} for {age_s:.0f} s."
            yield Reason(text, "See 'nodule-node events' of it, and the worker's log.")
