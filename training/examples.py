"""Which marks to show of a judged run: found nodules of all sizes, surest false marks, largest missed. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.froc import judge_scan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from training.froc import Annotation, ScoredMark

    Found = tuple[ScoredMark, float | None]

FALSE_MARKS = 3
MISSED = 3


@dataclass(frozen=True, slots=True)
class Example:
    """A place to show.

    Attributes
    ----------
    series
        Its scan.
    position_mm
        Of the mark, or of the nodule where it was missed; LPS mm (x, y, z).
    probability, found_diameter_mm
        Of the mark; None where there is none or the diameter is not known.
    true_diameter_mm
        Of the nodule; None for a false mark.
    """

    series: str
    position_mm: tuple[float, float, float]
    probability: float | None
    found_diameter_mm: float | None
    true_diameter_mm: float | None


def choose_examples(
    series: Sequence[str],
    included: Mapping[str, Sequence[Annotation]],
    excluded: Mapping[str, Sequence[Annotation]],
    marks: Mapping[str, Sequence[Found]],
    hits: int,
) -> list[Example]:
    """Choose by rule, not by taste: hits evenly over the true diameters, then false marks, then missed nodules."""
    found: list[Example] = []
    false: list[Example] = []
    missed: list[Example] = []
    for uid in series:
        nodules, own = included.get(uid, ()), list(marks.get(uid, ()))
        for nodule in nodules:
            best = _best(nodule, own)
            if best is None:
                missed.append(Example(uid, nodule.position_mm, None, None, nodule.diameter_mm))
            else:
                found.append(Example(uid, best[0].position_mm, best[0].probability, best[1], nodule.diameter_mm))
        # A mark alone in its scan is false exactly when the judge says so.
        surest = sorted(own, key=lambda mark: -mark[0].probability)[: 4 * FALSE_MARKS]
        for mark, diameter in surest:
            if judge_scan(nodules, excluded.get(uid, ()), [mark]).false_marks:
                false.append(Example(uid, mark.position_mm, mark.probability, diameter, None))
    found.sort(key=lambda example: example.true_diameter_mm or 0)
    false.sort(key=lambda example: -(example.probability or 0))
    missed.sort(key=lambda example: -(example.true_diameter_mm or 0))
    places = sorted({round(k) for k in np.linspace(0, len(found) - 1, hits)}) if found else []
    return [*(found[k] for k in places), *false[:FALSE_MARKS], *missed[:MISSED]]


def _best(nodule: Annotation, marks: Sequence[Found]) -> Found | None:
    """Find the most probable mark on a nodule."""
    on_it = [mark for mark in marks if judge_scan([nodule], (), [mark[0]]).nodules[0] is not None]
    return max(on_it, key=lambda mark: mark[0].probability, default=None)
