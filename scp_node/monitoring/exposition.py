"""The node's metrics in Prometheus' form: the ledger's figures, the listener's counters, the disk.

Labels are states, codes and names of the settings. No UID and nothing of a patient is among them.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

from scp_node.health import live_workers, reasons
from scp_node.ledger import figures
from scp_node.ledger.states import StudyState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prometheus_client.core import Metric

    from scp_node.health import Seen
    from scp_node.ledger.figures import Figures, NumberedEvent
    from scp_node.ledger.overview import Ledger
    from scp_node.settings import Settings

PREFIX: Final = "nodule_node_"
_SECONDS: Final = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21600.0, 86400.0, 604800.0)
_ENTERS: Final = {
    "study_ready": StudyState.QUEUED,
    "analysing": StudyState.ANALYSING,
    "study_waits": StudyState.RECEIVING,
    "retry": StudyState.RECEIVING,
}
_ENDS: Final = frozenset({"reported", "not_analysed", "no_ct", "failed"})
_COMMIT_MARGIN_S: Final = 5.0


class Durations:
    """Histograms of what took how long, fed by following the ledger from its beginning.

    So they are the same after a restart, which Prometheus otherwise sees as a reset.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(PREFIX + name, text, labels, buckets=_SECONDS, registry=registry)

        self._in_state = histogram("state_seconds", "Time that studies spent in a state.", "state")
        self._detection = histogram("detection_seconds", "Time to analyse one series, with loading of its images.")
        self._delivery = histogram(
            "delivery_seconds", "Time from a finished report to its delivery.", "destination"
        )
        self._events = Counter(PREFIX + "events", "Events of the ledger, by kind.", ["kind"], registry=registry)
        self._entered: dict[str, tuple[StudyState, float]] = {}
        self._last_event, self._until = 0, 0.0

    def follow(self, ledger: Ledger, now: float) -> None:
        """Take in what happened since the last call."""
        while events := figures.events_after(ledger, self._last_event, now=now):
            self._last_event = events[-1].id
            for event in events:
                self._take(event)
        until = now - _COMMIT_MARGIN_S
        for seconds in figures.detection_seconds(ledger, self._until, until):
            self._detection.observe(max(0.0, seconds))
        for destination, seconds in figures.delivery_seconds(ledger, self._until, until):
            self._delivery.labels(destination).observe(max(0.0, seconds))
        self._until = until

    def _take(self, event: NumberedEvent) -> None:
        self._events.labels(event.kind).inc()
        if event.study_uid is None or (event.kind not in _ENTERS and event.kind not in _ENDS):
            return
        known = self._entered.pop(event.study_uid, None)
        if known is not None:
            state, since = known
            self._in_state.labels(state.value).observe(max(0.0, event.at - since))
        if event.kind in _ENTERS:
            self._entered[event.study_uid] = (_ENTERS[event.kind], event.at)


class Moment:
    """Collector of what is true now."""

    def __init__(self) -> None:
        self.seen: Seen | None = None
        self.settings: Settings | None = None

    def collect(self) -> Iterator[Metric]:
        """Give the gauges; called by the library for each request."""
        yield InfoMetricFamily(PREFIX + "build", "The running version.", {"version": version("nodule-node")})
        if self.seen is None or self.settings is None:
            return
        seen = self.seen
        healthy = 0.0 if reasons(seen, self.settings) else 1.0
        yield GaugeMetricFamily(PREFIX + "healthy", "Whether /health finds nothing wrong.", healthy)
        yield GaugeMetricFamily(PREFIX + "disk_free_bytes", "Free space for images.", float(seen.disk.free))
        yield GaugeMetricFamily(
            PREFIX + "disk_floor_bytes", "Free space below which images are refused.", float(seen.disk.floor)
        )
        listening = GaugeMetricFamily(
            PREFIX + "listening", "Whether somebody answers on a port of ours.", labels=["port"]
        )
        for endpoint in seen.endpoints:
            listening.add_metric([str(endpoint.port)], float(endpoint.answers))
        yield listening
        if seen.figures is not None:
            yield from _of_ledger(seen, seen.figures)


class Exposition:
    """Everything that is shown at /metrics.

    Parameters
    ----------
    counters
        The folder of the listener's counters.
    """

    def __init__(self, counters: Path) -> None:
        counters.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.moment = Moment()
        self._registry = CollectorRegistry()
        self._counted = CollectorRegistry()
        self.durations = Durations(self._registry)
        self._registry.register(self.moment)
        MultiProcessCollector(self._counted, path=str(counters))  # type: ignore[no-untyped-call]

    def text(self) -> bytes:
        """Give the page, in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry) + generate_latest(self._counted)


def _of_ledger(seen: Seen, found: Figures) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        PREFIX + "associations_open", "Associations that may bring images now.", float(found.open_associations)
    )
    yield GaugeMetricFamily(PREFIX + "database_bytes", "Size of the database.", float(found.database_bytes))
    studies = GaugeMetricFamily(PREFIX + "studies", "Studies, by state.", labels=["state"])
    for state in StudyState:
        studies.add_metric([state.value], float(found.studies.get(state.value, 0)))
    yield studies
    age = GaugeMetricFamily(
        PREFIX + "queue_age_seconds", "How long the longest-waiting study has been in a state.", labels=["state"]
    )
    ages = {waiting.state: seen.at - waiting.since for waiting in found.waiting}
    for state in (StudyState.RECEIVING, StudyState.QUEUED, StudyState.ANALYSING):
        age.add_metric([state.value], max(0.0, ages.get(state.value, 0.0)))
    yield age
    yield from _of_deliveries(seen, found)
    live = live_workers(seen)
    lease = GaugeMetricFamily(
        PREFIX + "worker_lease_seconds", "How long the lease of a worker still runs; 0: dead.", labels=["slot"]
    )
    for worker in found.workers:
        lease.add_metric([worker.slot], worker.lease_ends_at - seen.at if worker.slot in live else 0.0)
    yield lease
    yield GaugeMetricFamily(PREFIX + "workers_alive", "Workers with a lease that runs.", float(len(live)))


def _of_deliveries(seen: Seen, found: Figures) -> Iterator[Metric]:
    deliveries = GaugeMetricFamily(
        PREFIX + "deliveries", "Reports, by destination and state.", labels=["destination", "state"]
    )
    for (destination, state), count in found.deliveries.items():
        deliveries.add_metric([destination, state], float(count))
    yield deliveries
    age = GaugeMetricFamily(
        PREFIX + "delivery_age_seconds",
        "Age of the oldest report that waits for a destination.",
        labels=["destination"],
    )
    for destination in dict.fromkeys(name for name, _ in found.deliveries):
        age.add_metric([destination], max(0.0, seen.at - found.oldest_delivery.get(destination, seen.at)))
    yield age
    yield GaugeMetricFamily(
        PREFIX + "dead_letters", "Reports that were given up or refused.", float(len(found.dead_letters))
    )
    breaker = GaugeMetricFamily(
        PREFIX + "breaker_open", "Whether a destination counts as away.", labels=["destination"]
    )
    for place in found.destinations:
        breaker.add_metric([place.name], float(place.away_since is not None))
    yield breaker
