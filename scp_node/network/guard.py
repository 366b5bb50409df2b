"""Guards the receiving side of each connection against peers that break the protocol, by fault or by intent.

The library spends two threads on a connection before it has said anything, reads a PDU with no time limit and
allocates whatever length it claims. Here a connection costs one descriptor until its association request is whole
(:class:`WaitingRoom`), and afterwards every PDU has one absolute deadline and a cap (:class:`GuardedSocket`).
PS3.8 section 9.3.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import selectors
import socket
import ssl
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import structlog
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from scp_node.network.stream import GuardedSocket, Limits
from scp_node.tls import why_no_handshake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pynetdicom.association import Association

    from scp_node.network.stream import Serve

    TlsRefused = Callable[[str, str], None]
    """Told of a host whose handshake failed, and why; must not wait."""

    Rejected = Callable[[tuple[int, int, int]], None]
    """Told of a request that was rejected here: result, source, reason; must not wait."""

log = structlog.get_logger()

PDU_HEADER: Final = 6
ASSOCIATE_RQ: Final = 0x01
CALLED_AE, CALLING_AE = slice(10, 26), slice(26, 42)  # PS3.8 Table 9-11
NO_TITLE: Final = b"ANONYMOUS"
MAX_REQUEST: Final = 1024 * 1024  # an association request with 128 contexts of every transfer syntax must fit
NO_FILES_PAUSE_S: Final = 0.01
MAX_HELD: Final = 32 * 1024 * 1024  # bytes of unfinished requests, of all connections together
READ_AT_ONCE: Final = 65536
LOCAL_LIMIT: Final = (2, 3, 2)  # transient, local limit exceeded: PS3.8 Table 9-21
TOO_MANY: Final = b"\x03\0\0\0\0\4\0" + bytes(LOCAL_LIMIT)  # A-ASSOCIATE-RJ


@dataclass(slots=True)
class Waiting:
    """A connection whose association request is not whole yet."""

    connection: socket.socket
    host: str
    address: Any
    since: float
    handshaking: bool = False
    received: bytearray = field(default_factory=bytearray)

    def fault(self) -> str:
        """Say why these bytes cannot be the beginning of an association request; empty when they can."""
        if self.received and self.received[0] != ASSOCIATE_RQ:
            return "no DICOM, or no association request: it does not begin with an A-ASSOCIATE-RQ"
        length = self._length()
        return f"an association request that claims {length} bytes" if length > MAX_REQUEST else ""

    def is_whole(self) -> bool:
        """Whether the request is there to its last byte."""
        return len(self.received) >= PDU_HEADER and len(self.received) >= PDU_HEADER + self._length()

    def _length(self) -> int:
        return int.from_bytes(self.received[2:6], "big") if len(self.received) >= PDU_HEADER else 0


class WaitingRoom:
    """Holds connections until their whole association request has arrived; one thread, no thread for each.

    Who has just come is never refused for those who came and said nothing: when there are too many, the one that
    has waited longest goes, of the same host first.
    """

    def __init__(self, limits: Limits, admit: Callable[[Waiting], None], tls: ssl.SSLContext | None = None) -> None:
        self._limits = limits
        self._admit = admit
        self._tls = tls
        self._selector = selectors.DefaultSelector()
        self._waiting: dict[int, Waiting] = {}
        self._per_host: Counter[str] = Counter()
        self._held = 0
        self.tls_refused: TlsRefused | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def serve(self, listening: socket.socket, poll_s: float, stopped: Callable[[], bool]) -> None:
        """Accept and hold connections, until told to stop."""
        listening.setblocking(False)
        self._selector.register(listening, selectors.EVENT_READ)
        try:
            while not stopped():
                for key, _ in self._selector.select(poll_s):
                    self._turn_to(key.data, listening)
                self._close_overdue()
        finally:
            for waiting in tuple(self._waiting.values()):
                self._leave(waiting)
                waiting.connection.close()
            self._selector.close()

    def _turn_to(self, waiting: Waiting | None, listening: socket.socket) -> None:
        try:
            if waiting is None:
                self._accept(listening)
            else:
                self._attend(waiting)
        except Exception:  # whatever one connection does, the room stays open for the others
            log.exception("a connection failed by a bug", peer=waiting.host if waiting else "")
            if waiting is not None and waiting.connection.fileno() in self._waiting:
                self._drop(waiting, "")

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(64):  # in turn with those who are here already
            try:
                connection, address = listening.accept()
            except OSError as fault:
                if fault.errno in {errno.EMFILE, errno.ENFILE}:
                    self._evict("the process has no file descriptors left", None)
                    time.sleep(NO_FILES_PAUSE_S)
                return
            try:
                self._enter(connection, address)
            except OSError:  # the peer is gone already
                connection.close()

    def _enter(self, connection: socket.socket, address: Any) -> None:
        host = str(address[0])
        connection.setblocking(False)
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        if self._per_host[host] >= self._limits.half_open_per_host:
            self._evict("more than network.half_open_per_host", host)
        elif len(self._waiting) >= self._limits.half_open:
            self._evict("more than network.half_open", None)
        waiting = Waiting(connection, host, address, time.monotonic(), handshaking=self._tls is not None)
        self._waiting[connection.fileno()] = waiting
        self._per_host[host] += 1
        self._selector.register(connection, selectors.EVENT_READ, waiting)

    def _attend(self, waiting: Waiting) -> None:
        """Read what has come from one connection; let it go when its request is whole or can never be."""
        if waiting.connection.fileno() not in self._waiting:
            return  # evicted in this very round
        try:
            if waiting.handshaking and not self._shake_hands(waiting):
                return
            for data in _available(waiting.connection):
                if not data:
                    self._drop(waiting, "")
                    return
                self._held += len(data)
                waiting.received += data
                if fault := waiting.fault():
                    self._drop(waiting, fault)
                    return
                if waiting.is_whole():
                    self._leave(waiting)
                    self._hand_over(waiting)
                    return
        except OSError:
            self._drop(waiting, "")
        if self._held > MAX_HELD:
            self._evict("too many bytes of unfinished association requests", waiting.host)

    def _shake_hands(self, waiting: Waiting) -> bool:
        """Go on with a TLS handshake; say whether it is done. It never waits for the peer."""
        connection = waiting.connection
        assert isinstance(connection, ssl.SSLSocket)
        try:
            connection.do_handshake()
        except ssl.SSLWantReadError:
            self._selector.modify(connection, selectors.EVENT_READ, waiting)
            return False
        except ssl.SSLWantWriteError:
            self._selector.modify(connection, selectors.EVENT_WRITE, waiting)
            return False
        except (ssl.SSLError, OSError) as fault:
            why = why_no_handshake(fault)
            log.warning("TLS connection refused", peer=waiting.host, why=why)
            if self.tls_refused is not None:
                self.tls_refused(waiting.host, why)
            self._drop(waiting, "")
            return False
        self._selector.modify(connection, selectors.EVENT_READ, waiting)
        waiting.handshaking = False
        return True

    def _hand_over(self, waiting: Waiting) -> None:
        try:
            self._admit(waiting)
        except Exception:  # one connection fails, the room stays open
            log.exception("a connection could not be served", peer=waiting.host)
            waiting.connection.close()

    def _close_overdue(self) -> None:
        """Close whose request is overdue; the room is in the order of arrival."""
        overdue = time.monotonic() - self._limits.request_s
        while self._waiting:
            oldest = next(iter(self._waiting.values()))
            if oldest.since > overdue:
                return
            self._drop(oldest, "too slow: no whole association request in time")

    def _evict(self, why: str, host: str | None) -> None:
        """Close the connection that has waited longest: of this host, or of the host that has most of them."""
        if not self._waiting:
            return
        crowd = host or self._per_host.most_common(1)[0][0]
        oldest = next(waiting for waiting in self._waiting.values() if waiting.host == crowd)
        self._drop(oldest, why)

    def _drop(self, waiting: Waiting, why: str) -> None:
        if why:  # who connects and closes is a port probe and not worth a line
            log.info("connection closed", why=why, peer=waiting.host)
        self._leave(waiting)
        waiting.connection.close()

    def _leave(self, waiting: Waiting) -> None:
        self._selector.unregister(waiting.connection)
        del self._waiting[waiting.connection.fileno()]
        self._held -= len(waiting.received)
        self._per_host[waiting.host] -= 1
        if not self._per_host[waiting.host]:
            del self._per_host[waiting.host]


def _available(connection: socket.socket) -> Iterator[bytes]:
    """Give what can be read without waiting; an empty piece is the end."""
    while True:
        try:
            data = connection.recv(READ_AT_ONCE)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        yield data
        if not data:
            return


def repair_titles(request: bytearray) -> None:
    """Make the AE titles of an A-ASSOCIATE-RQ such that the library can read them and we can reject them.

    NUL is padding to some senders, and some leave the calling title blank. Letters that a title may not have
    become ``?``, which matches no title of ours.
    """
    for title_at in (CALLED_AE, CALLING_AE):
        if len(request) >= title_at.stop:
            title = bytes(request[title_at]).replace(b"\0", b" ").strip() or NO_TITLE
            legal = bytes(c if 0x20 <= c < 0x7F and c != ord("\\") else ord("?") for c in title)
            request[title_at] = legal.ljust(16)


def end_half_open(association: Association) -> None:
    """Let the thread of a connection without an association end now, as if its request were overdue.

    Only before there is a request (``requestor.primitive``): it waits for one that will never come, and the
    library cannot abort what was not asked for (PS3.8 Table 9-10 has no such transition; its thread would die).
    """
    association.dul.to_user_queue.put(None)


class GuardedHandler(RequestHandler):
    """Makes an association of a connection, on a socket of ours instead of the library's."""

    server: GuardedServer

    def _create_association(self) -> Association:
        association = super()._create_association()
        guard = self.server.guard
        if guard is not None:
            # The library's socket has announced the connection (PS3.8 Evt5), and ours would a second time.
            association.dul.event_queue.get_nowait()
            request = self.server.requests.pop(self.request)
            association.dul.socket = GuardedSocket(association, self.request, guard.limits, request, guard.serve)
        return association


@dataclass(frozen=True, slots=True)
class Guard:
    """What a guarded server needs to know.

    Attributes
    ----------
    limits
        Of each connection.
    serve
        Answers C-STORE requests; ``None`` leaves them to the library.
    sockets, sockets_per_host
        Connections with an association request, at most.
    """

    limits: Limits
    serve: Serve | None
    sockets: int
    sockets_per_host: int


class GuardedServer(ThreadedAssociationServer):
    """The library's server; with a :class:`Guard`, nothing is spent on a connection before it has asked."""

    request_queue_size = 1024
    guard: Guard | None = None
    tls: ssl.SSLContext | None = None
    tls_refused: TlsRefused | None = None
    rejected: Rejected | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.requests: dict[Any, bytearray] = {}
        self._stop = threading.Event()
        self._stopped = threading.Event()
        super().__init__(*arguments, **{**named, "request_handler": GuardedHandler})

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Accept connections until :meth:`shutdown`."""
        if self.guard is None:
            super().serve_forever(poll_interval)
            return
        try:
            room = WaitingRoom(self.guard.limits, self._admit, self.tls)
            room.tls_refused = self.tls_refused
            room.serve(cast("socket.socket", self.socket), poll_interval, self._stop.is_set)
        finally:
            self._stopped.set()

    def shutdown(self) -> None:
        """Stop accepting, and close the port; associations go on."""
        if self.guard is None:
            super().shutdown()
            return
        self._stop.set()
        self._stopped.wait()
        self.server_close()
        self.ae._servers.remove(self)

    def _admit(self, guest: Waiting) -> None:
        """Make an association of a connection whose request is whole, unless there are too many."""
        repair_titles(guest.received)
        if setting := self._too_many(guest.host):
            self._reject(guest, setting)
            return
        self.requests[guest.connection] = guest.received
        try:
            self.finish_request(guest.connection, guest.address)
        finally:
            self.requests.pop(guest.connection, None)
        self.service_actions()  # the library collects its dead associations there

    def _reject(self, guest: Waiting, setting: str) -> None:
        """Send the guest away for now; it costs no thread."""
        called, calling = (guest.received[at].decode("ascii", "replace").strip() for at in (CALLED_AE, CALLING_AE))
        log.warning(
            "association rejected",
            code="/".join(map(str, LOCAL_LIMIT)),
            calling_ae=calling,
            called_ae=called,
            peer=guest.host,
            why="Too many connections are open.",
            what_to_do=f"Send again later; raise network.{setting} if this happens often.",
        )
        if self.rejected is not None:
            self.rejected(LOCAL_LIMIT)
        with contextlib.suppress(OSError):
            guest.connection.send(TOO_MANY)
        guest.connection.close()

    def _too_many(self, host: str) -> str:
        guard = cast("Guard", self.guard)
        living = self.active_associations
        here = sum(association.requestor.address == host for association in living)
        return "max_sockets" * (len(living) >= guard.sockets) or "sockets_per_host" * (
            here >= guard.sockets_per_host
        )


def raise_file_limit(wanted: int) -> int:
    """Allow this process so many open files, as far as the system lets it; gives what it has then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reachable = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < reachable:
        resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
        return reachable
    return soft if soft != resource.RLIM_INFINITY else wanted
