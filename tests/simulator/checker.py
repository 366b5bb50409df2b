"""What must be true of every history: compares what was sent, acknowledged, stored and reported."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pipeline.domain.outcome import Code, Outcome
from scp_node.ledger import tables
from scp_node.ledger.states import FINISHED, DeliveryState, StudyState
from scp_node.spool import INCOMING
from sr_writer.record import ReportRecord
from tests.simulator.images import CT, UNREADABLE, Image, digest, read_image, report_bytes
from tests.simulator.world import judge

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tests.simulator.history import History, Sender

Row = Any
_STUDIES = sa.select(tables.study)
_INSTANCES = sa.select(tables.instance)
_REPORTS = sa.select(tables.report)
_DELIVERIES = sa.select(tables.delivery)
QUESTIONS = 2
"""Before a report is called not verified, an archive that can be asked has put the question off so often."""


def broken_promises(history: History) -> list[str]:
    """Give a sentence for each promise that the node broke; none for a history as it has to be."""
    return list(_Check(history).all())


class _Check:
    def __init__(self, history: History) -> None:
        self._history = history
        with history.engine.connect() as connection:
            self._studies = {row.study_uid: row for row in connection.execute(_STUDIES)}
            self._instances = connection.execute(_INSTANCES).all()
            self._reports = {row.sop_instance_uid: row for row in connection.execute(_REPORTS)}
            self._deliveries = connection.execute(_DELIVERIES).all()

    def all(self) -> Iterator[str]:
        if not self._history.rested:
            yield "The node did not come to rest."
        for sender in self._history.senders:
            yield from self._nothing_lost(sender)
            yield from self._one_visible_end(sender)
        yield from self._nothing_half_written()
        yield from self._reports_as_recorded()
        yield from self._one_report_for_each_analysis()
        yield from self._deliveries_are_true()
        yield from self._revisions_in_order()

    def _nothing_lost(self, sender: Sender) -> Iterator[str]:
        """What was acknowledged last under a UID is what counts, and its file holds it."""
        newest = {row.sop_instance_uid: row for row in self._instances if row.is_newest}
        folder = self._history.yard.storage
        for uid, image in sender.last.items():
            row = newest.get(uid)
            if row is None or row.path is None:
                yield f"{uid} was acknowledged and is not in the ledger."
            elif not (folder / row.path).is_file() or read_image(folder / row.path) != image:
                yield f"{uid}: the file behind its newest row is not what was acknowledged last."

    def _one_visible_end(self, sender: Sender) -> Iterator[str]:
        if not sender.last:
            return
        images = list(sender.last.values())
        row = self._studies.get(images[0].study)
        if row is None:
            yield f"{images[0].study} was accepted and is unknown."
        elif row.state not in FINISHED:
            yield f"{row.study_uid} has not ended: {row.state}."
        else:
            yield from self._true_end(row, [image for image in images if image.sop_class == CT])

    def _true_end(self, row: Row, images: Sequence[Image]) -> Iterator[str]:
        """The end is the one that the images call for, and the newest report speaks of all of them."""
        study, state = row.study_uid, StudyState(row.state)
        if not images:
            if state is not StudyState.NO_CT:
                yield f"{study} holds no CT image and ended as {state}."
            return
        if state is StudyState.FAILED:
            if not any(kind.startswith(("killed", "fault")) for kind in self._history.counts):
                yield f"{study} failed, and nothing had gone wrong."
            return
        if state is StudyState.NOT_ANALYSED and Code.TOO_MANY_REVISIONS in row.codes:
            return
        wanted, analysed = self._wanted(images)
        if state is not wanted:
            yield f"{study} ended as {state}, its images call for {wanted}."
        elif wanted is StudyState.REPORTED:
            yield from self._speaks_of(study, analysed)

    def _wanted(self, images: Sequence[Image]) -> tuple[StudyState, list[str]]:
        """Say how a study of these images has to end, and the digests of what has to be reported."""
        eligible = [verdict.series_uid for verdict in judge(images).eligible]
        series = [[image for image in images if image.series == uid] for uid in eligible]
        readable = [members for members in series if members[0].content != UNREADABLE]
        if not readable:
            return StudyState.NOT_ANALYSED, []
        every = self._history.settings.study.series == "all"
        return StudyState.REPORTED, [digest(members) for members in (readable if every else readable[:1])]

    def _speaks_of(self, study: str, digests: Iterable[str]) -> Iterator[str]:
        reports = [row for row in self._reports.values() if row.study_uid == study]
        newest = [row for row in reports if not any(self._replaces(newer, row) for newer in reports)]
        models = [ReportRecord.from_json(row.record).model for row in newest]
        told = {model.sha256 for model in models if model is not None}
        if set(digests) - told:
            yield f"{study}: its newest reports do not speak of the images as they are now."

    def _nothing_half_written(self) -> Iterator[str]:
        left = list((self._history.yard.storage / INCOMING).iterdir())
        if left:
            yield f"{len(left)} unfinished files are left in the spool."
        for row in self._instances:
            if row.path is not None and read_image(self._history.yard.storage / row.path) is None:
                yield f"{row.sop_instance_uid}: its file is not whole."

    def _reports_as_recorded(self) -> Iterator[str]:
        """No archive was ever sent anything but the bytes that belong to a record of the ledger."""
        due = {uid: report_bytes(ReportRecord.from_json(row.record)) for uid, row in self._reports.items()}
        for archive in self._history.archives.values():
            for told in archive.told:
                if told.uid not in due:
                    yield f"{archive.name} holds {told.uid}, of which the ledger knows nothing."
                elif told.dicom != due[told.uid]:
                    yield f"{archive.name}: {told.uid} differs from its record."

    def _one_report_for_each_analysis(self) -> Iterator[str]:
        """One result is one document at a destination, however often it was sent."""
        documents: dict[tuple[Any, ...], set[str]] = defaultdict(set)
        for row in self._deliveries:
            report = self._reports[row.sop_instance_uid]
            documents[row.destination, report.study_uid, report.series_uid, report.revision].add(
                report.sop_instance_uid
            )
        for what, uids in documents.items():
            if len(uids) > 1:
                yield f"{what}: {len(uids)} documents for one result."

    def _deliveries_are_true(self) -> Iterator[str]:
        """What is called delivered is there; what is not there is said not to be, or was replaced."""
        for row in self._deliveries:
            archive, uid = self._history.archives[row.destination], row.sop_instance_uid
            answered = any(told.uid == uid and told.answered for told in archive.told)
            match DeliveryState(row.state):
                case DeliveryState.DELIVERED if uid not in archive.kept:
                    yield f"{uid} is called delivered to {row.destination} and is not there."
                case DeliveryState.UNVERIFIED if not answered:
                    yield f"{uid} is called sent to {row.destination}, which never said so."
                case DeliveryState.UNVERIFIED if archive.offers and archive.put_off[uid] < QUESTIONS:
                    yield f"{uid} is not verified at {row.destination}, which was not asked {QUESTIONS} times."
                case DeliveryState.CANCELLED if not self._replaced(row):
                    yield f"{uid} was cancelled for {row.destination}, and nothing replaces it."
                case DeliveryState.FAILED_FINAL:
                    yield f"{uid} was given up for {row.destination}: {row.last_error}"

    def _replaced(self, delivery: Row) -> bool:
        """Whether a newer report on the same matter goes to the same destination."""
        mine = self._reports[delivery.sop_instance_uid]
        return any(
            row.destination == delivery.destination and self._replaces(self._reports[row.sop_instance_uid], mine)
            for row in self._deliveries
        )

    def _replaces(self, newer: Row, older: Row) -> bool:
        """Whether a report takes the place of another; where all series are reported, each speaks for itself."""
        return (
            newer.study_uid == older.study_uid
            and newer.revision > older.revision
            and (
                self._history.settings.study.series == "best"
                or newer.series_uid == older.series_uid
                or older.outcome == Outcome.NOT_ANALYSED
            )
        )

    def _revisions_in_order(self) -> Iterator[str]:
        """No report comes to an archive after one that replaces it: who opens the last one reads what counts."""
        for archive in self._history.archives.values():
            there: list[Row] = []
            for told in archive.told:
                row = self._reports.get(told.uid)
                if row is None or row in there or not told.kept:
                    continue
                for newer in there:
                    if self._replaces(newer, row):
                        yield f"{archive.name}: revision {row.revision} of {row.study_uid} after {newer.revision}."
                there.append(row)
