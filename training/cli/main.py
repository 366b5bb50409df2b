"""The command ``nodule-train``: phantoms, preparation, training, judging, export.

Each command loads only what it needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from training.evaluate import Evaluated, TruthRow
    from training.froc import Annotation
    from training.scans import TrainingScan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""Train the nodule detector, and judge it.

    The usual order, on two cores and in about two hours:

    nodule-train prepare LIDC/LIDC-IDRI-0004 LIDC/LIDC-IDRI-0006 --truth LIDC --phantoms 1-19 --out scans

    nodule-train screening modern --scans scans --run runs/one

    nodule-train export runs/one/screening.pt --tune-phantoms 2000-2009 --out nodule.safetensors

    nodule-train evaluate --weights nodule.safetensors --phantoms 10000-10019 --out judged

    Phantoms of seeds below 1000 are for training, 2000 to 2999 for choosing thresholds, 10000 and above for tests.
    """,
)

RECIPES = Path(__file__).parents[2] / "config" / "recipes"
WRONG_USAGE = 2

Out = Annotated[Path, typer.Option("--out", help="Folder or file to write; made where it is missing.")]
Scans = Annotated[Path, typer.Option("--scans", help="Folder of prepared scans, from 'prepare'.", exists=True)]
Run = Annotated[Path, typer.Option("--run", help="Run folder: checkpoint and CSV log; an unfinished run goes on.")]
RecipeName = Annotated[str, typer.Argument(help="modern, paper, paper-fast, or a TOML file.")]
Skip = Annotated[list[str], typer.Option("--skip", help="Name of a prepared scan to leave out; may be repeated.")]


def _fail(text: str) -> NoReturn:
    typer.echo(text, err=True)
    raise typer.Exit(WRONG_USAGE)


def _seeds(text: str) -> list[int]:
    """Read ``7``, ``1-19`` or ``1-4,9``."""
    seeds: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            _fail(f"'{part}' is not a seed or a range of seeds; write 7, 1-19 or 1-4,9.")
        seeds.extend(range(int(first), int(last or first) + 1))
    return seeds


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
        _fail(f"There is no kernel '{kernel}'; known are {', '.join(KERNELS)}.")
    for seed in _seeds(seeds):
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


@app.command()
def prepare(
    out: Out,
    paths: Annotated[list[Path] | None, typer.Argument(help="A folder for each patient, of that name.")] = None,
    truth: Annotated[Path | None, typer.Option(help="Folder with nodules.csv and excluded.csv.")] = None,
    phantoms: Annotated[str, typer.Option(help="Seeds of phantoms to make and prepare, as 1-19.")] = "",
    blur_mm: Annotated[float, typer.Option(help="In-plane blur of the real scans, standard deviation.")] = 0.6,
) -> None:
    """Bring scans to the networks' grid, with truth, noise and the places worth a crop; one .npz a scan."""
    from pipeline.domain.outcome import Refusal
    from training.phantom import make_phantom
    from training.scans import prepare_phantom, prepare_scan, read_truth, read_volume, save_scan

    def keep(made: TrainingScan | Refusal, name: str) -> None:
        if isinstance(made, Refusal):
            _fail(f"{name} cannot be used: {made.text}")
        typer.echo(f"{save_scan(made, out)}: {len(made.nodules)} nodules, noise {made.look.noise_hu:.0f} HU")

    for path in paths or []:
        if truth is None:
            _fail("Real scans need --truth, a folder with nodules.csv and excluded.csv.")
        volume = read_volume(path)
        if isinstance(volume, Refusal):
            _fail(f"{path.name} cannot be used: {volume.text}")
        keep(prepare_scan(path.name, volume.hu, volume.grid, read_truth(truth, path.name), blur_mm), path.name)
    for seed in _seeds(phantoms):
        keep(prepare_phantom(make_phantom(seed, nodules=10)), f"phantom {seed}")


@app.command()
def screening(
    recipe: RecipeName,
    *,
    scans: Scans,
    run: Run,
    skip: Skip = [],  # noqa: B006
    start: Annotated[Path | None, typer.Option(help="screening.pt of an earlier run to begin from.")] = None,
) -> None:
    """Train stage 1. Progress every 50 steps; a checkpoint every two minutes."""
    from training.export import load_checkpoint
    from training.recipes import load_recipe
    from training.screening import train_screening

    weights = load_checkpoint(start)[1] if start else None
    path = train_screening(load_recipe(_recipe(recipe)), scans, _names(scans, skip), run, start=weights)
    typer.echo(f"stage 1: {path}")


@app.command()
def reduction(
    recipe: RecipeName,
    scans: Scans,
    run: Run,
    first: Annotated[Path, typer.Option("--screening", help="Checkpoint of stage 1, which proposes candidates.")],
    skip: Skip = [],  # noqa: B006
) -> None:
    """Train stage 2 on the candidates of stage 1 (best one that has not seen these scans)."""
    from training.export import load_checkpoint
    from training.recipes import load_recipe
    from training.reduction import find_candidates, train_reduction
    from training.scans import load_scans

    chosen, names = load_recipe(_recipe(recipe)), _names(scans, skip)
    first_recipe, weights, _ = load_checkpoint(first)
    candidates = find_candidates(first_recipe.screening, weights, load_scans(scans, names))
    takes_over = first_recipe.screening.network == "fcn"
    path = train_reduction(chosen, scans, names, candidates, run, shared_from=weights if takes_over else None)
    typer.echo(f"stage 2: {path}")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="screening.pt of a run.", exists=True)],
    *,
    out: Out,
    version: Annotated[str, typer.Option(help="Version of these weights.")] = "0",
    second: Annotated[Path | None, typer.Option("--reduction", help="reduction.pt; else stage 1 alone.")] = None,
    tune_phantoms: Annotated[str, typer.Option(help="Seeds to choose thresholds on, as 2000-2009.")] = "",
    tune_scans: Annotated[Path | None, typer.Option(help="Prepared real scans to insert nodules into.")] = None,
) -> None:
    """Write weights with their card. Thresholds come from simulated nodules that the training never saw."""
    from pipeline.detect.detector import load_detector
    from training import export as exporting
    from training.evaluate import evaluate_insertions, evaluate_phantoms
    from training.scans import load_scans

    exporting.export(checkpoint, out, model_version=version, reduction=second)
    if not tune_phantoms and tune_scans is None:
        typer.echo(f"{out}: with a provisional threshold; give --tune-phantoms to choose one")
        return
    detector = load_detector(out)
    judged: list[Evaluated] = list(evaluate_phantoms(detector, _seeds(tune_phantoms)))
    inserted = [s for s in load_scans(tune_scans) if not s.is_phantom] if tune_scans else []
    judged += [evaluate_insertions(detector, scan, seed=2000 + k) for k, scan in enumerate(inserted)]
    data = f"phantoms of seeds {tune_phantoms or 'none'}; simulated nodules in {len(inserted)} real scans"
    points = exporting.choose_points(judged, data)
    exporting.export(checkpoint, out, points, model_version=version, reduction=second)
    for point in points:
        typer.echo(
            f"{point.name}: threshold {point.threshold:.3f}, {point.expected_fp_per_scan:.2f} false marks a scan, "
            f"sensitivity {point.sensitivity:.3f}"
        )


@app.command()
def evaluate(
    paths: Annotated[list[Path] | None, typer.Argument(help="Folders of DICOM, or .mhd files.")] = None,
    *,
    out: Out,
    weights: Annotated[str, typer.Option(help="A weights file, or bundled.")] = "bundled",
    annotations: Annotated[Path | None, typer.Option(help="LUNA16 table of the nodules.")] = None,
    excluded: Annotated[Path | None, typer.Option(help="LUNA16 table of findings to ignore.")] = None,
    phantoms: Annotated[str, typer.Option(help="Seeds of phantoms to make and search.")] = "",
    threshold: Annotated[float, typer.Option(help="-1 takes the card's default operating point.")] = -1.0,
) -> None:
    """Search scans with the product's detector; write submission.csv, truth.csv and summary.json."""
    from pipeline.detect.detector import load_detector
    from training.evaluate import evaluate_path, evaluate_phantoms, truth_rows, write_evaluation
    from training.froc import read_annotations

    detector = load_detector(weights)
    included = read_annotations(annotations) if annotations else {}
    ignored = read_annotations(excluded) if excluded else {}
    done: list[Evaluated] = [evaluate_path(detector, path, included, ignored) for path in paths or []]
    done += evaluate_phantoms(detector, _seeds(phantoms))
    for scan in done:
        for row in truth_rows(scan):
            typer.echo(_line(row))
    limit = threshold if threshold >= 0 else detector.operating_points[0].threshold
    typer.echo(json.dumps(write_evaluation(out, done, limit), indent=1))


def _line(row: TruthRow) -> str:
    nodule = f"{row.scan} nodule {row.nodule}, {row.diameter_mm:.1f} mm"
    if row.rank is None:
        return f"{nodule}: missed"
    return f"{nodule}: rank {row.rank}, p {row.probability:.3f}, {row.found_diameter_mm:.1f} mm"


@app.command()
def froc(
    submission: Annotated[Path, typer.Argument(help="seriesuid,coordX,coordY,coordZ,probability", exists=True)],
    annotations: Annotated[Path, typer.Option(help="LUNA16 table of the nodules.", exists=True)],
    excluded: Annotated[Path | None, typer.Option(help="LUNA16 table of findings to ignore.")] = None,
    series: Annotated[Path | None, typer.Option(help="Series to judge, one a line; else all of both.")] = None,
) -> None:
    """Judge a submission as LUNA16 does: sensitivity at 1/8 to 8 false positives a scan, and their mean (CPM)."""
    from training.froc import RATES, judge, read_annotations, read_submission
    from training.froc import froc as curve_of

    marks = read_submission(submission)
    included = read_annotations(annotations)
    ignored: dict[str, list[Annotation]] = read_annotations(excluded) if excluded else {}
    listed = series.read_text().split() if series else sorted({*included, *marks})
    curve = curve_of(judge(listed, included, ignored, marks).values())
    for rate, sensitivity in zip(RATES, curve.at(), strict=True):
        typer.echo(f"{rate:6.3f} false marks a scan: sensitivity {sensitivity:.3f}")
    typer.echo(f"CPM {curve.cpm:.4f} on {len(listed)} scans")


def _recipe(name: str) -> Path:
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        _fail(f"There is no recipe {name}; known are {', '.join(sorted(p.stem for p in RECIPES.glob('*.toml')))}.")
    return path


def _names(scans: Path, skip: list[str]) -> list[str]:
    names = sorted(path.stem for path in scans.glob("*.npz"))
    for name in skip:
        if name not in names:
            _fail(f"There is no prepared scan {name} in {scans}.")
    return [name for name in names if name not in skip]


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    main()
