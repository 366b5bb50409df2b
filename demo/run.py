"""The whole way in one command: a CT series goes to the node by C-STORE, its report is fetched from an archive.

`make demo` runs this. It starts the product's own commands as a user would and leaves only ``demo-out`` behind.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.dicom_client import DicomError, Peer, dicom_files, fetch_reports, find_reports, quiet
from demo.page import render
from demo.processes import ProgramError, free_ports, running, tail, wait_for_echo
from demo.sr import analysed_series, dump, read_comments, read_marks, read_summary
from demo.truth import read_truth, table

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

OUT = Path("demo-out")
PHANTOM_SEED = "10001"  # never trained on
REPORT_LIMIT_S = 600.0
ASK_EVERY_S = 4.0
COMMANDS = Path(sys.executable).parent

SETTINGS = """\
# Written by `make demo`. Every key that is not here has its default; docs/config.md lists them all.
[node]
ae_title = "NODULE_NODE"
bind = "127.0.0.1"
port = {node_port}

[[senders]]
ae_title = "DEMO_CT"

[[destinations]]
name = "archive"
ae_title = "DEMO_ARCHIVE"
host = "127.0.0.1"
port = {archive_port}

[storage]
folder = "node"
min_free_mib = 500       # the demo needs little; the defaults guard a hospital's disk
min_free_percent = 0.0

[study]
quiet_s = 3
"""


class DemoError(RuntimeError):
    """The demo cannot go on; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Series:
    """The CT series on its way: where it lies, which study it is of, and what to call it."""

    folder: Path
    study_uid: str
    title: str


def main() -> int:
    """Run the demo; 0 when a report came back from the archive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=Path, help="folder of one CT study; a phantom is made without it")
    arguments = parser.parse_args()
    quiet()
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        _demo(arguments.series)
    except (DemoError, DicomError, ProgramError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    print(f"\n{time.monotonic() - begun:.0f} s in all; nothing is left running.")
    return 0


def _demo(folder: Path | None) -> None:
    print("nodule-node demo. Research use only, not for diagnosis.\n")
    if folder is not None and folder.resolve().is_relative_to(OUT.resolve()):
        raise DemoError(f"{OUT} is emptied first, so the series must lie elsewhere")
    _empty(OUT)
    series = _phantom() if folder is None else _series(folder, folder.name)
    node_port, archive_port = free_ports(2)
    settings = OUT / "node.toml"
    settings.write_text(SETTINGS.format(node_port=node_port, archive_port=archive_port))
    node, archive = Peer("NODULE_NODE", node_port), Peer("DEMO_ARCHIVE", archive_port)

    with ExitStack() as started:
        _say("Starting an archive and the node")
        archive_command = [sys.executable, "-m", "demo.archive", OUT / "archive", "--port", archive_port]
        keeper = started.enter_context(running(archive_command, OUT / "archive.log"))
        wait_for_echo(archive, keeper, OUT / "archive.log")
        server = started.enter_context(running(_node("serve", settings), OUT / "node.log"))
        wait_for_echo(node, server, OUT / "node.log")
        _say(f"Sending the series by C-STORE, from another process, to port {node_port}")
        sent = subprocess.run(
            [sys.executable, "-m", "demo.send", series.folder, "--port", str(node_port)], check=False
        )
        if sent.returncode:
            raise DemoError(f"the node did not take every image; see {OUT / 'node.log'}")
        _say("Waiting for the report: the node waits until the study is quiet, then analyses it")
        _wait_for_report(archive, series, settings, server)
        _say("Fetching the report from the archive by C-GET")
        report = fetch_reports(archive, series.study_uid)[-1]
        _say("Stopping the node and the archive")
    _write(report, series)


def _phantom() -> Series:
    _say("Making a chest phantom: a digital low-dose CT with known nodules")
    command = [COMMANDS / "nodule-train", "phantom", PHANTOM_SEED, "--kernel", "STANDARD", "--out", OUT]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode:
        raise DemoError(f"no phantom could be made: {made.stderr.strip()[-400:]}")
    print(f"  {made.stdout.strip()}")
    return _series(OUT / f"phantom-{PHANTOM_SEED}", f"phantom, seed {PHANTOM_SEED}")


def _series(folder: Path, title: str) -> Series:
    if not folder.is_dir():
        raise DemoError(f"{folder} is not a folder")
    headers = [header for _, header in dicom_files(folder)]
    if not headers:
        raise DemoError(f"{folder} holds no DICOM file")
    return Series(folder, str(headers[0].StudyInstanceUID), title)


def _write(report: Dataset, series: Series) -> None:
    truth = read_truth(series.folder, analysed_series(report))
    report.save_as(OUT / "report.dcm", enforce_file_format=True)
    (OUT / "report.txt").write_text(dump(report), encoding="utf-8")
    (OUT / "report.html").write_text(render(report, series.folder, truth, series.title), encoding="utf-8")
    print(f"\n{read_summary(report)}.")
    print("\n".join(read_comments(report)) + "\n")
    print("\n".join(table(read_marks(report), truth)))
    print(f"\n  {OUT / 'report.html'}  a key image for each finding: open it in a browser")
    print(f"  {OUT / 'report.dcm'}   the structured report    {OUT / 'report.txt'}  the same, readable")


def _wait_for_report(archive: Peer, series: Series, settings: Path, server: subprocess.Popen[bytes]) -> None:
    """Ask the archive until it has a report, and the node what it does meanwhile."""
    begun = time.monotonic()
    state, said, asked = "", "", -math.inf
    while not find_reports(archive, series.study_uid):
        waited = time.monotonic() - begun
        if server.poll() is not None or waited > REPORT_LIMIT_S:
            raise DemoError(f"no report after {waited:.0f} s; {OUT / 'node.log'} says:\n{tail(OUT / 'node.log')}")
        if waited - asked >= ASK_EVERY_S:
            state, asked = _state(settings, series.study_uid), waited
        if state != said or sys.stdout.isatty():
            print(f"  {waited:4.0f} s  {state:14}", end="\r" if sys.stdout.isatty() else "\n", flush=True)
            said = state
        time.sleep(0.5)
    print(f"  {time.monotonic() - begun:4.0f} s  the report is in the archive", flush=True)


def _state(settings: Path, study_uid: str) -> str:
    """What `nodule-node status` says of the study."""
    asked = subprocess.run([*_node("status", settings), "--json"], check=False, capture_output=True, text=True)
    if asked.returncode:
        return "the node does not say"
    studies: list[dict[str, Any]] = json.loads(asked.stdout)["studies"]
    return next(
        (str(study["state"]).lower() for study in studies if study["study_uid"] == study_uid), "no image yet"
    )


def _node(command: str, settings: Path) -> list[str | Path]:
    return [COMMANDS / "nodule-node", command, "--config", settings]


def _empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()


def _say(text: str) -> None:
    print(f"- {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
