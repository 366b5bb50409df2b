"""What the commands share: the ``--config`` option, exit codes, and a first step that reads the settings."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from scp_node.ledger.overview import Ledger
    from scp_node.settings import Settings

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_NOT_ANALYSED = 3
EXIT_BAD_SETTINGS = 78

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        show_default=False,
        help="Settings file. Default: node.toml in the current folder, else the packaged one.",
    ),
]


def new_app(name: str | None = None) -> typer.Typer:
    """A command table, or with a name a group of commands; help is plain text, shown whole."""
    return typer.Typer(
        name=name,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
    )


def examples(*lines: str) -> str:
    r"""An epilog with one example a line; ``\b`` keeps the lines as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def settings_from(config: Path | None) -> Settings:
    """Read the settings, or say every fault on stderr and leave with exit code 78."""
    from scp_node.settings import SettingsError, load_settings

    try:
        return load_settings(config)
    except SettingsError as error:
        count = len(error.faults)
        typer.echo(f"The settings cannot be used ({count} fault{'s' if count > 1 else ''}):", err=True)
        for fault in error.faults:
            typer.echo(f"  {fault}", err=True)
        raise typer.Exit(EXIT_BAD_SETTINGS) from None


def utc_text(seconds: float | None) -> str:
    """Seconds since the epoch as ``2026-11-23T08:15:00Z``; empty for ``None``."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ledger_of(settings: Settings) -> Ledger | None:
    """Open the ledger; ``None`` when the node has never run, exit code 78 when it cannot be read."""
    from scp_node.ledger.overview import LedgerUnavailable, open_ledger

    try:
        return open_ledger(settings.database_url)
    except LedgerUnavailable as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_BAD_SETTINGS) from None
