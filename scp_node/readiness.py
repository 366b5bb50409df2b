"""The rule that says whether a study is complete now, or when to look again; pure, the clock is an argument.

Nothing in DICOM tells that a study is complete (decision 0050): a study is taken when nothing new has arrived
for a while, or when it has waited long enough. Times are those of receipt, on our clock.
"""

from __future__ import annotations

from dataclasses import dataclass

QUIET_FLOOR_S = 2.0  # shorter pauses happen inside one transfer


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
    """

    holds_ct: bool
    waiting_since: float
    last_received_at: float
    not_before: float | None = None


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


def readiness(facts: StudyFacts, *, quiet_s: float, max_wait_s: float, now: float) -> Ready | NoCt | LookAgainAt:
    """Say whether a study is complete.

    Parameters
    ----------
    facts
        The study.
    quiet_s
        A study is complete when nothing arrived for so long; at least 2 s.
    max_wait_s
        A study is taken after so long, whatever still arrives.
    now
        The time; seconds since the epoch.

    Returns
    -------
    Ready, NoCt or LookAgainAt
        The latter with the earliest time at which the answer can differ if nothing arrives.
    """
    quiet_at = facts.last_received_at + max(quiet_s, QUIET_FLOOR_S)
    patient_at = quiet_at if facts.not_before is None else max(quiet_at, facts.not_before)
    at_last = facts.waiting_since + max_wait_s
    if now >= patient_at:
        why = f"no new image for {now - facts.last_received_at:.0f} s"
        return Ready(why) if facts.holds_ct else NoCt(why)
    if now >= at_last:
        why = f"waited for {max_wait_s:.0f} s, the longest wait"
        return Ready(why, timed_out=True) if facts.holds_ct else NoCt(why)
    if patient_at > quiet_at:
        return LookAgainAt(min(patient_at, at_last), "slices are missing that may still arrive")
    return LookAgainAt(min(patient_at, at_last), "images may still arrive")
