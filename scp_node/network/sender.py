"""Sends reports to one destination: a new association each time, the stored bytes as they are.

When to try again is not decided here: a :class:`SendResult` only says whether trying again can help.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from scp_node.identifiers import NotPart10, split_file
from scp_node.implementation import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
from scp_node.network.library import no_delay, quiet, release, send_encoded, socket_of
from scp_node.ports import SendResult
from scp_node.tls import ClientContext, Unusable, client_context

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from socket import socket as Socket
    from ssl import SSLContext

    from pynetdicom.association import Association
    from pynetdicom.events import Event, EventHandlerType
    from pynetdicom.presentation import PresentationContext

    from scp_node.identifiers import Part10
    from scp_node.settings import Destination, NetworkSettings, TlsSettings


def kind_of_status(status: int | None) -> SendResult:
    """Say what a C-STORE status means for the delivery.

    References
    ----------
    PS3.4 Table B.2-1, PS3.7 Annex C.
    """
    match status:
        case None:
            return SendResult("retry", None, "No answer in time, or the archive cut the connection.")
        case 0x0000:
            return SendResult("delivered", status, "Stored.")
        case 0x0111:
            return SendResult("delivered", status, "The archive has had this report already (0x0111).")
        case _ if status & 0xF000 == 0xB000:
            return SendResult(
                "delivered", status, f"Stored with the warning 0x{status:04X}; see the archive's log."
            )
        case _ if status & 0xFF00 == 0xA700:
            return SendResult("retry", status, f"The archive is out of resources (0x{status:04X}).")
        case 0x0122:
            return SendResult("refused", status, "The archive does not support this SOP class (0x0122).")
        case 0x0124:
            return SendResult("refused", status, "We are not authorised to store there (0x0124).")
        case _ if status == 0x0117 or status & 0xFF00 == 0xA900 or status & 0xF000 == 0xC000:
            return SendResult("refused", status, f"The archive refuses this report (0x{status:04X}); see its log.")
        case _:
            return SendResult("retry", status, f"The archive failed to store (0x{status:04X}); see its log.")


@dataclass(slots=True)
class _Exchange:
    """One association with the archive: open, or the reason why not."""

    association: Association | None = None
    failure: SendResult = field(default_factory=lambda: SendResult("retry", None, "No connection."))
    nothing_accepted: bool = False


class DicomArchive:
    """A PACS reached by C-STORE.

    Parameters
    ----------
    destination
        Where it is.
    calling_ae
        Our own AE title.
    network
        Time limits, ``[network]``.
    tls
        Our certificate and whom we trust, ``[tls]``; needed for destinations that are reached over TLS.

    Notes
    -----
    An association belongs to one call, so that calls from several threads cannot disturb each other. No
    asynchronous operations window is proposed: some archives drop the connection then.
    """

    def __init__(
        self, destination: Destination, calling_ae: str, network: NetworkSettings, tls: TlsSettings | None = None
    ) -> None:
        quiet()
        self._destination = destination
        self._network = network
        self._tls = tls
        self._ae = AE(ae_title=calling_ae)
        self._ae.connection_timeout = network.connect_timeout_s
        self._ae.acse_timeout = network.association_timeout_s
        self._ae.dimse_timeout = network.response_timeout_s
        self._ae.network_timeout = network.send_timeout_s
        self._ae.implementation_class_uid = UID(IMPLEMENTATION_UID)
        self._ae.implementation_version_name = IMPLEMENTATION_VERSION

    def store(self, dicom: bytes) -> SendResult:
        """Send the bytes of one DICOM file, its data set unchanged.

        The file's own transfer syntax and Implicit VR Little Endian are proposed in a context each; only an
        archive that takes nothing but the second gets the data set encoded anew.
        """
        part10 = split_file(dicom)
        if isinstance(part10, NotPart10):
            return SendResult("refused", None, f"This is not a DICOM file: {part10.text}")
        syntaxes = dict.fromkeys((part10.transfer_syntax_uid, str(ImplicitVRLittleEndian)))
        contexts = [build_context(part10.sop_class_uid, [syntax]) for syntax in syntaxes]
        with self._associated(contexts) as exchange:
            if exchange.association is None:
                return self._class_refused(part10) if exchange.nothing_accepted else exchange.failure
            return self._store_on(exchange.association, part10, dicom)

    def accepts(self, sop_class_uids: Sequence[str]) -> frozenset[str] | SendResult:
        """Say which of these SOP classes the archive takes, or why it could not be asked."""
        wanted = tuple(dict.fromkeys(sop_class_uids))
        contexts = [
            build_context(uid, [syntax])
            for uid in wanted
            for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
        ]
        with self._associated([*contexts, build_context(Verification)]) as exchange:
            if exchange.association is None:
                return frozenset() if exchange.nothing_accepted else exchange.failure
            taken = {str(context.abstract_syntax) for context in exchange.association.accepted_contexts}
            return frozenset(taken.intersection(wanted))

    def echo(self) -> SendResult:
        """Ask whether the archive is there (C-ECHO)."""
        with self._associated([build_context(Verification)]) as exchange:
            if exchange.association is None:
                if exchange.nothing_accepted:
                    return SendResult("refused", None, "The archive answers, but does not take C-ECHO from us.")
                return exchange.failure
            status = exchange.association.send_c_echo().get("Status")
            if status == 0:
                return SendResult("delivered", 0, "C-ECHO answered.")
            return SendResult("retry", status, "The archive did not answer the C-ECHO with success.")

    def _store_on(self, association: Association, part10: Part10, dicom: bytes) -> SendResult:
        accepted = {str(c.transfer_syntax[0]): c for c in association.accepted_contexts}
        context = accepted.get(part10.transfer_syntax_uid)
        dataset = dicom[part10.dataset_at :]
        if context is None:
            context = accepted[str(ImplicitVRLittleEndian)]
            if part10.transfer_syntax_uid != ExplicitVRLittleEndian:
                return SendResult("refused", None, "The archive does not take this report's transfer syntax.")
            dataset = _as_implicit(dicom)
        try:
            status = send_encoded(association, context, part10.sop_class_uid, part10.sop_instance_uid, dataset)
        except (OSError, RuntimeError):  # the association ended under our hands
            status = None
        return kind_of_status(status)

    def _class_refused(self, part10: Part10) -> SendResult:
        name = UID(part10.sop_class_uid).name
        return SendResult(
            "refused",
            0x0122,
            f"{self._destination.ae_title} does not accept {name}; allow it there, or choose another sr for "
            f"[[destinations]] {self._destination.name}.",
        )

    @contextmanager
    def _associated(self, contexts: list[PresentationContext]) -> Iterator[_Exchange]:
        """Open an association, and close it in any case: by release, or by abort when something went wrong."""
        exchange = self._open(contexts)
        finished = False
        try:
            yield exchange
            finished = True
        finally:
            association = exchange.association
            if association is not None and association.is_established:
                if finished:
                    release(association)
                else:
                    association.abort()

    def _open(self, contexts: list[PresentationContext]) -> _Exchange:
        to = self._destination
        created: list[Socket] = []
        connected: list[Socket] = []

        def asked(event: Event) -> None:
            if not created:
                created.append(socket_of(event))

        def opened(event: Event) -> None:
            connected.append(socket_of(event))
            no_delay(event)
            socket_of(event).settimeout(self._network.send_timeout_s)

        handlers: list[EventHandlerType] = [(evt.EVT_ACSE_SENT, asked), (evt.EVT_CONN_OPEN, opened)]
        tls = self._tls_context() if to.tls else None
        if isinstance(tls, Unusable):
            return _Exchange(failure=SendResult("retry", None, f"{tls.text} {tls.action}"))
        tls_args = None if tls is None else (cast("SSLContext", tls), to.tls_name or to.host)
        try:
            association = self._ae.associate(
                to.host, to.port, contexts, ae_title=to.ae_title, evt_handlers=handlers, tls_args=tls_args
            )
        except OSError as fault:  # the host's name is unknown
            text = f"{to.host} cannot be resolved ({fault.strerror or 'unknown host'})."
            return _Exchange(failure=SendResult("retry", None, text))
        if association.is_established:
            return _Exchange(association)
        for left_open in connected:  # the library forgets a socket whose peer was gone first
            left_open.close()
        if association.is_rejected:
            return _Exchange(failure=self._rejection(association))
        if association.rejected_contexts and not association.accepted_contexts:
            return _Exchange(nothing_accepted=True)
        if tls is not None and tls.failure:
            text = f"No TLS connection to {to.host}:{to.port}. {tls.failure}"
            return _Exchange(failure=SendResult("retry", None, text))
        if not connected:
            for left_open in created:  # the library forgets a socket that could not connect
                left_open.close()
            text = f"No connection to {to.host}:{to.port}; is the archive running and the port right?"
            return _Exchange(failure=SendResult("retry", None, text))
        text = f"{to.host}:{to.port} connected, but did not answer our association request."
        if tls is not None:
            text += " Perhaps it does not trust our certificate; its log says so."
        return _Exchange(failure=SendResult("retry", None, text))

    def _tls_context(self) -> ClientContext | Unusable:
        identity = self._tls.identity if self._tls is not None else None
        if identity is None:
            text = f"{self._destination.name} is reached over TLS, and [tls] does not name certificate, key and ca."
            return Unusable(text, "Name them there.")
        own_ca = self._destination.tls_ca
        return client_context(replace(identity, authorities=Path(own_ca)) if own_ca else identity)

    def _rejection(self, association: Association) -> SendResult:
        answer = association.acceptor.primitive
        result, source, reason = (
            cast("int", getattr(answer, name, 0) or 0) for name in ("result", "result_source", "diagnostic")
        )
        code = f"{result}/{source}/{reason}"
        if result != 1:
            return SendResult(
                "retry", None, f"{self._destination.ae_title} is busy, it rejected us for now ({code})."
            )
        text = {
            (1, 3): f"does not know our AE title {self._ae.ae_title}; it has to be entered there",
            (1, 7): "says that this is not its AE title; correct ae_title of the destination",
        }.get((source, reason), "rejected our association for good")
        return SendResult("refused", None, f"{self._destination.ae_title} {text} ({code}).")


def _as_implicit(dicom: bytes) -> bytes:
    """Encode a data set without pixels in Implicit VR Little Endian; raw values stay what they were."""
    dataset = dcmread(BytesIO(dicom))
    encoded = DicomBytesIO()
    encoded.is_little_endian = True
    encoded.is_implicit_VR = True
    write_dataset(encoded, dataset)
    return encoded.getvalue()
