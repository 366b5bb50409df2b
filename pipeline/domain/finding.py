"""What the detector says: candidates after the first stage, findings after the second."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.domain.geometry import Vector
    from pipeline.domain.outcome import Notice


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place that the screening network proposes.

    Attributes
    ----------
    position_lps_mm
        Centre ``(x, y, z)``; mm, LPS.
    score
        Screening score in [0, 1], not calibrated.
    """

    position_lps_mm: Vector
    score: float


@dataclass(frozen=True, slots=True)
class Finding:
    """A mark for the radiologist.

    Attributes
    ----------
    position_lps_mm
        Decoded centre ``(x, y, z)``; mm, LPS.
    diameter_mm
        Regressed mean diameter; mm.
    probability
        Probability that this is a nodule, in [0, 1]; never a probability of cancer.
    raw_score
        The networks' score in [0, 1] from which the calibrated probability was made; ``None`` where it is not kept.
    """

    position_lps_mm: Vector
    diameter_mm: float
    probability: float
    raw_score: float | None = None


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which weights spoke: name, version, recipe and the SHA-256 of the weights file (hex)."""

    name: str
    version: str
    recipe: str
    sha256: str


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """The threshold in force.

    Attributes
    ----------
    name
        Its name in the weights' card, or ``custom``.
    threshold
        Findings with a probability at or above it are reported.
    expected_fp_per_scan
        Mean false marks a scan on the set named in the card; ``None`` for a custom threshold.
    """

    name: str
    threshold: float
    expected_fp_per_scan: float | None = None


@dataclass(frozen=True, slots=True)
class Detection:
    """The detector's whole answer for one volume.

    Attributes
    ----------
    findings
        At most 100, by falling probability, uncut by any threshold.
    candidates
        By falling score.
    model
        The weights behind it.
    operating_points
        Those of the weights' card, the default one first.
    notices
        What the reader of the result should know.
    timings_s
        Seconds for each step.
    """

    findings: tuple[Finding, ...]
    candidates: tuple[Candidate, ...]
    model: ModelIdentity
    operating_points: tuple[OperatingPoint, ...]
    notices: tuple[Notice, ...] = ()
    timings_s: Mapping[str, float] = field(default_factory=dict)
