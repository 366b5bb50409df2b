"""Lets studies flow through one node, takes samples, compares every report, and keeps a ledger."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import structlog

from tests.chaos.archive import Archive
from tests.chaos.checker import compare
from tests.chaos.node import ChaosNode, lasting_ports, settings_text
from tests.chaos.senders import Modality
from tests.chaos.steps import LedgerView
from tests.chaos.studies import studies_of
from tests.postgres import DATABASES, postgres_server
from tests.soak.samples import as_json, judge, sample, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.chaos.checker import Verdict
    from tests.chaos.studies import Study
    from tests.soak.samples import Sample

MODALITIES = ("CT_ONE", "CT_TWO")
AT_ONCE = 4
FILE = "ledger.json"
SAY_EVERY_S = 300.0
COMPARED = 200
"""So many reports, spread over the run, are compared with what an undisturbed run says."""
REST_S = 600.0
ON_THEIR_WAY = (
    "SELECT count(*) FROM nn_study WHERE state IN ('RECEIVING', 'QUEUED', 'ANALYSING') UNION ALL "
    "SELECT count(*) FROM nn_delivery WHERE state IN ('queued', 'sending', 'sent', 'verifying')"
)


class Soak:
    """One node under a steady flow."""

    def __init__(self, folder: Path, database_url: str, *, images_stay_s: float) -> None:
        port, archive_port, metrics_port = lasting_ports(3, Random())
        folder.mkdir(parents=True)
        self.node = ChaosNode(folder, port, archive_port, MODALITIES[0], {"OMP_NUM_THREADS": "1"})
        more = f"[metrics]\nport = {metrics_port}\n"
        text = settings_text(port, archive_port, MODALITIES, database_url=database_url, lease_s=15.0, more=more)
        keep = f"[storage]\nkeep_days = {images_stay_s / 86400:.6f}"
        self.node.settings.write_text(text.replace("[storage]", keep))
        self.archive = Archive(archive_port, "query")
        self._url = database_url or f"sqlite:///{folder / 'data' / 'node.sqlite'}"
        self._until = 0.0
        self._open = 0
        self._studies: list[Study] = []
        self._modalities = [
            Modality(title, port, self._flow(title, seed), self._may_begin, seed)
            for seed, title in enumerate(MODALITIES)
        ]

    def live(self, duration_s: float, sample_s: float, samples: list[Sample], kept: Callable[[], None]) -> Verdict:
        """Let studies flow for so long and take samples; ``kept`` is called after each."""
        self.archive.come()
        self.node.start()
        ledger = LedgerView(self._url)
        begun = time.monotonic()
        self._until = begun + duration_s
        try:
            with ThreadPoolExecutor() as threads:
                sending = [threads.submit(modality.run) for modality in self._modalities]
                while time.monotonic() < self._until and not self.node.ended():
                    self._watch(ledger, min(self._until, time.monotonic() + sample_s))
                    samples.append(sample(self.node, ledger, time.monotonic() - begun))
                    kept()
                self._watch(ledger, time.monotonic() + REST_S, until_rest=True)
                for modality in self._modalities:
                    modality.stopped.set()
            for one in sending:
                one.result()
            self.node.stop()
            return compare(
                self._studies, self.archive, ledger, self.node.folder, every=1 + len(self._studies) // 200
            )
        finally:
            ledger.close()
            if not self.node.ended():
                self.node.kill_everything()
            self.archive.close()

    def _flow(self, title: str, seed: int) -> Iterator[Study]:
        """Studies until the time is up."""
        for study in studies_of(f"soak {title}", seed):
            if time.monotonic() >= self._until:
                return
            self._studies.append(study)
            yield study

    def _may_begin(self) -> bool:
        return self._open < AT_ONCE or time.monotonic() >= self._until

    def _watch(self, ledger: LedgerView, until: float, *, until_rest: bool = False) -> None:
        """Count what is on its way, for the modalities, until it is time for something else."""
        while time.monotonic() < until and not self.node.ended():
            self._open = sum(count for (count,) in ledger.rows(ON_THEIR_WAY))
            if until_rest and not self._open and all(modality.done for modality in self._modalities):
                return
            time.sleep(0.5)


def main() -> int:
    """Be the command; 1 when something grew, or a report was lost, doubled or different."""
    arguments = _arguments()
    structlog.configure(processors=[], logger_factory=structlog.ReturnLoggerFactory())
    arguments.out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{arguments.database}-", dir=arguments.out.resolve()))
    with ExitStack() as stack:
        url = ""
        if arguments.database == "postgresql":
            url = stack.enter_context(postgres_server()).new_database()
        soak = Soak(folder / "node", url, images_stay_s=arguments.images_stay_minutes * 60)
        samples: list[Sample] = []
        verdict = soak.live(arguments.minutes * 60, arguments.sample_s, samples, _Keeper(arguments, samples))
    lines = judge(samples)
    ledger = {name: getattr(verdict, name) for name in ("studies", "reports", "again", "revised")}
    ledger |= {name: len(getattr(verdict, name)) for name in ("lost", "doubled", "different", "other")}
    _keep(arguments, samples, ledger)
    print(table(lines) if lines else "Too short to judge whether anything grows.")
    print(*(f"{name}: {value}" for name, value in ledger.items()), sep="\n")
    print(*verdict.faults, sep="\n")
    if verdict.faults or not all(line.is_flat for line in lines):
        print(f"Kept: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=240.0, help="how long studies flow")
    parser.add_argument("--sample-s", type=float, default=15.0, help="seconds between two samples")
    parser.add_argument("--database", choices=DATABASES, default="sqlite")
    parser.add_argument("--images-stay-minutes", type=float, default=30.0, help="storage.keep_days of the node")
    parser.add_argument(
        "--out", type=Path, default=Path("soak-out"), help="the ledger, and what is left of failures"
    )
    return parser.parse_args()


class _Keeper:
    """Writes the samples down as they come, and says now and then how it goes."""

    def __init__(self, arguments: argparse.Namespace, samples: list[Sample]) -> None:
        self._arguments, self._samples, self._said = arguments, samples, time.monotonic()

    def __call__(self) -> None:
        _keep(self._arguments, self._samples, {})
        if time.monotonic() - self._said > SAY_EVERY_S:
            self._said = time.monotonic()
            print(f"{self._samples[-1].at_s:.0f} s, {self._samples[-1].studies} studies", flush=True)


def _keep(arguments: argparse.Namespace, samples: list[Sample], ledger: dict[str, int]) -> None:
    aside = arguments.out / f"{arguments.database}.part"
    aside.write_text(json.dumps({"ledger": ledger, "samples": as_json(samples)}, indent=1))
    aside.replace(arguments.out / f"{arguments.database}.json")
