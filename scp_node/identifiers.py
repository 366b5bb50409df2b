"""Reads the identifiers of an encoded data set, and nothing else of it: no sequence, no pixel, no text.

Made for bytes that nobody has vetted: it walks in a loop instead of recursing, looks at a bounded number of
elements, inflates a bounded number of bytes and allocates nothing by a length that the data set claims.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Final

EXPLICIT_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
DEFLATED: Final = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})

MAX_INFLATED: Final = 4 * 1024 * 1024
MAX_ELEMENTS: Final = 200_000
MAX_UID: Final = 64

_SOP_CLASS, _SOP_INSTANCE = (0x0008, 0x0016), (0x0008, 0x0018)
_STUDY, _SERIES = (0x0020, 0x000D), (0x0020, 0x000E)
_WANTED: Final = frozenset({_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES})
# Media Storage SOP Class and Instance UID, Transfer Syntax UID, Source and Receiving AE Title
_META: Final = frozenset({(2, 0x02), (2, 0x03), (2, 0x10), (2, 0x16), (2, 0x18)})
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_UNDEFINED: Final = 0xFFFFFFFF
_SHORTEST: Final = 8  # bytes of a tag and its length; of an explicit one with a long VR four more
_LONG_VRS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # PS3.5 Table 7.1-1: four bytes
_SHORT_VRS: Final = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())  # two
_UID_LETTERS: Final = re.compile(r"[0-9.]{1,64}")
_STRICT_UID: Final = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")


@dataclass(frozen=True, slots=True)
class Identifiers:
    """The four UIDs of a data set, as written but for padding; an absent one is an empty text."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The bytes are no data set as far as the identifiers; ``text`` says where it went wrong."""

    text: str


@dataclass(frozen=True, slots=True)
class Part10:
    """The part of a DICOM file before its data set: what it holds, and at which byte the data set begins."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    called_ae: str
    dataset_at: int


@dataclass(frozen=True, slots=True)
class NotPart10:
    """The bytes are not a DICOM file with file meta information (PS3.10 section 7.1)."""

    text: str


# By byte order: a tag, a short and a long length, and the beginning of an explicit element with a short VR.
_FORMS: Final = tuple(
    tuple(struct.Struct(order + form) for form in ("HH", "H", "I", "HH2sH")) for order in ("<", ">")
)


class _BrokenError(Exception):
    """The walk met something that cannot be an element."""


def is_uid(text: str) -> bool:
    """Whether this has no other letters than a UID may have, and not too many; zeros may lead."""
    return _UID_LETTERS.fullmatch(text) is not None


def is_key(text: str) -> bool:
    """Whether a study or series can be told apart by this: there, short, printable; real ones hold letters."""
    return 0 < len(text) <= MAX_UID and text.isascii() and text.isprintable()


def is_conformant_uid(text: str) -> bool:
    """Whether this is a UID by the letter of PS3.5 section 9.1."""
    return len(text) <= MAX_UID and _STRICT_UID.fullmatch(text) is not None


def read_identifiers(dataset: bytes | bytearray, transfer_syntax_uid: str) -> Identifiers | Unreadable:
    """Read the UIDs of SOP class, instance, study and series from the top level of a data set.

    Parameters
    ----------
    dataset
        The encoded data set, without file meta information.
    transfer_syntax_uid
        Decides byte order and deflation; whether the VRs are explicit is seen in the bytes themselves,
        because some senders negotiate one and send the other.

    Returns
    -------
    Identifiers or Unreadable
        Reading stops at the last of the four, so that damage behind them is not noticed.

    References
    ----------
    PS3.5 sections 7.1 and 7.5, Annex A.
    """
    body = dataset
    if transfer_syntax_uid in DEFLATED:
        try:
            body = zlib.decompressobj(-zlib.MAX_WBITS).decompress(dataset, MAX_INFLATED)
        except zlib.error:
            return Unreadable("The deflated data set cannot be inflated.")
    walk = _Walk(body, big_endian=transfer_syntax_uid == EXPLICIT_BIG_ENDIAN)
    try:
        found = walk.top_level(_WANTED)
    except _BrokenError as broken:
        return Unreadable(f"The data set does not parse: {broken}.")
    return Identifiers(*(found.get(tag, "") for tag in (_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES)))


def split_file(dicom: bytes) -> Part10 | NotPart10:
    """Find where the data set of a DICOM file begins, and read what the file says of it."""
    if dicom[128:132] != b"DICM":
        return NotPart10("there is no DICM at byte 128.")
    header = dicom[132:144]
    if len(header) < 12 or header[:8] != b"\x02\x00\x00\x00UL\x04\x00":
        return NotPart10("there is no group length of the file meta information.")
    end = 144 + int.from_bytes(header[8:12], "little")
    if end > len(dicom):
        return NotPart10("the file ends in its file meta information.")
    try:
        found = _Walk(dicom[144:end], big_endian=False).top_level(_META)
    except _BrokenError as broken:
        return NotPart10(f"its file meta information does not parse: {broken}.")
    sop_class, sop_instance, syntax, calling_ae, called_ae = (found.get(tag, "") for tag in sorted(_META))
    if not (sop_class and sop_instance and syntax):
        return NotPart10("its file meta information lacks SOP class, instance or transfer syntax.")
    return Part10(sop_class, sop_instance, syntax, calling_ae, called_ae, end)


class _Walk:
    """A cursor over encoded elements."""

    __slots__ = ("_at", "_body", "_explicit", "_left", "_long", "_plain", "_short", "_tag")

    def __init__(self, body: bytes | bytearray, *, big_endian: bool) -> None:
        self._body = body
        self._at = 0
        self._tag, self._short, self._long, self._plain = _FORMS[int(big_endian)]
        self._explicit = _is_vr(body[4:6])
        self._left = MAX_ELEMENTS

    def top_level(self, wanted: frozenset[tuple[int, int]]) -> dict[tuple[int, int], str]:
        """Collect the texts of the wanted elements, up to the last of them or the first tag behind them all."""
        found: dict[tuple[int, int], str] = {}
        last = max(wanted)
        while self._at < len(self._body) and len(found) < len(wanted):
            self._pass_plain(wanted)
            tag, length, implicit_inside = self._element(explicit=self._explicit)
            if tag > last:
                if not found:
                    raise _BrokenError(f"{_name(tag)} comes before any identifier")
                break
            if length == _UNDEFINED:
                self._skip_sequence(explicit=self._explicit and not implicit_inside)
                continue
            value_at = self._at
            self._skip(length, tag)
            if tag in wanted and tag not in found:
                found[tag] = _text(self._body[value_at : min(self._at, value_at + 2 * MAX_UID)])
        return found

    def _pass_plain(self, wanted: frozenset[tuple[int, int]]) -> None:
        """Go to the next element that needs a closer look: every image has thirty others in front of its UIDs."""
        if not self._explicit:
            return
        body, at, left, last = self._body, self._at, self._left, max(wanted)
        end, unpack = len(body) - _SHORTEST, self._plain.unpack_from
        while at <= end and left > 0:
            group, element, vr, length = unpack(body, at)
            tag = (group, element)
            if vr not in _SHORT_VRS or tag in wanted or tag > last or at + length >= end:
                break
            at += _SHORTEST + length
            left -= 1
        self._at, self._left = at, left

    def _element(self, *, explicit: bool) -> tuple[tuple[int, int], int, bool]:
        """Read tag and length; also whether it is a UN of undefined length, whose inside is implicit."""
        self._left -= 1
        if self._left < 0:
            raise _BrokenError(f"more than {MAX_ELEMENTS} elements before the identifiers")
        body, at = self._body, self._at
        self._advance(_SHORTEST)
        group, element = self._tag.unpack_from(body, at)
        tag = (group, element)
        if not explicit or group == 0xFFFE or not _is_vr(vr := bytes(body[at + 4 : at + 6])):
            return tag, self._long.unpack_from(body, at + 4)[0], False
        if vr not in _LONG_VRS:
            return tag, self._short.unpack_from(body, at + 6)[0], False
        self._advance(4)
        length = self._long.unpack_from(body, at + 8)[0]
        return tag, length, vr == b"UN" and length == _UNDEFINED

    def _skip_sequence(self, *, explicit: bool) -> None:
        """Walk over a sequence of undefined length, however deep it is nested (PS3.5 section 7.5).

        Kept on the stack: for each open sequence or item, whether it is a sequence, and its encoding.
        """
        stack = [(True, explicit)]
        while stack:
            in_sequence, encoding = stack[-1]
            tag, length, implicit_inside = self._element(explicit=encoding)
            if tag == (_SEQUENCE_END if in_sequence else _ITEM_END):
                stack.pop()
            elif in_sequence and tag != _ITEM:
                raise _BrokenError(f"{_name(tag)} where an item of a sequence begins")
            elif length == _UNDEFINED:
                stack.append((not in_sequence, encoding and not implicit_inside))
            else:
                self._skip(length, tag)

    def _advance(self, size: int) -> None:
        self._at += size
        if self._at > len(self._body):
            raise _BrokenError(f"it ends inside an element, at byte {len(self._body)}")

    def _skip(self, length: int, tag: tuple[int, int]) -> None:
        if self._at + length > len(self._body):
            raise _BrokenError(f"{_name(tag)} claims {length} bytes, {len(self._body) - self._at} are left")
        self._at += length


def _is_vr(letters: bytes | bytearray) -> bool:
    """Whether two bytes look like a VR, known or not; as an implicit length they would mean 16 KiB or more."""
    return len(letters) == 2 and letters.isalpha() and letters.isupper()


def _name(tag: tuple[int, int]) -> str:
    return f"({tag[0]:04X},{tag[1]:04X})"


def _text(value: bytes | bytearray) -> str:
    return value.decode("ascii", errors="replace").strip(" \0")
