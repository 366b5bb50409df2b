"""Runs many histories and keeps a ledger of them, so that a long run can be stopped and goes on."""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.simulator.checker import broken_promises
from tests.simulator.history import History, silence
from tests.simulator.node import Yard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SAY_EVERY_S = 30.0
MEMORY = Path("/dev/shm")


@dataclass
class Tally:
    """The ledger of a run: histories so far, what happened in them, and the seeds that broke a promise."""

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
            f"{told['reports']} reports, {kills} kills, {faults} faults, {told['switched']} interleavings, "
            f"{self.seconds:.0f} s"
        )


def simulate(seeds: Iterable[int], tally: Tally, after: Callable[[], None] = lambda: None) -> Tally:
    """Run the histories of these seeds and add them to a tally."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yard = Yard(Path(folder))
        happened = Counter(tally.happened)
        gc.collect()
        gc.freeze()
        for seed in seeds:
            started = time.monotonic()
            history = History(seed, yard)
            try:
                broken = broken_promises(history.live())
            except Exception as fault:  # noqa: BLE001 - a fault that nobody handled is a broken promise too
                broken = [f"{type(fault).__name__}: {fault}"]
            happened.update(history.counts)
            if broken:
                tally.broken[str(seed)] = broken
            happened["reports"] += sum(len(archive.kept) for archive in history.archives.values())
            tally.histories += 1
            tally.seconds += time.monotonic() - started
            tally.happened = dict(happened)
            after()
        yard.engine.dispose()
    gc.unfreeze()
    return tally


def main() -> int:
    """Be the command; 1 when a promise was broken."""
    arguments = _arguments()
    silence()
    if arguments.seed is not None:
        tally = simulate(range(arguments.seed, arguments.seed + 1), Tally())
    else:
        tally = _many(arguments.histories, arguments.ledger)
    for kind, number in sorted(tally.happened.items()):
        print(f"{number:9}  {kind}")
    for seed, broken in tally.broken.items():
        print(f"--seed {seed}:", *broken, sep="\n  ")
    print(tally.line())
    return 1 if tally.broken else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--histories", type=int, default=100_000, help="how many in all; an earlier run counts")
    parser.add_argument("--seed", type=int, help="run this one history alone")
    parser.add_argument("--ledger", type=Path, help="a file with what was done so far")
    return parser.parse_args()


def _many(histories: int, ledger: Path | None) -> Tally:
    known = ledger is not None and ledger.exists()
    tally = Tally(**json.loads(ledger.read_text())) if ledger is not None and known else Tally()
    said = time.monotonic()

    def after() -> None:
        nonlocal said
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            print(tally.line(), flush=True)
            _keep(ledger, tally)

    simulate(range(tally.histories, histories), tally, after)
    _keep(ledger, tally)
    return tally


def _keep(ledger: Path | None, tally: Tally) -> None:
    if ledger is not None:
        aside = ledger.with_suffix(".part")
        aside.write_text(json.dumps(asdict(tally), indent=1, sort_keys=True))
        aside.replace(ledger)
