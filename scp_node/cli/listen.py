"""``nodule-node listen``: the listener alone, started by ``serve``."""

from __future__ import annotations

import typer

from scp_node.cli.options import ConfigFile, examples, new_app, settings_from

app = new_app()


@app.command("listen", hidden=True, epilog=examples("nodule-node listen --config node.toml"))
def listen(config: ConfigFile = None) -> None:
    """Receive images only; 'nodule-node serve' starts this by itself."""
    settings = settings_from(config)
    from scp_node.cli.logging import configure_logging
    from scp_node.network.listener import run_listener

    configure_logging(settings, "listener")
    raise typer.Exit(run_listener(settings))
