"""The command ``nodule-train hard``: prepared scans again, with places where a model marks what is no nodule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def hard(
    scans: Annotated[list[Path], typer.Argument(help="Prepared scans (.npz) of persons.", exists=True)],
    *,
    weights: Annotated[Path, typer.Option("--weights", help="Weights that search them.", exists=True)],
    out: Annotated[Path, typer.Option("--out", help="Folder of the new prepared scans.")],
) -> None:
    """Find hard places: marks far from every nodule and from every finding that a reader noted.

    Recipes with real_mimics above 0 cut crops there. Weights that never saw a scan give its hardest places.
    """
    from pipeline.detect.detector import load_detector
    from training.hard_places import with_hard_places
    from training.scans import load_scan, save_scan

    detector = load_detector(weights)
    for path in scans:
        made = with_hard_places(detector, load_scan(path))
        typer.echo(f"{save_scan(made, out)}: {len(made.mimics)} hard places")
