"""Puts C-STORE requests together from the fragments on the wire, and encodes their answers; no socket here.

Only what is plainly a C-STORE request with a data set is taken. Everything else is given back byte for byte, for
the library to judge. PS3.8 section 9.3.5 and Annex E, PS3.7 section 9.3.1.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

P_DATA: Final = 0x04
PDU_HEADER: Final = 6
FRAGMENT_HEADER: Final = 6  # length, context, message control header
IS_COMMAND, IS_LAST = 0x01, 0x02
STORE_REQUEST, STORE_RESPONSE = 0x0001, 0x8001
NO_DATASET: Final = 0x0101
MAX_COMMAND: Final = 16 * 1024
MAX_COMMENT: Final = 64  # LO
_CLASS, _FIELD, _MESSAGE_ID, _DATASET_TYPE, _INSTANCE = 0x0002, 0x0100, 0x0110, 0x0800, 0x1000
_ANSWERED_ID, _STATUS, _COMMENT = 0x0120, 0x0900, 0x0902


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """A whole C-STORE request: what its command says, its data set as encoded, and the SHA-256 of that, hex."""

    context_id: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    dataset: bytes | bytearray
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Foreign:
    """These PDUs are not ours to serve; the library is to read them from the beginning."""

    pdus: bytearray


@dataclass(frozen=True, slots=True)
class Broken:
    """The peer broke the protocol in the middle of a C-STORE request."""

    why: str


@dataclass(frozen=True, slots=True)
class _Command:
    context_id: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str


def is_whole(pdu: bytearray) -> bool:
    """Whether a PDU is as long as its header says."""
    return len(pdu) >= PDU_HEADER and len(pdu) == PDU_HEADER + int.from_bytes(pdu[2:6], "big")


def ends_a_message(pdu: bytearray) -> bool:
    """Whether a P-DATA PDU holds the last fragment of a command or data set (PS3.8 Annex E.2)."""
    at = PDU_HEADER
    while at + FRAGMENT_HEADER <= len(pdu):
        if pdu[at + 5] & IS_LAST:
            return True
        at += 4 + int.from_bytes(pdu[at : at + 4], "big")
    return False


class Messages:
    """Takes the P-DATA PDUs of one association in turn."""

    def __init__(self, max_message: int) -> None:
        self._max_message = max_message
        self._pdus = bytearray()  # as long as it may be foreign
        self._command_bytes = bytearray()
        self._command: _Command | None = None
        self._dataset = bytearray()
        self._hash = hashlib.sha256()  # of the data set so far: done while the sender sends the rest

    def add(self, pdu: bytearray) -> StoreRequest | Foreign | Broken | None:
        """Take one P-DATA PDU, with its header; ``None`` while the request is not whole."""
        if self._command is None:
            self._pdus += pdu
        at, end = PDU_HEADER, len(pdu)
        done = False
        while at < end:
            length = int.from_bytes(pdu[at : at + 4], "big")
            if end - at < FRAGMENT_HEADER or length < 2 or at + 4 + length > end or done:
                return self._odd("fragments do not fit into their PDU")
            context_id, control = pdu[at + 4], pdu[at + 5]
            fragment = memoryview(pdu)[at + FRAGMENT_HEADER : at + 4 + length]
            if fault := self._fragment(context_id, control, fragment):
                return self._odd(fault)
            done = bool(control & IS_LAST and not control & IS_COMMAND)
            at += 4 + length
        if done:
            return self._whole()
        if self._command is not None:
            self._pdus = bytearray()  # ours from here on
        elif len(self._pdus) > 2 * MAX_COMMAND:
            return self._odd("a command set that does not end")
        return None

    def _fragment(self, context_id: int, control: int, fragment: memoryview) -> str:
        """Add one fragment; gives what is odd about it, or nothing."""
        if self._command is None:
            if not control & IS_COMMAND:
                return "a data set without a command set"
            self._command_bytes += fragment
            if control & IS_LAST:
                self._command = _store_command(context_id, self._command_bytes)
                if self._command is None:
                    return "no C-STORE request"
            return ""
        if control & IS_COMMAND or context_id != self._command.context_id:
            return "fragments of two messages mixed"
        self._dataset += fragment
        self._hash.update(fragment)
        return "an object larger than this node takes" if len(self._dataset) > self._max_message else ""

    def _odd(self, why: str) -> Foreign | Broken:
        """Give all back while nothing of the data set has been taken away; afterwards it is too late."""
        pdus = self._pdus
        self._reset()
        return Foreign(pdus) if pdus else Broken(why)

    def _whole(self) -> StoreRequest:
        command = self._command
        assert command is not None
        dataset, sha256 = self._dataset, self._hash.hexdigest()
        self._reset()
        return StoreRequest(
            command.context_id,
            command.message_id,
            command.sop_class_uid,
            command.sop_instance_uid,
            dataset,
            sha256,
        )

    def _reset(self) -> None:
        self._pdus = bytearray()
        self._command_bytes = bytearray()
        self._command = None
        self._dataset = bytearray()
        self._hash = hashlib.sha256()


def _store_command(context_id: int, encoded: bytearray) -> _Command | None:
    """Read a command set as that of a C-STORE request with a data set; ``None`` when it is anything else."""
    elements = _elements(encoded)
    if elements is None or _number(elements, _FIELD) != STORE_REQUEST:
        return None
    message_id, kind = _number(elements, _MESSAGE_ID), _number(elements, _DATASET_TYPE)
    sop_class, instance = elements.get(_CLASS), elements.get(_INSTANCE)
    if message_id is None or kind in {None, NO_DATASET} or not sop_class or not instance:
        return None
    return _Command(context_id, message_id, _text(sop_class), _text(instance))


def _elements(encoded: bytearray) -> dict[int, bytes] | None:
    """Read a command set: group 0000 in Implicit VR Little Endian (PS3.7 section 6.3.1)."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(encoded):
        group, element = int.from_bytes(encoded[at : at + 2], "little"), encoded[at + 2 : at + 4]
        end = at + 8 + int.from_bytes(encoded[at + 4 : at + 8], "little")
        if group != 0 or end > len(encoded) or at + 8 > len(encoded):
            return None
        found[int.from_bytes(element, "little")] = bytes(encoded[at + 8 : end])
        at = end
    return found


def _number(elements: dict[int, bytes], element: int) -> int | None:
    value = elements.get(element, b"")
    return int.from_bytes(value, "little") if len(value) == 2 else None


def _text(value: bytes) -> str:
    return value.decode("ascii", errors="replace").strip(" \0")


def store_response(request: StoreRequest, status: int, comment: str) -> bytes:
    """Encode the answer to a C-STORE request as one P-DATA PDU (PS3.7 Table 9.3-2)."""
    elements = [
        _element(_CLASS, _uid(request.sop_class_uid)),
        _element(_FIELD, STORE_RESPONSE.to_bytes(2, "little")),
        _element(_ANSWERED_ID, request.message_id.to_bytes(2, "little")),
        _element(_DATASET_TYPE, NO_DATASET.to_bytes(2, "little")),
        _element(_STATUS, status.to_bytes(2, "little")),
    ]
    if comment:
        text = comment[:MAX_COMMENT].encode("ascii", errors="replace")
        elements.append(_element(_COMMENT, text + b" " * (len(text) % 2)))
    elements.append(_element(_INSTANCE, _uid(request.sop_instance_uid)))
    body = b"".join(elements)
    command = _element(0x0000, len(body).to_bytes(4, "little")) + body
    fragment = (len(command) + 2).to_bytes(4, "big") + bytes((request.context_id, IS_COMMAND | IS_LAST)) + command
    return bytes((P_DATA, 0)) + len(fragment).to_bytes(4, "big") + fragment


def _element(element: int, value: bytes) -> bytes:
    return b"\0\0" + element.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value


def _uid(text: str) -> bytes:
    value = text[:64].encode("ascii", errors="replace")
    return value + b"\0" * (len(value) % 2)
