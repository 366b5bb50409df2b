"""Guards the receiving side of each connection against peers that break the protocol, by fault or by intent.

The library reads a PDU with no time limit and allocates whatever length it claims. The guard puts its own
``recv`` in place of the library's: one absolute deadline for each PDU, caps on PDU and message, and AE titles
repaired before the library can stumble over them. PS3.8 section 9.3.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog
from pynetdicom.transport import ThreadedAssociationServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynetdicom.association import Association

log = structlog.get_logger()

PDU_HEADER: Final = 6
ASSOCIATE_RQ, P_DATA = 0x01, 0x04
PDU_TYPES: Final = range(0x01, 0x08)
CALLED_AE, CALLING_AE = slice(4, 20), slice(20, 36)  # PS3.8 Table 9-11, counted behind the PDU header
NO_TITLE: Final = b"ANONYMOUS"
LEAST_PDU_CAP: Final = 1024 * 1024  # an association request with 128 contexts must fit


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may do.

    Attributes
    ----------
    request_s
        Time for a PDU before there is an association; seconds.
    pdu_s
        Time for a PDU from its first to its last byte; seconds.
    max_pdu
        Largest P-DATA that we told the peer to send; bytes.
    max_message
        Largest DIMSE message; bytes.
    """

    request_s: float
    pdu_s: float
    max_pdu: int
    max_message: int


class GuardedReceiver:
    """Reads for one association, in place of ``AssociationSocket.recv``."""

    def __init__(self, association: Association, connection: socket.socket, limits: Limits) -> None:
        self._association = association
        self._connection = connection
        self._limits = limits
        self._deadline = 0.0
        self._pdu_type: int | None = None
        self._message_bytes = 0

    def recv(self, wanted: int) -> bytearray:
        """Read exactly so many bytes: a PDU's header and its rest in turn.

        Raises
        ------
        OSError
            The peer was too slow, claimed too much or does not speak DICOM; the connection is closed then.
        """
        if self._pdu_type is None:
            return self._header(wanted)
        pdu_type, self._pdu_type = self._pdu_type, None
        body = self._read(wanted)
        if len(body) == wanted and pdu_type == ASSOCIATE_RQ:
            repair_titles(body)
        if len(body) == wanted and pdu_type == P_DATA:
            self._count(body)
        return body

    def _header(self, wanted: int) -> bytearray:
        asked = self._association.requestor.primitive is not None
        self._deadline = time.monotonic() + (self._limits.pdu_s if asked else self._limits.request_s)
        header = self._read(wanted)
        if len(header) < PDU_HEADER:
            return header
        if header[0] not in PDU_TYPES:
            raise self._closed("no DICOM: unknown PDU type")
        length = int.from_bytes(header[2:6], "big")
        if length > max(LEAST_PDU_CAP, self._limits.max_pdu + PDU_HEADER):
            raise self._closed(f"a PDU that claims {length} bytes")
        self._pdu_type = header[0]
        return header

    def _read(self, wanted: int) -> bytearray:
        buffer = bytearray(wanted)
        view, at = memoryview(buffer), 0
        try:
            while at < wanted:
                self._connection.settimeout(max(self._deadline - time.monotonic(), 0.001))
                count = self._connection.recv_into(view[at:])
                if count == 0:
                    self._wake()
                    break
                at += count
        except TimeoutError:
            raise self._closed("too slow: a PDU was not complete in time") from None
        except OSError:
            self._wake()
            raise
        finally:
            view.release()
        self._connection.settimeout(self._limits.pdu_s)
        del buffer[at:]
        return buffer

    def _count(self, body: bytearray) -> None:
        """Add up the fragments of a message, up to the one that is marked as its last (PS3.8 Annex E.2)."""
        self._message_bytes += len(body)
        if self._message_bytes > self._limits.max_message:
            raise self._closed("an object larger than this node takes")
        at = 0
        while at + PDU_HEADER <= len(body):
            if body[at + 5] & 0x02:
                self._message_bytes = 0
            at += 4 + int.from_bytes(body[at : at + 4], "big")

    def _closed(self, why: str) -> OSError:
        log.info("connection closed", why=why, peer=self._association.requestor.address)
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("the peer was gone already")
        self._wake()
        return ConnectionAbortedError(why)

    def _wake(self) -> None:
        if self._association.requestor.primitive is None:
            end_half_open(self._association)


def end_half_open(association: Association) -> None:
    """Let the thread of a connection without an association end now, as if its request were overdue.

    Only before there is a request (``requestor.primitive``): it waits for one that will never come, and the
    library cannot abort what was not asked for (PS3.8 Table 9-10 has no such transition; its thread would die).
    Afterwards the library notices by itself, and what we put into its queue would hide that from it.
    """
    association.dul.to_user_queue.put(None)


def repair_titles(body: bytearray) -> None:
    """Make the AE titles of an A-ASSOCIATE-RQ such that the library can read them and we can reject them.

    NUL is padding to some senders, and some leave the calling title blank. Letters that a title may not have
    become ``?``, which matches no title of ours.
    """
    for field in (CALLED_AE, CALLING_AE):
        if len(body) >= field.stop:
            title = bytes(body[field]).replace(b"\0", b" ").strip() or NO_TITLE
            legal = bytes(c if 0x20 <= c < 0x7F and c != ord("\\") else ord("?") for c in title)
            body[field] = legal.ljust(16)


class GuardedServer(ThreadedAssociationServer):
    """Accepts connections up to a cap in all and for each host, before anything is spent on them."""

    request_queue_size = 128
    may_connect: Callable[[str], bool] | None = None

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Say whether a new connection is served; otherwise it is closed at once."""
        return self.may_connect is None or self.may_connect(str(client_address[0]))


class ConnectionCount:
    """Counts the living connections by host; half-open ones, without an association, apart.

    A connection that was just accepted has no thread yet and is counted by the next one: the caps may be
    passed by the few that arrive in the same millisecond.
    """

    def __init__(self, *, in_all: int, per_host: int, half_open_per_host: int) -> None:
        self._in_all = in_all
        self._per_host = per_host
        self._half_open_per_host = half_open_per_host
        self._lock = threading.Lock()
        self._refused: Counter[str] = Counter()

    def allows(self, host: str, living: list[Association]) -> bool:
        """Say whether a host may open one more connection beside those."""
        here = [association for association in living if association.requestor.address == host]
        half_open = sum(association.requestor.primitive is None for association in here)
        reason = (
            "max_sockets" * (len(living) >= self._in_all)
            or "sockets_per_host" * (len(here) >= self._per_host)
            or "half_open_per_host" * (half_open >= self._half_open_per_host)
        )
        if reason:
            with self._lock:
                self._refused[host] += 1
            log.warning("connection refused: too many", peer=host, setting=f"network.{reason}")
        return not reason
