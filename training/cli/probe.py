"""``nodule-train probe``: whether insertion leaves a fingerprint."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from training.cli.say import fail


def probe(
    scans: Annotated[list[Path], typer.Argument(help="Prepared real scans (.npz), two at least.", exists=True)],
    *,
    out: Annotated[Path, typer.Option("--out", help="JSON file to write.")],
    weights: Annotated[
        str, typer.Option(help="Whose features are asked too: a weights file, or bundled.")
    ] = "bundled",
    seed: Annotated[int, typer.Option(help="Of the insertions.")] = 1,
) -> None:
    """Ask whether inserted nodules can be told from real ones, and shams (lung blended over lung) from lung.

    Classifiers are fitted on all scans but one and asked about that one. An area near 0.5 means that nothing was
    found; one near 1, that a network could learn the insertion instead of the nodule.

    nodule-train probe scans/LIDC-IDRI-*.npz --out probe.json
    """
    from pipeline.detect.nets.modern import ModernNet
    from pipeline.detect.weights import WeightsError, load_weights
    from training import luna16
    from training.probe import probe as ask
    from training.scans import load_scan

    try:
        network = load_weights(weights).screening
    except WeightsError as error:
        fail(str(error))
    if not isinstance(network, ModernNet):
        fail(f"The first stage of {weights} is the paper's, without such features; give others.")
    try:
        told = ask([load_scan(path) for path in scans], network, seed)
    except ValueError as error:
        fail(str(error))
    luna16.write_text(out, json.dumps([asdict(t) for t in told], indent=1) + "\n")
    for t in told:
        typer.echo(
            f"{t.question}, {t.classifier}: area {t.auc:.2f} (95 % {t.low:.2f} to {t.high:.2f}), "
            f"{t.made} made, {t.untouched} untouched"
        )
