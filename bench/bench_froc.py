"""How long the judge takes at LUNA16's full size: 888 scans, 1,186 nodules, 35,192 excluded findings, 88,800 marks.

The tables are drawn from a seed; the command is the user's own, in a process of its own, reading and drawing too.

    python -m bench.bench_froc [--out FOLDER]
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SCANS, NODULES, EXCLUDED, MARKS = 888, 1186, 35_192, 100
BOX_MM = 300.0


def write_tables(folder: Path, seed: int = 1) -> None:
    """Write submission, annotations, excluded findings and series of a made-up challenge entry."""
    rng = np.random.default_rng(seed)
    series = [f"1.2.840.{k:06d}" for k in range(SCANS)]
    where = rng.integers(0, SCANS, NODULES)
    centres = rng.uniform(0, BOX_MM, (NODULES, 3))
    diameters = rng.uniform(3.3, 25.0, NODULES)
    _write(
        folder / "annotations.csv",
        "diameter_mm",
        [(series[k], *centre, diameter) for k, centre, diameter in zip(where, centres, diameters, strict=True)],
    )
    _write(
        folder / "excluded.csv",
        "diameter_mm",
        [(series[k], *rng.uniform(0, BOX_MM, 3), -1.0) for k in rng.integers(0, SCANS, EXCLUDED)],
    )
    marks = []
    for k, uid in enumerate(series):
        found = [n for n in np.flatnonzero(where == k) if rng.random() < 0.95]
        marks += [(uid, *(centres[n] + rng.normal(0, 0.5, 3)), rng.beta(4, 2)) for n in found]
        marks += [(uid, *rng.uniform(0, BOX_MM, 3), rng.beta(1.2, 9)) for _ in range(MARKS - len(found))]
    _write(folder / "submission.csv", "probability", marks)
    (folder / "seriesuids.csv").write_text("\n".join(series) + "\n", encoding="ascii")


def _write(path: Path, last: str, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file)
        writer.writerow(["seriesuid", "coordX", "coordY", "coordZ", last])
        writer.writerows(rows)


def main() -> None:
    """Make the tables, judge them, say the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="keep tables and judgement here")
    chosen = parser.parse_args().out
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        write_tables(folder)
        names = ("submission", "annotations", "excluded", "seriesuids")
        tables = [part for name in names for part in (f"--{name}", str(folder / f"{name}.csv"))]
        command = [sys.executable, "-m", "training.cli.main", "froc", *tables, "--out", str(folder)]
        started, before = time.perf_counter(), os.times()
        subprocess.run(command, check=True)
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        print(
            f"{time.perf_counter() - started:.1f} s wall, {cpu:.1f} s of processor, "
            f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        )


if __name__ == "__main__":
    main()
