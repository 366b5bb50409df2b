"""Forms that are mistaken for nodules: pieces of vessels, branchings, bends, thick hilar vessels, plates, scars.

Owns form alone; where it goes and how dense it is, the brush decides (`insertion.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from training.lesions import Plate, Tube, direction

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from training.lesions import Shape

    Parts = list[tuple[Shape, NDArray[np.float64]]]

KINDS = ("vessel", "branching", "bend", "hilar vessel", "plate", "scar")
SHARES = (0.3, 0.2, 0.12, 0.13, 0.15, 0.1)


def draw_imitator(rng: np.random.Generator) -> Parts:
    """Draw an imitator: shapes, each with its shift from the middle along z, y, x in mm."""
    kind = KINDS[rng.choice(len(KINDS), p=SHARES)]
    if kind == "branching":
        return _branching(rng, float(rng.uniform(0.8, 2.2)))
    if kind == "bend":
        return _bend(rng)
    if kind == "hilar vessel":
        radius = float(rng.uniform(2.2, 5.0))
        if rng.random() < 0.4:
            return _branching(rng, radius)
        return [(Tube(direction(rng), radius * float(rng.uniform(4, 6)), radius), np.zeros(3))]
    if kind == "plate":
        return [(Plate(direction(rng), float(rng.uniform(5, 16)), float(rng.uniform(0.4, 1.4))), np.zeros(3))]
    if kind == "scar":
        count = int(rng.integers(3, 7))
        return [
            (Tube(direction(rng), float(rng.uniform(5, 14)), float(rng.uniform(0.4, 1.3))), rng.normal(0, 3.0, 3))
            for _ in range(count)
        ]
    return [(Tube(direction(rng), float(rng.uniform(8, 22)), float(rng.uniform(0.7, 2.6))), np.zeros(3))]


def _branching(rng: np.random.Generator, radius: float) -> Parts:
    """Three vessels that meet; the branches are thinner than the stem by Murray's 0.79, more or less."""
    parts: Parts = []
    for number in range(3):
        along = direction(rng)
        half = max(float(rng.uniform(6, 12)), 3 * radius)
        thinner = 1.0 if number == 0 else float(rng.uniform(0.6, 0.95))
        parts.append((Tube(along, half, radius * thinner), np.asarray(along) * half * 0.75))
    return parts


def _bend(rng: np.random.Generator) -> Parts:
    """A vessel that turns: pieces one after the other, each a little off the last one's direction."""
    radius = float(rng.uniform(0.9, 2.4))
    along, end = np.asarray(direction(rng)), np.zeros(3)
    parts: Parts = []
    for _ in range(int(rng.integers(3, 6))):
        half = float(rng.uniform(4, 7))
        turned = (float(along[0]), float(along[1]), float(along[2]))
        parts.append((Tube(turned, half * 1.4, radius), end + along * half))
        end = end + along * 2 * half
        along = along + rng.normal(0, 0.55, 3)
        along /= np.linalg.norm(along)
    return parts
