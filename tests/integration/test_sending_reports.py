"""Delivery over real sockets: what each answer of an archive means, and that bytes arrive as they were stored."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from scp_node.network.sender import DicomArchive, kind_of_status
from scp_node.ports import SendResult
from scp_node.settings import Destination
from tests.builders import as_bytes, uid_of

COMPREHENSIVE_3D = "1.2.840.10008.5.1.4.1.1.88.34"
TIMEOUTS = SimpleNamespace(
    connect_timeout_s=3.0, association_timeout_s=3.0, response_timeout_s=1.0, send_timeout_s=5.0
)


def report(sop_class: str = ComprehensiveSRStorage) -> bytes:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, uid_of("report")
    ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.PatientName = "Jörg^Odd  "
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid_of("study"), uid_of("series")
    return as_bytes(ds)


@contextmanager
def archive(
    *, status=0x0000, classes=(ComprehensiveSRStorage,), syntaxes=None, delay_s=0.0, calling=(), title="PACS"
):
    """An archive on loopback; yields its destination and the list of what it was sent."""
    got = []

    def store(event):
        got.append((event.context.transfer_syntax, event.encoded_dataset(include_meta=False)))
        time.sleep(delay_s)
        return status() if callable(status) else status

    ae = AE(ae_title=title)
    ae.add_supported_context("1.2.840.10008.1.1")
    for uid in classes:
        ae.add_supported_context(uid, syntaxes or [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    ae.require_calling_aet = list(calling)
    ae.require_called_aet = True
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=server.server_address[1]), got
    finally:
        server.shutdown()


def sender(destination: Destination) -> DicomArchive:
    return DicomArchive(destination, "NODE", TIMEOUTS)


@pytest.fixture(scope="module")
def answering():
    """An archive whose next status can be chosen."""
    answer = SimpleNamespace(status=0x0000)
    with archive(status=lambda: answer.status) as (destination, _):
        yield destination, answer


def test_the_data_set_arrives_byte_for_byte():
    stored = report()
    with archive() as (destination, got):
        assert sender(destination).store(stored) == SendResult("delivered", 0, "Stored.")
    ((syntax, dataset),) = got
    assert syntax == ExplicitVRLittleEndian
    assert stored.endswith(dataset)
    assert len(dataset) > 100


def test_sending_again_sends_the_same_bytes():
    with archive() as (destination, got):
        for _ in range(2):
            sender(destination).store(report())
    assert got[0] == got[1]


def test_an_archive_that_takes_implicit_only_gets_the_same_values():
    with archive(syntaxes=[ImplicitVRLittleEndian]) as (destination, got):
        assert sender(destination).store(report()).kind == "delivered"
    ((syntax, dataset),) = got
    assert syntax == ImplicitVRLittleEndian
    assert "Jörg^Odd  ".encode() in dataset


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (0x0000, "delivered"),
        (0x0111, "delivered"),
        (0xB000, "delivered"),
        (0xB006, "delivered"),
        (0xB007, "delivered"),
        (0xA700, "retry"),
        (0xA701, "retry"),
        (0x0110, "retry"),
        (0x0213, "retry"),
        (0xFE00, "retry"),
        (0xA900, "refused"),
        (0xC000, "refused"),
        (0xC211, "refused"),
        (0x0117, "refused"),
        (0x0122, "refused"),
        (0x0124, "refused"),
    ],
)
def test_each_status_says_whether_to_try_again(answering, status, kind):
    destination, answer = answering
    answer.status = status
    result = sender(destination).store(report())
    assert (result.kind, result.status) == (kind, status)
    assert result == kind_of_status(status)
    assert result.text.isascii()


def test_an_archive_that_does_not_answer_in_time_is_tried_again():
    with archive(delay_s=1.5) as (destination, _):
        result = sender(destination).store(report())
    assert result == SendResult("retry", None, "No answer in time, or the archive cut the connection.")


def test_an_unsupported_class_is_refused_with_what_to_do():
    with archive() as (destination, got):
        result = sender(destination).store(report(COMPREHENSIVE_3D))
    assert result.kind == "refused"
    assert result.status == 0x0122
    assert result.text == (
        "PACS does not accept Comprehensive 3D SR Storage; allow it there, or choose another sr for "
        "[[destinations]] pacs."
    )
    assert got == []


def test_no_listener_is_tried_again():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    result = sender(Destination(name="p", ae_title="PACS", host="127.0.0.1", port=port)).store(report())
    assert result == SendResult(
        "retry", None, f"No connection to 127.0.0.1:{port}; is the archive running and the port right?"
    )


def test_an_unknown_host_is_tried_again():
    result = sender(Destination(name="p", ae_title="PACS", host="no-such-host.invalid", port=104)).echo()
    assert result.kind == "retry"
    assert result.text.startswith("no-such-host.invalid cannot be resolved")


def test_a_silent_peer_is_tried_again():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        destination = Destination(name="p", ae_title="PACS", host="127.0.0.1", port=silent.getsockname()[1])
        archive_ = DicomArchive(
            destination, "NODE", SimpleNamespace(**{**vars(TIMEOUTS), "association_timeout_s": 0.5})
        )
        result = archive_.store(report())
    assert result.kind == "retry"
    assert result.text.endswith("connected, but did not answer our association request.")


def test_an_archive_that_does_not_know_us_refuses():
    with archive(calling=["SOMEBODY"]) as (destination, _):
        result = sender(destination).store(report())
    assert result == SendResult(
        "refused", None, "PACS does not know our AE title NODE; it has to be entered there (1/1/3)."
    )


def test_a_wrong_called_title_is_refused():
    with archive(title="OTHER") as (destination, _):
        result = sender(destination).echo()
    assert result.kind == "refused"
    assert result.text == "PACS says that this is not its AE title; correct ae_title of the destination (1/1/7)."


def test_a_full_archive_is_tried_again():
    destination = Destination(name="p", ae_title="PACS", host="127.0.0.1", port=1)
    with rejecting(2, 3, 1) as port:
        result = sender(destination.model_copy(update={"port": port})).store(report())
    assert result == SendResult("retry", None, "PACS is busy, it rejected us for now (2/3/1).")


@contextmanager
def rejecting(result: int, source: int, reason: int):
    """A peer that answers any association request with one A-ASSOCIATE-RJ."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(bytes([3, 0, 0, 0, 0, 4, 0, result, source, reason]))
                peer.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_the_probe_names_the_classes_that_are_taken():
    with archive(classes=(ComprehensiveSRStorage,)) as (destination, _):
        assert sender(destination).accepts([COMPREHENSIVE_3D, ComprehensiveSRStorage]) == {ComprehensiveSRStorage}
        assert sender(destination).accepts([COMPREHENSIVE_3D]) == frozenset()


def test_a_probe_that_reaches_nobody_says_so():
    destination = Destination(name="p", ae_title="PACS", host="127.0.0.1", port=1)
    answer = sender(destination).accepts([COMPREHENSIVE_3D])
    assert isinstance(answer, SendResult)
    assert answer.kind == "retry"


def test_echo():
    with archive() as (destination, _):
        assert sender(destination).echo() == SendResult("delivered", 0, "C-ECHO answered.")


def test_what_is_no_dicom_file_is_refused_without_a_connection():
    destination = Destination(name="p", ae_title="PACS", host="127.0.0.1", port=1)
    result = sender(destination).store(b"hello")
    assert result == SendResult("refused", None, "This is not a DICOM file: there is no DICM at byte 128.")
