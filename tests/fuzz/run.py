"""Runs the targets in child processes, and keeps a ledger: executions, crashes, memory.

A child writes down the number of each execution before it begins; when it dies, that number is the culprit, the
crash is counted and the next child goes on behind it. The ledger is a file, so that a long run can be stopped.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import mmap
import os
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import structlog

from tests.fuzz import wire
from tests.fuzz.mutation import rng_for
from tests.fuzz.targets import TARGETS

SHARES = {target.name: target.share for target in TARGETS} | {wire.NAME: wire.SHARE}
LARGEST_PIECE = 20_000
FLAT = 0.05


@dataclass
class Tally:
    """One target's line of the ledger; memory growth is the largest seen in one child."""

    executions: int = 0
    crashes: list[str] = field(default_factory=list)
    growth: float = 0.0
    seconds: float = 0.0
    slowest_honest_s: float = 0.0


def child(target: str, seed: int, first: int, count: int, folder: Path) -> None:
    """Be a child: run the executions, say how the memory did."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), cache_logger_on_first_use=True)
    os.environ["NODULE_NODE_FUZZ_SCRATCH"] = str(folder)
    with (folder / "progress").open("r+b") as file, mmap.mmap(file.fileno(), 8) as shown:

        def progress(number: int) -> None:
            shown[:] = number.to_bytes(8, "little")

        work = folder / "work"
        work.mkdir()
        if target == wire.NAME:
            answer = wire.execute(work, seed, first, count, progress)
        else:
            answer = _in_process(target, seed, first, count, work, progress)
    print(json.dumps(answer))


def _in_process(target, seed, first, count, work, progress) -> dict[str, float]:
    run = next(one for one in TARGETS if one.name == target).prepare(work)
    base = 0
    for number in range(first, first + count):
        progress(number)
        run(rng_for(target, seed, number))
        if number - first == count // 5:
            base = _rss()
    return {"base": base, "end": _rss(), "slowest_s": 0.0}


def _rss() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


def piece(target: str, seed: int, count: int, tally: Tally) -> None:
    """Let a child run so many executions more, and note how it went."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "progress").write_bytes(bytes(8))
        first, started = tally.executions, time.monotonic()
        command = [sys.executable, "-m", "tests.fuzz", "--child", target, "--seed", str(seed)]
        command += ["--first", str(first), "--executions", str(count), "--folder", name]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        tally.seconds += time.monotonic() - started
        if done.returncode == 0:
            answer = json.loads(done.stdout.splitlines()[-1])
            tally.executions += count
            tally.growth = max(tally.growth, answer["end"] / answer["base"] - 1)
            tally.slowest_honest_s = max(tally.slowest_honest_s, answer["slowest_s"])
            return
        culprit = max(int.from_bytes((folder / "progress").read_bytes(), "little"), first)
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
        tally.crashes.append(f"execution {culprit}: exit {done.returncode}: {last[:300]}")
        tally.executions = culprit + 1


def fuzz(executions: int, seed: int, ledger: Path | None, say=print) -> dict[str, Tally]:
    """Bring every target to its share of so many executions."""
    tallies = _read(ledger, seed)
    wanted = {name: executions * share // sum(SHARES.values()) for name, share in SHARES.items()}
    while behind := [name for name in SHARES if tallies[name].executions < wanted[name]]:
        for name in behind:
            tally = tallies[name]
            left = wanted[name] - tally.executions
            piece(name, seed, min(left, LARGEST_PIECE * SHARES[name] // 400 + 200), tally)
            if ledger is not None:
                _write(ledger, seed, tallies)
            total = sum(one.executions for one in tallies.values())
            crashes = sum(len(one.crashes) for one in tallies.values())
            say(f"{name}: {tally.executions} of {wanted[name]}; in all {total} executions, {crashes} crashes")
    return tallies


def _read(ledger: Path | None, seed: int) -> dict[str, Tally]:
    if ledger is None or not ledger.exists():
        return {name: Tally() for name in SHARES}
    kept = json.loads(ledger.read_text())
    if kept["seed"] != seed:
        raise SystemExit(f"{ledger} is of seed {kept['seed']}; give that one, or another file.")
    return {name: Tally(**kept["targets"].get(name, {})) for name in SHARES}


def _write(ledger: Path, seed: int, tallies: dict[str, Tally]) -> None:
    content = {"seed": seed, "targets": {name: asdict(tally) for name, tally in tallies.items()}}
    aside = ledger.with_suffix(".part")
    aside.write_text(json.dumps(content, indent=1))
    aside.replace(ledger)


def table(tallies: dict[str, Tally]) -> str:
    """The ledger for people."""
    lines = ["| target | executions | crashes | memory growth | seconds |", "|---|---|---|---|---|"]
    for name, one in tallies.items():
        lines.append(f"| {name} | {one.executions} | {len(one.crashes)} | {one.growth:.1%} | {one.seconds:.0f} |")
    total = sum(one.executions for one in tallies.values())
    crashes = [f"{name}: {text}" for name, one in tallies.items() for text in one.crashes]
    slowest = max(one.slowest_honest_s for one in tallies.values())
    lines.append(f"| all | {total} | {len(crashes)} | | {sum(one.seconds for one in tallies.values()):.0f} |")
    return "\n".join([*lines, "", f"Slowest honest C-ECHO meanwhile: {slowest:.2f} s.", *crashes])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--executions", type=int, default=1_000_000, help="in all, over all targets")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another million inputs")
    parser.add_argument("--ledger", type=Path, default=None, help="file to keep the count in; goes on from there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, asked.seed, asked.first, asked.executions, asked.folder)
        return 0
    tallies = fuzz(asked.executions, asked.seed, asked.ledger, lambda text: print(text, flush=True))
    print(table(tallies))
    sound = all(not one.crashes and one.growth <= FLAT for one in tallies.values())
    return 0 if sound else 1
