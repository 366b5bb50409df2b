"""Runs many histories on all cores and keeps a ledger of them, so that a long run can be stopped and goes on."""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from tests.simulator.checker import broken_promises
from tests.simulator.fingerprint import fingerprint
from tests.simulator.history import History, silence
from tests.simulator.node import Yard
from tests.simulator.world import START

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SAY_EVERY_S = 30.0
MEMORY = Path("/dev/shm")
AT_ONCE = 100
"""Histories that a process runs before it reports; what an interrupted run loses."""


@dataclass
class Tally:
    """The ledger of a run: histories so far, what happened in them, and the seeds that broke a promise.

    ``seconds`` are those of the processor, of all processes together.
    """

    histories: int = 0
    seconds: float = 0.0
    happened: dict[str, int] = field(default_factory=dict)
    broken: dict[str, list[str]] = field(default_factory=dict)

    def line(self) -> str:
        """Give the ledger in a line."""
        told = Counter(self.happened)
        kills = sum(number for kind, number in told.items() if kind.startswith("killed"))
        faults = sum(number for kind, number in told.items() if kind.startswith(("fault", "harmed")))
        return (
            f"{self.histories} histories, {len(self.broken)} broken; {told['acknowledged']} images acknowledged, "
            f"{told['reports']} reports, {told['points']} points, {kills} kills, {faults} faults, "
            f"{told['switched']} interleavings, {self.seconds:.0f} s of processor time"
        )

    def add(self, other: Tally) -> None:
        """Take in what another process did."""
        self.histories += other.histories
        self.seconds += other.seconds
        self.happened = dict(Counter(self.happened) + Counter(other.happened))
        self.broken |= other.broken


@contextmanager
def yard() -> Iterator[Yard]:
    """Give a place for histories, in memory where there is one for files."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        place = Yard(Path(folder))
        gc.collect()
        gc.freeze()
        try:
            yield place
        finally:
            gc.unfreeze()
            place.close()


def simulate(seeds: Iterable[int], tally: Tally, after: Callable[[], None] = lambda: None) -> Tally:
    """Run the histories of these seeds and add them to a tally."""
    with yard() as place:
        for seed in seeds:
            started = time.process_time()
            history = History(seed, place)
            broken = _lived(history)
            happened = Counter(history.counts)
            happened["points"] = len(history.world.trace)
            happened["reports"] = sum(len(archive.kept) for archive in history.archives.values())
            seconds = time.process_time() - started
            tally.add(Tally(1, seconds, dict(happened), {str(seed): broken} if broken else {}))
            after()
    return tally


def _lived(history: History) -> list[str]:
    try:
        return broken_promises(history.live())
    except Exception as fault:  # noqa: BLE001 - a fault that nobody handled is a broken promise too
        return [f"{type(fault).__name__}: {fault}"]


def main() -> int:
    """Be the command; 1 when a promise was broken."""
    arguments = _arguments()
    silence()
    if arguments.seed is not None:
        return _one(arguments.seed, trace=arguments.trace)
    tally = _many(arguments.histories, arguments.ledger, arguments.processes)
    for kind, number in sorted(tally.happened.items()):
        print(f"{number:9}  {kind}")
    for seed, broken in tally.broken.items():
        print(f"--seed {seed}:", *broken, sep="\n  ")
    print(tally.line())
    return 1 if tally.broken else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--histories", type=int, default=100_000, help="how many in all; an earlier run counts")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one for each core")
    parser.add_argument("--ledger", type=Path, help="a file with what was done so far")
    parser.add_argument("--seed", type=int, help="run this one history alone")
    parser.add_argument("--trace", action="store_true", help="with --seed: tell the history step by step")
    return parser.parse_args()


def _one(seed: int, *, trace: bool) -> int:
    """Run one history again, and tell it."""
    with yard() as place:
        history = History(seed, place)
        broken = _lived(history)
        if trace:
            for at, process, what in history.world.trace:
                print(f"{at - START:12.4f}  {process:10}  {what}")
        print(f"fingerprint {fingerprint(history)}")
    print(f"--seed {seed}:", *(broken or ["every promise kept"]), sep="\n  ")
    return 1 if broken else 0


def _many(histories: int, ledger: Path | None, processes: int) -> Tally:
    """Run histories up to this number in several processes, in the order of their seeds."""
    known = ledger is not None and ledger.exists()
    tally = Tally(**json.loads(ledger.read_text())) if ledger is not None and known else Tally()
    parts = [range(first, min(first + AT_ONCE, histories)) for first in range(tally.histories, histories, AT_ONCE)]
    said = time.monotonic()
    with get_context("spawn").Pool(processes, initializer=silence) as pool:
        for part in pool.imap(_part, parts):
            tally.add(part)
            _keep(ledger, tally)
            if part.broken or time.monotonic() - said > SAY_EVERY_S:
                said = time.monotonic()
                broken = [f"--seed {seed}: {why[0]}" for seed, why in part.broken.items()]
                print(tally.line(), *broken, sep="\n  ", flush=True)
    return tally


def _part(seeds: range) -> Tally:
    return simulate(seeds, Tally())


def _keep(ledger: Path | None, tally: Tally) -> None:
    """Write the ledger, as a whole or not at all."""
    if ledger is not None:
        aside = ledger.with_suffix(".part")
        aside.write_text(json.dumps(asdict(tally), indent=1, sort_keys=True))
        aside.replace(ledger)
