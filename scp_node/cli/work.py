"""``nodule-node work``: the worker alone, started by ``serve``."""

from __future__ import annotations

import typer

from scp_node.cli.options import ConfigFile, examples, new_app, settings_from

app = new_app()


@app.command("work", hidden=True, epilog=examples("nodule-node work --config node.toml"))
def work(config: ConfigFile = None) -> None:
    """Analyse, report and deliver only; 'nodule-node serve' starts this by itself."""
    settings = settings_from(config)
    from scp_node.cli.logging import configure_logging
    from scp_node.workflow import run_worker

    configure_logging(settings, "worker")
    raise typer.Exit(run_worker(settings))
