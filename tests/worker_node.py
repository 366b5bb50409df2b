"""A worker under test: its folder, its settings, its process, and what arrived before it started."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from scp_node.clock import SystemClock
from scp_node.ledger import tables
from scp_node.ledger.arrivals import Arrival, Arrivals
from scp_node.ledger.engine import make_engine
from scp_node.ledger.states import Purpose, StudyState
from scp_node.ledger.studies import Studies
from scp_node.settings import Settings, load_settings
from scp_node.workflow import upgrade_database
from tests.builders import ChestSeries, as_bytes
from tests.detectors import FOLDER_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydicom import Dataset

REPOSITORY = Path(__file__).parents[1]
LEASE_S, BEAT_S, POLL_S = 2.0, 0.5, 0.2
SETTINGS = """
[node]
ae_title = "NODULE"
bind = "127.0.0.1"
port = {port}
[[senders]]
ae_title = "MODALITY"
{destinations}
[storage]
folder = "storage"
database_url = "{database_url}"
[study]
quiet_s = 2.0
max_wait_s = 60.0
gap_wait_s = 0.0
{study}
[detector]
implementation = "tests.detectors:staged_detector"
[network]
connect_timeout_s = 2.0
[delivery]
retry_s = [1.0]
verify_after_s = [0.5]
[worker]
lease_s = {lease_s}
beat_s = {beat_s}
poll_s = {poll_s}
{worker}
"""
DESTINATION = """
[[destinations]]
name = "{name}"
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {port}
sr = "{sr}"
not_analysed = {not_analysed}
"""


def destination(port: int, *, name: str = "pacs", sr: str = "comprehensive3d", not_analysed: bool = True) -> str:
    """One ``[[destinations]]`` entry."""
    return DESTINATION.format(name=name, port=port, sr=sr, not_analysed=str(not_analysed).lower())


def wait_for(what: Callable[[], Any], *, within_s: float = 240.0, pause_s: float = 0.1) -> Any:
    """Ask until the answer is true, and give it; fails with the question's name when the time is up."""
    deadline = time.monotonic() + within_s
    while not (answer := what()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {getattr(what, '__name__', what)}")
        time.sleep(pause_s)
    return answer


@dataclass
class WorkerNode:
    """The files, the ledger and the processes of one node without a listener."""

    folder: Path
    destinations: str = ""
    study: str = ""
    worker: str = "drain_s = 1.0"
    port: int = 11112
    lease_s: float = LEASE_S
    database_url: str = ""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config.write_text(
            SETTINGS.format(
                port=self.port,
                destinations=self.destinations,
                study=self.study,
                worker=self.worker,
                lease_s=self.lease_s,
                database_url=self.database_url,
                beat_s=BEAT_S,
                poll_s=POLL_S,
            )
        )
        self.settings.storage.folder.mkdir()

    @property
    def config(self) -> Path:
        return self.folder / "node.toml"

    @cached_property
    def settings(self) -> Settings:
        return load_settings(self.config)

    @cached_property
    def engine(self) -> sa.Engine:
        upgrade_database(self.settings.database_url)
        return make_engine(self.settings.database_url)

    def receive(self, datasets: Sequence[Dataset], *, ago_s: float = 10.0) -> None:
        """Put images into the spool and the ledger as the listener would have, some time ago."""
        arrivals = Arrivals(self.engine)
        objects = self.settings.storage.folder / "objects"
        objects.mkdir(exist_ok=True)
        for dataset in datasets:
            content = as_bytes(dataset)
            path = objects / f"{hashlib.sha256(content).hexdigest()[:32]}.dcm"
            path.write_bytes(content)
            arrivals.record(
                Arrival(
                    sop_class_uid=dataset.SOPClassUID,
                    sop_instance_uid=dataset.SOPInstanceUID,
                    study_uid=dataset.StudyInstanceUID,
                    series_uid=dataset.SeriesInstanceUID,
                    transfer_syntax_uid=dataset.file_meta.TransferSyntaxUID,
                    sha256=hashlib.sha256(content).hexdigest(),
                    size_bytes=len(content),
                    path=str(path.relative_to(self.settings.storage.folder)),
                    purpose=Purpose.CT if dataset.Modality == "CT" else Purpose.OTHER,
                    calling_ae="MODALITY",
                    called_ae="NODULE",
                    peer="127.0.0.1",
                    received_at=SystemClock().now() - ago_s,
                )
            )

    def start(self, slot: str = "worker-0") -> subprocess.Popen[bytes]:
        """Start a worker."""
        own = [sys.executable, "-m", "scp_node.child", str(os.getpid())]  # it dies with us
        command = [*own, "scp_node.cli.main", "work", "--config", str(self.config)]
        log = (self.folder / "worker.log").open("ab")
        environment = os.environ | {FOLDER_VARIABLE: str(self.folder), "OMP_NUM_THREADS": "1"}
        environment["NODULE_NODE__WORKER__SLOT"] = slot
        with log:
            process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def close(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            process.kill()
            process.wait()
        self.engine.dispose()

    def state(self, study_uid: str) -> StudyState | None:
        known = Studies(self.engine).state(study_uid)
        return None if known is None else known[0]

    def detector_starts(self) -> list[tuple[str, int]]:
        """``(study UID, process)`` for each time the detector began."""
        starts = self.folder / "starts"
        lines = starts.read_text().splitlines() if starts.exists() else []
        return [(uid, int(pid)) for uid, pid in (line.split() for line in lines)]

    def rows(self, table: sa.Table) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(sa.select(table)).all())

    def codes(self, study_uid: str) -> list[str]:
        return next(row.codes for row in self.rows(tables.study) if row.study_uid == study_uid)

    def log(self) -> str:
        return (self.folder / "worker.log").read_text()


def small_series(name: str) -> ChestSeries:
    """A series that passes every rule and takes little time."""
    return ChestSeries(name, slices=52, noise_hu=0.0)
