"""A small archive (PACS) for the demo: C-ECHO, C-STORE, C-FIND and C-GET on the loopback address.

It owns the reports it was given, as files of a folder; it knows nothing of the node. Not for patient data.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pynetdicom.events import Event
    from pynetdicom.transport import ThreadedAssociationServer

SUCCESS, PENDING, CANNOT_STORE = 0x0000, 0xFF00, 0xC001
UID_KEYS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def start_archive(folder: Path, ae_title: str, port: int) -> ThreadedAssociationServer:
    """Start the archive in threads of this process.

    Parameters
    ----------
    folder
        Where the instances are kept; made when it is missing.
    ae_title
        The title it answers to; another called title is refused.
    port
        On 127.0.0.1; 0 takes a free one (``server_address`` of the result names it).

    Returns
    -------
    pynetdicom server
        ``shutdown()`` ends it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ae = AE(ae_title=ae_title)
    ae.require_called_aet = True
    ae.add_supported_context(Verification)
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
    for context in AllStoragePresentationContexts:
        # For C-GET the archive is the one who stores: both roles are offered.
        ae.add_supported_context(context.abstract_syntax, scu_role=True, scp_role=True)
    handlers = [
        (evt.EVT_C_STORE, _store, [folder]),
        (evt.EVT_C_FIND, _find, [folder]),
        (evt.EVT_C_GET, _get, [folder]),
    ]
    return ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)


def _store(event: Event, folder: Path) -> int:
    try:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        path = folder / f"{dataset.SOPInstanceUID}.dcm"
        dcmwrite(path.with_suffix(".part"), dataset, enforce_file_format=True)
        path.with_suffix(".part").rename(path)
    except (OSError, AttributeError, ValueError):
        return CANNOT_STORE
    return SUCCESS


def _find(event: Event, folder: Path) -> Iterator[tuple[int, Dataset | None]]:
    for kept in _matches(folder, event.identifier):
        answer = Dataset()
        answer.QueryRetrieveLevel = event.identifier.QueryRetrieveLevel
        for keyword in (*UID_KEYS, "SOPClassUID", "Modality", "SeriesDescription"):
            if keyword in event.identifier and keyword in kept:
                setattr(answer, keyword, kept[keyword].value)
        yield PENDING, answer


def _get(event: Event, folder: Path) -> Iterator[int | tuple[int, Dataset | None]]:
    matches = list(_matches(folder, event.identifier))
    yield len(matches)
    for kept in matches:
        yield PENDING, kept


def _matches(folder: Path, identifier: Dataset) -> Iterator[Dataset]:
    wanted = {key: identifier[key].value for key in (*UID_KEYS, "Modality") if identifier.get(key)}
    for path in sorted(folder.glob("*.dcm")):
        kept = dcmread(path)
        if all(kept.get(key) == value for key, value in wanted.items()):
            yield kept


def main() -> int:
    """Run the archive until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ae-title", default="DEMO_ARCHIVE")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = start_archive(arguments.folder, arguments.ae_title, arguments.port)
    ended.wait()
    server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
