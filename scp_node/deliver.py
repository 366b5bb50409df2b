"""The use case of delivery: one report to one destination, once; what follows is the outbox's rule.

Sending again sends the same bytes under the same UID, so an attempt that was interrupted is simply repeated.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from scp_node.children import file_report
from scp_node.ledger.outbox import NewReport
from scp_node.ports import SendResult
from sr_writer.record import SOP_CLASS_UIDS, ReportRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from scp_node.children import Cancelled, Reader
    from scp_node.ledger.outbox import Delivery, Outbox, RetryPolicy
    from scp_node.ledger.steps import Steps
    from scp_node.ledger.studies import Studies
    from scp_node.ports import Archive, Clock
    from scp_node.settings import Destination, Settings

_3D, _PLAIN = SOP_CLASS_UIDS["comprehensive3d"], SOP_CLASS_UIDS["comprehensive"]
_CLASS_NOT_SUPPORTED = 0x0122

log = structlog.get_logger()


class Deliveries:
    """Takes reports to their destinations."""

    def __init__(
        self,
        settings: Settings,
        *,
        studies: Studies,
        outbox: Outbox,
        steps: Steps,
        reader: Reader,
        archive_of: Callable[[Destination], Archive],
        policy: RetryPolicy,
        clock: Clock,
        rng: Random,
    ) -> None:
        self._settings = settings
        self._studies = studies
        self._outbox = outbox
        self._steps = steps
        self._reader = reader
        self._archive_of = archive_of
        self._policy = policy
        self._clock = clock
        self._rng = rng

    def attempt(self, delivery_id: int, attempt: int, cancelled: Cancelled) -> None:
        """Make one attempt and write down how it ended."""
        due = self._outbox.delivery(delivery_id)
        kept = self._steps.once(f"delivery:{delivery_id}:{attempt}", lambda: self._send(due))
        if kept["other_form"]:
            self._send_other_form(due, attempt, cancelled)
            return
        result = SendResult(kept["kind"], kept["status"], kept["text"])
        state = self._outbox.settle(
            delivery_id, attempt, result, policy=self._policy, rng=self._rng, now=self._clock.now()
        )
        log.info(
            "Delivery attempt",
            study=due.study_uid,
            destination=due.destination,
            attempt=attempt,
            state=None if state is None else state.value,
            why=result.text,
        )

    def interrupted(self, delivery_id: int, attempt: int, how: str) -> None:
        """Plan the next attempt after one whose run broke off; nothing when it was settled."""
        broken = SendResult("retry", None, how)
        self._outbox.settle(delivery_id, attempt, broken, policy=self._policy, rng=self._rng, now=self._clock.now())

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
        )
        why = f"{due.destination} does not take Comprehensive 3D SR; Comprehensive SR is sent instead."
        self._outbox.replace(due.id, attempt, new, why=why, now=self._clock.now())
        log.warning("Other form of report", study=due.study_uid, why=why)


def _kept(result: SendResult, *, other_form: bool = False) -> dict[str, object]:
    return {"kind": result.kind, "status": result.status, "text": result.text, "other_form": other_form}
