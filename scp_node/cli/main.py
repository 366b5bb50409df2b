"""The command table, by module name: a command's module is imported when that command is asked for.

So the listener never carries torch and the status page never carries the workflow engine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import version
from types import MappingProxyType
from typing import Annotated

import typer

from scp_node.cli.options import new_app

COMMANDS = MappingProxyType(
    {
        "serve": "scp_node.cli.serve",
        "config": "scp_node.cli.config_check",
        "doctor": "scp_node.cli.doctor",
        "status": "scp_node.cli.status",
        "explain": "scp_node.cli.explain",
        "events": "scp_node.cli.events",
        "retry": "scp_node.cli.retry",
        "reprocess": "scp_node.cli.reprocess",
        "detect": "scp_node.cli.detect",
        "conformance": "scp_node.cli.conformance",
        "db": "scp_node.cli.db",
        "listen": "scp_node.cli.listen",
        "work": "scp_node.cli.work",
        "metrics": "scp_node.cli.metrics",
    }
)
"""Command or group of commands, and the module that holds it; in the order of ``--help``."""


KEEP_PATIENT_DATA = frozenset({"serve", "db", "listen", "work", "metrics"})
"""Commands whose files are for their user alone."""


def application(commands: Iterable[str] = tuple(COMMANDS)) -> typer.Typer:
    """Build the command line with these commands alone; each module's heavy imports wait until it runs."""
    app = new_app()
    app.callback()(_node)
    for command in commands:
        app.add_typer(import_module(COMMANDS[command]).app)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point ``nodule-node``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    asked = [word for word in words[:1] if word in COMMANDS]
    if KEEP_PATIENT_DATA.intersection(asked):
        os.umask(0o077)
    application(asked or COMMANDS)(words, prog_name="nodule-node")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("nodule-node"))
        raise typer.Exit


def _node(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Find lung nodules in CT studies that a PACS sends, and send a structured report back.

    Research use only: not for diagnosis.

    Start with 'nodule-node config check' and 'nodule-node doctor', then 'nodule-node serve'. Every command takes
    --config FILE and --help.
    """


if __name__ == "__main__":
    main()
