"""``nodule-train export``: weights with a card that says what they are, calibrated on held-out marks."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from training.cli.say import fail, numbers

if TYPE_CHECKING:
    from pipeline.detect.weights import CardOperatingPoint
    from training.evaluate import Evaluated


class Method(StrEnum):
    """What may stand behind ``--calibration``."""

    platt = "platt"
    isotonic = "isotonic"
    none = "none"


def export(
    checkpoint: Annotated[Path, typer.Argument(help="screening.pt of a run.", exists=True)],
    *,
    out: Annotated[Path, typer.Option("--out", help="The weights file to write.")],
    version: Annotated[str, typer.Option(help="Version of these weights.")] = "0",
    second: Annotated[Path | None, typer.Option("--reduction", help="reduction.pt; else stage 1 alone.")] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder (crossval's 'pooled', or of evaluate) with marks on scans that these weights never"
            " saw, or that models of the same recipe which stand for them never saw."
        ),
    ] = None,
    calibration: Annotated[Method, typer.Option(help="What is fitted on the held-out marks.")] = Method.platt,
    data_set: Annotated[str, typer.Option(help="Name of the held-out scans; else as their run.json says.")] = "",
    floor: Annotated[float, typer.Option(help="Least score of a candidate; -1: the network's own.", max=1)] = -1.0,
    trained_on: Annotated[
        list[str] | None,
        typer.Option(help="NAME=LICENCE of a set that the training used; may be repeated; else the bundle's sets."),
    ] = None,
    tune_phantoms: Annotated[str, typer.Option(help="Seeds to choose thresholds on, as 2000-2009.")] = "",
    tune_scans: Annotated[Path | None, typer.Option(help="Prepared real scans to insert nodules into.")] = None,
) -> None:
    """Write weights with their card: calibrated probabilities, and operating points with what they cost and find.

    From the held-out marks come the calibration (Platt, or isotonic regression with a tie-break; neither changes
    the ranking, so CPM stays) and the operating points: for 1 (the default), 1/4, 1/2, 2 and 4 false marks a scan
    the threshold, the sensitivity with its bootstrap interval, and the name of the data. Beside the weights
    NAME.calibration.json shows the calibration fitted on one half of the scans and measured on the other: expected
    calibration error in 15 bins of equally many marks, Brier score, reliability table.

    Without --held-out thresholds come from simulated nodules (--tune-phantoms, --tune-scans), uncalibrated.

    nodule-train export runs/all/screening.pt --held-out runs/cv/pooled --version 2027.1 --out nodule.safetensors
    """
    from pipeline.detect.weights import TrainingData, WeightsError, load_weights
    from training import export as exporting

    given: dict[str, Any] = {"model_version": version, "reduction": second, "floor": floor if floor >= 0 else None}
    if trained_on:
        pairs = [item.partition("=") for item in trained_on]
        given["training_data"] = tuple(TrainingData(name, licence or "not said") for name, _, licence in pairs)
    try:
        if held_out is not None:
            points = _calibrated((checkpoint, out), held_out, calibration, data_set, given)
        else:
            exporting.export(checkpoint, out, **given)
            points = _tuned(checkpoint, out, tune_phantoms, tune_scans, given)
        load_weights(out)
    except (ValueError, WeightsError) as error:
        fail(str(error))
    for point in points:
        typer.echo(_line(point))
    typer.echo(f"{out}")


def _line(point: CardOperatingPoint) -> str:
    line = (
        f"{point.name}: threshold {point.threshold:.4f}, {point.expected_fp_per_scan:.2f} false marks a scan, "
        f"sensitivity {point.sensitivity:.3f}"
    )
    if point.sensitivity_low is None:
        return line
    return f"{line} (95 % {point.sensitivity_low:.3f} to {point.sensitivity_high:.3f})"


def _calibrated(
    stage_and_out: tuple[Path, Path], folder: Path, method: Method, data_set: str, given: dict[str, Any]
) -> tuple[CardOperatingPoint, ...]:
    checkpoint, out = stage_and_out
    from training import export as exporting
    from training import held_out as marks
    from training import luna16
    from training.calibration import CalibrationError
    from training.judge_tables import TableError
    from training.run_folder import RunFolderError, read_run_card

    try:
        name = data_set or read_run_card(folder).data_set
        scans = marks.read_held_out(folder)
        fitted = marks.NO_CHANGE
        if method is not Method.none:
            way: marks.Method = "platt" if method is Method.platt else "isotonic"
            fitted = marks.fit(scans, way, name)
            said = marks.half_and_half(scans, way)
            luna16.write_text(out.with_suffix(".calibration.json"), json.dumps(said, indent=1) + "\n")
            before, after = (said[key]["expected_error"] for key in ("before", "after"))
            typer.echo(
                f"expected calibration error on the other half of the scans: {after:.3f} (before {before:.3f})"
            )
    except (TableError, RunFolderError, CalibrationError) as error:
        fail(str(error))
    points = marks.choose_points(scans, fitted, name)
    exporting.export(checkpoint, out, points, calibration=fitted, **given)
    return points


def _tuned(
    checkpoint: Path, out: Path, phantoms: str, scans: Path | None, given: dict[str, Any]
) -> tuple[CardOperatingPoint, ...]:
    from pipeline.detect.detector import load_detector
    from training import export as exporting
    from training.evaluate import evaluate_insertions, evaluate_phantoms
    from training.scans import load_scans

    if not phantoms and scans is None:
        typer.echo("with a provisional threshold; give --held-out or --tune-phantoms to choose one")
        return ()
    detector = load_detector(out)
    judged: list[Evaluated] = list(evaluate_phantoms(detector, numbers(phantoms)))
    inserted = [s for s in load_scans(scans) if not s.is_phantom] if scans else []
    judged += [evaluate_insertions(detector, scan, seed=2000 + k) for k, scan in enumerate(inserted)]
    data = f"phantoms of seeds {phantoms or 'none'}; simulated nodules in {len(inserted)} real scans"
    points = exporting.choose_points(judged, data)
    exporting.export(checkpoint, out, points, **given)
    return points
