"""The use case of delivery: one report to one destination, once, or once asked for; the outbox says what follows.

Sending again sends the same bytes under the same UID, and asking changes nothing, so an exchange that was
interrupted is simply repeated.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from scp_node.children import file_report
from scp_node.ledger.outbox import NewReport
from scp_node.ledger.states import DeliveryState
from scp_node.ports import STORAGE_COMMITMENT, STUDY_ROOT_FIND, Check, SendResult
from sr_writer.record import SOP_CLASS_UIDS, ReportRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from scp_node.children import Cancelled, Reader
    from scp_node.ledger.destinations import Destinations
    from scp_node.ledger.outbox import Delivery, Outbox, RetryPolicy
    from scp_node.ledger.steps import Steps
    from scp_node.ledger.studies import Studies
    from scp_node.ports import Archive, Clock, ProvableArchive
    from scp_node.settings import Destination, Settings

_3D, _PLAIN = SOP_CLASS_UIDS["comprehensive3d"], SOP_CLASS_UIDS["comprehensive"]
_CLASS_NOT_SUPPORTED = 0x0122

_QUESTIONS = 2
"""Storage commitment requests in turn that wait for an answer in vain: an archive that restarts forgets one."""

log = structlog.get_logger()


class Deliveries:
    """Takes reports to their destinations."""

    def __init__(
        self,
        settings: Settings,
        *,
        studies: Studies,
        outbox: Outbox,
        destinations: Destinations,
        steps: Steps,
        reader: Reader,
        archive_of: Callable[[Destination], ProvableArchive],
        policy: RetryPolicy,
        clock: Clock,
        rng: Random,
    ) -> None:
        self._settings = settings
        self._studies = studies
        self._outbox = outbox
        self._destinations = destinations
        self._steps = steps
        self._reader = reader
        self._archive_of = archive_of
        self._policy = policy
        self._clock = clock
        self._rng = rng

    def attempt(self, delivery_id: int, attempt: int, cancelled: Cancelled) -> None:
        """Make one attempt, or ask once for a report that was stored, and write down how it ended."""
        due = self._outbox.delivery(delivery_id)
        if not due.is_open(attempt):
            return  # an earlier life of this run settled it; a question that was answered must not become a sending
        if due.away and not self._is_back(due, attempt):
            return
        if due.state is DeliveryState.VERIFYING:
            self._verify(due, attempt)
            return
        kept = self._steps.once(f"delivery:{delivery_id}:{attempt}", lambda: self._send(due))
        if kept["other_form"]:
            self._send_other_form(due, attempt, cancelled)
            return
        result = SendResult(kept["kind"], kept["status"], kept["text"])
        state = self._outbox.settle(
            delivery_id,
            attempt,
            result,
            policy=self._policy,
            rng=self._rng,
            now=self._clock.now(),
            provable=self._verifies(due),
        )
        self._say(due, attempt, state, result.text)

    def interrupted(self, delivery_id: int, attempt: int, how: str) -> None:
        """Plan the next attempt after one whose run broke off; nothing when it was settled."""
        now, due = self._clock.now(), self._outbox.delivery(delivery_id)
        if due.state is DeliveryState.VERIFYING:
            check = Check("unreachable", None, how)
            self._outbox.settle_check(delivery_id, attempt, check, policy=self._policy, rng=self._rng, now=now)
            return
        broken = SendResult("retry", None, how)
        self._outbox.settle(
            delivery_id, attempt, broken, policy=self._policy, rng=self._rng, now=now, provable=True
        )

    def _is_back(self, due: Delivery, attempt: int) -> bool:
        """Ask a destination that is away whether it is back; put the delivery off when it is not."""
        destination = self._settings.destination_named(due.destination)
        if destination is None:
            return True  # the attempt itself says what is wrong
        answer = self._archive_of(destination).echo()
        if answer.kind != "retry" or answer.status is not None:
            return True
        self._outbox.still_away(due.id, attempt, answer, policy=self._policy, now=self._clock.now())
        return False

    def _verifies(self, due: Delivery) -> bool:
        destination = self._settings.destination_named(due.destination)
        return destination is not None and destination.verify != "none"

    def _verify(self, due: Delivery, attempt: int) -> None:
        """Ask for a report that was stored; the archive's own answer may overtake what is written here."""
        destination = self._settings.destination_named(due.destination)
        if destination is None:
            check = Check("impossible", None, f"Destination {due.destination} is no longer in the settings.")
        else:
            check = self._check(due, attempt, destination)
        state = self._outbox.settle_check(
            due.id, attempt, check, policy=self._policy, rng=self._rng, now=self._clock.now()
        )
        self._say(due, attempt, state, check.text)

    def _check(self, due: Delivery, attempt: int, destination: Destination) -> Check:
        """Ask in the way that the settings say and the destination offers: commitment, else query."""
        archive = self._archive_of(destination)
        offers = self._offers(due.destination, archive)
        if isinstance(offers, SendResult):
            return Check("unreachable", None, offers.text)
        unanswered = due.transaction_uid is not None and due.checks >= _QUESTIONS
        if destination.verify != "query" and STORAGE_COMMITMENT in offers and not unanswered:
            transaction_uid = f"2.25.{secrets.randbits(128)}"  # a new one each time: archives choke on repeats
            self._outbox.note_transaction(due.id, attempt, transaction_uid)
            check = archive.commit(transaction_uid, due.sop_class_uid, due.sop_instance_uid)
            if check.kind != "impossible":
                return check
        if destination.verify != "commitment" and STUDY_ROOT_FIND in offers:
            series_uid = ReportRecord.from_json(due.record).series_instance_uid
            return archive.holds(due.study_uid, series_uid, due.sop_instance_uid)
        return Check("impossible", None, _cannot_be_asked(destination, unanswered=unanswered))

    def _offers(self, name: str, archive: Archive) -> frozenset[str] | SendResult:
        """Give which ways to ask an archive accepts, asked for at most once a day."""
        known = self._destinations.offers(name, now=self._clock.now())
        if known is not None:
            return known
        accepted = archive.accepts((STORAGE_COMMITMENT, STUDY_ROOT_FIND))
        if not isinstance(accepted, SendResult):
            self._destinations.keep_offers(name, accepted, now=self._clock.now())
        return accepted

    def _say(self, due: Delivery, attempt: int, state: DeliveryState | None, why: str) -> None:
        log.info(
            "Delivery attempt",
            study=due.study_uid,
            destination=due.destination,
            attempt=attempt,
            state=None if state is None else state.value,
            why=why,
        )

    def _send(self, due: Delivery) -> dict[str, object]:
        destination = self._settings.destination_named(due.destination)
        if destination is None:
            text = f"Destination {due.destination} is no longer in the settings."
            return _kept(SendResult("refused", None, text))
        try:
            dicom = (self._settings.storage.folder / due.path).read_bytes()
        except FileNotFoundError:
            return _kept(SendResult("refused", None, "The report's file is gone from the disk; it is not sent."))
        if hashlib.sha256(dicom).hexdigest() != due.sha256:
            return _kept(SendResult("refused", None, "The report's file was changed on disk; it is not sent."))
        archive = self._archive_of(destination)
        result = archive.store(dicom)
        if result.status != _CLASS_NOT_SUPPORTED or due.sop_class_uid != _3D:
            return _kept(result)
        accepted = archive.accepts((_PLAIN,))
        if isinstance(accepted, SendResult):
            return _kept(accepted)
        return _kept(result, other_form=_PLAIN in accepted)

    def _send_other_form(self, due: Delivery, attempt: int, cancelled: Cancelled) -> None:
        """Write the same result as Comprehensive SR, a document of its own, and queue it instead."""
        record = replace(ReportRecord.from_json(due.record), sr="comprehensive")
        images = [
            self._settings.storage.folder / image.path
            for image in self._studies.images(due.study_uid, due.series_uid)
        ]
        filed = file_report(record, images, self._settings.storage.folder, self._reader, cancelled)
        new = NewReport(
            **filed,
            study_uid=due.study_uid,
            series_uid=due.series_uid,
            revision=due.revision,
            destinations=(due.destination,),
            whole_study=self._settings.study.series == "best",
        )
        why = f"{due.destination} does not take Comprehensive 3D SR; Comprehensive SR is sent instead."
        self._outbox.replace(due.id, attempt, new, why=why, now=self._clock.now())
        log.warning("Other form of report", study=due.study_uid, why=why)


def _kept(result: SendResult, *, other_form: bool = False) -> dict[str, object]:
    return {"kind": result.kind, "status": result.status, "text": result.text, "other_form": other_form}


def _cannot_be_asked(destination: Destination, *, unanswered: bool) -> str:
    name = destination.name
    if unanswered:
        return (
            f"{name} did not answer our storage commitment request; are our AE title, host and port entered there? "
            "Sent, not verified."
        )
    ways = {"auto": "neither storage commitment nor queries", "commitment": "no storage commitment"}
    return f"{name} offers us {ways.get(destination.verify, 'no queries')}. Sent, not verified."
