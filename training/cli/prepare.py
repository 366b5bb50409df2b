"""``nodule-train prepare``: scans into the training cache, a LUNA16 download checked first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.cli.say import Progress, fail, numbers

if TYPE_CHECKING:
    from pipeline.domain.outcome import Refusal
    from training.scans import TrainingScan


def prepare(
    paths: Annotated[list[Path] | None, typer.Argument(help="A folder for each patient, of that name.")] = None,
    *,
    out: Annotated[Path, typer.Option("--out", help="The training cache; scans that are there are passed over.")],
    luna16: Annotated[
        Path | None,
        typer.Option(help="LUNA16's folder (subset0 to subset9 and tables), or a cohort from 'simulate'."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Look through the download and prepare nothing.")] = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Prepare what is whole in spite of problems.")] = False,
    truth: Annotated[Path | None, typer.Option(help="Folder with nodules.csv and excluded.csv.")] = None,
    phantoms: Annotated[str, typer.Option(help="Seeds of phantoms to make and prepare, as 1-19.")] = "",
    blur_mm: Annotated[float, typer.Option(help="In-plane blur of the real scans, standard deviation.")] = 0.6,
    workers: Annotated[int, typer.Option(help="Processes; 0 takes one for each core.", min=0)] = 0,
) -> None:
    """Bring scans to the networks' grid, once, with truth, noise and the places worth a crop; one .npz a scan.

    A LUNA16 download is checked first: a missing subset, table or data file, a data file cut short, a scan that is
    there twice, a finding of an unknown series, a wrong column are each told by name with what to do, and nothing
    is prepared before all is well (or --anyway). 888 scans need about 110 GB. After an interruption the same
    command goes on.

    nodule-train prepare --luna16 LUNA16 --out cache

    nodule-train prepare LIDC/LIDC-IDRI-0004 LIDC/LIDC-IDRI-0006 --truth LIDC --phantoms 1-19 --out scans
    """
    if luna16 is not None:
        _prepare_luna16(luna16, out, workers, check=check, anyway=anyway)
    if check:
        return
    _prepare_folders(paths or [], truth, blur_mm, out)
    _prepare_phantoms(numbers(phantoms), out)


def _prepare_luna16(root: Path, out: Path, workers: int, *, check: bool, anyway: bool) -> None:
    from training.cohort_file import CohortError
    from training.download import read_download
    from training.preparing import prepare_download
    from training.simulate import cohort_name, default_workers

    try:
        download = read_download(root)
    except CohortError as error:
        fail(str(error))
    for problem in download.problems:
        typer.echo(problem, err=True)
    nodules = sum(len(download.included.get(s.uid, ())) for s in download.scans)
    typer.echo(f"{root}: {len(download.scans)} whole scans in {len(download.subsets)} subsets, {nodules} nodules")
    if download.problems and not anyway:
        fail(f"{len(download.problems)} problems; mend them, or give --anyway to go on with what is whole.")
    if check:
        return
    name = cohort_name(root) if download.simulated else "LUNA16"
    progress = Progress("scans")
    broken = []
    for done, total, cached in prepare_download(download, out, name, workers or default_workers()):
        progress.show(done, total, cached.uid)
        broken += [cached.fault] if cached.fault else []
    for fault in broken:
        typer.echo(fault, err=True)
    if broken:
        fail(f"{len(broken)} scans could not be prepared; the others are in {out}.")
    typer.echo(f"{out}: {len(download.scans)} scans")


def _prepare_folders(paths: list[Path], truth: Path | None, blur_mm: float, out: Path) -> None:
    from pipeline.domain.outcome import Refusal
    from training.scans import prepare_scan, read_truth, read_volume

    for path in paths:
        if truth is None:
            fail("Real scans need --truth, a folder with nodules.csv and excluded.csv.")
        if (out / f"{path.name}.npz").exists():
            typer.echo(f"{path.name}: was there")
            continue
        volume = read_volume(path)
        if isinstance(volume, Refusal):
            fail(f"{path.name} cannot be used: {volume.text}")
        made = prepare_scan(path.name, volume.hu, volume.grid, read_truth(truth, path.name), blur_mm)
        _keep(made, path.name, out)


def _prepare_phantoms(seeds: list[int], out: Path) -> None:
    from training.phantom import make_phantom
    from training.scans import prepare_phantom

    for seed in seeds:
        if (out / f"phantom-{seed}.npz").exists():
            typer.echo(f"phantom-{seed}: was there")
        else:
            _keep(prepare_phantom(make_phantom(seed, nodules=10)), f"phantom {seed}", out)


def _keep(made: TrainingScan | Refusal, name: str, out: Path) -> None:
    from pipeline.domain.outcome import Refusal
    from training.scans import save_scan

    if isinstance(made, Refusal):
        fail(f"{name} cannot be used: {made.text}")
    typer.echo(f"{save_scan(made, out)}: {len(made.nodules)} nodules, noise {made.look.noise_hu:.0f} HU")
