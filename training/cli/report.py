"""``nodule-train report``: finished runs beside the paper, as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.cli.say import fail, need_drawing


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, or folders that hold them.")],
    *,
    out: Annotated[Path, typer.Option(help="The page to write, as report.html.")],
    examples: Annotated[
        int, typer.Option(help="Found nodules to show of each data set; 0 draws no key images.", min=0, max=24)
    ] = 6,
) -> None:
    """Write the paper's Tables 1 and 2 and Figure 2 with our runs beside the published rows, as one HTML page.

    A finished run is a folder with run.json (see docs/training.md); crossval, evaluate and candidates leave such
    folders. What no run shows is listed as missing. Runs on simulated data stand apart: they cannot be compared
    with Table 1. Key images are drawn where run.json names the scans and they are at hand. Example:

    nodule-train report runs --out report.html
    """
    need_drawing()
    from training.report_page import find_runs, render

    for path in runs:
        if not path.is_dir():
            fail(f"{path} is not a folder.")
    found = find_runs(runs)
    if not found:
        names = ", ".join(map(str, runs))
        fail(f"There is no finished run in {names}: no folder with a run.json. Finish a run first.")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render(found, examples), encoding="utf-8")
    typer.echo(f"{out}: {len(found)} runs")
