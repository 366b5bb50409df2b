"""What the demo does as a client: C-ECHO, C-STORE of a folder, and fetching reports by C-FIND and C-GET."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)

from scp_node.identifiers import Part10, split_file
from scp_node.network.library import send_encoded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pynetdicom.association import Association
    from pynetdicom.events import Event

REPORT_CLASSES = (Comprehensive3DSRStorage, ComprehensiveSRStorage)


class DicomError(RuntimeError):
    """The other side did not answer as it should; the text says who and what."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A DICOM node on the loopback address, and the title under which we call it."""

    ae_title: str
    port: int
    calling: str = "DEMO_CT"

    def associate(self, ae: AE, roles: Sequence[object] = (), handlers: Sequence[object] = ()) -> Association:
        """Open an association.

        Raises
        ------
        DicomError
            When it was refused or nobody listens.
        """
        association = ae.associate(
            "127.0.0.1", self.port, ae_title=self.ae_title, ext_neg=list(roles), evt_handlers=list(handlers)
        )
        if not association.is_established:
            raise DicomError(f"{self.ae_title} on port {self.port} did not accept an association")
        return association


def quiet() -> None:
    """Keep pynetdicom's own messages off the terminal; what matters comes back as a value or a DicomError."""
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)


def echo(peer: Peer) -> bool:
    """Whether the peer answers a C-ECHO with success."""
    try:
        socket.create_connection(("127.0.0.1", peer.port), timeout=2).close()
    except OSError:
        return False
    ae = AE(ae_title=peer.calling)
    ae.add_requested_context(Verification)
    try:
        association = peer.associate(ae)
    except DicomError:
        return False
    status = association.send_c_echo()
    association.release()
    return bool(status) and status.Status == 0


def dicom_files(folder: Path) -> list[tuple[Path, Dataset]]:
    """The DICOM files below a folder with their headers; other files are passed over."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            header = dcmread(path, stop_before_pixels=True)
        except InvalidDicomError:
            continue
        if "SOPInstanceUID" in header and "TransferSyntaxUID" in header.file_meta:
            found.append((path, header))
    return found


def send(folder: Path, peer: Peer, progress: Callable[[int, int], None]) -> int:
    """Send every DICOM file below a folder, as it is, over one association.

    Returns
    -------
    int
        Number of instances that were answered with success.

    Raises
    ------
    DicomError
        When there is nothing to send, no association, or an instance was refused.
    """
    files = dicom_files(folder)
    if not files:
        raise DicomError(f"no DICOM file in {folder}")
    ae = AE(ae_title=peer.calling)
    for pair in sorted({(h.SOPClassUID, h.file_meta.TransferSyntaxUID) for _, h in files}):
        ae.add_requested_context(*pair)
    association = peer.associate(ae)
    for number, (path, _) in enumerate(files, 1):
        status = _store(association, path)
        if status != 0:
            association.abort()
            said = "nothing" if status is None else f"0x{status:04X}"
            raise DicomError(f"{peer.ae_title} answered {said} to {path.name}")
        progress(number, len(files))
    association.release()
    return len(files)


def _store(association: Association, path: Path) -> int | None:
    """Send a file byte for byte and wait for the answer; ``None`` where none came.

    Not by the library's ``send_c_store``: of requests in turn to a fast peer it loses an answer now and then to its
    own other thread.
    """
    content = path.read_bytes()
    part10 = split_file(content)
    assert isinstance(part10, Part10)  # ``dicom_files`` passed over everything else
    wanted = (part10.sop_class_uid, part10.transfer_syntax_uid)
    accepted = (c for c in association.accepted_contexts if (c.abstract_syntax, c.transfer_syntax[0]) == wanted)
    context = next(accepted, None)
    if context is None:
        raise DicomError(f"{path.name} is of a class or transfer syntax that was not accepted")
    dataset = content[part10.dataset_at :]
    return send_encoded(association, context, part10.sop_class_uid, part10.sop_instance_uid, dataset)


def find_reports(peer: Peer, study_uid: str) -> list[str]:
    """SOP Instance UIDs of the structured reports that the archive holds for a study (C-FIND)."""
    ae = AE(ae_title=peer.calling)
    ae.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    association = peer.associate(ae)
    query = _query("IMAGE", study_uid, Modality="SR", SOPInstanceUID="")
    answers = [
        str(identifier.SOPInstanceUID)
        for _, identifier in association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind)
        if identifier is not None
    ]
    association.release()
    return answers


def fetch_reports(peer: Peer, study_uid: str) -> list[Dataset]:
    """The structured reports of a study, as the archive gives them back (C-GET)."""
    fetched: list[Dataset] = []

    def keep(event: Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        fetched.append(dataset)
        return 0x0000

    ae = AE(ae_title=peer.calling)
    ae.add_requested_context(StudyRootQueryRetrieveInformationModelGet)
    for sop_class in REPORT_CLASSES:
        ae.add_requested_context(sop_class)
    roles = [build_role(sop_class, scp_role=True) for sop_class in REPORT_CLASSES]
    association = peer.associate(ae, roles, [(evt.EVT_C_STORE, keep)])
    for _ in association.send_c_get(
        _query("STUDY", study_uid, Modality="SR"), StudyRootQueryRetrieveInformationModelGet
    ):
        pass  # each answer reports progress; the instances come in through keep()
    association.release()
    return fetched


def _query(level: str, study_uid: str, **keys: str) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = level
    query.StudyInstanceUID = study_uid
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    return query
