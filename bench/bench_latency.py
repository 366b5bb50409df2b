"""From the last image received to the report in the archive, minus detection, when a study is provably whole.

A whole node (``nodule-node serve``) on loopback with the settings it is delivered with, a scripted detector that
reads and assembles the images but finds at once, and an archive that answers C-FIND with the true counts. Times are
those that the node itself writes down; detection is the step ``analyse``: files to findings.

    python -m bench.bench_latency --rounds 5 --results bench/RESULTS.md
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from bench.sections import publish
from demo.processes import free_ports
from scp_node.ledger import tables
from scp_node.ledger.engine import make_engine
from scp_node.network.library import send_encoded
from scp_node.ports import STUDY_ROOT_FIND
from tests.builders import ChestSeries
from tests.raw_sender import association, raw

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pynetdicom.events import Event

REPOSITORY = Path(__file__).parents[1]
COMPREHENSIVE_3D = "1.2.840.10008.5.1.4.1.1.88.34"
SENDER, ARCHIVE = "BENCH", "ARCHIVE"
WITHIN_S = 600.0
NAME = "bench_latency"
SETTINGS = """\
[node]
port = {port}
bind = "127.0.0.1"
[[senders]]
ae_title = "BENCH"
[[destinations]]
name = "archive"
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {archive_port}
query = true
[storage]
folder = "data"
min_free_mib = 0
min_free_percent = 0.0
[detector]
implementation = "tests.fakes:scripted_detector"
[log]
level = "warning"
"""
STEPS = ("known to be whole", "decided", "analysis begun", "analysed", "report written", "in the archive")


# The archive ------------------------------------------------------------------------------------------------


@dataclass
class BenchArchive:
    """An archive that holds what the sender sends, and takes reports."""

    port: int = 0
    held: dict[str, dict[str, int]] = field(default_factory=dict)
    """Numbers of images by study and series."""
    arrived: dict[str, float] = field(default_factory=dict)
    """When the report of a study was there; seconds since the epoch."""
    news: threading.Condition = field(default_factory=threading.Condition)

    def store(self, event: Event) -> int:
        """Take a report."""
        with self.news:
            self.arrived[str(event.dataset.StudyInstanceUID)] = time.time()
            self.news.notify_all()
        return 0x0000

    def find(self, event: Event) -> Iterator[tuple[int, Dataset]]:
        """Say how many images there are."""
        asked = event.identifier
        series = self.held.get(str(asked.StudyInstanceUID), {})
        counts = [("", sum(series.values()))] if asked.QueryRetrieveLevel == "STUDY" else [*series.items()]
        for uid, count in counts:
            answer = Dataset()
            answer.QueryRetrieveLevel = asked.QueryRetrieveLevel
            answer.StudyInstanceUID = asked.StudyInstanceUID
            if uid:
                answer.SeriesInstanceUID, answer.NumberOfSeriesRelatedInstances = uid, count
            else:
                answer.NumberOfStudyRelatedInstances = count
            yield 0xFF00, answer

    def wait_for(self, study_uid: str) -> float:
        """Wait for a study's report; gives when it came."""
        with self.news:
            if not self.news.wait_for(lambda: study_uid in self.arrived, WITHIN_S):
                raise TimeoutError(f"no report within {WITHIN_S:.0f} s")
            return self.arrived[study_uid]


@contextmanager
def bench_archive() -> Iterator[BenchArchive]:
    """Run the archive in threads of this process."""
    archive, ae = BenchArchive(), AE(ARCHIVE)
    ae.add_supported_context(STUDY_ROOT_FIND)
    ae.add_supported_context(COMPREHENSIVE_3D)
    handlers: Any = [(evt.EVT_C_STORE, archive.store), (evt.EVT_C_FIND, archive.find)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    archive.port = server.server_address[1]
    try:
        yield archive
    finally:
        server.shutdown()


# The node ---------------------------------------------------------------------------------------------------


@contextmanager
def running_node(folder: Path, archive: BenchArchive) -> Iterator[int]:
    """Run the node as it is delivered; gives its port."""
    (port,) = free_ports(1)
    (folder / "node.toml").write_text(SETTINGS.format(port=port, archive_port=archive.port))
    command = [sys.executable, "-m", "scp_node.cli.main", "serve", "--config", str(folder / "node.toml")]
    with (folder / "log.txt").open("wb") as log:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        node = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
    try:
        yield port
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait(60)


def send(port: int, series: ChestSeries, archive: BenchArchive) -> None:
    """Send a series on one association; the archive has had it before."""
    archive.held[series.study_uid] = {series.series_uid: series.slices}
    images = [raw(dataset) for dataset in series.datasets()]
    deadline = time.monotonic() + 120
    while True:
        with association(port, images[:1], calling=SENDER) as opened:
            if opened.is_established:
                context = opened.accepted_contexts[0]
                for one in images:
                    status = send_encoded(opened, context, one.sop_class_uid, one.sop_instance_uid, one.dataset)
                    if status != 0x0000:
                        raise ConnectionError(f"not stored: {status}")
                return
        if time.monotonic() > deadline:
            raise ConnectionError("the node does not answer")
        time.sleep(0.5)


# The measurement --------------------------------------------------------------------------------------------


def offsets(database: Path, study_uid: str, arrived_at: float) -> dict[str, float]:
    """Give when each step of a study was done; seconds after its last image."""
    engine = make_engine(f"sqlite:///{database}")
    instance, event, started, outcome = tables.instance, tables.event, tables.step_start, tables.step_outcome
    try:
        with engine.connect() as connection:
            last = connection.execute(
                sa.select(sa.func.max(instance.c.received_at)).where(instance.c.study_uid == study_uid)
            ).scalar_one()
            ready = sa.select(sa.func.min(event.c.at)).where(
                event.c.study_uid == study_uid, event.c.kind == "study_ready"
            )
            of_study = started.c.key.startswith(study_uid), outcome.c.key.startswith(study_uid)
            begun: Mapping[str, float] = {
                key.rpartition(":")[2]: at
                for key, at in connection.execute(sa.select(started.c.key, started.c.started_at).where(of_study[0]))
            }
            done: Mapping[str, float] = {
                key.rpartition(":")[2]: at
                for key, at in connection.execute(sa.select(outcome.c.key, outcome.c.created_at).where(of_study[1]))
            }
            whole = connection.execute(ready).scalar_one()
    finally:
        engine.dispose()
    moments = (whole, done["decide"], begun["analyse"], done["analyse"], done["report"], arrived_at)
    return dict(zip(STEPS, (moment - last for moment in moments), strict=True))


def measure(rounds: int, sizes: Mapping[str, dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Send one study after another; the first round warms up and does not count."""
    found: dict[str, list[dict[str, float]]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as name, bench_archive() as archive:
        folder = Path(name)
        with running_node(folder, archive) as port:
            for number in range(rounds + 1):
                for size, form in sizes.items():
                    series = ChestSeries(f"{size} {number}", **form)
                    send(port, series, archive)
                    arrived_at = archive.wait_for(series.study_uid)
                    one = offsets(folder / "data" / "node.sqlite", series.study_uid, arrived_at)
                    print(f"round {number}, {size}: {without_detection(one):.2f} s without detection", flush=True)
                    if number:
                        found[size].append(one)
    return found


def without_detection(moments: Mapping[str, float]) -> float:
    """Give the time from the last image to the report less that of the step ``analyse``; seconds."""
    return moments["in the archive"] - (moments["analysed"] - moments["analysis begun"])


def report(found: Mapping[str, list[dict[str, float]]], load: float) -> str:
    """Write the table."""
    lines = [
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores, load average before {load:.1f}; medians "
        f"of {len(next(iter(found.values())))} studies each, seconds after the last image, lowest and highest of "
        "the last column in brackets. `python -m bench.bench_latency`",
        "",
        f"| study | {' | '.join(STEPS)} | without detection |",
        f"|---|{'---|' * len(STEPS)}---|",
    ]
    for size, rounds in found.items():
        cells = [f"{statistics.median(one[step] for one in rounds):.2f}" for step in STEPS]
        last = [without_detection(one) for one in rounds]
        cells.append(f"**{statistics.median(last):.2f}** ({min(last):.2f} to {max(last):.2f})")
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.bench_latency", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small-only", action="store_true", help="leave the large study out")
    parser.add_argument("--results", type=Path, help="file whose section is to be written anew")
    asked = parser.parse_args()
    sizes: dict[str, dict[str, Any]] = {
        "60 slices of 256x256": {"slices": 60, "noise_hu": 0.0},
        "300 slices of 512x512": {
            "slices": 300,
            "rows": 512,
            "columns": 512,
            "pixel_mm": 0.6,
            "slice_step": 1.0,
            "thickness": 1.0,
            "noise_hu": 0.0,
        },
    }
    if asked.small_only:
        sizes.popitem()
    load = os.getloadavg()[0]
    text = report(measure(asked.rounds, sizes), load)
    publish(asked.results, NAME, "From the last image to the report", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
