"""Sending to a node under test, also from a busy machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from demo.dicom_client import DicomError, send

if TYPE_CHECKING:
    from pathlib import Path

    from demo.dicom_client import Peer

TRIES = 5


def send_until_taken(folder: Path, peer: Peer) -> None:
    """Send a folder again when the client loses an answer, as pynetdicom now and then does on a busy machine.

    What was stored already is recognised by the node, so nothing is counted twice.
    """
    for attempt in range(1, TRIES + 1):
        try:
            send(folder, peer, lambda *_: None)
            return
        except DicomError:
            if attempt == TRIES:
                raise
