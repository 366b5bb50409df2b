"""Hard places of a prepared scan: where a model marked what no reader called anything. Training cuts crops there.

The crops stay negatives, so a place near a nodule, or near any finding that a reader marked, is left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from training.evaluate import evaluate_insertions
from training.sampling import SPACING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from pipeline.domain.finding import Finding
    from pipeline.ports import Detector
    from training.scans import TrainingScan

APART_MM = 3.0
"""Least distance from a finding's surface; findings count as at least 10 mm wide, because many have no size."""

LEAST_PROBABILITY = 0.1
MOST = 60


def hard_places(scan: TrainingScan, findings: Iterable[Finding]) -> NDArray[np.float64]:
    """Give the surest false marks as voxel indices ``(n, 3)`` in z, y, x, at most ``MOST``.

    Parameters
    ----------
    scan
        With its nodules and findings to ignore.
    findings
        By falling probability; positions in mm (x, y, z) from the first voxel of the scan's box.
    """
    known = np.concatenate([scan.nodules, scan.ignored])
    places: list[NDArray[np.float64]] = []
    for finding in findings:
        if finding.probability < LEAST_PROBABILITY or len(places) == MOST:
            break
        place = np.asarray(finding.position_lps_mm)[::-1] / SPACING
        if all(np.linalg.norm((place - row[:3]) * SPACING) > max(row[3] / 2, 5) + APART_MM for row in known):
            places.append(place)
    return np.asarray(places, np.float64).reshape(-1, 3)


def with_hard_places(detector: Detector, scan: TrainingScan) -> TrainingScan:
    """Search a prepared scan and keep the false marks as its imitators.

    Raises
    ------
    UnusableScanError
        When the detector refuses the scan.
    """
    found = evaluate_insertions(detector, scan, seed=0, count=0).findings
    return replace(scan, mimics=hard_places(scan, found))
