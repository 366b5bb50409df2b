"""The command ``nodule-train``: phantoms, preparation, training, judging, export.

Each command loads only what it needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.cli.average import average
from training.cli.candidates import candidates
from training.cli.crossval import crossval
from training.cli.evaluate import evaluate
from training.cli.export import export
from training.cli.froc import froc
from training.cli.hard import hard
from training.cli.left_out import left_out
from training.cli.prepare import prepare
from training.cli.probe import probe
from training.cli.report import report
from training.cli.say import fail, numbers
from training.cli.simulate import simulate
from training.cli.train import reduction, screening

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Train the nodule detector, and judge it.

    From LUNA16 to weights (a cohort from 'simulate' stands in for LUNA16 unchanged):

    nodule-train prepare --luna16 LUNA16 --out cache

    nodule-train crossval modern --luna16 LUNA16 --scans cache --run runs/cv

    nodule-train screening modern --scans cache --run runs/all

    nodule-train export runs/all/screening.pt --held-out runs/cv/pooled --out nodule.safetensors

    nodule-train report runs --out report.html

    From single scans and phantoms, on two cores and in about two hours:

    nodule-train prepare LIDC/LIDC-IDRI-0004 LIDC/LIDC-IDRI-0006 --truth LIDC --phantoms 1-19 --out scans

    nodule-train screening modern --scans scans --run runs/one

    nodule-train export runs/one/screening.pt --tune-phantoms 2000-2009 --out nodule.safetensors

    nodule-train evaluate --weights nodule.safetensors --phantoms 10000-10019 --out judged

    Every command goes on where it was stopped. Phantoms of seeds below 1000 are for training, 2000 to 2999 for
    choosing thresholds, 10000 and above for tests, 20000 to 22999 for the benchmark alone.
    """,
)

Out = Annotated[Path, typer.Option("--out", help="Folder or file to write; made where it is missing.")]


@app.command()
def phantom(
    seeds: Annotated[str, typer.Argument(help="A seed, or a range as 10000-10019.")],
    *,
    out: Out,
    metaimage: Annotated[bool, typer.Option(help="Write .mhd with annotations.csv instead of DICOM.")] = False,
    slice_distance: Annotated[float, typer.Option(help="Millimetres; 0 draws it from the seed.", min=0.0)] = 0.0,
    kernel: Annotated[str, typer.Option(help="STANDARD, SOFT or LUNG; empty draws it.")] = "",
    nodules: Annotated[int, typer.Option(help="How many; -1 draws 4 to 9.", min=-1)] = -1,
) -> None:
    """Make digital chest phantoms: CT series with nodules whose truth is known, a folder a seed.

    Same seed, same scan, same UIDs. truth.json beside the images holds nodules and imitators in LPS mm.
    """
    from dataclasses import replace

    from training.phantom import KERNELS, draw_settings, make_phantom
    from training.phantom_files import write_metaimage, write_series

    if kernel and kernel not in KERNELS:
        fail(f"There is no kernel '{kernel}'; known are {', '.join(KERNELS)}.")
    for seed in numbers(seeds):
        settings = draw_settings(seed)
        if slice_distance:
            settings = replace(settings, slice_distance_mm=slice_distance, thickness_mm=slice_distance)
        if kernel:
            settings = replace(settings, kernel=kernel)
        made = make_phantom(seed, settings, None if nodules < 0 else nodules)
        where = write_metaimage(made, out) if metaimage else out / f"phantom-{seed}"
        if not metaimage:
            write_series(made, where)
        typer.echo(f"{where}: {len(made.hu)} slices, {len(made.nodules)} nodules, {len(made.mimics)} imitators")


app.command()(prepare)
app.command()(screening)
app.command()(average)
app.command()(hard)
app.command()(candidates)
app.command()(reduction)
app.command()(left_out)
app.command()(crossval)
app.command()(evaluate)
app.command()(export)
app.command()(froc)
app.command()(report)
app.command()(simulate)
app.command()(probe)


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    main()
