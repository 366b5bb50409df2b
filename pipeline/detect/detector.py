"""The two-stage detector: lungs, screening, false-positive reduction, one list of findings."""

from __future__ import annotations

from contextlib import contextmanager
from math import exp, log, nextafter
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.detect.nms import rank, suppress
from pipeline.detect.placement import choose
from pipeline.detect.reduce import Mark, Reduction
from pipeline.detect.resample import prepare
from pipeline.detect.screen import make_screening
from pipeline.detect.weights import WeightsError, load_weights
from pipeline.domain.finding import Candidate, Detection, Finding
from pipeline.domain.limits import SelectionLimits
from pipeline.domain.outcome import Refusal
from pipeline.lungs import find_lungs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pipeline.detect.placement import Placement
    from pipeline.detect.resample import Prepared
    from pipeline.detect.screen import Proposal
    from pipeline.detect.weights import Calibration, Weights
    from pipeline.domain.finding import ModelIdentity, OperatingPoint
    from pipeline.domain.geometry import Grid, Vector
    from pipeline.domain.volume import Volume
    from pipeline.ports import Progress

MOST_FINDINGS = 100  # LUNA16 drops all marks of a scan that tie with its 101st
DISTANCE_MM = 5.0  # the closest pair of LUNA16 nodules is 5.92 mm apart
CERTAIN = 1e-7  # scores nearer to 0 or 1 count as this near
TIE_BREAK = 1e-9  # part of the raw score in a probability from a line with level pieces


class TwoStageDetector:
    """Implements :class:`pipeline.ports.Detector` with the networks of one weights file.

    Between devices and precisions the same nodules are found with probabilities within 0.01, centres within 0.1 mm
    and diameters within 2 %; a mark right at a threshold may fall on its other side. On one device the same scan
    gives the same findings.

    References
    ----------
    Dou et al., MICCAI 2017 (arXiv 1708.03867).
    """

    def __init__(self, weights: Weights, placement: Placement, limits: SelectionLimits) -> None:
        self._model, self._card, self._limits = weights.identity, weights.card, limits
        self._placement = placement
        self._screening = make_screening(weights.screening, weights.card.screening, placement)
        self._reduction = None
        if weights.reduction is not None and weights.card.reduction is not None:
            self._reduction = Reduction(weights.reduction, weights.card.reduction.batch, placement)

    @property
    def model(self) -> ModelIdentity:
        """The weights in use."""
        return self._model

    @property
    def operating_points(self) -> tuple[OperatingPoint, ...]:
        """The operating points of the weights' card, the default one first."""
        return self._card.points()

    @property
    def placement(self) -> Placement:
        """Device and precision in use."""
        return self._placement

    def detect(self, volume: Volume, progress: Progress | None = None) -> Detection | Refusal:
        """Find nodules in a chest CT.

        The lungs bound the work. The first network screens them for candidates; the second looks at the
        surroundings of each, tells nodules from mimics and regresses centre and diameter. Scores of both become one
        probability; of marks on the same nodule the most probable stays.

        Returns
        -------
        Detection or Refusal
            ``NO_LUNG_FOUND`` when this is no chest.
        """
        watch = _Watch(progress)
        with watch.step("lungs"):
            lungs = find_lungs(volume.hu, volume.grid.spacing_zyx_mm, self._limits)
        if isinstance(lungs, Refusal):
            return lungs
        with watch.step("resample"):
            scan = prepare(volume.hu, volume.grid, lungs, self._card.preprocessing)
        with watch.step("screening"):
            candidates = self._screening.candidates(scan, watch.part)
        with watch.step("reduction"):
            marks = self._reduce(scan, candidates, watch.part)
            findings = select(marks, scan.grid, self._card.calibration)
        return Detection(
            findings=findings,
            candidates=tuple(Candidate(_position(scan.grid, c.index_zyx), c.score) for c in candidates),
            model=self.model,
            operating_points=self.operating_points,
            notices=lungs.notices,
            timings_s=watch.timings_s,
        )

    def _reduce(
        self, scan: Prepared, candidates: Sequence[Proposal], progress: Callable[[float], None]
    ) -> tuple[Mark, ...]:
        if self._reduction is not None:
            return self._reduction.judge(scan, candidates, progress)
        return tuple(
            Mark(c.index_zyx, c.diameter_mm, c.score, 0.0) for c in candidates if c.diameter_mm is not None
        )


def select(marks: Sequence[Mark], grid: Grid, calibration: Calibration) -> tuple[Finding, ...]:
    """Turn marks into at most 100 findings with distinct probabilities, most probable first.

    Marks are ranked by their raw score. A mark nearer to a more probable one than 5 mm or half of that one's
    diameter is dropped.
    """
    if not marks:
        return ()
    places = np.array([m.index_zyx for m in marks])
    scores = np.array([raw_score(m, calibration) for m in marks])
    order = rank(scores, places)
    radii = np.array([max(DISTANCE_MM, marks[i].diameter_mm / 2) for i in order])
    kept = order[suppress(places[order] * np.asarray(grid.spacing_zyx_mm), radii, MOST_FINDINGS)]
    findings: list[Finding] = []
    for i in kept:
        least = nextafter(findings[-1].probability, 0.0) if findings else 1.0
        score = float(scores[i])
        p = min(calibrated(score, calibration), least)
        findings.append(Finding(_position(grid, marks[i].index_zyx), marks[i].diameter_mm, p, score))
    return tuple(findings)


def raw_score(mark: Mark, calibration: Calibration) -> float:
    """Join the scores of both stages: sigmoid(a logit(p1) + b logit(p2) + c)."""
    logit = calibration.a * _logit(mark.screening_score) + calibration.b * mark.reduction_logit + calibration.c
    return _sigmoid(logit)


def calibrated(score: float, calibration: Calibration) -> float:
    """Turn a raw score into a probability; never falls as the score rises, so it changes no ranking.

    Where the line through the knots is level, 1e-9 of the score keeps probabilities apart.
    """
    if calibration.knots:
        scores, probabilities = zip(*calibration.knots, strict=True)
        return (float(np.interp(score, scores, probabilities)) + TIE_BREAK * score) / (1.0 + TIE_BREAK)
    if (calibration.slope, calibration.shift) == (1.0, 0.0):
        return score
    return _sigmoid(calibration.slope * _logit(score) + calibration.shift)


def _logit(p: float) -> float:
    inside = min(max(p, CERTAIN), 1.0 - CERTAIN)
    return log(inside / (1.0 - inside))


def _sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + exp(-min(max(logit, -30.0), 30.0)))


def load_detector(
    weights: str | Path = "bundled",
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    limits: SelectionLimits | None = None,
) -> TwoStageDetector:
    """Load weights and make them ready to detect.

    Parameters
    ----------
    weights
        A weights file, or ``"bundled"``.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
    precision
        ``auto``, ``float32`` or ``bfloat16``.
    threads
        Threads for torch, which has one number for the process; ``None`` leaves it.
    limits
        Which lung volumes are believed.

    Raises
    ------
    WeightsError
        When the weights or the device cannot be used; the message says what to do.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        placement = choose(device, precision)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    return TwoStageDetector(load_weights(weights), placement, limits or SelectionLimits())


class _Watch:
    """Times the steps and tells the caller how far they are."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._step = ""
        self.timings_s: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time one step, and announce its begin and end."""
        self._step = name
        begin = perf_counter()
        self.part(0.0)
        yield
        self.part(1.0)
        self.timings_s[name] = perf_counter() - begin

    def part(self, done: float) -> None:
        """Tell the part of the step that is done, in [0, 1]."""
        if self._progress is not None:
            self._progress(self._step, done)


def _position(grid: Grid, index_zyx: Vector) -> Vector:
    x, y, z = grid.index_to_lps(index_zyx)
    return float(x), float(y), float(z)
