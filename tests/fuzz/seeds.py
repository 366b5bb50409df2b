"""Real input to start from: PDUs as senders write them, command sets, data sets and files, settings files."""

from __future__ import annotations

import io
import os
import zlib
from functools import cache
from pathlib import Path

from pydicom import dcmread, uid
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.sop_class import CTImageStorage, Verification

from scp_node.settings import PACKAGED_FILE
from tests.builders import ChestSeries, as_bytes
from tests.dicom_forms import enhanced, write_as

MOST_FILES, LARGEST = 60, 300_000
RELEASE = b"\x05\0\0\0\0\4\0\0\0\0"
ABORT = b"\x07\0\0\0\0\4\0\0\0\0"
ENCODINGS = ((False, True), (True, True), (False, False))  # implicit, little endian


@cache
def requests() -> tuple[bytes, ...]:
    """A-ASSOCIATE-RQ PDUs: C-ECHO, one class, many classes."""
    lists = (
        [build_context(Verification)],
        [build_context(CTImageStorage)],
        [build_context(CTImageStorage, [syntax]) for syntax in (uid.ExplicitVRLittleEndian, uid.JPEG2000Lossless)],
        [build_context(f"1.2.840.10008.5.1.4.1.1.{number}") for number in range(1, 60)],
    )
    return tuple(_request(contexts) for contexts in lists)


def _request(contexts) -> bytes:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "SENDER", "NODULE_NODE"
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16382
    implementation.implementation_class_uid = "1.2.276.0.7230010.3.0.3.6.7"
    primitive.user_information = [length, implementation]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    primitive.presentation_context_definition_list = contexts
    return bytes(A_ASSOCIATE_RQ(primitive).encode())


def data_pdu(context_id: int, control: int, value: bytes) -> bytes:
    """A P-DATA PDU of one fragment."""
    fragment = (len(value) + 2).to_bytes(4, "big") + bytes((context_id, control)) + value
    return b"\x04\0" + len(fragment).to_bytes(4, "big") + fragment


def command(**numbers) -> bytes:
    """A command set in Implicit VR Little Endian, from element number (``e0100``) to value."""
    body = b"".join(
        b"\0\0" + int(name[1:], 16).to_bytes(2, "little") + len(value).to_bytes(4, "little") + value
        for name, value in numbers.items()
    )
    return b"\0\0\0\0\4\0\0\0" + len(body).to_bytes(4, "little") + body


def store_command(sop_class: str, instance: str) -> bytes:
    """A C-STORE-RQ."""
    return command(
        e0002=_even(sop_class),
        e0100=b"\1\0",
        e0110=b"\1\0",
        e0700=b"\0\0",
        e0800=b"\0\0",
        e1000=_even(instance),
    )


def _even(text: str) -> bytes:
    return text.encode() + b"\0" * (len(text) % 2)


ECHO = command(e0002=_even(Verification), e0100=b"\x30\0", e0110=b"\1\0", e0800=b"\1\1")


@cache
def datasets() -> tuple[bytes, ...]:
    """Encoded data sets without file meta information, in several encodings."""
    one = ChestSeries(slices=1, rows=16, columns=16).datasets()[0]
    found = [_encoded(one, implicit=implicit, little=little) for implicit, little in ENCODINGS]
    found.append(_deflated(found[0]))
    found += [dataset_of(content) for content in files() if content[128:132] == b"DICM"]
    return tuple(content[:65536] for content in found)


def _encoded(dataset, *, implicit: bool, little: bool) -> bytes:
    encoded = DicomBytesIO()
    encoded.is_little_endian, encoded.is_implicit_VR = little, implicit
    write_dataset(encoded, dataset)
    return encoded.getvalue()


def _deflated(encoded: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(encoded) + deflate.flush()


def dataset_of(content: bytes) -> bytes:
    """What follows the file meta information, when that says how long it is."""
    if content[132:140] != b"\x02\0\0\0UL\x04\0":
        return content[132:]
    return content[144 + int.from_bytes(content[140:144], "little") :]


@cache
def files() -> tuple[bytes, ...]:
    """DICOM files: of the test series in several syntaxes, and of the folder of test data where there is one."""
    folder = Path(os.environ.get("NODULE_NODE_FUZZ_SCRATCH", "."))
    found = [as_bytes(ChestSeries(slices=1, rows=32, columns=32).datasets()[0])]
    several = ChestSeries(slices=3, rows=32, columns=32).datasets()
    found.append(as_bytes(enhanced(several)))
    for syntax in (uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.JPEGLosslessSV1):
        path = folder / "seed.dcm"
        found.append(write_as(several[0], path, syntax).read_bytes())
        path.unlink()
    data = os.environ.get("NODULE_NODE_TEST_DATA")
    for path in sorted(Path(data).rglob("*.dcm")) if data else ():
        if path.stat().st_size <= LARGEST and len(found) < MOST_FILES:
            found.append(path.read_bytes())
    return tuple(found)


@cache
def settings_files() -> tuple[bytes, ...]:
    """The packaged settings, and a site's."""
    site = b"""[node]
ae_title = "CHEST_AI"
port = 11112
[[senders]]
ae_title = "CT_ROUTER"
host = "10.0.0.0/8"
tls = "optional"
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "10.0.0.9"
port = 104
[routing]
"CT_ROUTER" = ["pacs", "sender"]
[storage]
folder = "data"
"""
    return (PACKAGED_FILE.read_bytes(), site, site.replace(b'["pacs", "sender"]', b'["nowhere"]'))


def conversations() -> tuple[bytes, ...]:
    """What a sender writes on one association, from its request to its release."""
    one = dcmread(io.BytesIO(files()[0]))
    store = store_command(one.SOPClassUID, one.SOPInstanceUID)
    dataset = dataset_of(files()[0])
    echo = requests()[0] + data_pdu(1, 3, ECHO) + RELEASE
    whole = requests()[1] + data_pdu(1, 3, store) + data_pdu(1, 2, dataset) + RELEASE
    pieces = b"".join(data_pdu(1, 0, dataset[at : at + 500]) for at in range(0, len(dataset), 500))
    split = requests()[1] + data_pdu(1, 3, store) + pieces + data_pdu(1, 2, b"") + ABORT
    both = requests()[1] + data_pdu(1, 3, ECHO) + data_pdu(1, 3, store) + data_pdu(1, 2, dataset) * 2 + RELEASE
    return (echo, whole, split, both)
