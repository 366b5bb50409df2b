"""The use case behind an early start: ask the archive and the images whether a waiting study is whole.

What is found is kept in the ledger as a proof; :mod:`scp_node.readiness` alone decides what follows from it.
Nothing is kept in memory, so that a restart or a second worker goes on where this one stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from scp_node.children import ChildFailure
from scp_node.ports import SendResult
from scp_node.readiness import Counts, Proof
from sr_writer.record import ReportRecord

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from scp_node.children import Cancelled, Reader
    from scp_node.ledger.proofs import Held, Proofs
    from scp_node.ledger.studies import Studies, WaitingStudy
    from scp_node.ports import ArchiveCounts, Catalogue, Clock
    from scp_node.settings import Destination, Settings

ASK_AGAIN_S = 10.0
"""How often an archive is asked about one study: it may still be receiving, too."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Compared:
    """How an archive's counts compare with ours, in a sentence too."""

    counts: Counts
    text: str


def compare(held: Held, counts: ArchiveCounts, own_series: frozenset[str]) -> Compared:
    """Compare what is here of a study with what the archive says it holds.

    Parameters
    ----------
    held
        Ours, without our own reports.
    counts
        The archive's.
    own_series
        Series of our own reports, which the archive may hold and count.
    """
    series = {uid: count for uid, count in counts.series.items() if uid not in own_series}
    own = [count for uid, count in counts.series.items() if uid in own_series]
    for uid, ours in sorted(held.series.items()):
        theirs = series.get(uid)
        if theirs is not None and theirs > ours:
            return Compared(Counts.MORE, f"The archive holds {theirs} images of series {uid}, {ours} arrived.")
    if counts.study is None or None in own or None in series.values():
        return Compared(Counts.UNKNOWN, "The archive does not say how many images it holds.")
    total = counts.study - sum(count for count in own if count is not None)
    if series == dict(held.series) and total == held.total:
        return Compared(Counts.EQUAL, f"The archive holds the same {total} objects in {len(series)} series.")
    text = f"The archive holds {total} objects in {len(series)} series, {held.total} in {len(held.series)} arrived."
    return Compared(Counts.OTHER, text)


class Prover:
    """Looks for proofs that waiting studies are whole."""

    def __init__(
        self,
        settings: Settings,
        *,
        studies: Studies,
        proofs: Proofs,
        reader: Reader,
        catalogue_of: Callable[[Destination], Catalogue],
        clock: Clock,
        proved: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._proved = proved
        self._studies = studies
        self._proofs = proofs
        self._reader = reader
        self._catalogue_of = catalogue_of
        self._clock = clock

    def loop(self, stop: threading.Event) -> None:
        """Look again and again until told to stop."""
        while not stop.wait(self._settings.worker.poll_s):
            try:
                self.look(stop.is_set)
            except Exception:
                log.exception("Looking for whole studies failed; the quiet time goes on counting.")

    def look(self, cancelled: Cancelled) -> None:
        """Look once at every waiting study whose sender's archive can be asked."""
        if not any(destination.query for destination in self._settings.destinations):
            return
        for seen in self._studies.waiting(now=self._clock.now()):
            facts, now = seen.facts, self._clock.now()
            wanted = facts.holds_ct and not facts.association_open and not facts.provably_whole
            if wanted and self._proofs.due(seen.study_uid, images_at=facts.last_received_at, now=now):
                self._prove(seen, cancelled)

    def _prove(self, seen: WaitingStudy, cancelled: Cancelled) -> None:
        """Ask the archives; only where they agree with us, look into the images, which takes seconds."""
        compared = self._ask(seen.study_uid)
        if compared is None:
            return
        proof, text = Proof(seen.facts.last_received_at, compared.counts), compared.text
        again_at: float | None = self._clock.now() + ASK_AGAIN_S
        if compared.counts is Counts.EQUAL:
            paths = [self._settings.storage.folder / image.path for image in self._studies.images(seen.study_uid)]
            whole = self._reader.look(paths, cancelled)
            if not isinstance(whole, ChildFailure):
                proof = Proof(proof.images_at, proof.counts, whole.geometry, whole.lungs)
                text, again_at = f"{text} {whole.text}", None
        self._proofs.keep(seen.study_uid, proof, text=text, look_again_at=again_at)
        self._proved()
        log.info("Asked whether a study is whole", study=seen.study_uid, counts=proof.counts.value, found=text)

    def _ask(self, study_uid: str) -> Compared | None:
        """Compare with every archive that can be asked about a study; all have to agree."""
        places = self._settings.destinations_for(self._studies.sender(study_uid))
        held = self._proofs.held(study_uid)
        own = frozenset(
            ReportRecord.from_json(record).series_instance_uid for record in self._proofs.our_reports(study_uid)
        )
        answers = [self._compared(place, study_uid, held, own) for place in places if place.query]
        by_doubt = (Counts.MORE, Counts.OTHER, Counts.UNKNOWN, Counts.EQUAL)
        return min(answers, key=lambda answer: by_doubt.index(answer.counts), default=None)

    def _compared(self, place: Destination, study_uid: str, held: Held, own: frozenset[str]) -> Compared:
        counts = self._catalogue_of(place).counts(study_uid)
        if isinstance(counts, SendResult):
            return Compared(Counts.UNKNOWN, f"{place.name}: {counts.text}")
        return compare(held, counts, own)
