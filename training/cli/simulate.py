"""``nodule-train simulate``: a cohort of simulated scans in LUNA16's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.cli.say import Progress, fail

COHORTS = Path(__file__).parents[2] / "config" / "cohorts"


def simulate(
    cohort: Annotated[str, typer.Argument(help="benchmark, tiny, or a TOML file.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder of the cohort; an unfinished one is gone on with.")],
    real: Annotated[
        list[Path] | None,
        typer.Option(
            "--real", help="A real scan to insert into, DICOM folder or .mhd; or a folder of such folders."
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(help="Folder with the real scans' nodules: nodules.csv and excluded.csv, or LUNA16's tables."),
    ] = None,
    part: Annotated[list[str] | None, typer.Option(help="Make this part alone; may be repeated.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; 0 takes one for each core.", min=0)] = 0,
    lungs: Annotated[bool, typer.Option(help="Write lung masks too, as seg-lungs-LUNA16.")] = False,
    verify: Annotated[bool, typer.Option(help="Compare every image that is there with its hash.")] = False,
) -> None:
    """Make a cohort: phantoms and real scans with inserted nodules, in LUNA16's own layout.

    The folder then holds subset0 to subset9 (.mhd and .raw), annotations.csv, annotations_excluded.csv,
    candidates_V2.csv and seriesuids.csv, so that every other command runs on it as on LUNA16. Beside them truth.csv
    says of each nodule its size, kind (solid, part-solid, ground-glass, calcified) and place (free, pleura, vessel,
    fissure), controls.csv what looks like a nodule and is none, and scans.csv how each scan was made.

    Same cohort file, same scans. The file's SHA-256 is kept in the folder and checked at every use; a file that is
    listed in SHA256SUMS is frozen and refused when it was changed. After an interruption the same command goes on.

    nodule-train simulate tiny --out cohorts/tiny

    nodule-train simulate benchmark --real LIDC-IDRI --truth LIDC-IDRI --out cohorts/benchmark
    """
    from training.cohort_file import CohortError
    from training.simulate import Sources, changed_images, default_workers, open_cohort
    from training.simulate import simulate as make

    path = Path(cohort) if cohort.endswith(".toml") else COHORTS / f"{cohort}.toml"
    if not path.is_file():
        fail(f"There is no cohort {cohort}; known are {', '.join(sorted(p.stem for p in COHORTS.glob('*.toml')))}.")
    progress = Progress("scans")
    try:
        sources = Sources(_scans(real or []), truth)
        steps = make(path, out, sources, parts=part or (), workers=workers or default_workers(), lungs=lungs)
        for done, total, name in steps:
            progress.show(done, total, name)
        made = open_cohort(out)
        changed = changed_images(out) if verify else []
    except CohortError as error:
        fail(str(error))
    if changed:
        fail(
            f"{len(changed)} scans are not as they were made: {', '.join(changed[:10])}. Delete their rows/*.json."
        )
    whole = "" if made.complete else ", not all of its parts yet"
    typer.echo(f"{out}: cohort {made.name}, SHA-256 {made.sha256[:16]}{whole}")


def _scans(paths: list[Path]) -> dict[str, Path]:
    """Find the real scans: each path is one, or a folder of folders."""
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            fail(f"There is no {path}.")
        below = [p for p in sorted(path.iterdir()) if p.is_dir()] if path.is_dir() else []
        found.update({p.name if p.is_dir() else p.stem: p for p in below or [path]})
    return found
