"""The rule that says whether a study is complete now, or when to look again; pure, the clock is an argument.

Nothing in DICOM tells that a study is complete (decisions 0050 and 0105): a study is taken when all that can be
asked agrees that it is whole, or when nothing new has arrived for a while, or when it has waited long enough.
Times are those of receipt, on our clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

QUIET_FLOOR_S = 2.0  # shorter pauses happen inside one transfer


class Counts(StrEnum):
    """How an archive's counts of a study compare with what arrived here.

    ``MORE``: it holds more images of a series that we have too. ``OTHER``: the counts differ in another way, or
    it holds whole series that we do not have. ``UNKNOWN``: nobody could be asked, or gave no counts.
    """

    EQUAL = "equal"
    MORE = "more"
    OTHER = "other"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found out about a set of images; worth nothing as soon as another image arrives.

    Attributes
    ----------
    images_at
        When the last image of that set arrived.
    counts
        The archive's counts beside ours.
    geometry
        Whether the slices lie on one uniform grid without a gap; ``None``: not looked at.
    lungs
        Whether the lungs end inside the volume; ``None``: not looked at.
    """

    images_at: float
    counts: Counts = Counts.UNKNOWN
    geometry: bool | None = None
    lungs: bool | None = None


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """What is known of a study that is being received.

    Attributes
    ----------
    holds_ct
        Whether any instance is a CT image.
    waiting_since
        When the study began to wait: its first instance, or the one that brought it back; seconds since the epoch.
    last_received_at
        When the last instance arrived.
    not_before
        An earlier look found slices missing and asked for patience until then; ``None`` otherwise.
    association_open
        Whether the sender has an association open.
    proof
        The last proof; ``None`` when nobody asked.
    """

    holds_ct: bool
    waiting_since: float
    last_received_at: float
    not_before: float | None = None
    association_open: bool = False
    proof: Proof | None = None

    @property
    def counts(self) -> Counts:
        """The archive's counts, as far as they speak of the images that are here now."""
        return self.proof.counts if self.proof and self.proof.images_at == self.last_received_at else Counts.UNKNOWN

    @property
    def provably_whole(self) -> bool:
        """Whether everything that can be asked agrees; each answer alone proves nothing."""
        proof = self.proof
        return bool(
            proof
            and self.counts is Counts.EQUAL
            and proof.geometry
            and proof.lungs
            and not self.association_open
            and self.not_before is None
        )


@dataclass(frozen=True, slots=True)
class Ready:
    """Take the study now; ``timed_out`` when images were still arriving or missing."""

    why: str
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class NoCt:
    """There is nothing in the study for this node."""

    why: str


@dataclass(frozen=True, slots=True)
class LookAgainAt:
    """Wait; ``at`` is in seconds since the epoch."""

    at: float
    why: str


def readiness(
    facts: StudyFacts, *, quiet_s: float, max_wait_s: float, gap_wait_s: float = 0.0, now: float
) -> Ready | NoCt | LookAgainAt:
    """Say whether a study is complete.

    Parameters
    ----------
    facts
        The study.
    quiet_s
        A study is complete when nothing arrived for so long; at least 2 s.
    max_wait_s
        A study is taken after so long, whatever still arrives.
    gap_wait_s
        How long after its last image a study is waited for of which the archive holds more than we do.
    now
        The time; seconds since the epoch.

    Returns
    -------
    Ready, NoCt or LookAgainAt
        The latter with the earliest time at which the answer can differ if nothing arrives and no proof comes.
    """
    quiet_at = facts.last_received_at + max(quiet_s, QUIET_FLOOR_S)
    patient_at = max(quiet_at, _patience(facts, gap_wait_s))
    at_last = facts.waiting_since + max_wait_s
    if facts.holds_ct and facts.provably_whole:
        return Ready("the archive holds the same images, they form a whole volume, and nobody is sending")
    if now >= patient_at:
        why = f"no new image for {now - facts.last_received_at:.0f} s"
        return Ready(why) if facts.holds_ct else NoCt(why)
    if now >= at_last:
        why = f"waited for {max_wait_s:.0f} s, the longest wait"
        return Ready(why, timed_out=True) if facts.holds_ct else NoCt(why)
    why = "slices are missing that may still arrive" if patient_at > quiet_at else "images may still arrive"
    return LookAgainAt(min(patient_at, at_last), why)


def _patience(facts: StudyFacts, gap_wait_s: float) -> float:
    """Until when images are waited for that are known, or believed, to exist."""
    asked = float("-inf") if facts.not_before is None else facts.not_before
    return max(asked, facts.last_received_at + gap_wait_s) if facts.counts is Counts.MORE else asked
