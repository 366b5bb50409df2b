"""``nodule-train evaluate``: the node's own detector over scans, judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.cli.say import Progress, by_person, fail, numbers

if TYPE_CHECKING:
    from training.download import Download
    from training.evaluate import Evaluated, TruthRow
    from training.marks import Mark


def evaluate(
    paths: Annotated[list[Path] | None, typer.Argument(help="Folders of DICOM, or .mhd files.")] = None,
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder to write; an unfinished one is gone on with.")],
    weights: Annotated[str, typer.Option(help="A weights file, or bundled.")] = "bundled",
    luna16: Annotated[Path | None, typer.Option(help="LUNA16's folder, or a cohort from 'simulate'.")] = None,
    subset: Annotated[
        list[int] | None, typer.Option(help="Of --luna16 this subset alone; may be repeated.")
    ] = None,
    part: Annotated[list[str] | None, typer.Option(help="Of a cohort this part alone; may be repeated.")] = None,
    weights_for: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FILE: other weights for the cohort's scans made from this real one, as those of a model that"
            " left it out; may be repeated."
        ),
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="LUNA16 table of the nodules.")] = None,
    excluded: Annotated[Path | None, typer.Option(help="LUNA16 table of findings to ignore.")] = None,
    phantoms: Annotated[str, typer.Option(help="Seeds of phantoms to make and search.")] = "",
    threshold: Annotated[float, typer.Option(help="-1 takes the card's default operating point.")] = -1.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
) -> None:
    """Search scans with the product's detector, and judge what it says.

    With --luna16 the folder becomes a run folder: submission.csv in LUNA16's form, the tables it is judged against,
    froc.json and plots, run.json; worst.png and worst.csv with the ten surest false marks on scans without nodules;
    on a cohort graded.json too, the sensitivity by size, kind and place. Scans that the same weights searched
    already are not searched again. Give weights that never saw these scans; crossval does so by itself.

    With folders, .mhd files or phantoms: submission.csv, truth.csv and summary.json.

    nodule-train evaluate --luna16 cohorts/benchmark --weights nodule.safetensors --out judged

    nodule-train evaluate --luna16 cohorts/benchmark --weights all.safetensors
    --weights-for LIDC-IDRI-0003=without-0003.safetensors --out judged
    """
    if luna16 is not None:
        chosen = _chosen(luna16, set(subset or []), set(part or []))
        _evaluate_download(chosen, by_person(weights, weights_for or []), out, device)
        return
    from pipeline.detect.detector import load_detector
    from training.evaluate import evaluate_path, evaluate_phantoms, truth_rows, write_evaluation
    from training.judge_tables import read_annotations

    detector = load_detector(weights, device=device)
    included = read_annotations(annotations) if annotations else {}
    ignored = read_annotations(excluded) if excluded else {}
    done: list[Evaluated] = [evaluate_path(detector, path, included, ignored) for path in paths or []]
    done += evaluate_phantoms(detector, numbers(phantoms))
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


def _chosen(root: Path, subsets: set[int], parts: set[str]) -> Download:
    """Read the download and keep the wanted scans."""
    from dataclasses import replace

    from training.cohort_file import CohortError
    from training.download import read_download

    try:
        download = read_download(root)
    except CohortError as error:
        fail(str(error))
    scans = tuple(
        s for s in download.scans if (not subsets or s.subset in subsets) and (not parts or s.part in parts)
    )
    if not scans:
        fail(f"{root} has no whole scan of these subsets and parts.")
    return replace(download, scans=scans)


def _evaluate_download(download: Download, weights: dict[str, str], out: Path, device: str) -> None:
    from pipeline.detect.weights import WeightsError, load_weights
    from training.graded import graded_lines
    from training.scans import UnusableScanError
    from training.searching import judge_marks, judging_detector, search_download
    from training.simulate import cohort_name

    name = cohort_name(download.root) if download.simulated else "LUNA16"
    unknown = sorted(set(weights) - {""} - {s.person for s in download.scans})
    if unknown:
        fail(f"{download.root} has no scan made from {', '.join(unknown)}.")
    progress = Progress("scans")
    marks: dict[str, tuple[Mark, ...]] = {}
    try:
        for person, file in weights.items():
            scans = [s for s in download.scans if (s.person if s.person in weights else "") == person]
            if not scans:
                continue
            before = len(marks)
            for done, _, uid, found in search_download(judging_detector(file, device), scans, out / "marks"):
                progress.show(before + done, len(download.scans), uid)
                marks[uid] = found
        marks = {s.uid: marks[s.uid] for s in download.scans}
        used = [load_weights(file) for file in weights.values()]
        judgement, graded = judge_marks(out, download, marks, used, name)
    except (UnusableScanError, WeightsError) as error:
        fail(str(error))
    typer.echo(f"{out}: CPM {judgement.curve.cpm:.4f} on {judgement.scans} scans, {judgement.nodules} nodules")
    for line in graded_lines(graded) if graded else ():
        typer.echo(line)
