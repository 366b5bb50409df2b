"""Follows the ledger and writes the audit trail: every event once at least, to every sink, also after an outage.

How far a sink has come is kept in the ledger, so nothing is lost while an audit server is away or this process is
not there. A crash between sending and keeping the place sends a message twice; none is left out.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Final

import structlog

from scp_node.audit import messages
from scp_node.audit.messages import Auditor, Peer, Studies
from scp_node.audit.sinks import sinks_of
from scp_node.ledger import audited
from scp_node.ledger.arrivals import LedgerUnavailableError
from scp_node.ledger.figures import events_after

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scp_node.audit.sinks import Sink
    from scp_node.ledger.audited import Transfer
    from scp_node.ledger.figures import NumberedEvent
    from scp_node.ledger.overview import Ledger
    from scp_node.ports import Clock
    from scp_node.settings import Settings

_ARRIVED: Final = frozenset({"delivery_delivered", "delivery_unverified"})
_KEPT_OUT: Final = re.compile(r"^(?P<ae>.{1,16}) at (?P<address>\S+) called ")
_NO_TLS: Final = re.compile(r"^(?P<address>\S+) could not open a connection over TLS")
_REFUSED: Final = re.compile(r"^From (?P<ae>.{1,16}) \((?P<address>\S+)\)")
_AUTHENTICATION_CODES: Final = frozenset({"1/1/3", "1/1/7"})

log = structlog.get_logger()


class Trail:
    """The audit trail, in a thread of its own between :meth:`start` and :meth:`stop`."""

    def __init__(self, settings: Settings, ledger: Ledger, clock: Clock) -> None:
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self._auditor = Auditor.here(settings.node.ae_title, settings.report.institution)
        self._sinks = sinks_of(settings)
        self._failing: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="audit", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is there, and end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def write(self, now: float | None) -> None:
        """Bring every sink up to date; a sink that fails is tried again with the next call."""
        for sink in self._sinks:
            try:
                self._bring_up_to_date(sink, now)
            except (OSError, LedgerUnavailableError) as fault:
                if sink.name not in self._failing:
                    why = str(fault) or type(fault).__name__
                    log.error("Audit messages wait.", sink=sink.name, why=why)  # noqa: TRY400 - no bug of ours
                self._failing.add(sink.name)
            else:
                if sink.name in self._failing:
                    log.info("Audit messages are written again.", sink=sink.name)
                self._failing.discard(sink.name)

    def _loop(self) -> None:
        while not self._stop.wait(self._settings.audit.poll_s):
            self.write(self._clock.now())
        self.write(None)

    def _bring_up_to_date(self, sink: Sink, now: float | None) -> None:
        place = audited.place_of(self._ledger, sink.name) or (0, 0)
        while True:
            events = events_after(self._ledger, place[0], now=now)
            last_instance, transfers = audited.transfers_after(self._ledger, place[1], now=now)
            following = (events[-1].id if events else place[0], last_instance)
            if following == place:
                return
            told = [*map(self._transferred, transfers), *(m for e in events for m in self._of_event(e))]
            if told:
                sink.write(told)
            audited.keep_place(self._ledger, sink.name, following)
            place = following

    def _transferred(self, transfer: Transfer) -> bytes:
        studies = Studies(transfer.study_uid, {transfer.sop_class_uid: transfer.instances})
        sender = Peer(transfer.calling_ae, transfer.peer)
        return messages.transferred(self._auditor, transfer.at, sender, studies, changed=transfer.changed)

    def _of_event(self, event: NumberedEvent) -> Iterator[bytes]:
        match event.kind:
            case "node_started" | "node_stopped":
                yield messages.application(self._auditor, event.at, started=event.kind == "node_started")
            case "settings_changed":
                kind = messages.SOFTWARE_CONFIGURATION
                yield messages.alert(self._auditor, event.at, kind, None, event.text, outcome=messages.SUCCESS)
            case "rejected_association" if event.code in _AUTHENTICATION_CODES:
                yield self._kept_out(event, messages.NODE_AUTHENTICATION, _KEPT_OUT)
            case "tls_refused":
                yield self._kept_out(event, messages.NODE_AUTHENTICATION, _NO_TLS)
            case "refused" if event.code == "NOT_AUTHORISED":
                yield self._kept_out(event, messages.RESTRICTED_FUNCTION, _REFUSED)
            case "file_indexed":
                folder = self._settings.storage.folder.as_uri()
                yield messages.imported(self._auditor, event.at, folder, Studies(event.study_uid or "", {}))
            case _ if event.kind in _ARRIVED:
                yield from self._exported(event)

    def _kept_out(self, event: NumberedEvent, kind: messages.Code, pattern: re.Pattern[str]) -> bytes:
        found = pattern.match(event.text)
        named = found.groupdict() if found else {}
        peer = Peer(named.get("ae", "UNKNOWN"), named.get("address", ""))
        return messages.alert(self._auditor, event.at, kind, peer, event.text, outcome=messages.MINOR_FAILURE)

    def _exported(self, event: NumberedEvent) -> Iterator[bytes]:
        export = audited.export_at(self._ledger, event.study_uid or "", event.at)
        if export is None:
            return
        place = self._settings.destination_named(export.destination)
        to = Peer(export.destination, "") if place is None else Peer(place.ae_title, f"{place.host}:{place.port}")
        yield messages.exported(self._auditor, event.at, to, Studies(export.study_uid, {export.sop_class_uid: 1}))
