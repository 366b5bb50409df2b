"""A mark of the detector as training keeps it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark: position in LPS mm (x, y, z), probability, diameter (mm), and the score before calibration."""

    position_mm: tuple[float, float, float]
    probability: float
    diameter_mm: float
    raw_score: float
