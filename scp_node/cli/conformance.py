"""``nodule-node conformance``: what a PACS may expect of this node, by the standard's form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scp_node.cli.options import EXIT_FAILURE, ConfigFile, examples, new_app, settings_from

app = new_app()


@app.command(
    "conformance",
    epilog=examples("nodule-node conformance --out conformance.md", "nodule-node conformance --config site.toml"),
)
def conformance(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write it here, as Markdown. Default: standard output.", show_default=False
        ),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Write the DICOM Conformance Statement.

    What this node, as it is set up, accepts and proposes, by the standard's form (PS3.2 Annex A): AE title and
    ports, every SOP class and transfer syntax, what goes to which destination, status codes, security. Nothing is
    contacted.
    """
    settings = settings_from(config)
    from scp_node.conformance import statement

    text = statement(settings)
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as fault:
        typer.echo(f"{out} cannot be written: {fault.strerror}.", err=True)
        raise typer.Exit(EXIT_FAILURE) from None
    typer.echo(f"Wrote {out}.")
