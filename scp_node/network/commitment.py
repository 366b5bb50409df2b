"""Proof that an archive has a report: it commits itself to it (PS3.4 Annex J), or finds it when asked.

Storage commitment is asked for by N-ACTION. The answer, an N-EVENT-REPORT, comes on the same association or on one
that the archive opens to our listener, in which the archive has the SCP role.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context, evt
from pynetdicom.dimse_primitives import N_ACTION
from pynetdicom.dsutils import encode

from scp_node.network.query import DicomCatalogue, find
from scp_node.ports import STORAGE_COMMITMENT, STUDY_ROOT_FIND, Check, SendResult

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pynetdicom.association import Association
    from pynetdicom.events import Event
    from pynetdicom.presentation import PresentationContext

    from scp_node.ledger.outbox import Outbox
    from scp_node.ports import Clock
    from scp_node.settings import Destination, NetworkSettings, TlsSettings

WELL_KNOWN_INSTANCE = "1.2.840.10008.1.20.1.1"
ASK = 1  # action type "request storage commitment", PS3.4 J.3.2
N_ACTION_RSP = 0x8130  # PS3.7 Table E.1-1
SUCCESS, PROCESSING_FAILURE = 0x0000, 0x0110
_REASONS = {
    0x0110: "it failed to process the request",
    0x0112: "it has no such instance",
    0x0119: "it knows the instance under another SOP class",
    0x0122: "it does not commit itself to this SOP class",
    0x0131: "it has seen the transaction before",
    0x0213: "it is out of resources",
}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Answer:
    """An N-EVENT-REPORT of storage commitment: which instances are kept, and why others are not."""

    transaction_uid: str
    committed: Collection[str]
    missing: Mapping[str, str]


@dataclass(slots=True)
class _Answers:
    """What arrives on the association on which we asked."""

    status: int | None = None
    responded: threading.Event = field(default_factory=threading.Event)
    answer: Answer | None = None
    answered: threading.Event = field(default_factory=threading.Event)

    def response(self, event: Event) -> None:
        command = event.message.command_set
        if command.get("CommandField") == N_ACTION_RSP:
            self.status = int(command.Status)
            self.responded.set()

    def report(self, event: Event) -> tuple[int, None]:
        self.answer = read_answer(event.event_information)
        self.answered.set()
        return SUCCESS, None


class ProvingArchive(DicomCatalogue):
    """A PACS that is asked for reports it stored.

    Parameters
    ----------
    wait_s
        How long the answer to a commitment request is waited for on its own association; seconds.
    """

    def __init__(
        self,
        destination: Destination,
        calling_ae: str,
        network: NetworkSettings,
        tls: TlsSettings | None = None,
        *,
        wait_s: float,
    ) -> None:
        super().__init__(destination, calling_ae, network, tls)
        self._wait_s = wait_s

    def commit(self, transaction_uid: str, sop_class_uid: str, sop_instance_uid: str) -> Check:
        """Ask the archive to commit itself to keeping one instance.

        References
        ----------
        PS3.4 J.3.2 (N-ACTION) and J.3.3 (N-EVENT-REPORT).
        """
        request = Dataset()
        request.TransactionUID = transaction_uid
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
        request.ReferencedSOPSequence = [item]
        with self._associated([_context()]) as exchange:
            if exchange.association is None:
                return _not_asked("commitment", None if exchange.nothing_accepted else exchange.failure)
            answers = _ask(exchange.association, request, self._wait_s)
        if answers.status is None:
            return Check("unreachable", "commitment", "No answer to our storage commitment request.")
        if answers.status != SUCCESS:
            text = f"The archive refuses our storage commitment request (0x{answers.status:04X})."
            return Check("impossible", "commitment", text)
        if answers.answer is None:
            return Check("asked", "commitment", "Storage commitment is asked for; the archive answers later.")
        return _verdict(answers.answer, sop_instance_uid)

    def holds(self, study_uid: str, series_uid: str, sop_instance_uid: str) -> Check:
        """Ask for one instance by C-FIND at the level IMAGE.

        References
        ----------
        PS3.4 C.4.1 and C.6.2.1 (Study Root): hierarchical search needs the UIDs of all levels above.
        """
        asked = Dataset()
        asked.QueryRetrieveLevel = "IMAGE"
        asked.StudyInstanceUID, asked.SeriesInstanceUID = study_uid, series_uid
        asked.SOPInstanceUID = sop_instance_uid
        with self._associated([build_context(STUDY_ROOT_FIND)]) as exchange:
            if exchange.association is None:
                return _not_asked("query", None if exchange.nothing_accepted else exchange.failure)
            found = find(exchange.association, asked)
        if isinstance(found, SendResult):
            kind = "unreachable" if found.status is None else "impossible"
            return Check(cast("Any", kind), "query", found.text)
        if any(str(match.get("SOPInstanceUID", "")).strip(" \0") == sop_instance_uid for match in found):
            return Check("proven", "query", "The archive finds the report.")
        return Check("missing", "query", "The archive said it stored the report, and does not find it.")


class CommitmentAnswers:
    """Takes the answers for which an archive opens an association to our listener."""

    def __init__(self, outbox: Outbox, clock: Clock) -> None:
        self._outbox = outbox
        self._clock = clock

    def take(self, event: Event) -> tuple[int, None]:
        """``EVT_N_EVENT_REPORT``: settle the delivery; an unknown transaction is answered with success too."""
        try:
            answer = read_answer(event.event_information)
            if answer is None:
                return PROCESSING_FAILURE, None
            state = self._outbox.answered(
                answer.transaction_uid, answer.committed, answer.missing, now=self._clock.now()
            )
        except Exception:  # whatever is wrong with us or the data set: the archive may send the answer again
            log.exception("an answer to a storage commitment request could not be taken")
            return PROCESSING_FAILURE, None
        peer = event.assoc.requestor.address
        if state is None:
            log.warning("an answer to a storage commitment request that nobody waits for", peer=peer)
        else:
            log.info("an archive answered our storage commitment request", peer=peer, state=state.value)
        return SUCCESS, None


def take_answer(commitments: CommitmentAnswers | None, event: Event) -> tuple[int, None]:
    """Be the listener's handler; without a ledger behind it, the archive is told that we could not."""
    return (PROCESSING_FAILURE, None) if commitments is None else commitments.take(event)


def commitment_context() -> PresentationContext:
    """Give what the listener accepts: the archive, who calls us, keeps the SCP role (PS3.4 J.3.3)."""
    context = _context()
    context.scu_role, context.scp_role = False, True  # roles of the requestor, that is of the archive
    return context


def read_answer(information: Dataset) -> Answer | None:
    """Read an N-EVENT-REPORT's data set; ``None`` when it names no transaction."""
    transaction_uid = str(information.get("TransactionUID") or "").strip(" \0")
    if not transaction_uid:
        return None
    failed = {
        str(item.get("ReferencedSOPInstanceUID", "")): _reason(item.get("FailureReason"))
        for item in information.get("FailedSOPSequence") or []
    }
    kept = {
        str(item.get("ReferencedSOPInstanceUID", "")) for item in information.get("ReferencedSOPSequence") or []
    }
    return Answer(transaction_uid, frozenset(kept - failed.keys()), failed)


def _context() -> PresentationContext:
    return build_context(STORAGE_COMMITMENT, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])


def _ask(association: Association, request: Dataset, wait_s: float) -> _Answers:
    """Send the N-ACTION request and wait for its response, then a while for the answer proper.

    Responses are taken from the event, as ``library.send_encoded`` explains.
    """
    context = association.accepted_contexts[0]
    syntax = context.transfer_syntax[0]
    action = N_ACTION()
    action.MessageID = 1
    action.RequestedSOPClassUID = UID(STORAGE_COMMITMENT)
    action.RequestedSOPInstanceUID = UID(WELL_KNOWN_INSTANCE)
    action.ActionTypeID = ASK
    encoded = encode(request, syntax.is_implicit_VR, syntax.is_little_endian)
    action.ActionInformation = BytesIO(cast("bytes", encoded))
    answers = _Answers()
    association.bind(evt.EVT_DIMSE_RECV, answers.response)
    association.bind(evt.EVT_N_EVENT_REPORT, answers.report)
    try:
        association.dimse.send_msg(action, cast("int", context.context_id))
        if (
            _arrives(answers.responded, association, association.dimse_timeout or 60.0)
            and answers.status == SUCCESS
        ):
            _arrives(answers.answered, association, wait_s)
    except (OSError, RuntimeError):  # the association ended under our hands
        pass
    return answers


def _arrives(what: threading.Event, association: Association, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while association.is_established and time.monotonic() < deadline and not what.wait(0.1):
        pass
    return what.is_set()


def _verdict(answer: Answer, sop_instance_uid: str) -> Check:
    if sop_instance_uid in answer.committed:
        return Check("proven", "commitment", "The archive committed itself to it.")
    if sop_instance_uid in answer.missing:
        return Check("missing", "commitment", answer.missing[sop_instance_uid])
    return Check("asked", "commitment", "The archive's answer does not name the report.")


def _not_asked(by: str, failure: SendResult | None) -> Check:
    if failure is None:
        return Check("impossible", cast("Any", by), f"The archive does not accept {by} from us any more.")
    kind = "unreachable" if failure.kind == "retry" else "impossible"
    return Check(cast("Any", kind), cast("Any", by), failure.text)


def _reason(code: Any) -> str:
    number = int(code) if code is not None else 0
    known = _REASONS.get(number, "it does not say why")
    return f"The archive does not commit itself to the report: {known} (0x{number:04X})."
