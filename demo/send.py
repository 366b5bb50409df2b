"""Sends a folder by C-STORE, as a scanner would: `python -m demo.send FOLDER --port PORT`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from demo.dicom_client import DicomError, Peer, quiet, send


def main() -> int:
    """Send, show progress, and give 0 when every instance was taken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--called", default="NODULE_NODE")
    parser.add_argument("--calling", default="DEMO_CT")
    arguments = parser.parse_args()
    quiet()
    try:
        count = send(arguments.folder, Peer(arguments.called, arguments.port, arguments.calling), _show)
    except DicomError as error:
        print(f"not sent: {error}", file=sys.stderr)
        return 1
    print(f"  {count} images sent and accepted")
    return 0


def _show(done: int, total: int) -> None:
    if sys.stdout.isatty():
        print(f"\r  {done} of {total} images", end="\r", flush=True)
    elif done % 100 == 0:
        print(f"  {done} of {total} images", flush=True)


if __name__ == "__main__":
    sys.exit(main())
