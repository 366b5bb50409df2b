"""``nodule-node events``: what happened to a study, line by line, as it happens."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from scp_node.cli.options import EXIT_FAILURE, ConfigFile, examples, ledger_of, new_app, settings_from, utc_text

if TYPE_CHECKING:
    from scp_node.ledger.figures import NumberedEvent

FOLLOW_EVERY_S = 1.0

app = new_app()


@app.command(
    "events",
    epilog=examples(
        "nodule-node events 1.2.840.113619.2.55.3",
        "nodule-node events 1.2.840.113619.2.55.3 --follow",
        "nodule-node events --json",
    ),
)
def events(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="[STUDY]", help="Study Instance UID; default: the events of all.", show_default=False
        ),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on as events come, until the study is finished or Ctrl-C.")
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Show what happened to a study, oldest first.

    From "complete" over each delivery to the end, with refused objects and late images; times are UTC. No patient
    data is shown. With --follow it waits for more and ends by itself when the study is finished and every report
    of it is delivered or given up. Exit code 1 when the study is not known.
    """
    engine = ledger_of(settings_from(config))
    if engine is None:
        typer.echo("The node has not run here yet: nothing has happened.", err=True)
        raise typer.Exit(EXIT_FAILURE)
    from scp_node.ledger import figures, overview

    shown = 0
    try:
        while True:
            settled = follow and study is not None and _is_settled(overview.studies(engine, study_uid=study))
            while found := figures.events_after(engine, shown, now=None, study_uid=study):
                shown = found[-1].id
                for event in found:
                    typer.echo(_json_line(event) if as_json else _line(event))
            if settled or not follow:
                break
            time.sleep(FOLLOW_EVERY_S)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    known = study is None or bool(overview.studies(engine, study_uid=study))
    engine.dispose()
    if not known:
        typer.echo(f"The ledger knows no study {study}; 'nodule-node status' lists those it knows.", err=True)
        raise typer.Exit(EXIT_FAILURE)


def _is_settled(studies: object) -> bool:
    """Whether nothing more will happen to a study by itself; an unknown one is not waited for."""
    from scp_node.ledger.figures import ON_THE_WAY
    from scp_node.ledger.overview import StudyView
    from scp_node.ledger.states import FINISHED

    match studies:
        case (StudyView() as study,):
            under_way = any(sent.state in ON_THE_WAY for report in study.reports for sent in report.deliveries)
            return study.state in FINISHED and not under_way
        case _:
            return True


def _line(event: NumberedEvent) -> str:
    code = f" [{event.code}]" if event.code else ""
    return f"{utc_text(event.at)}  {event.kind}{code}  {event.text}"


def _json_line(event: NumberedEvent) -> str:
    return json.dumps(
        {
            "id": event.id,
            "at": utc_text(event.at),
            "study_uid": event.study_uid,
            "kind": event.kind,
            "code": event.code,
            "text": event.text,
        }
    )
