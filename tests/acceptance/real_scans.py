"""Real scans through the running node into Orthanc: one report each, how long it took, findings beside the truth.

``make real-scans SERIES="<folder> <folder>"`` sends each series with dcmsend to a node with the bundled weights and
its default waits. A table ``nodules.csv`` beside the folders gives the truth. Not part of ``make test``.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

from pydicom import dcmread

from demo.dicom_client import Peer, dicom_files, quiet
from demo.processes import running, tail, wait_for_echo
from demo.sr import analysed_series, read_comments, read_marks, read_summary
from demo.truth import nodule_of, read_truth, table
from tests.orthanc import (
    DICOM_PORT,
    NODE_PORT,
    NODE_TITLE,
    TITLE,
    alone_with_loopback,
    orthanc,
    reports_in,
    why_not,
)

NODE = Peer(NODE_TITLE, NODE_PORT, calling="DCMSEND")
QUIET_S = 60
ALLOWED_S = QUIET_S + 60
PATIENCE_S = 600

SETTINGS = f"""\
[node]
port = {NODE.port}
[[senders]]
ae_title = "{NODE.calling}"
[[destinations]]
name = "orthanc"
ae_title = "{TITLE}"
host = "127.0.0.1"
port = {DICOM_PORT}
[storage]
folder = "data"
min_free_mib = 100
min_free_percent = 0.0
[study]
quiet_s = {QUIET_S}
"""


def main() -> int:
    """Run the check; 0 when every series had its one report in time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("series", type=Path, nargs="+", help="folder of one CT series")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet()
    if not arguments.inside:
        if why_not():
            print(f"real-scans cannot run here: {why_not()}", file=sys.stderr)
            return 1
        folders = [folder.resolve() for folder in arguments.series]
        return alone_with_loopback("tests.acceptance.real_scans", "--inside", *folders, keep=False).returncode
    with tempfile.TemporaryDirectory() as folder:
        return _check(Path(folder), arguments.series)


def _check(folder: Path, series: list[Path]) -> int:
    settings, log = folder / "node.toml", folder / "node.log"
    settings.write_text(SETTINGS)
    command = [Path(sys.executable).with_name("nodule-node"), "serve", "--config", settings]
    good = True
    with orthanc(folder / "orthanc") as address, running(command, log) as node:
        wait_for_echo(NODE, node, log)
        for one in series:
            good &= _one(one, address, log)
    return 0 if good else 1


def _one(series: Path, address: str, log: Path) -> bool:
    """Send one series and print its report; ``True`` when it came in time and alone."""
    study_uid = str(dicom_files(series)[0][1].StudyInstanceUID)
    to_node = ["-aet", NODE.calling, "-aec", NODE.ae_title, "127.0.0.1", str(NODE.port)]
    subprocess.run(["dcmsend", "--no-halt", "+sd", "+r", "-dn", *to_node, str(series)], check=True)
    sent = time.monotonic()
    while not reports_in(address, study_uid):
        if time.monotonic() > sent + PATIENCE_S:
            print(f"{series.name}: no report after {PATIENCE_S} s\n{tail(log)}")
            return False
        time.sleep(0.5)
    took = time.monotonic() - sent
    reports = reports_in(address, study_uid)
    with urlopen(f"{address}/instances/{reports[0]}/file", timeout=30) as answer:
        document = dcmread(io.BytesIO(answer.read()))
    marks = read_marks(document)
    truth = read_truth(series, analysed_series(document))
    print(f"\n{series.name}: {len(reports)} report {took:.0f} s after the last image ({QUIET_S} s of them quiet)")
    print(f"{read_summary(document)}\n" + "\n".join(read_comments(document)))
    print("\n".join(table(marks, truth)))
    ranks = [str(rank) for rank, mark in enumerate(marks, 1) if nodule_of(mark, truth or ())]
    print(f"ranks of marks in nodules: {', '.join(ranks) or 'none'}", flush=True)
    return len(reports) == 1 and took <= ALLOWED_S


if __name__ == "__main__":
    sys.exit(main())
