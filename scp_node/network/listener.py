"""The listener: admits associations, hands each instance to ``receive``, and answers with what that says.

Runs as a process of its own that never loads torch, SimpleITK, highdicom or the workflow engine.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, _config, evt

from scp_node.clock import SystemClock
from scp_node.implementation import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
from scp_node.ledger.arrivals import Arrivals, LedgerUnavailableError, Note
from scp_node.ledger.engine import make_engine, prepare_schema
from scp_node.ledger.states import EventKind
from scp_node.network.contexts import asks_for_storage, by_preference, supported_contexts
from scp_node.network.guard import ConnectionCount, GuardedReceiver, GuardedServer, Limits, end_half_open
from scp_node.network.library import no_delay, quiet, socket_of
from scp_node.receive import Incoming, Receiver, index_spool
from scp_node.spool import Spool

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.events import Event, EventHandlerType
    from pynetdicom.pdu_primitives import A_ASSOCIATE

    from scp_node.ports import Clock
    from scp_node.settings import Settings

log = structlog.get_logger()

APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
LIBRARY_LIMIT: Final = 1_000_000  # the library counts half-open connections as associations; we count ourselves
MESSAGE_MARGIN: Final = 16 * 1024 * 1024  # an object a little too large is answered, not cut off
NOTED_REJECTION_S: Final = 60.0
CONFIGURATION_FAULT: Final = 78


@dataclass(frozen=True, slots=True)
class Rejection:
    """An A-ASSOCIATE-RJ and what to say about it.

    Attributes
    ----------
    code
        Result, source, reason (PS3.8 Table 9-21); result 2 is transient, the sender should try again.
    why, what_to_do
        A sentence each, for the log and the administrator.
    """

    code: tuple[int, int, int]
    why: str
    what_to_do: str


class Listener:
    """The DICOM server.

    Parameters
    ----------
    settings
        The node's settings; ``node.port = 0`` is not valid there, so tests pass ``port`` instead.
    receiver
        Takes the instances.
    arrivals
        Takes notes of rejected associations.
    clock
        For those notes.
    port
        Where to listen instead of ``node.port``; 0 lets the system choose.
    """

    def __init__(
        self,
        settings: Settings,
        receiver: Receiver,
        arrivals: Arrivals,
        clock: Clock,
        *,
        port: int | None = None,
    ) -> None:
        self._settings = settings
        self._receiver = receiver
        self._arrivals = arrivals
        self._clock = clock
        self._wanted_port = settings.node.port if port is None else port
        self._draining = threading.Event()
        self._admission = threading.Lock()
        self._admitted: list[Association] = []
        self._noted: dict[tuple[object, ...], float] = {}
        self._server: GuardedServer | None = None
        self._may_store = {sender.ae_title for sender in settings.senders}
        self._may_connect = self._may_store | {destination.ae_title for destination in settings.destinations}
        self._may_connect.add(settings.node.ae_title)  # 'nodule-node doctor' asks whether the port is ours
        network = settings.network
        self._limits = Limits(
            request_s=network.acse_timeout_s,
            pdu_s=network.pdu_timeout_s,
            max_pdu=settings.node.max_pdu,
            max_message=network.max_object_mib * 1024 * 1024 + MESSAGE_MARGIN,
        )
        self._connections = ConnectionCount(
            in_all=network.max_sockets,
            per_host=network.sockets_per_host,
            half_open_per_host=network.half_open_per_host,
        )

    @property
    def port(self) -> int:
        """The TCP port in use."""
        if self._server is None:
            raise RuntimeError("the listener has not been started")
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Listen.

        Raises
        ------
        OSError
            The address is not ours or the port is taken.
        """
        quiet()
        _config.UNRESTRICTED_STORAGE_SERVICE = True
        ae = self._application_entity()
        address = (self._settings.node.bind, self._wanted_port)
        server = ae.make_server(
            address,
            ae_title=self._settings.node.ae_title,
            contexts=supported_contexts(),
            evt_handlers=self._handlers(),
            server_class=GuardedServer,
        )
        self._server = cast("GuardedServer", server)
        ae._servers.append(self._server)  # the library's own start_server does so; its shutdown counts on it
        if self._settings.network.guard:
            self._server.may_connect = self._allows
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="listener").start()
        log.info("listening", ae_title=self._settings.node.ae_title, bind=address[0], port=self.port)
        if not self._may_store:
            log.warning("nobody may store here: add a [[senders]] block to the settings")

    def stop(self, drain_s: float = 0.0) -> None:
        """Stop: new associations are told to come later, those at work may end by themselves for a while."""
        if self._server is None:
            return
        self._draining.set()
        deadline = time.monotonic() + drain_s
        while self._open_associations() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._server.shutdown()
        for association in self._server.active_associations:
            if association.requestor.primitive is None:
                end_half_open(association)
            else:
                association.abort()
        for association in self._server.active_associations:
            association.join(timeout=self._limits.request_s)
        _config.UNRESTRICTED_STORAGE_SERVICE = False
        self._server = None

    def _application_entity(self) -> AE:
        network = self._settings.network
        ae = AE(ae_title=self._settings.node.ae_title)
        ae.maximum_pdu_size = self._settings.node.max_pdu
        ae.maximum_associations = LIBRARY_LIMIT
        ae.acse_timeout = network.acse_timeout_s
        ae.dimse_timeout = network.idle_timeout_s
        ae.network_timeout = network.idle_timeout_s
        ae.implementation_class_uid = UID(IMPLEMENTATION_UID)
        ae.implementation_version_name = IMPLEMENTATION_VERSION
        return ae

    def _handlers(self) -> list[EventHandlerType]:
        return [
            (evt.EVT_CONN_OPEN, self._on_connection),
            (evt.EVT_REQUESTED, self._on_request),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_ECHO, lambda _event: 0x0000),
        ]

    def _on_connection(self, event: Event) -> None:
        try:
            no_delay(event)
        except OSError:
            return  # the peer is gone already: a port probe
        if self._settings.network.guard:
            guarded = GuardedReceiver(event.assoc, socket_of(event), self._limits)
            event.assoc.dul.socket.recv = guarded.recv  # type: ignore[union-attr, method-assign]

    def _on_request(self, event: Event) -> None:
        """Decide about an association request, and sort its transfer syntaxes by our preference.

        The library swallows what a handler raises here and goes on to accept, so a bug has to reject by itself.
        """
        association = event.assoc
        request = cast("A_ASSOCIATE", association.requestor.primitive)
        try:
            rejection = self._check(association, request)
            for context in request.presentation_context_definition_list:
                context.transfer_syntax = [*by_preference(context.transfer_syntax)]
        except Exception:  # fail closed
            log.exception("deciding about an association failed by a bug", peer=association.requestor.address)
            rejection = Rejection((2, 1, 1), "Internal error of the node.", "See the log of the node.")
        if rejection is not None:
            association.acse.send_reject(*rejection.code)
            self._note(rejection, association, request)
            association.is_rejected = True
            association.kill()  # as the library's own rejections do; the answer is on its way

    def _check(self, association: Association, request: A_ASSOCIATE) -> Rejection | None:
        if self._draining.is_set():
            return Rejection((2, 3, 1), "The node is shutting down.", "Send again later.")
        if request.application_context_name != APPLICATION_CONTEXT:
            return Rejection((1, 1, 2), "The application context is not DICOM's.", "Correct it at the sender.")
        rejection = self._check_titles(request) or self._check_host(association, request)
        if rejection is not None:
            return rejection
        wants_storage = asks_for_storage(request.presentation_context_definition_list)
        if wants_storage and not self._receiver.has_room():
            return Rejection((2, 3, 1), "The disk is below its limit of free space.", "Free space on the node.")
        return self._admit(association)

    def _check_titles(self, request: A_ASSOCIATE) -> Rejection | None:
        called, calling = str(request.called_ae_title), str(request.calling_ae_title)
        ours = self._settings.node.ae_title
        if called != ours:
            hint = f"Did you mean {ours}? " if _alike(called, ours) else ""
            what = f"{hint}Call {ours} at the sender, or change node.ae_title."
            return Rejection((1, 1, 7), "The called AE title is not ours.", what)
        if calling not in self._may_connect:
            near = next((title for title in sorted(self._may_connect) if _alike(calling, title)), None)
            hint = f"Did you mean {near}? " if near else ""
            what = f"{hint}Add a [[senders]] block with ae_title = {calling}, or correct the sender."
            return Rejection((1, 1, 3), "The calling AE title is not known.", what)
        return None

    def _check_host(self, association: Association, request: A_ASSOCIATE) -> Rejection | None:
        calling, peer = str(request.calling_ae_title), association.requestor.address
        hosts = [sender.host for sender in self._settings.senders if sender.ae_title == calling]
        if not hosts or any(not host or peer in _addresses(host) for host in hosts):
            return None
        what = f"Correct host of [[senders]] {calling}, or empty it to allow any."
        return Rejection((1, 1, 3), f"{calling} may not call from {peer}.", what)

    def _admit(self, association: Association) -> Rejection | None:
        """Count an association in, unless there are too many."""
        with self._admission:
            self._admitted = [known for known in self._admitted if known.is_alive()]
            if len(self._admitted) >= self._settings.node.max_associations:
                what = "Send again later; raise node.max_associations if this happens often."
                return Rejection((2, 3, 2), "Too many associations are open.", what)
            self._admitted.append(association)
        return None

    def _open_associations(self) -> int:
        with self._admission:
            return sum(association.is_alive() for association in self._admitted)

    def _allows(self, host: str) -> bool:
        server = self._server
        return server is None or self._connections.allows(host, server.active_associations)

    def _note(self, rejection: Rejection, association: Association, request: A_ASSOCIATE) -> None:
        """Log a rejection and keep it as an event, the same one at most once a minute."""
        code = "/".join(map(str, rejection.code))
        peer = association.requestor.address
        calling, called = str(request.calling_ae_title), str(request.called_ae_title)
        log.warning(
            "association rejected",
            code=code,
            calling_ae=calling,
            called_ae=called,
            peer=peer,
            why=rejection.why,
            what_to_do=rejection.what_to_do,
        )
        now, key = self._clock.now(), (code, calling, called, peer)
        with self._admission:
            self._noted = {k: at for k, at in self._noted.items() if now - at < NOTED_REJECTION_S}
            if key in self._noted:
                return
            self._noted[key] = now
        text = (
            f"{calling} at {peer} called {called} and was rejected ({code}). {rejection.why} {rejection.what_to_do}"
        )
        try:
            self._arrivals.note([Note(EventKind.REJECTED_ASSOCIATION, text, code)], now)
        except LedgerUnavailableError:
            log.warning("the rejection could not be noted: the database is not available")

    def _on_store(self, event: Event) -> int | Dataset:
        incoming = _incoming(event)
        if incoming.calling_ae in self._may_store:
            received = self._receiver.receive(incoming)
        else:
            received = self._receiver.refuse_unauthorised(incoming)
        if received.status == 0x0000:
            return 0x0000
        answer = Dataset()
        answer.Status = received.status
        answer.ErrorComment = received.comment
        return answer


def run_listener(settings: Settings) -> int:
    """Be the listener process: until SIGTERM or SIGINT; gives the exit code.

    0 after a clean stop; 78 when the database is of another version or the port cannot be had.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    storage = settings.storage
    spool = Spool(storage.folder, min_free_mib=storage.min_free_mib, min_free_percent=storage.min_free_percent)
    try:
        spool.prepare()
    except OSError as fault:
        what = fault.strerror or str(fault)
        log.error("cannot write to storage.folder", folder=str(storage.folder), fault=what)  # noqa: TRY400 - no bug
        return CONFIGURATION_FAULT
    if not prepare_schema(settings.database_url):
        log.error("the database is of another version; run: nodule-node db upgrade")
        return CONFIGURATION_FAULT
    engine = make_engine(settings.database_url, busy_timeout_s=settings.network.database_timeout_s)
    try:
        return _serve(_assembled(settings, spool, Arrivals(engine)), settings, stop)
    finally:
        engine.dispose()


def _assembled(settings: Settings, spool: Spool, arrivals: Arrivals) -> Listener:
    """Put spool and ledger in step after whatever ended the last process, and join the parts."""
    clock, keep_others = SystemClock(), settings.storage.other_objects == "keep"
    swept = spool.sweep()
    indexed, lost = index_spool(spool, arrivals, clock, keep_other_objects=keep_others)
    log.info("spool checked", partial_files_deleted=swept, files_indexed=indexed, files_lost=lost)
    receiver = Receiver(
        spool,
        arrivals,
        clock,
        keep_other_objects=keep_others,
        max_object_bytes=settings.network.max_object_mib * 1024 * 1024,
    )
    return Listener(settings, receiver, arrivals, clock)


def _serve(listener: Listener, settings: Settings, stop: threading.Event) -> int:
    try:
        listener.start()
    except OSError as fault:
        node, what = settings.node, fault.strerror or str(fault)
        log.error("cannot listen", bind=node.bind, port=node.port, fault=what)  # noqa: TRY400 - no bug of ours
        return CONFIGURATION_FAULT
    stop.wait()
    log.info("stopping: open associations may end by themselves", drain_s=settings.network.drain_s)
    listener.stop(settings.network.drain_s)
    log.info("stopped")
    return 0


def _incoming(event: Event) -> Incoming:
    request: Any = event.request
    association = event.assoc
    asked = cast("A_ASSOCIATE", association.requestor.primitive)
    return Incoming(
        sop_class_uid=str(request.AffectedSOPClassUID),
        sop_instance_uid=str(request.AffectedSOPInstanceUID),
        transfer_syntax_uid=str(event.context.transfer_syntax),
        dataset=b"" if request.DataSet is None else event.encoded_dataset(include_meta=False),
        calling_ae=str(asked.calling_ae_title),
        called_ae=str(asked.called_ae_title),
        peer=association.requestor.address,
    )


def _alike(one: str, other: str) -> bool:
    """Whether two titles differ by case or spaces only."""
    return one.replace(" ", "").casefold() == other.replace(" ", "").casefold()


def _addresses(host: str) -> frozenset[str]:
    """All addresses of a host name; none when it cannot be resolved."""
    try:
        return frozenset(str(entry[4][0]) for entry in socket.getaddrinfo(host, None))
    except OSError:
        return frozenset()
