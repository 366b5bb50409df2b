"""``nodule-node doctor``: whether everything holds that the node needs."""

from __future__ import annotations

import typer

from scp_node.cli.options import EXIT_FAILURE, ConfigFile, examples, new_app, settings_from

app = new_app()


@app.command(
    "doctor", epilog=examples("nodule-node doctor", "nodule-node doctor --config /etc/nodule-node/node.toml")
)
def doctor(config: ConfigFile = None) -> None:
    """Check this machine and its peers.

    One line for each thing that must hold; a failing line says what to do. Looks at the installation, folders
    (as the user who runs it), free space, decoders (by decoding a tiny image of each compressed transfer
    syntax), device, weights and their hash, our port, and asks each destination for C-ECHO and for our SR
    class. Run it as the user of the node. Exit codes: 0 nothing failed, 1 something did, 78 the settings cannot
    be used.
    """
    settings = settings_from(config)
    from scp_node.cli.logging import configure_logging
    from scp_node.doctor import Level, examine

    configure_logging(settings, "doctor")
    failed = 0
    for line in examine(settings):
        typer.echo(f"{line.level:4}  {line.subject}: {line.text}")
        if line.action:
            typer.echo(f"      -> {line.action}")
        failed += line.level is Level.FAIL
    if failed:
        typer.echo(f"{failed} checks failed.")
        raise typer.Exit(EXIT_FAILURE)
    typer.echo("All is well.")
