"""An archive on loopback for tests of the worker: it keeps what it is sent."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydicom import Dataset
    from pynetdicom.events import Event

COMPREHENSIVE_3D = "1.2.840.10008.5.1.4.1.1.88.34"
COMPREHENSIVE = "1.2.840.10008.5.1.4.1.1.88.33"


@dataclass
class SmallArchive:
    """``received`` holds every object in the order of arrival, repeats included."""

    port: int = 0
    status: int = 0x0000
    received: list[Dataset] = field(default_factory=list)

    def store(self, event: Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        if self.status == 0:
            self.received.append(dataset)
        return self.status


@contextmanager
def small_archive(
    classes: Sequence[str] = (COMPREHENSIVE_3D, COMPREHENSIVE), *, port: int = 0, status: int = 0x0000
) -> Iterator[SmallArchive]:
    """Run an archive that takes these SOP classes, or answers each object with a status."""
    archive = SmallArchive(status=status)
    ae = AE("ARCHIVE")
    ae.add_supported_context(Verification)
    for uid in classes:
        ae.add_supported_context(uid, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, archive.store)])
    archive.port = server.server_address[1]
    try:
        yield archive
    finally:
        server.shutdown()
