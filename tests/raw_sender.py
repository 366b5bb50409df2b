"""Sends data sets exactly as they are: given bytes under given command UIDs and a given transfer syntax."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context

from scp_node.identifiers import Part10, read_identifiers, split_file
from scp_node.network.library import quiet, send_encoded
from tests.builders import as_bytes, uid_of

NO_CLASS = "1.2.840.10008.5.1.4.1.1.2"
NO_INSTANCE = "2.25.1"
PRIVATE_CLASS = "1.3.12.2.1107.5.9.1"


@dataclass(frozen=True)
class RawObject:
    """What one C-STORE request carries."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dataset: bytes


@contextmanager
def association(port: int, objects, *, calling="SENDER", called="NODULE_NODE", host="127.0.0.1"):
    """An association with one context for each class and syntax of the objects."""
    quiet()
    ae = AE(ae_title=calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    pairs = dict.fromkeys((o.sop_class_uid, o.transfer_syntax_uid) for o in objects)
    contexts = [build_context(sop_class, [syntax]) for sop_class, syntax in pairs]
    opened = ae.associate(host, port, contexts, ae_title=called)
    try:
        yield opened
    finally:
        if opened.is_established:
            opened.release()


def send_raw(port: int, objects, **titles) -> list[int | None]:
    """Send each object on one association; gives the statuses, ``None`` for no answer.

    Raises ConnectionError when the node does not admit the association.
    """
    statuses: list[int | None] = []
    for batch in (objects[i : i + 100] for i in range(0, len(objects), 100)):
        with association(port, batch, **titles) as opened:
            if not opened.is_established:
                raise ConnectionError("the association was not established")
            for one in batch:
                if not opened.is_established:
                    statuses.append(None)
                    continue
                context = next(
                    c
                    for c in opened.accepted_contexts
                    if c.abstract_syntax == one.sop_class_uid and c.transfer_syntax[0] == one.transfer_syntax_uid
                )
                statuses.append(send_encoded(opened, context, one.sop_class_uid, one.sop_instance_uid, one.dataset))
    return statuses


def raw(dataset, /, **changed) -> RawObject:
    """A data set as a request, some of it changed."""
    content = as_bytes(dataset)
    part10 = split_file(content)
    found = RawObject(
        part10.sop_class_uid, part10.sop_instance_uid, part10.transfer_syntax_uid, content[part10.dataset_at :]
    )
    return replace(found, **changed)


def another(dataset, sop_class, name):
    """The same study, another series, of another class."""
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid_of(name)
    dataset.SeriesInstanceUID = uid_of("series", name)
    return dataset


def raw_object(path: Path) -> RawObject:
    """A file as a request: its command UIDs from the data set, as dcmtk does, else from the file meta.

    Where neither says what it is, the command has a class and an instance UID of its own.
    """
    content = path.read_bytes()
    part10 = split_file(content)
    if not isinstance(part10, Part10):
        return _without_meta(path, content)
    dataset = content[part10.dataset_at :]
    found = read_identifiers(dataset, part10.transfer_syntax_uid)
    return RawObject(
        getattr(found, "sop_class_uid", "") or part10.sop_class_uid,
        getattr(found, "sop_instance_uid", "") or part10.sop_instance_uid,
        part10.transfer_syntax_uid,
        dataset,
    )


def _without_meta(path: Path, content: bytes) -> RawObject:
    """A file without usable meta information; pydicom is asked how it would read it."""
    try:
        read = dcmread(path, force=True, stop_before_pixels=True)
        syntax = getattr(read.file_meta, "TransferSyntaxUID", None) or _syntax_of(read)
    except Exception:  # noqa: BLE001 - whatever it is, it is sent as it is
        syntax = ExplicitVRLittleEndian
    start = _dataset_at(content)
    dataset = content[start:]
    found = read_identifiers(dataset, str(syntax))
    sop_class = getattr(found, "sop_class_uid", "") or NO_CLASS
    return RawObject(sop_class, getattr(found, "sop_instance_uid", "") or NO_INSTANCE, str(syntax), dataset)


def _syntax_of(read) -> UID:
    implicit, little = read.original_encoding
    if not little:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _dataset_at(content: bytes) -> int:
    """Behind preamble and group 0002, whose elements are walked one by one when it has no group length."""
    at = 132 if content[128:132] == b"DICM" else 0
    while content[at : at + 2] == b"\x02\x00":
        long_form = content[at + 4 : at + 6] in (b"OB", b"UN")
        width = (at + 8, at + 12) if long_form else (at + 6, at + 8)
        at = width[1] + int.from_bytes(content[width[0] : width[1]], "little")
    return at
