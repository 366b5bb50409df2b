"""What the listener counts of the network, for the metrics process: what the ledger does not know.

Each process counts in files of its own (prometheus_client's multiprocess mode), so that counting costs no
transaction and survives a crash; the metrics process adds the files up (decision 0110).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from scp_node.receive import Received

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_STORE_BUCKETS_S: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class ListenerCounters:
    """Counters and histograms of the listener; labels are codes of the standard and names of ours, never a peer."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        registry = CollectorRegistry()
        self._associations = Counter(
            "nodule_node_associations", "Association requests, by outcome.", ["outcome"], registry=registry
        )
        self._rejections = Counter(
            "nodule_node_association_rejections",
            "Rejected association requests, by result/source/reason (PS3.8 Table 9-21).",
            ["code"],
            registry=registry,
        )
        self._ended = Counter(
            "nodule_node_associations_ended", "Associations that ended, by how.", ["how"], registry=registry
        )
        self._instances = Counter(
            "nodule_node_instances",
            "C-STORE requests, by the answer given (docs/codes.md).",
            ["answer"],
            registry=registry,
        )
        self._bytes = Counter("nodule_node_received_bytes", "Bytes of accepted data sets.", registry=registry)
        self._seconds = Histogram(
            "nodule_node_store_seconds",
            "Time from a whole C-STORE request to its answer.",
            buckets=_STORE_BUCKETS_S,
            registry=registry,
        )
        for outcome in ("accepted", "rejected"):
            self._associations.labels(outcome)
        for how in ("released", "aborted"):
            self._ended.labels(how)
        for code in ("1/1/3", "1/1/7", "2/3/1", "2/3/2"):
            self._rejections.labels(code)
        self._instances.labels("STORED")

    def accepted(self) -> None:
        """Count an association."""
        self._associations.labels("accepted").inc()

    def rejected(self, code: tuple[int, int, int]) -> None:
        """Count a rejected association; result, source, reason."""
        self._associations.labels("rejected").inc()
        self._rejections.labels("/".join(map(str, code))).inc()

    def ended(self, how: str) -> None:
        """Count the end of an association: ``released`` or ``aborted``."""
        self._ended.labels(how).inc()

    def answered(self, received: Received, size_bytes: int, seconds: float) -> None:
        """Count an answer to a C-STORE request."""
        self._instances.labels(received.answer.name).inc()
        self._seconds.observe(seconds)
        if received.stored is not None:
            self._bytes.inc(size_bytes)


def shared_counters(folder: Path) -> ListenerCounters:
    """Give counters whose values lie in files of this process in ``folder``.

    The library reads the variable when it is first imported, so this comes before that in its process.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ[FOLDER_VARIABLE] = str(folder)
    return ListenerCounters()


def forget_counters(folder: Path) -> None:
    """Delete the files of processes that are gone: counters begin at zero, as Prometheus expects of a restart."""
    for file in folder.glob("*.db"):
        file.unlink(missing_ok=True)
