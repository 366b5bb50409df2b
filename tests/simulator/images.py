"""Images of the simulator: a data set of four UIDs and what a reader would find behind them, and their reports."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scp_node.identifiers import Part10, split_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sr_writer.record import ReportRecord

CT = "1.2.840.10008.5.1.4.1.1.2"
OTHER = "1.2.840.10008.5.1.4.1.1.7"
EXPLICIT = "1.2.840.10008.1.2.1"
REFUSED, UNREADABLE = "refused", "unreadable"
_MARK = b"simulated:"


@dataclass(frozen=True, slots=True)
class Image:
    """One image as it is sent.

    Attributes
    ----------
    number
        Its place in the series; a gap in the numbers is a missing slice.
    content
        What is seen in it; ``refused`` and ``unreadable`` are seen in every image of such a series.
    encoding
        Two images that differ here alone are one image in two encodings.
    """

    study: str
    series: str
    uid: str
    number: int
    content: str
    encoding: int = 0
    sop_class: str = CT

    @property
    def dataset(self) -> bytes:
        """The encoded data set."""
        uids = ((0x08, 0x16, self.sop_class), (0x08, 0x18, self.uid), (0x20, 0x0D, self.study))
        head = b"".join(_element(*uid) for uid in (*uids, (0x20, 0x0E, self.series)))
        told = json.dumps([self.study, self.series, self.uid, self.number, self.content, self.encoding])
        value = _MARK + told.encode()
        value += b" " * (len(value) % 2)
        return head + b"\x28\x00\x00\x40LT" + len(value).to_bytes(2, "little") + value

    @property
    def seen(self) -> str:
        """What a reader finds: the same for every encoding."""
        return f"{self.uid} {self.content}"


def _element(group: int, element: int, uid: str) -> bytes:
    value = uid.encode() + b"\0" * (len(uid) % 2)
    return bytes((group, 0, element, 0)) + b"UI" + len(value).to_bytes(2, "little") + value


def read_image(path: Path) -> Image | None:
    """Read an image back from the spool; ``None`` when the file is not whole."""
    content = path.read_bytes()
    part10 = split_file(content)
    if not isinstance(part10, Part10) or _MARK not in content:
        return None
    study, series, uid, number, seen, encoding = json.loads(content[content.index(_MARK) + len(_MARK) :])
    return Image(study, series, uid, number, seen, encoding, part10.sop_class_uid)


def digest(images: Iterable[Image]) -> str:
    """What a detector has seen; the simulator's reports carry it as the hash of their weights."""
    return hashlib.sha256("\n".join(sorted(image.seen for image in images)).encode()).hexdigest()


def report_bytes(record: ReportRecord) -> bytes:
    """Stand in for the SR: a function of the record alone, and as good as a signature."""
    return json.dumps([record.sop_instance_uid, record.to_json()], sort_keys=True).encode()


def report_uid(dicom: bytes) -> str:
    """The SOP Instance UID of a report."""
    return str(json.loads(dicom)[0])
