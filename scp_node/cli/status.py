"""``nodule-node status``: where every study stands, from its first image on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scp_node.cli.options import ConfigFile, examples, ledger_of, new_app, settings_from, utc_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scp_node.ledger.overview import DeliveryView, EventView, ReportView, StudyView

SCHEMA = 1
OTHER_EVENTS = ("refused", "quarantined", "rejected_association", "instance_changed", "file_lost")

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
    """Show where every study stands.

    With its codes, images, reports and deliveries, from its first image on. States: RECEIVING, QUEUED,
    ANALYSING, then REPORTED, NOT_ANALYSED, NO_CT or FAILED. Below stand objects and senders that were refused,
    and objects kept aside. Times are UTC. No patient data is shown. 'nodule-node explain STUDY' says why;
    docs/codes.md explains the codes.
    """
    engine = ledger_of(settings_from(config))
    if engine is None:
        typer.echo(json.dumps(document({}, (), ())) if as_json else "The node has not run here yet: no studies.")
        return
    from scp_node.ledger import overview

    counts = overview.count_by_state(engine)
    studies = overview.studies(engine, study_uid=study, limit=limit or None)
    events = overview.events(engine, study_uid=study, kinds=OTHER_EVENTS, limit=limit or None)
    engine.dispose()
    if as_json:
        typer.echo(json.dumps(document(counts, studies, events), indent=2))
        return
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
    text = f"{delivery.destination} {delivery.state}"
    if delivery.state in {"queued", "sending"} and delivery.attempts:
        text += f" after {delivery.attempts} tries, next {utc_text(delivery.next_attempt_at) or 'now'}"
    if delivery.state != "delivered" and delivery.last_error:
        text += f" ({delivery.last_error})"
    return text
