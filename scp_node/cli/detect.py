"""``nodule-node detect``: one scan from disk, without the node."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scp_node.cli.options import (
    EXIT_FAILURE,
    EXIT_NOT_ANALYSED,
    ConfigFile,
    examples,
    new_app,
    settings_from,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.domain.result import Analysis
    from pipeline.ports import Progress
    from scp_node.settings import DetectorSettings, Settings

app = new_app()


@app.command(
    "detect",
    epilog=examples(
        "nodule-node detect /data/chest-ct --json findings.json",
        "nodule-node detect scan.mhd --json all.json --threshold 0",
        "nodule-node detect /data/chest-ct --device cpu --weights trial.safetensors",
    ),
)
def detect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            exists=True,
            readable=True,
            help="Folder of DICOM files (of several series the best is taken), or a .mhd file.",
            show_default=False,
        ),
    ],
    *,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="OUT", help="Write the result here, as JSON (pipeline/schemas/detect-1.json)."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            min=0.0,
            max=1.0,
            help="Least probability of a finding, 0 to 1; 0 gives all, at most 100. "
            "Default: detector.operating_point of the settings.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="D", help="auto, cpu, cuda or cuda:1. Default: detector.device.", show_default=False),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Weights file (.safetensors). Default: detector.weights.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Look for nodules in one scan on disk.

    Findings are listed by falling probability: centre in LPS millimetres, diameter in millimetres. Nothing is sent
    anywhere. Exit codes: 0 analysed, 3 not analysed (the reason is given), 2 wrong usage, 1 our failure, 78 the
    settings cannot be used.
    """
    settings = settings_from(config)
    from scp_node.cli.logging import configure_logging

    configure_logging(settings, "detect")
    _check_target(json_file)
    chosen = _overridden(settings.detector, device, weights)
    analysis = _analyse(path, settings, chosen, threshold)
    if json_file is not None:
        _write(json_file, analysis)
    for line in lines(analysis):
        typer.echo(line)
    raise typer.Exit(_exit_code(analysis))


def lines(analysis: Analysis) -> Iterator[str]:
    """Give the result for people, line by line."""
    if analysis.reason is not None:
        yield f"Not analysed, {analysis.reason.code}: {analysis.reason.text}"
    elif analysis.operating_point is not None:
        point = analysis.operating_point
        count = len(analysis.reported)
        yield f"{count} findings at operating point {point.name} (probability {point.threshold:.3f} or more)"
    if analysis.reported:
        yield "   no  probability  diameter mm   centre x, y, z in LPS mm"
    for number, finding in enumerate(analysis.reported, start=1):
        x, y, z = finding.position_lps_mm
        yield f"{number:5}  {finding.probability:11.3f}  {finding.diameter_mm:11.1f}   {x:8.1f} {y:8.1f} {z:8.1f}"
    for notice in analysis.notices:
        yield f"Warning {notice.code}: {notice.text}"


def _check_target(json_file: Path | None) -> None:
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise typer.BadParameter(f"The folder of {json_file} does not exist.", param_hint="--json")
    if json_file is not None and json_file.is_dir():
        raise typer.BadParameter(f"{json_file} is a folder; name a file.", param_hint="--json")


def _overridden(detector: DetectorSettings, device: str | None, weights: Path | None) -> DetectorSettings:
    """Put the command's options over the settings, under the same rules."""
    from pydantic import ValidationError

    options = {"device": device, "weights": None if weights is None else str(weights.resolve())}
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return type(detector).model_validate(detector.model_dump() | given)
    except ValidationError:
        raise typer.BadParameter(f"{device!r} is not auto, cpu, cuda or cuda:1.", param_hint="--device") from None


def _analyse(path: Path, settings: Settings, detector: DetectorSettings, threshold: float | None) -> Analysis:
    """Analyse, and turn every failure of ours into a result that says so: whoever reads OUT must learn of it."""
    import structlog

    from pipeline.analysis import analyse_path, operating_point_of
    from scp_node.child import describe
    from scp_node.detector_process import load

    limits = settings.selection.limits()
    point = detector.operating_point if threshold is None else threshold
    try:
        loaded = load(detector.model_dump(mode="json"), limits)
        operating_point_of(loaded, point)
    except Exception as fault:  # noqa: BLE001 - a site's own detector may raise anything
        return _failure(f"The detector cannot be started: {fault}")  # no image was read: no patient data in there
    try:
        return analyse_path(path, loaded, limits, operating_point=point, progress=_progress())
    except Exception as fault:  # noqa: BLE001 - hostile files may raise anything
        structlog.get_logger().exception("The detector stopped without an answer")
        return _failure(f"The detector stopped without an answer ({describe(fault)}); the log names the error.")


def _failure(text: str) -> Analysis:
    from pipeline.domain.outcome import Code, Outcome, Refusal
    from pipeline.domain.result import Analysis

    return Analysis("", "", Outcome.NOT_ANALYSED, Refusal(Code.DETECTOR_FAILED, text))


def _progress() -> Progress | None:
    """Show the step on stderr, where a person looks at it."""
    if not sys.stderr.isatty():
        return None

    def show(step: str, part: float) -> None:
        sys.stderr.write(f"\r\x1b[K{step} {part:4.0%}" if part < 1 else "\r\x1b[K")
        sys.stderr.flush()

    return show


def _write(json_file: Path, analysis: Analysis) -> None:
    from pipeline.domain.result import to_document

    json_file.write_text(json.dumps(to_document(analysis), indent=2) + "\n", encoding="utf-8")


def _exit_code(analysis: Analysis) -> int:
    from pipeline.domain.outcome import CODES, Kind

    if analysis.reason is None:
        return 0
    return EXIT_FAILURE if CODES[analysis.reason.code].kind is Kind.FAILURE else EXIT_NOT_ANALYSED
