"""The listener: admits associations, hands each instance to ``receive``, and answers with what that says.

Runs as a process of its own that never loads torch, SimpleITK, highdicom or the workflow engine.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, _config, evt

from scp_node.clock import SystemClock
from scp_node.counters import ListenerCounters, shared_counters
from scp_node.implementation import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
from scp_node.ledger.arrivals import Arrivals, LedgerUnavailableError, Note
from scp_node.ledger.associations import OpenAssociations
from scp_node.ledger.engine import make_engine, prepare_schema, wait_for_database
from scp_node.ledger.outbox import Outbox
from scp_node.ledger.states import EventKind
from scp_node.network.admission import HandshakeLater, TlsPeer, may_call_from, tls_fault
from scp_node.network.commitment import CommitmentAnswers, commitment_context, take_answer
from scp_node.network.contexts import asks_for_storage, prepare, supported_contexts
from scp_node.network.guard import Guard, GuardedServer, end_half_open, raise_file_limit
from scp_node.network.library import forget_warnings, no_delay, quiet
from scp_node.network.stream import Limits
from scp_node.presence import Presence, new_boot
from scp_node.receive import Incoming, Received, Receiver, index_spool
from scp_node.reload import EXIT_RELOAD, Signals, take_up
from scp_node.spool import Spool
from scp_node.tls import Unusable, server_context

if TYPE_CHECKING:
    import ssl

    from pynetdicom.association import Association
    from pynetdicom.events import Event, EventHandlerType
    from pynetdicom.pdu_primitives import A_ASSOCIATE
    from pynetdicom.transport import AssociationSocket

    from scp_node.network.messages import StoreRequest
    from scp_node.ports import Clock
    from scp_node.settings import Settings

log = structlog.get_logger()

APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
LIBRARY_LIMIT: Final = 1_000_000  # the library counts half-open connections as associations; we count ourselves
MESSAGE_MARGIN: Final = 16 * 1024 * 1024  # an object a little too large is answered, not cut off
NOTED_REJECTION_S: Final = 60.0
OTHER_FILES: Final = 256  # what the process opens beside its connections
CONFIGURATION_FAULT: Final = 78
SYNCS_AT_ONCE: Final = 16  # of folders, beside the commits of rows; the file system makes one of several


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
    counters
        Where associations and instances are counted; ``None``: in memory.
    """

    def __init__(
        self,
        settings: Settings,
        receiver: Receiver,
        arrivals: Arrivals,
        clock: Clock,
        *,
        port: int | None = None,
        counters: ListenerCounters | None = None,
    ) -> None:
        self.counters = counters or ListenerCounters()
        self._settings = settings
        self._receiver = receiver
        self._arrivals = arrivals
        self._clock = clock
        self._wanted_port = settings.node.port if port is None else port
        self._draining = threading.Event()
        self._admission = threading.Lock()
        self._admitted: list[Association] = []
        self._noted: dict[tuple[object, ...], float] = {}
        self._servers: list[GuardedServer] = []
        self.commitments: CommitmentAnswers | None = None
        self._may_store, self._may_connect = _titles(settings)
        network = settings.network
        self._limits = Limits(
            request_s=network.acse_timeout_s,
            pdu_s=network.pdu_timeout_s,
            max_pdu=settings.node.max_pdu,
            max_message=network.max_object_mib * 1024 * 1024 + MESSAGE_MARGIN,
            half_open=network.half_open,
            half_open_per_host=network.half_open_per_host,
        )

    @property
    def port(self) -> int:
        """The TCP port in use, the one without TLS first."""
        if not self._servers:
            raise RuntimeError("the listener has not been started")
        return int(self._servers[0].server_address[1])

    @property
    def tls_port(self) -> int:
        """The TCP port in use for TLS."""
        return next(int(server.server_address[1]) for server in self._servers if server.tls is not None)

    def start(self) -> None:
        """Listen.

        Raises
        ------
        OSError
            An address is not ours, a port is taken, or the files of ``[tls]`` cannot be used.
        """
        quiet()
        _config.UNRESTRICTED_STORAGE_SERVICE = True
        self._allow_enough_files()
        tls = self._settings.tls
        context = self._tls_context() if tls.port else None
        try:
            if tls.plain:
                self._serve_on(self._wanted_port, None)
            if context is not None:
                self._serve_on(tls.port if self._wanted_port else 0, context)
        except OSError:
            self.stop()
            raise
        if not self._may_store:
            log.warning("nobody may store here: add a [[senders]] block to the settings")

    def _tls_context(self) -> ssl.SSLContext:
        identity = self._settings.tls.identity
        if identity is None:
            raise OSError("[tls] does not name certificate, key and ca.")
        context = server_context(identity)
        if isinstance(context, Unusable):
            raise OSError(f"{context.text} {context.action}")
        return context

    def _serve_on(self, port: int, context: ssl.SSLContext | None) -> None:
        ae = self._application_entity()
        address = (self._settings.node.bind, port)
        made = ae.make_server(
            address,
            ae_title=self._settings.node.ae_title,
            contexts=[*supported_contexts(), commitment_context()],
            evt_handlers=self._handlers(),
            server_class=GuardedServer,
        )
        server = cast("GuardedServer", made)
        ae._servers.append(server)  # the library's own start_server does so; its shutdown counts on it
        network = self._settings.network
        server.tls = context
        server.tls_refused = self._note_tls_refused
        server.rejected = self.counters.rejected
        if network.guard:
            server.guard = Guard(self._limits, self._serve_store, network.max_sockets, network.sockets_per_host)
        elif context is not None:
            server.ssl_context = cast("ssl.SSLContext", HandshakeLater(context, self._limits.request_s))
        self._servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="listener").start()
        where = {"bind": address[0], "port": server.server_address[1], "tls": context is not None}
        log.info("listening", ae_title=self._settings.node.ae_title, **where)

    def _allow_enough_files(self) -> None:
        network = self._settings.network
        wanted = network.max_sockets + network.half_open + OTHER_FILES
        allowed = raise_file_limit(wanted)
        if allowed < wanted:
            what = "raise LimitNOFILE of the service, or lower network.half_open and network.max_sockets"
            log.warning("fewer open files are allowed than connections", wanted=wanted, allowed=allowed, what=what)

    def stop(self, drain_s: float = 0.0) -> None:
        """Stop: new associations are told to come later, those at work may end by themselves for a while."""
        self._draining.set()
        deadline = time.monotonic() + drain_s
        while self._open_associations() and time.monotonic() < deadline:
            time.sleep(0.05)
        for server in self._servers:
            server.shutdown()
        still_open = [association for server in self._servers for association in server.active_associations]
        for association in still_open:
            if association.requestor.primitive is None:
                end_half_open(association)
            else:
                association.abort()
        for association in still_open:
            association.join(timeout=self._limits.request_s)
        _config.UNRESTRICTED_STORAGE_SERVICE = False
        self._servers = []

    def take_up(self, settings: Settings) -> None:
        """Let other senders and destinations count, for open associations too."""
        self._settings = settings
        self._may_store, self._may_connect = _titles(settings)
        if not self._may_store:
            log.warning("nobody may store here: add a [[senders]] block to the settings")

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
            (evt.EVT_N_EVENT_REPORT, lambda event: take_answer(self.commitments, event)),
            (evt.EVT_ACCEPTED, lambda _event: self.counters.accepted()),
            (evt.EVT_RELEASED, lambda _event: self.counters.ended("released")),
            (evt.EVT_ABORTED, lambda _event: self.counters.ended("aborted")),
        ]

    def _on_connection(self, event: Event) -> None:
        with suppress(OSError):  # the peer is gone already: a port probe
            no_delay(event)

    def _on_request(self, event: Event) -> None:
        """Decide about an association request, and sort its transfer syntaxes by our preference.

        The library swallows what a handler raises here and goes on to accept, so a bug has to reject by itself.
        """
        association = event.assoc
        request = cast("A_ASSOCIATE", association.requestor.primitive)
        try:
            rejection = self._check(association, request)
            for context in request.presentation_context_definition_list:
                prepare(context)
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
        rejection = self._check_titles(request) or self._check_peer(association, request)
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

    def _check_peer(self, association: Association, request: A_ASSOCIATE) -> Rejection | None:
        """Compare address and certificate with those of the sender; one title may have several blocks."""
        calling, peer = str(request.calling_ae_title), association.requestor.address
        blocks = [sender for sender in self._settings.senders if sender.ae_title == calling]
        here = [sender for sender in blocks if may_call_from(sender.host, peer)]
        if blocks and not here:
            what = f"Correct host of [[senders]] {calling}, or empty it to allow any."
            return Rejection((1, 1, 3), f"{calling} may not call from {peer}.", what)
        shown = TlsPeer.of(cast("AssociationSocket", association.dul.socket).socket)
        faults = [tls_fault(sender, shown) for sender in here]
        fault = None if any(found is None for found in faults) else next(iter(faults), None)
        return Rejection((1, 1, 3), *fault) if fault else None

    def _admit(self, association: Association) -> Rejection | None:
        """Count an association in, unless there are too many."""
        with self._admission:
            self._admitted = [known for known in self._admitted if known.is_alive()]
            if len(self._admitted) >= self._settings.node.max_associations:
                what = "Send again later; raise node.max_associations if this happens often."
                return Rejection((2, 3, 2), "Too many associations are open.", what)
            self._admitted.append(association)
        return None

    def sending(self) -> dict[int, str]:
        """Give the open associations that may bring images: a number for each, and its calling AE title."""
        with self._admission:
            alive = [association for association in self._admitted if association.is_alive()]
        asked = [(association, cast("A_ASSOCIATE", association.requestor.primitive)) for association in alive]
        return {
            association.native_id or 0: str(request.calling_ae_title)
            for association, request in asked
            if asks_for_storage(request.presentation_context_definition_list)
        }

    def _open_associations(self) -> int:
        with self._admission:
            return sum(association.is_alive() for association in self._admitted)

    def _note(self, rejection: Rejection, association: Association, request: A_ASSOCIATE) -> None:
        """Log a rejection and keep it as an event, the same one at most once a minute."""
        self.counters.rejected(rejection.code)
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
        text = (
            f"{calling} at {peer} called {called} and was rejected ({code}). {rejection.why} {rejection.what_to_do}"
        )
        if self._is_news((code, calling, called, peer)):
            self._keep(Note(EventKind.REJECTED_ASSOCIATION, text, code))

    def _note_tls_refused(self, host: str, why: str) -> None:
        """Keep a handshake that failed as an event; the room of waiting connections does not wait for the disk."""
        if self._is_news(("tls", host)):
            note = Note(EventKind.TLS_REFUSED, f"{host} could not open a connection over TLS. {why}")
            threading.Thread(target=self._keep, args=(note,), name="tls-note", daemon=True).start()

    def _is_news(self, key: tuple[object, ...]) -> bool:
        """Whether the same was not noted within the last minute."""
        now = self._clock.now()
        with self._admission:
            self._noted = {k: at for k, at in self._noted.items() if now - at < NOTED_REJECTION_S}
            if key in self._noted:
                return False
            self._noted[key] = now
        return True

    def _keep(self, note: Note) -> None:
        try:
            self._arrivals.note([note], self._clock.now())
        except LedgerUnavailableError:
            log.warning("the rejection could not be noted: the database is not available")

    def _on_store(self, event: Event) -> int | Dataset:
        """Answer a C-STORE request that the library has read."""
        received = self._receive(_incoming(event))
        if received.status == 0x0000:
            return 0x0000
        answer = Dataset()
        answer.Status = received.status
        answer.ErrorComment = received.comment
        return answer

    def _serve_store(self, association: Association, request: StoreRequest) -> tuple[int, str]:
        """Answer a C-STORE request that our own socket has read."""
        received = self._receive(_incoming_stream(association, request))
        return received.status, received.comment

    def _receive(self, incoming: Incoming) -> Received:
        began = time.monotonic()
        if incoming.calling_ae in self._may_store:
            received = self._receiver.receive(incoming)
        else:
            received = self._receiver.refuse_unauthorised(incoming)
        self.counters.answered(received, len(incoming.dataset), time.monotonic() - began)
        return received


def run_listener(settings: Settings) -> int:
    """Be the listener process: until SIGTERM or SIGINT; gives the exit code.

    0 after a clean stop; 76 when it has to be started again with other settings; 78 when the database is of another
    version or the port cannot be had.
    """
    signals = Signals()
    forget_warnings()
    storage = settings.storage
    spool = Spool(storage.folder, min_free_mib=storage.min_free_mib, min_free_percent=storage.min_free_percent)
    try:
        spool.prepare()
    except OSError as fault:
        what = fault.strerror or str(fault)
        log.error("cannot write to storage.folder", folder=str(storage.folder), fault=what)  # noqa: TRY400 - no bug
        return CONFIGURATION_FAULT
    if not wait_for_database(settings.database_url, signals.stop.wait):
        return 0
    if not prepare_schema(settings.database_url):
        log.error("the database is of another version; run: nodule-node db upgrade")
        return CONFIGURATION_FAULT
    engine = make_engine(settings.database_url, busy_timeout_s=settings.network.database_timeout_s)
    try:
        listener = _assembled(settings, spool, Arrivals(engine, keeps_connection=True))
        listener.commitments = CommitmentAnswers(Outbox(engine), SystemClock())
        presence = Presence(
            OpenAssociations(engine, new_boot()),
            listener.sending,
            SystemClock(),
            lease_s=settings.worker.lease_s,
            beat_s=settings.worker.beat_s,
        )
        presence.start()
        outcome = _serve(listener, settings, signals)
        presence.stop()
        return outcome
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
        beside=ThreadPoolExecutor(SYNCS_AT_ONCE, thread_name_prefix="sync"),
    )
    return Listener(settings, receiver, arrivals, clock, counters=shared_counters(settings.counters_folder))


def _serve(listener: Listener, settings: Settings, signals: Signals) -> int:
    try:
        listener.start()
    except OSError as fault:
        node, what = settings.node, fault.strerror or str(fault)
        log.error("cannot listen", bind=node.bind, port=node.port, tls_port=settings.tls.port, fault=what)  # noqa: TRY400 - no bug of ours
        return CONFIGURATION_FAULT
    outcome = _until_told(listener, settings, signals)
    log.info("stopping: open associations may end by themselves", drain_s=settings.network.drain_s)
    listener.stop(settings.network.drain_s)
    log.info("stopped")
    return outcome


def _until_told(listener: Listener, settings: Settings, signals: Signals) -> int:
    """Wait until somebody asks us to stop, or other settings need a new process."""
    running = settings
    while signals.wait() == "reload":
        running, following = take_up("listen", running, settings.snapshot)
        if following == "restart":
            return EXIT_RELOAD
        if following == "swap":
            listener.take_up(running)
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


def _incoming_stream(association: Association, request: StoreRequest) -> Incoming:
    asked = cast("A_ASSOCIATE", association.requestor.primitive)
    return Incoming(
        sop_class_uid=request.sop_class_uid,
        sop_instance_uid=request.sop_instance_uid,
        transfer_syntax_uid=str(association._accepted_cx[request.context_id].transfer_syntax[0]),
        dataset=request.dataset,
        calling_ae=str(asked.calling_ae_title),
        called_ae=str(asked.called_ae_title),
        peer=association.requestor.address,
        sha256=request.sha256,
    )


def _titles(settings: Settings) -> tuple[frozenset[str], frozenset[str]]:
    """Give who may store, and who may connect."""
    may_store = frozenset(sender.ae_title for sender in settings.senders)
    # Our own title: 'nodule-node doctor' asks whether the port is ours.
    others = {settings.node.ae_title, *(destination.ae_title for destination in settings.destinations)}
    return may_store, may_store | others


def _alike(one: str, other: str) -> bool:
    """Whether two titles differ by case or spaces only."""
    return one.replace(" ", "").casefold() == other.replace(" ", "").casefold()
