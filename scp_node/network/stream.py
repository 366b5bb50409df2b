"""The socket of one association: every PDU under a deadline and a cap, and C-STORE requests straight to us.

The library polls each association with two threads, and decodes, copies and queues every fragment. A C-STORE
request, once negotiated, needs none of that: its fragments are put together here, in the library's own reading
thread, and answered at once. Whatever else comes goes to the library untouched. PS3.8 section 9.3, PS3.7 section 9.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
from pynetdicom.transport import AssociationSocket

from scp_node.network.messages import (
    P_DATA,
    PDU_HEADER,
    Broken,
    Foreign,
    Messages,
    StoreRequest,
    ends_a_message,
    is_whole,
    store_response,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynetdicom.association import Association

    Serve = Callable[["Association", StoreRequest], tuple[int, str]]

log = structlog.get_logger()

PDU_TYPES: Final = range(0x01, 0x08)
LEAST_PDU_CAP: Final = 1024 * 1024
LOOK_AROUND_S: Final = 0.1  # how soon the thread that waits for the next image sees that it shall end
IDLE, ASSOCIATED = "Sta1", "Sta6"  # PS3.8 section 9.2.1: no association; ready for data transfer
LARGEST_ANSWER: Final = 512  # bytes of a C-STORE response PDU, at most


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may do.

    Attributes
    ----------
    request_s
        Time for the whole association request; seconds.
    pdu_s
        Time for a PDU from its first to its last byte; seconds.
    max_pdu
        Largest P-DATA that we told the peer to send; bytes.
    max_message
        Largest DIMSE message; bytes.
    half_open, half_open_per_host
        Connections that have not asked yet, at most: in all, and of one host.
    """

    request_s: float
    pdu_s: float
    max_pdu: int
    max_message: int
    half_open: int
    half_open_per_host: int


class GuardedSocket(AssociationSocket):
    """The library's socket wrapper, with our reading.

    Parameters
    ----------
    association
        Whose socket it is.
    connection
        Connected, its association request already read.
    limits
        Of this connection.
    request
        The association request, with its header.
    serve
        Answers a C-STORE request with a status and an error comment; ``None`` leaves that to the library.
    """

    def __init__(
        self,
        association: Association,
        connection: socket.socket,
        limits: Limits,
        request: bytearray,
        serve: Serve | None,
    ) -> None:
        super().__init__(association, client_socket=connection)
        connection.settimeout(limits.pdu_s)
        self._connection = connection
        self._limits = limits
        self._serve = serve
        self._unread = request  # what the library is to read before the wire
        self._ahead = bytearray()  # the beginning of a PDU's header, read together with the PDU before
        self._poll = select.poll()  # not select(): that knows no descriptor above 1023
        self._poll.register(connection, select.POLLIN)
        self._messages = Messages(limits.max_message)
        self._library_bytes = 0  # of the message that the library reads
        self._closed = False

    @property
    def ready(self) -> bool:
        """Whether there is something for the library to read; serves C-STORE requests meanwhile."""
        if self.assoc.dul.state_machine.current_state == IDLE:
            return False
        if self._unread or self._closed:
            return True
        if self._connection.fileno() < 0:  # closed by the library, from another of its threads
            self.event_queue.put("Evt17")
            return False
        if not self._has_data(0.0):
            return False
        if not self._may_serve():
            return True
        try:
            return self._serve_stores()
        finally:
            self.assoc._reactor_checkpoint.set()  # its own thread goes on

    def recv(self, nr_bytes: int) -> bytearray:
        """Read exactly so many bytes for the library: a PDU's header and its rest in turn.

        Raises
        ------
        OSError
            The peer was too slow, claimed too much or does not speak DICOM; the connection is closed then.
        """
        if not self._unread and not self._closed:
            self._give_back(self._pdu())
        taken = self._unread[:nr_bytes]
        del self._unread[:nr_bytes]
        return taken

    def _give_back(self, pdus: bytearray) -> None:
        """Let the library read this; of one message no more than the limit, because it keeps all in memory."""
        self._unread = pdus
        if pdus and pdus[0] == P_DATA:
            self._library_bytes += len(pdus)
            if ends_a_message(pdus):
                self._library_bytes = 0
            elif self._library_bytes > self._limits.max_message:
                raise self._close("a message larger than this node takes")

    def _has_data(self, wait_s: float) -> bool:
        if self._ahead or (isinstance(self._connection, ssl.SSLSocket) and self._connection.pending()):
            return True
        return bool(self._poll.poll(wait_s * 1000))

    def _may_serve(self) -> bool:
        association = self.assoc
        return (
            self._serve is not None
            and association.is_established
            and not association._kill
            and association.dul.state_machine.current_state == ASSOCIATED
            and (association.requestor.maximum_length or LARGEST_ANSWER) >= LARGEST_ANSWER
        )

    def _serve_stores(self) -> bool:
        """Answer C-STORE requests until something else comes; say whether that is for the library to read."""
        dul = self.assoc.dul
        while self._may_serve():
            try:
                if not self._take(self._pdu()):
                    return True
            except OSError:
                return True  # ``recv`` gives the library nothing more, which it takes as a closed connection
            self.assoc._reactor_checkpoint.clear()  # its own thread has nothing to poll for meanwhile
            dul._idle_timer.restart()
            while not self._has_data(LOOK_AROUND_S):
                if dul._kill_thread or not dul.to_provider_queue.empty() or not self._may_serve():
                    return False
                if dul.idle_timer_expired():
                    return False  # its other thread ends the association then
            if not dul.to_provider_queue.empty():
                return False
        return False

    def _take(self, pdu: bytearray) -> bool:
        """Take one PDU of a C-STORE request, and answer a whole one; ``False``: it is the library's."""
        if not is_whole(pdu) or pdu[0] != P_DATA:
            self._closed = not is_whole(pdu)
            self._messages = Messages(self._limits.max_message)  # an unfinished request ends with it
            self._unread = pdu
            return False
        match self._messages.add(pdu):
            case Foreign(pdus):
                self._give_back(pdus)
                return False
            case Broken(why):
                self._close(why)
                return False
            case StoreRequest() as request:
                return self._answer(request)
            case None:
                return True

    def _answer(self, request: StoreRequest) -> bool:
        assert self._serve is not None
        if request.context_id not in self.assoc._accepted_cx:
            self._close("a C-STORE request in a presentation context that was not accepted")
            return False
        status, comment = self._serve(self.assoc, request)
        try:
            self._connection.sendall(store_response(request, status, comment))
        except OSError:
            self._close("the peer was gone before it had its answer")
            return False
        return True

    def _pdu(self) -> bytearray:
        """Read one PDU, under one absolute deadline; shorter when the peer closes before its end."""
        deadline = time.monotonic() + self._limits.pdu_s
        header, at = bytearray(PDU_HEADER), len(self._ahead)
        header[:at] = self._ahead
        self._ahead.clear()
        header = self._read(header, at, deadline)
        if len(header) < PDU_HEADER:
            return header
        if header[0] not in PDU_TYPES:
            raise self._close("no DICOM: unknown PDU type")
        length = int.from_bytes(header[2:6], "big")
        if length > max(LEAST_PDU_CAP, self._limits.max_pdu + PDU_HEADER):
            raise self._close(f"a PDU that claims {length} bytes")
        pdu = bytearray(PDU_HEADER + length + PDU_HEADER)  # with room for the header of the next one
        pdu[:PDU_HEADER] = header
        pdu = self._read(pdu, PDU_HEADER, deadline, enough=PDU_HEADER + length)
        self._ahead = pdu[PDU_HEADER + length :]
        del pdu[PDU_HEADER + length :]
        return pdu

    def _read(self, buffer: bytearray, at: int, deadline: float, *, enough: int = PDU_HEADER) -> bytearray:
        """Read into a buffer from there on until there is enough; it is cut where the peer closes."""
        with memoryview(buffer) as view:
            try:
                while at < enough:
                    count = self._read_some(view[at:], deadline)
                    if count == 0:
                        break
                    at += count
            except TimeoutError:
                raise self._close("too slow: a PDU was not complete in time") from None
            except OSError:
                self._closed = True
                raise
        del buffer[at:]
        return buffer

    def _read_some(self, view: memoryview, deadline: float) -> int:
        """Read what is there, or wait for it; 0 is the end.

        Without TLS no time limit is set on the socket: that, and its asking before each read, are calls to the
        system during which another association's thread takes the interpreter away.
        """
        connection = self._connection
        if isinstance(connection, ssl.SSLSocket):
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                return connection.recv_into(view)
            finally:
                connection.settimeout(self._limits.pdu_s)
        while True:
            try:
                return os.readv(connection.fileno(), [view])  # does not wait: sockets with a time limit never do
            except BlockingIOError:
                if not self._poll.poll(max(deadline - time.monotonic(), 0.0) * 1000):
                    raise TimeoutError from None

    def _close(self, why: str) -> OSError:
        log.info("connection closed", why=why, peer=self.assoc.requestor.address)
        self._closed = True
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("the peer was gone already")
        return ConnectionAbortedError(why)
