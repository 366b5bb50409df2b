"""``nodule-node status``: how the node is, and where every study stands from its first image on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scp_node.cli.options import ConfigFile, examples, ledger_of, new_app, settings_from, utc_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scp_node.health import Seen
    from scp_node.ledger.figures import Figures
    from scp_node.ledger.overview import DeliveryView, EventView, ReportView, StudyView
    from scp_node.settings import Settings

SCHEMA = 1
DEAD_LETTERS_SHOWN = 10
_DELIVERY_WORDS = {
    "sent": "sent, proof follows",
    "verifying": "sent, proof follows",
    "unverified": "sent, not verified",
}
OTHER_EVENTS = ("refused", "quarantined", "rejected_association", "tls_refused", "instance_changed", "file_lost")

app = new_app()


@app.command(
    "status",
    epilog=examples(
        "nodule-node status",
        "nodule-node status 1.2.840.113619.2.55.3",
        "nodule-node status --json --limit 0",
    ),
)
def status(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="Study Instance UID; default: all.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable: one JSON document on stdout.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Studies and events to show, the last ones; 0: all.")] = 50,
    config: ConfigFile = None,
) -> None:
    """Show how the node is, and where every study stands.

    First the node: listener, workers and their leases, disk, studies by state, what has waited longest,
    deliveries by destination, reports that were given up, and the last problem with what to do about it.

    Then each study with its codes, images, reports and deliveries, from its first image on. States: RECEIVING,
    QUEUED, ANALYSING, then REPORTED, NOT_ANALYSED, NO_CT or FAILED. Below stand objects and senders that were
    refused, and objects kept aside. Times are UTC. No patient data is shown. 'nodule-node explain STUDY' says why;
    docs/codes.md explains the codes.
    """
    settings = settings_from(config)
    engine = ledger_of(settings)
    if engine is None:
        typer.echo(json.dumps(document({}, (), ())) if as_json else "The node has not run here yet: no studies.")
        return
    from scp_node.clock import SystemClock
    from scp_node.health import Seen, disk, endpoints
    from scp_node.ledger import overview
    from scp_node.ledger.figures import read_figures

    counts = overview.count_by_state(engine)
    studies = overview.studies(engine, study_uid=study, limit=limit or None)
    events = overview.events(engine, study_uid=study, kinds=OTHER_EVENTS, limit=limit or None)
    seen = Seen(SystemClock().now(), endpoints(settings), disk(settings.storage), read_figures(engine))
    engine.dispose()
    if as_json:
        node = node_document(seen, settings)
        typer.echo(json.dumps(document(counts, studies, events) | {"node": node}, indent=2))
        return
    if not study:
        for line in node_lines(seen, settings):
            typer.echo(line)
    for line in lines(counts, studies, events):
        typer.echo(line)
    if study and not studies:
        raise typer.Exit(1)


def document(counts: dict[str, int], studies: Sequence[StudyView], events: Sequence[EventView]) -> dict[str, Any]:
    """Give the document of ``--json``; times as ISO 8601, UTC."""
    return {
        "schema": SCHEMA,
        "counts": counts,
        "studies": [_study_document(study) for study in studies],
        "events": [
            {"at": utc_text(e.at), "study_uid": e.study_uid, "kind": e.kind, "code": e.code, "text": e.text}
            for e in events
        ],
    }


def lines(counts: dict[str, int], studies: Sequence[StudyView], events: Sequence[EventView]) -> Iterator[str]:
    """Give the text for people, line by line."""
    if not studies:
        yield "No studies."
    for study in studies:
        yield from _study_lines(study)
    if events:
        yield "Refused, rejected or kept aside:"
        yield from (f"  {utc_text(event.at)}  {event.kind}  {event.text}" for event in events)
    if counts:
        yield "In all: " + ", ".join(f"{count} {state}" for state, count in counts.items())


def node_document(seen: Seen, settings: Settings) -> dict[str, Any]:
    """Give what ``--json`` says of the node itself; ages in seconds."""
    from scp_node.health import live_workers, reasons, what_to_do

    found = _figures(seen)
    live, problem = live_workers(seen), found.last_problem
    return {
        "ae_title": settings.node.ae_title,
        "healthy": not reasons(seen, settings),
        "reasons": [{"text": r.text, "what_to_do": r.what_to_do} for r in reasons(seen, settings)],
        "listeners": [{"host": e.host, "port": e.port, "answers": e.answers} for e in seen.endpoints],
        "open_associations": found.open_associations,
        "workers": [
            {"slot": w.slot, "alive": w.slot in live, "lease_ends_at": utc_text(w.lease_ends_at)}
            for w in found.workers
        ],
        "waiting": [
            {"study_uid": w.study_uid, "state": w.state, "since": utc_text(w.since), "age_s": seen.at - w.since}
            for w in found.waiting
        ],
        "deliveries": [
            {"destination": destination, "state": state, "count": count}
            for (destination, state), count in found.deliveries.items()
        ],
        "destinations": [
            {
                "name": d.name,
                "away_since": utc_text(d.away_since) or None,
                "next_probe_at": utc_text(d.next_probe_at) or None,
                "failures": d.failures,
                "why": d.why,
            }
            for d in found.destinations
        ],
        "dead_letters": [
            {"study_uid": d.study_uid, "destination": d.destination, "since": utc_text(d.since), "error": d.error}
            for d in found.dead_letters
        ],
        "disk": {"free_bytes": seen.disk.free, "total_bytes": seen.disk.total, "floor_bytes": seen.disk.floor},
        "last_problem": None
        if problem is None
        else {
            "at": utc_text(problem.at),
            "study_uid": problem.study_uid,
            "kind": problem.kind,
            "text": problem.text,
            "what_to_do": what_to_do(problem),
        },
    }


def node_lines(seen: Seen, settings: Settings) -> Iterator[str]:
    """Give what people read of the node itself, line by line."""
    from scp_node.health import live_workers, reasons

    found, failing = _figures(seen), reasons(seen, settings)
    yield f"Node {settings.node.ae_title}: {'not well' if failing else 'well'}"
    yield from (f"  {reason.text} {reason.what_to_do}" for reason in failing)
    for endpoint in seen.endpoints:
        answers = "answers" if endpoint.answers else "does not answer"
        yield f"Listener on {endpoint.host}, port {endpoint.port}: {answers}"
    if found.open_associations:
        yield f"Open associations that may bring images: {found.open_associations}"
    live = live_workers(seen)
    for worker in found.workers:
        lease = "lease until" if worker.slot in live else "dead, its lease ended at"
        yield f"Worker {worker.slot}: {lease} {utc_text(worker.lease_ends_at)}"
    floor, free = seen.disk.floor // 2**20, seen.disk.free // 2**20
    yield f"Disk: {free} MiB free, images are refused below {floor} MiB"
    yield from _queue_lines(seen, found)
    for place in found.destinations:
        if place.away_since is not None:
            next_probe = utc_text(place.next_probe_at)
            yield f"{place.name} is away since {utc_text(place.away_since)}; it is asked again at {next_probe}"
    yield from _problem_lines(found)
    yield ""


def _figures(seen: Seen) -> Figures:
    if seen.figures is None:
        raise ValueError("The ledger was not read.")
    return seen.figures


def _queue_lines(seen: Seen, found: Figures) -> Iterator[str]:
    for waiting in found.waiting:
        yield f"Longest {waiting.state}: {waiting.study_uid}, for {seen.at - waiting.since:.0f} s"
    for destination in dict.fromkeys(name for name, _ in found.deliveries):
        states = [f"{count} {state}" for (name, state), count in found.deliveries.items() if name == destination]
        oldest = found.oldest_delivery.get(destination)
        age = "" if oldest is None else f"; the oldest has waited for {seen.at - oldest:.0f} s"
        yield f"Deliveries to {destination}: {', '.join(states)}{age}"


def _problem_lines(found: Figures) -> Iterator[str]:
    from scp_node.health import what_to_do

    if found.dead_letters:
        yield f"Reports given up: {len(found.dead_letters)}. 'nodule-node retry STUDY' sends them again:"
    for letter in found.dead_letters[-DEAD_LETTERS_SHOWN:]:
        yield f"  {letter.study_uid} to {letter.destination}: {letter.error}"
    if found.last_problem is not None:
        problem = found.last_problem
        yield f"Last problem, {utc_text(problem.at)}: {problem.text} {what_to_do(problem)}"


def _study_document(study: StudyView) -> dict[str, Any]:
    return {
        "study_uid": study.study_uid,
        "state": study.state,
        "codes": list(study.codes),
        "revision": study.revision,
        "sender": study.sender,
        "instances": dict(study.instances),
        "first_received_at": utc_text(study.first_received_at),
        "last_received_at": utc_text(study.last_received_at),
        "state_since": utc_text(study.state_since),
        "reports": [_report_document(report) for report in study.reports],
    }


def _report_document(report: ReportView) -> dict[str, Any]:
    return {
        "sop_instance_uid": report.sop_instance_uid,
        "series_uid": report.series_uid,
        "revision": report.revision,
        "outcome": report.outcome,
        "created_at": utc_text(report.created_at),
        "deliveries": [
            {
                "id": delivery.id,
                "destination": delivery.destination,
                "state": delivery.state,
                "attempts": delivery.attempts,
                "next_attempt_at": utc_text(delivery.next_attempt_at) or None,
                "last_error": delivery.last_error,
            }
            for delivery in report.deliveries
        ],
    }


def _study_lines(study: StudyView) -> Iterator[str]:
    held = ", ".join(f"{count} {purpose}" for purpose, count in study.instances.items() if count) or "nothing"
    yield f"{study.study_uid}  {study.state}"
    yield f"  since {utc_text(study.state_since)}, revision {study.revision}, from {study.sender}, holds {held}"
    if study.codes:
        yield f"  codes: {', '.join(study.codes)}"
    for report in study.reports:
        yield f"  report of revision {report.revision} ({report.outcome}): {_deliveries(report.deliveries)}"


def _deliveries(deliveries: Iterable[DeliveryView]) -> str:
    return "; ".join(_delivery(delivery) for delivery in deliveries) or "sent nowhere"


def _delivery(delivery: DeliveryView) -> str:
    text = f"{delivery.destination} {_DELIVERY_WORDS.get(delivery.state, delivery.state)}"
    if delivery.state in {"queued", "sending"} and delivery.attempts:
        text += f" after {delivery.attempts} tries, next {utc_text(delivery.next_attempt_at) or 'now'}"
    if delivery.state != "delivered" and delivery.last_error:
        text += f" ({delivery.last_error})"
    return text
