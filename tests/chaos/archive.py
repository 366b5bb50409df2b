"""An archive that comes and goes on one port: it keeps every report that reaches it and can be asked for them."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field
from io import BytesIO
from random import Random
from threading import Timer
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.dsutils import decode
from pynetdicom.sop_class import Verification

from scp_node.network.library import quiet
from scp_node.ports import STORAGE_COMMITMENT, STUDY_ROOT_FIND

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pynetdicom.events import Event
    from pynetdicom.transport import ThreadedAssociationServer

TITLE = "ARCHIVE"
SR_CLASSES = ("1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.88.33")
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
WELL_KNOWN_INSTANCE = "1.2.840.10008.1.20.1.1"
SUCCESS, PENDING, NO_SUCH_INSTANCE = 0x0000, 0xFF00, 0x0112
FORGETS = 0.1
OFFERS = {"commitment": (STORAGE_COMMITMENT,), "query": (STUDY_ROOT_FIND,), "nothing": ()}
HERE_S, AWAY_S = (3.0, 9.0), (0.5, 4.0)


@dataclass(frozen=True)
class Arrived:
    """One report as it came, whether or not it was kept: ``content`` is its data set as encoded."""

    sop_instance_uid: str
    study_uid: str
    content: bytes
    is_implicit: bool

    @property
    def report(self) -> Dataset:
        """The data set."""
        return decode(BytesIO(self.content), self.is_implicit, is_little_endian=True)


@dataclass
class Archive:
    """Where reports go.

    ``offers`` is a key of :data:`OFFERS`; an archive that can be asked forgets one report in ten after its first
    Success. ``arrived`` is every C-STORE in order, ``kept`` the reports it holds by their UID.
    """

    port: int
    offers: str = "query"
    seed: int = 0
    outages: int = 0
    arrived: list[Arrived] = field(default_factory=list)
    kept: dict[str, Arrived] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)
    _server: ThreadedAssociationServer | None = None
    _port_kept: socket.socket | None = None

    def __post_init__(self) -> None:
        quiet()
        self._rng = Random(self.seed)

    def come(self) -> None:
        """Listen."""
        self._let_port_go()
        ae = AE(TITLE)
        ae.add_supported_context(Verification)
        for uid in (*SR_CLASSES, *OFFERS[self.offers]):
            ae.add_supported_context(uid, SYNTAXES)
        handlers: Any = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_N_ACTION, self._commit),
        ]
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def go(self) -> None:
        """Stop in mid exchange; who connects is refused, and nobody else gets the port."""
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            for opened in server.active_associations:
                opened.abort()
        self._port_kept = socket.socket()
        self._port_kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port_kept.bind(("127.0.0.1", self.port))

    def come_and_go(self, stop: threading.Event) -> None:
        """Be here and away in turn until told to stop; here at the end."""
        while not stop.wait(self._rng.uniform(*HERE_S)):
            self.go()
            self.outages += 1
            stop.wait(self._rng.uniform(*AWAY_S))
            self.come()

    def close(self) -> None:
        """End for good."""
        self.go()
        self._let_port_go()

    def _let_port_go(self) -> None:
        if self._port_kept is not None:
            self._port_kept.close()
            self._port_kept = None

    def _store(self, event: Event) -> int:
        report = event.dataset
        uid, is_implicit = str(report.SOPInstanceUID), event.context.transfer_syntax == ImplicitVRLittleEndian
        one = Arrived(uid, str(report.StudyInstanceUID), event.request.DataSet.getvalue(), is_implicit)
        self.arrived.append(one)
        first = uid not in self.kept and uid not in self.forgotten
        if first and self.offers != "nothing" and self._rng.random() < FORGETS:
            self.forgotten.add(uid)
        else:
            self.kept[uid] = one
        return SUCCESS

    def _find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        if event.identifier.get("SOPInstanceUID") in self.kept:
            yield PENDING, event.identifier
        yield SUCCESS, None

    def _commit(self, event: Event) -> tuple[int, None]:
        """Say yes to the request; the answer proper follows on the same association."""
        answer = Dataset()
        answer.TransactionUID = event.action_information.TransactionUID
        answer.ReferencedSOPSequence, answer.FailedSOPSequence = [], []
        for item in event.action_information.ReferencedSOPSequence:
            if item.ReferencedSOPInstanceUID in self.kept:
                answer.ReferencedSOPSequence.append(item)
            else:
                item.FailureReason = NO_SUCH_INSTANCE
                answer.FailedSOPSequence.append(item)
        Timer(0.1, _report_on, [event.assoc, answer]).start()
        return SUCCESS, None


def _report_on(association: Any, answer: Dataset) -> None:
    if association.is_established:
        association.send_n_event_report(answer, 1, STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE)
