"""Files to findings: the best series, its volume, what the detector says of it."""

from __future__ import annotations

import math
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from pipeline.assemble import build, received_geometry
from pipeline.decision import NOTHING_FOUND, Decision, Judged, decide, judge_all
from pipeline.domain.finding import OperatingPoint
from pipeline.domain.outcome import Outcome, Refusal
from pipeline.domain.result import Analysis, Coverage
from pipeline.pixels import read_pixels
from pipeline.reading import METAIMAGE_ENDINGS, files_in, read_headers, read_metaimage
from pipeline.selection import SeriesFacts, StackFacts, judge
from pipeline.slices import quiet_parser

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pipeline.assemble import Stack
    from pipeline.domain.finding import Detection
    from pipeline.domain.limits import SelectionLimits
    from pipeline.domain.outcome import Notice
    from pipeline.domain.volume import Volume
    from pipeline.pixels import Pixels
    from pipeline.ports import Detector, Progress
    from pipeline.slices import Slice

__all__ = ["Decision", "analyse_path", "analyse_series", "decide", "operating_point_of"]

DEFAULT_POINT = "default"
CUSTOM_POINT = "custom"


def analyse_series(
    paths: Sequence[Path],
    detector: Detector,
    limits: SelectionLimits,
    *,
    operating_point: str | float,
    series_instance_uid: str | None = None,
    progress: Progress | None = None,
) -> Analysis:
    """Analyse one series.

    Parameters
    ----------
    paths
        Its files; files of other series are ignored.
    detector
        Whoever finds nodules.
    limits
        The values of ``[selection]``.
    operating_point
        A name of the weights' card, ``default``, or a threshold in [0, 1].
    series_instance_uid
        Which series; ``None`` for the best one among the files.
    progress
        Called with each step and the part of it that is done.

    Returns
    -------
    Analysis
        *Not analysed* with its reason where there is no volume or the detector refuses it.

    Raises
    ------
    ValueError
        When the operating point is not one of the detector's.
    """
    point = operating_point_of(detector, operating_point)
    judged, unreadable, timings = _judged_files(paths, limits)
    if series_instance_uid is not None:
        judged = tuple(j for j in judged if j.verdict.series_uid == series_instance_uid)
    if not judged:
        return _nothing(unreadable, timings)
    return _analyse(judged[0], detector, point, timings, progress)


def analyse_path(
    path: Path,
    detector: Detector,
    limits: SelectionLimits,
    *,
    operating_point: str | float,
    progress: Progress | None = None,
) -> Analysis:
    """Analyse a folder of DICOM files (its best series) or a MetaImage; parameters as :func:`analyse_series`.

    When the pixels of the best series turn out unusable, the next eligible one is tried.

    Raises
    ------
    OSError
        When the path cannot be opened.
    ValueError
        When the operating point is not one of the detector's.
    """
    point = operating_point_of(detector, operating_point)
    if path.suffix.lower() in METAIMAGE_ENDINGS:
        path.stat()
        return _analyse_metaimage(path, detector, limits, point, progress)
    judged, unreadable, timings = _judged_files(files_in(path), limits)
    if not judged:
        return _nothing(unreadable, timings)
    eligible = [j for j in judged if j.verdict.eligible] or judged[:1]
    first = _analyse(eligible[0], detector, point, timings, progress)
    if first.outcome is not Outcome.NOT_ANALYSED:
        return first
    others = (_analyse(j, detector, point, timings, progress) for j in eligible[1:])
    return next((a for a in others if a.outcome is not Outcome.NOT_ANALYSED), first)


def operating_point_of(detector: Detector, choice: str | float) -> OperatingPoint:
    """Find an operating point by name, or make one of a threshold.

    Raises
    ------
    ValueError
        When the name is not in the weights' card or the threshold not in [0, 1]; the message lists the names.
    """
    points = detector.operating_points
    if isinstance(choice, str):
        if choice == DEFAULT_POINT:
            return points[0]
        found = next((p for p in points if p.name == choice), None)
        if found is None:
            names = ", ".join(p.name for p in points)
            raise ValueError(f"operating point '{choice}' is not in the weights' card; it has: {names}")
        return found
    if not 0 <= choice <= 1:
        raise ValueError(f"threshold {choice} is not between 0 and 1")
    return OperatingPoint(CUSTOM_POINT, float(choice))


def _judged_files(
    paths: Sequence[Path], limits: SelectionLimits
) -> tuple[tuple[Judged, ...], tuple[Refusal, ...], dict[str, float]]:
    started = perf_counter()
    inventory = read_headers(paths)
    read = perf_counter()
    judged, unreadable = judge_all(inventory, limits)
    return judged, unreadable, {"read": read - started, "assemble": perf_counter() - read}


def _nothing(unreadable: Sequence[Refusal], timings_s: dict[str, float]) -> Analysis:
    return Analysis("", "", Outcome.NOT_ANALYSED, reason=next(iter(unreadable), NOTHING_FOUND), timings_s=timings_s)


def _analyse(
    judged: Judged,
    detector: Detector,
    point: OperatingPoint,
    timings_s: dict[str, float],
    progress: Progress | None,
) -> Analysis:
    """Decode the volume of one judged series and show it to the detector."""
    verdict, stack = judged.verdict, judged.stack
    ended = Analysis(
        verdict.study_uid,
        verdict.series_uid,
        Outcome.NOT_ANALYSED,
        reason=verdict.refusal,
        notices=verdict.notices,
        received=None if stack is None else received_geometry(stack),
        timings_s=timings_s,
    )
    if verdict.refusal is not None or stack is None:
        return ended
    started = perf_counter()
    volume = _decoded(stack, verdict.study_uid, verdict.series_uid, progress)
    timings_s = timings_s | {"decode": perf_counter() - started}
    if isinstance(volume, Refusal):
        return replace(ended, reason=volume, timings_s=timings_s)
    analysis = _detected(
        replace(volume, notices=_merged(verdict.notices, volume.notices)), detector, point, timings_s, progress
    )
    images = tuple((image.sop_instance_uid, image.frame_number) for image in volume.slices)
    return replace(analysis, coverage=Coverage(images, verdict.facts["ct_images"], len(volume.filled_slices)))


def _decoded(stack: Stack, study_uid: str, series_uid: str, progress: Progress | None) -> Volume | Refusal:
    done = 0

    def counted(pieces: Sequence[Slice]) -> Iterator[Pixels | Refusal]:
        nonlocal done
        for pixels in read_pixels(pieces):
            yield pixels
            done += 1
            if progress is not None:
                progress("decode", done / len(stack.slices))

    with quiet_parser():
        return build(stack, counted, study_uid, series_uid)


def _merged(first: Sequence[Notice], second: Sequence[Notice]) -> tuple[Notice, ...]:
    return (*first, *(n for n in second if n not in first))


def _detected(
    volume: Volume,
    detector: Detector,
    point: OperatingPoint,
    timings_s: dict[str, float],
    progress: Progress | None,
) -> Analysis:
    started = perf_counter()
    detection = detector.detect(volume, progress)
    timings_s = timings_s | {"detect": perf_counter() - started}
    ended = Analysis(
        volume.study_instance_uid,
        volume.series_instance_uid,
        Outcome.NOT_ANALYSED,
        notices=volume.notices,
        received=volume.received,
        model=detector.model,
        operating_point=point,
        timings_s=timings_s,
    )
    return (
        replace(ended, reason=detection) if isinstance(detection, Refusal) else _answered(ended, detection, point)
    )


def _answered(ended: Analysis, detection: Detection, point: OperatingPoint) -> Analysis:
    found = any(f.probability >= point.threshold for f in detection.findings)
    return replace(
        ended,
        outcome=Outcome.FINDINGS if found else Outcome.NO_FINDINGS,
        notices=_merged(ended.notices, detection.notices),
        findings=detection.findings,
        candidates=detection.candidates,
        timings_s={**ended.timings_s, **detection.timings_s},
    )


def _analyse_metaimage(
    path: Path, detector: Detector, limits: SelectionLimits, point: OperatingPoint, progress: Progress | None
) -> Analysis:
    started = perf_counter()
    volume = read_metaimage(path)
    timings_s = {"read": perf_counter() - started}
    if isinstance(volume, Refusal):
        return Analysis("", path.stem, Outcome.NOT_ANALYSED, reason=volume, timings_s=timings_s)
    verdict = judge(_metaimage_facts(volume), limits)
    if verdict.refusal is not None:
        return Analysis(
            "",
            path.stem,
            Outcome.NOT_ANALYSED,
            reason=verdict.refusal,
            notices=verdict.notices,
            received=volume.received,
            timings_s=timings_s,
        )
    return _detected(replace(volume, notices=verdict.notices), detector, point, timings_s, progress)


def _metaimage_facts(volume: Volume) -> SeriesFacts:
    """What selection may hold against a MetaImage: its geometry alone."""
    z_mm, y_mm, x_mm = volume.grid.spacing_zyx_mm
    slices, rows, columns = volume.grid.shape_zyx
    x, y, z = volume.grid.axes_zyx[0]
    stack = StackFacts(slices, 0, z_mm, z_mm, max(y_mm, x_mm), rows, columns, _angle_deg(x, y, z), 0.0)
    kind = ("ORIGINAL", "PRIMARY", "AXIAL")
    return SeriesFacts("", volume.series_instance_uid, None, slices, stack, image_type=kind)


def _angle_deg(x: float, y: float, z: float) -> float:
    return math.degrees(math.atan2(math.hypot(x, y), abs(z)))
