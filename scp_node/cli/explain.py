"""``nodule-node explain``: why a study was analysed as it was, series by series."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from scp_node.cli.options import (
    EXIT_FAILURE,
    ConfigFile,
    examples,
    ledger_of,
    new_app,
    settings_from,
    utc_text,
)
from scp_node.cli.status import lines as status_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from scp_node.ledger.overview import EventView, SeriesView

app = new_app()


@app.command("explain", epilog=examples("nodule-node explain 1.2.840.113619.2.55.3"))
def explain(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="Study Instance UID, as 'nodule-node status' shows it.")
    ],
    config: ConfigFile = None,
) -> None:
    """Say why a study was analysed as it was.

    For each series: why it was or was not chosen, and what came of it. Then what happened, and when.
    """
    engine = ledger_of(settings_from(config))
    from scp_node.ledger import overview

    views = () if engine is None else overview.studies(engine, study_uid=study)
    if engine is None or not views:
        typer.echo(f"The ledger knows no study {study}; 'nodule-node status' lists those it knows.", err=True)
        raise typer.Exit(EXIT_FAILURE)
    for line in status_lines({}, views, ()):
        typer.echo(line)
    for line in lines(overview.series_of(engine, study), overview.events(engine, study_uid=study)):
        typer.echo(line)
    engine.dispose()


def lines(series: Sequence[SeriesView], events: Sequence[EventView]) -> Iterator[str]:
    """Give the text for people, line by line."""
    for view in series:
        yield from _series_lines(view)
    yield "What happened (UTC):"
    for event in events:
        code = f" [{event.code}]" if event.code else ""
        yield f"  {utc_text(event.at)}  {event.text}{code}"


def _series_lines(view: SeriesView) -> Iterator[str]:
    yield f"Series {view.series_uid} ({view.instances} instances): {_verdict(view)}"
    decision = view.decision or {}
    for reason in decision.get("reasons", ()):
        yield f"  - {reason}"
    for notice in decision.get("notices", ()):
        yield f"  - warning {_coded(notice)}"
    if view.analysis is not None:
        yield from _analysis_lines(view.analysis)


def _verdict(view: SeriesView) -> str:
    decision = view.decision
    if decision is None:
        return "not judged yet" if view.holds_ct else "holds no CT images, so it was not judged"
    if refusal := decision.get("refusal"):
        return f"not suitable, {refusal['code']}"
    # the best one is always taken first; it has no analysis while it is at work, or when that failed
    chosen = view.analysis is not None or decision.get("rank") == 1
    return f"{'chosen' if chosen else 'suitable, but not chosen'}, score {decision.get('score', 0):.1f}"


def _analysis_lines(analysis: Mapping[str, Any]) -> Iterator[str]:
    if reason := analysis.get("reason"):
        yield f"  => not analysed, {_coded(reason)}"
    else:
        yield f"  => {analysis['outcome'].replace('_', ' ')}: {len(analysis['findings'])} reported"
    for notice in analysis.get("warnings", ()):
        yield f"  => warning {_coded(notice)}"


def _coded(entry: Mapping[str, str]) -> str:
    return f"{entry['code']}: {entry['text']}"
