"""What is measured of a running node, and the verdict whether it stayed flat."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.chaos.node import ChaosNode
    from tests.chaos.steps import LedgerView

MIB = 2**20
PROCESSES = ("supervisor", "listener", "worker", "detector", "metrics")
FLAT = 1.05
"""The last quarter against the first one after the warm-up."""
FEW = 4
"""So many files or threads more or less depend on the moment of the sample."""
WARM_UP, WARM_UP_S = 0.2, 600.0
"""The part of the time that is not judged, and its least length: caches, pools and imports fill."""
LARGEST_WAL_MIB = 64.0
ENOUGH = 12
"""With fewer samples after the warm-up nothing is judged."""


@dataclass(frozen=True)
class Sample:
    """One look: seconds since the start, each process by name, and what lies on the disk.

    ``processes`` holds resident memory (MiB), open files and threads; ``oldest_s`` is the age of the study that has
    waited longest.
    """

    at_s: float
    processes: dict[str, dict[str, float]]
    database_mib: float
    wal_mib: float
    disk_mib: float
    studies: int
    oldest_s: float


def sample(node: ChaosNode, ledger: LedgerView, at_s: float) -> Sample:
    """Take one."""
    data = node.folder / "data"
    (row,) = ledger.rows(
        "SELECT count(*), min(CASE WHEN state IN ('RECEIVING', 'QUEUED', 'ANALYSING') THEN waiting_since END) "
        "FROM nn_study"
    ) or [(0, None)]
    return Sample(
        at_s=at_s,
        processes={name: found for name in PROCESSES if (found := _process(node.find(name)))},
        database_mib=ledger.size() / MIB,
        wal_mib=_size(data / "node.sqlite-wal") / MIB,
        disk_mib=sum(_size(path) for path in data.rglob("*")) / MIB,
        studies=row[0],
        oldest_s=0.0 if row[1] is None else max(0.0, time.time() - row[1]),
    )


def _process(pid: int | None) -> dict[str, float]:
    try:
        one = psutil.Process(pid)
        with one.oneshot():
            return {"mib": one.memory_info().rss / MIB, "files": one.num_fds(), "threads": one.num_threads()}
    except psutil.Error:  # it ended while we asked
        return {}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@dataclass(frozen=True)
class Line:
    """One line of the table: what, at the start, at the end, and whether that is flat."""

    what: str
    first: float
    last: float
    is_flat: bool


def judge(samples: Sequence[Sample]) -> list[Line]:
    """Compare the last quarter of the samples with the first one after the warm-up; nothing of too short a run."""
    warm_s = max(WARM_UP_S, WARM_UP * samples[-1].at_s) if samples else 0.0
    steady = [one for one in samples if one.at_s >= warm_s]
    quarter = len(steady) // 4
    first, last = steady[:quarter], steady[-quarter:]
    if len(steady) < ENOUGH:
        return []
    lines = []
    for name in PROCESSES:
        for what, unit in (("mib", "memory, MiB"), ("files", "open files"), ("threads", "threads")):
            a, b = (_typical(part, name, what) for part in (first, last))
            if a is None or b is None:
                continue
            flat = b <= a * FLAT if what == "mib" else b <= a + FEW
            lines.append(Line(f"{name}: {unit}", a, b, flat))
    return [*lines, *_disk(samples, first, last)]


def _disk(samples: Sequence[Sample], first: Sequence[Sample], last: Sequence[Sample]) -> list[Line]:
    begin, end = _kib_a_study(first), _kib_a_study(last)
    wal = [max(one.wal_mib for one in part) for part in (first, last)]
    oldest = [_median(part, lambda one: one.oldest_s) for part in (first, last)]
    disk = [_median(part, lambda one: one.disk_mib) for part in (first, last)]
    return [
        Line("database: KiB for each new study", begin, end, end <= 1.25 * begin + 1.0),
        Line(
            "write-ahead log: MiB, largest", wal[0], wal[1], max(one.wal_mib for one in samples) <= LARGEST_WAL_MIB
        ),
        Line("storage folder: MiB (images stay for storage.keep_days)", disk[0], disk[1], True),
        Line("oldest waiting study: seconds", oldest[0], oldest[1], oldest[1] <= 2 * oldest[0] + 30.0),
    ]


def _kib_a_study(part: Sequence[Sample]) -> float:
    """How much the database grew for each study that came meanwhile."""
    came = part[-1].studies - part[0].studies
    return (part[-1].database_mib - part[0].database_mib) * 1024 / came if came else 0.0


def _typical(part: Sequence[Sample], process: str, what: str) -> float | None:
    values = [one.processes[process][what] for one in part if process in one.processes]
    return median(values) if values else None


def _median(part: Sequence[Sample], of: Callable[[Sample], float]) -> float:
    return median(map(of, part))


def table(lines: Sequence[Line]) -> str:
    """The verdict for people, in Markdown."""
    rows = [
        f"| {one.what} | {one.first:.1f} | {one.last:.1f} | {'' if one.is_flat else '**grows**'} |" for one in lines
    ]
    return "\n".join(["| | first quarter | last quarter | |", "|---|---|---|---|", *rows])


def as_json(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """For the ledger."""
    return [asdict(one) for one in samples]
