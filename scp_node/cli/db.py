"""``nodule-node db``: the database's schema."""

from __future__ import annotations

import typer

from scp_node.cli.options import ConfigFile, examples, new_app, settings_from

app = new_app("db")


@app.callback()
def _database() -> None:
    """Look after the database."""


@app.command("upgrade", epilog=examples("nodule-node db upgrade", "nodule-node db upgrade --config site.toml"))
def upgrade(config: ConfigFile = None) -> None:
    """Create the database, or bring it to this version.

    'nodule-node serve' does this by itself for a new database. After an update of the node: stop it, make a
    backup (there is no way back), then run this. It is safe to repeat.
    """
    settings = settings_from(config)
    from scp_node.cli.logging import configure_logging
    from scp_node.workflow import upgrade_database

    configure_logging(settings, "db")
    settings.storage.folder.mkdir(parents=True, exist_ok=True)
    upgrade_database(settings.database_url)
    typer.echo("The database is up to date.")
