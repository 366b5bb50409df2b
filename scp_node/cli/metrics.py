"""``nodule-node metrics``: health, metrics and the audit trail alone, started by ``serve``."""

from __future__ import annotations

import typer

from scp_node.cli.options import ConfigFile, examples, new_app, settings_from

app = new_app()


@app.command("metrics", hidden=True, epilog=examples("nodule-node metrics --config node.toml"))
def metrics(config: ConfigFile = None) -> None:
    """Show health and metrics, and write the audit trail; 'nodule-node serve' starts this by itself."""
    settings = settings_from(config)
    from scp_node.cli.logging import configure_logging
    from scp_node.monitoring.process import run_metrics

    configure_logging(settings, "metrics")
    raise typer.Exit(run_metrics(settings))
