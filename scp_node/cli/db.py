"""``nodule-node db``: the database's schema, and copies of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scp_node.cli.options import (
    EXIT_FAILURE,
    ConfigFile,
    examples,
    ledger_of,
    new_app,
    settings_from,
)

app = new_app("db")


@app.callback()
def _database() -> None:
    """Look after the database."""


@app.command("upgrade", epilog=examples("nodule-node db upgrade", "nodule-node db upgrade --config site.toml"))
def upgrade(
    no_backup: Annotated[bool, typer.Option("--no-backup", help="Do not copy the database first.")] = False,
    config: ConfigFile = None,
) -> None:
    """Create the database, or bring it to this version.

    'nodule-node serve' does this by itself for a new database. After an update of the node: stop it, then run
    this. An older database is copied into the folder 'backups' of storage.folder first: there is no way back but
    that file. It is safe to repeat.
    """
    settings = settings_from(config)
    from scp_node.cli.logging import configure_logging
    from scp_node.ledger.backup import BackupFailed, back_up_before_upgrade
    from scp_node.workflow import upgrade_database

    configure_logging(settings, "db")
    settings.storage.folder.mkdir(parents=True, exist_ok=True)
    if not no_backup:
        try:
            file = back_up_before_upgrade(settings.database_url, settings.storage.folder / "backups")
        except BackupFailed as why:
            typer.echo(f"{why} Nothing was changed; --no-backup goes on without a copy.", err=True)
            raise typer.Exit(EXIT_FAILURE) from None
        if file is not None:
            typer.echo(f"The database as it was: {file}")
    upgrade_database(settings.database_url)
    typer.echo("The database is up to date.")


@app.command(
    "backup",
    epilog=examples("nodule-node db backup /backup/node-monday.sqlite", "nodule-node db backup node.dump"),
)
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; must not exist.", show_default=False)],
    config: ConfigFile = None,
) -> None:
    """Copy the whole database into one file; the node may run meanwhile.

    SQLite: a database that can be put in the place of the old one while the node is stopped. PostgreSQL: a dump
    for 'pg_restore --clean --if-exists'. Images and reports are files of their own in storage.folder.
    """
    settings = settings_from(config)
    from scp_node.ledger.backup import BackupFailed, back_up

    if ledger_of(settings) is None:
        typer.echo("The node has not run here yet: there is nothing to copy.", err=True)
        raise typer.Exit(EXIT_FAILURE)
    try:
        back_up(settings.database_url, file.absolute())
    except BackupFailed as why:
        typer.echo(str(why), err=True)
        raise typer.Exit(EXIT_FAILURE) from None
    typer.echo(f"Copied to {file} ({file.stat().st_size / 2**20:.1f} MiB).")
