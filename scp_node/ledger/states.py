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
    """Where the delivery of one report to one destination stands.

    ``queued -> sending -> sent -> verifying -> delivered``: an archive's Success is not yet a proof that it has
    the report. One that is found missing goes back to ``queued``. Where nothing can be asked, ``unverified`` is
    the end: sent, not verified.
    """

    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    VERIFYING = "verifying"
    DELIVERED = "delivered"
    UNVERIFIED = "unverified"
    FAILED_FINAL = "failed_final"
    CANCELLED = "cancelled"


class Purpose(StrEnum):
    """What an instance is to this node: an image to analyse, something else, or a report of its own."""

    CT = "ct"
    OTHER = "other"
    OWN = "own"


class EventKind(StrEnum):
    """What listener and supervisor note in ``nn_event``; other rooms add kinds of theirs."""

    REFUSED = "refused"
    QUARANTINED = "quarantined"
    REJECTED_ASSOCIATION = "rejected_association"
    CHANGED = "instance_changed"
    PRIVATE_CLASS = "private_class"
    UID_NONCONFORMANT = "uid_nonconformant"
    OWN_REPORT = "own_report"
    FILE_LOST = "file_lost"
    FILE_INDEXED = "file_indexed"
    TLS_REFUSED = "tls_refused"
    NODE_STARTED = "node_started"
    NODE_STOPPED = "node_stopped"
    SETTINGS_CHANGED = "settings_changed"
    SETTINGS_REFUSED = "settings_refused"


STORED = frozenset({DeliveryState.SENT, DeliveryState.VERIFYING, DeliveryState.DELIVERED, DeliveryState.UNVERIFIED})
"""Deliveries whose report the archive said it stored, proven or not."""

FINISHED = frozenset({StudyState.REPORTED, StudyState.NOT_ANALYSED, StudyState.NO_CT, StudyState.FAILED})
"""States in which nothing more happens by itself until an image arrives or a person asks."""
