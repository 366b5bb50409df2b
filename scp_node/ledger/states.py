"""The states of studies and deliveries, the purposes of instances and the kinds of events: plain words.

``RECEIVING -> QUEUED -> ANALYSING -> REPORTED | NOT_ANALYSED | NO_CT | FAILED``; a new or changed CT instance
takes a study back to ``RECEIVING`` from any of them.
"""

from __future__ import annotations

from enum import StrEnum


class StudyState(StrEnum):
    """Where a study stands."""

    RECEIVING = "RECEIVING"
    QUEUED = "QUEUED"
    ANALYSING = "ANALYSING"
    REPORTED = "REPORTED"
    NOT_ANALYSED = "NOT_ANALYSED"
    NO_CT = "NO_CT"
    FAILED = "FAILED"


class DeliveryState(StrEnum):
    """Where the delivery of one report to one destination stands."""

    QUEUED = "queued"
    SENDING = "sending"
    DELIVERED = "delivered"
    FAILED_FINAL = "failed_final"
    CANCELLED = "cancelled"


class Purpose(StrEnum):
    """What an instance is to this node: an image to analyse, something else, or a report of its own."""

    CT = "ct"
    OTHER = "other"
    OWN = "own"


class EventKind(StrEnum):
    """What the listener notes in ``nn_event``; other rooms add kinds of theirs."""

    REFUSED = "refused"
    QUARANTINED = "quarantined"
    REJECTED_ASSOCIATION = "rejected_association"
    CHANGED = "instance_changed"
    PRIVATE_CLASS = "private_class"
    UID_NONCONFORMANT = "uid_nonconformant"
    OWN_REPORT = "own_report"
    FILE_LOST = "file_lost"
    FILE_INDEXED = "file_indexed"


FINISHED = frozenset({StudyState.REPORTED, StudyState.NOT_ANALYSED, StudyState.NO_CT, StudyState.FAILED})
"""States in which nothing more happens by itself until an image arrives or a person asks."""
