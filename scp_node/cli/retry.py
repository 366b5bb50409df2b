"""``nodule-node retry``: a person lets something failed be tried again."""

from __future__ import annotations

from typing import Annotated

import typer

from scp_node.cli.options import EXIT_FAILURE, ConfigFile, examples, ledger_of, new_app, settings_from

app = new_app()


@app.command(
    "retry",
    epilog=examples(
        "nodule-node retry 1.2.840.113619.2.55.3",
        "nodule-node retry 1.2.840.113619.2.55.3 --analysis",
    ),
)
def retry(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="Study Instance UID, as 'nodule-node status' shows it.")
    ],
    analysis: Annotated[
        bool, typer.Option("--analysis", help="Analyse the study again, even one that was reported.")
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Try a failed study, or its failed deliveries, again.

    Deliveries that were refused or given up become due at once, with the same bytes. A study that FAILED or was
    NOT_ANALYSED is analysed anew from the images as received, as a new revision. The running node picks both up
    by itself.
    """
    engine = ledger_of(settings_from(config))
    if engine is None:
        typer.echo("The node has not run here yet: there is nothing to try again.", err=True)
        raise typer.Exit(EXIT_FAILURE)
    from scp_node.clock import SystemClock
    from scp_node.ledger.outbox import Outbox
    from scp_node.ledger.states import StudyState
    from scp_node.ledger.studies import Studies

    studies, now = Studies(engine), SystemClock().now()
    known = studies.state(study)
    if known is None:
        typer.echo(f"The ledger knows no study {study}; 'nodule-node status' lists those it knows.", err=True)
        raise typer.Exit(EXIT_FAILURE)
    deliveries = Outbox(engine).retry(study, now=now)
    wanted = analysis or known[0] in {StudyState.FAILED, StudyState.NOT_ANALYSED}
    analysed_again = wanted and studies.retry(study, now=now)
    engine.dispose()
    if deliveries:
        typer.echo(f"{deliveries} failed deliveries are due again.")
    if analysed_again:
        typer.echo("The study will be analysed again.")
    if not deliveries and not analysed_again:
        typer.echo(f"Nothing to try again: the study is {known[0].value} and no delivery has failed.", err=True)
        raise typer.Exit(EXIT_FAILURE)
