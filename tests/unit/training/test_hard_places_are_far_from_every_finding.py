"""Hard places: false marks of a model, never near a nodule or a reader's finding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.hard_places import MOST, hard_places
from training.insertion import Look
from training.sampling import SPACING
from training.scans import TrainingScan


@dataclass(frozen=True, slots=True)
class Mark:
    position_lps_mm: tuple[float, float, float]
    probability: float


def scan() -> TrainingScan:
    return TrainingScan(
        name="patient",
        hu=np.full((64, 100, 100), -850, np.int16),
        slice_distance_mm=2.5,
        look=Look((1.25, 0.6, 0.6), 15.0, (0.6, 0.7, 0.7)),
        nodules=np.array([[20.0, 50.0, 50.0, 16.0]]),
        ignored=np.array([[40.0, 20.0, 20.0, 4.0]]),
        mimics=np.empty((0, 3)),
    )


def mark(index: tuple[float, float, float], probability: float = 0.8, x_mm: float = 0.0) -> Mark:
    z, y, x = (float(i) * float(s) for i, s in zip(index, SPACING, strict=True))
    return Mark((x + x_mm, y, z), probability)


def found(*marks: Mark) -> np.ndarray:
    return hard_places(scan(), marks)  # type: ignore[arg-type]


def test_a_mark_in_free_lung_is_a_hard_place():
    np.testing.assert_allclose(found(mark((50, 70, 80))), [[50, 70, 80]])


def test_marks_on_or_near_nodules_and_findings_are_left_out():
    assert len(found(mark((20, 50, 50)), mark((20, 50, 50), x_mm=10.9), mark((40, 20, 20), x_mm=7.9))) == 0
    assert len(found(mark((20, 50, 50), x_mm=11.1), mark((40, 20, 20), x_mm=8.1))) == 2


def test_only_the_surest_marks_are_kept():
    marks = [mark((50, 60, 5 + k), 0.9 - 0.01 * k) for k in range(MOST + 10)]
    assert len(found(*marks)) == MOST
    assert found(mark((50, 60, 60), 0.09)).shape == (0, 3)
