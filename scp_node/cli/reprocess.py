"""``nodule-node reprocess``: a finished study is analysed once more, from the images as received."""

from __future__ import annotations

from typing import Annotated

import typer

from scp_node.cli.options import EXIT_FAILURE, ConfigFile, examples, ledger_of, new_app, settings_from

app = new_app()


@app.command("reprocess", epilog=examples("nodule-node reprocess 1.2.840.113619.2.55.3"))
def reprocess(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="Study Instance UID, as 'nodule-node status' shows it.")
    ],
    config: ConfigFile = None,
) -> None:
    """Analyse a finished study again, whatever came of it before.

    For example after other weights or other settings. It becomes a new revision, from the images as received; its
    report names the earlier one as predecessor. The running node picks it up by itself.
    """
    engine = ledger_of(settings_from(config))
    if engine is None:
        typer.echo("The node has not run here yet: there is nothing to analyse again.", err=True)
        raise typer.Exit(EXIT_FAILURE)
    from scp_node.clock import SystemClock
    from scp_node.ledger.studies import Studies

    studies = Studies(engine)
    known = studies.state(study)
    asked = known is not None and studies.retry(study, now=SystemClock().now())
    engine.dispose()
    if known is None:
        typer.echo(f"The ledger knows no study {study}; 'nodule-node status' lists those it knows.", err=True)
        raise typer.Exit(EXIT_FAILURE)
    if not asked:
        typer.echo(f"The study is {known[0].value}: it is not finished, so there is nothing to repeat.", err=True)
        raise typer.Exit(EXIT_FAILURE)
    typer.echo("The study will be analysed again.")
