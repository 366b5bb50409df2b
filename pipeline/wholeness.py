"""Whether the images of a study form a whole volume: a uniform grid, in which the lungs end on all sides.

It can show that something is missing, never that nothing is: a series cut off above the lungs looks whole. What it
says counts together with other signs only (decision 0105).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.decision import Decision, judge_all
from pipeline.domain.outcome import Code, Refusal
from pipeline.lungs import CELL_MM, find_lungs
from pipeline.pixels import read_pixels
from pipeline.reading import read_headers
from pipeline.slices import quiet_parser

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.assemble import Stack
    from pipeline.decision import Judged
    from pipeline.domain.limits import SelectionLimits
    from pipeline.domain.outcome import Notice

INCOMPLETE = frozenset(
    {Code.MISSING_SLICES, Code.SLICES_INTERPOLATED, Code.IRREGULAR_SPACING, Code.CORRUPT_INSTANCE}
)


@dataclass(frozen=True, slots=True)
class Wholeness:
    """What the images themselves say.

    Attributes
    ----------
    geometry
        No CT series has a gap or an unreadable image, and the best one can be analysed.
    lungs
        The lungs end inside the best series; ``False`` too where it was not looked at.
    text
        One ASCII sentence, without patient data.
    """

    geometry: bool
    lungs: bool
    text: str


def look_and_decide(paths: Sequence[Path], limits: SelectionLimits) -> tuple[Wholeness, Decision]:
    """Look at all CT images of a study, and decide on its series: headers are read once for both.

    Parameters
    ----------
    paths
        Their files, in any order.
    limits
        The values of ``[selection]``.
    """
    judged, unreadable = judge_all(read_headers(paths), limits)
    return _whole(judged, unreadable, limits), Decision(tuple(one.verdict for one in judged), unreadable)


def _whole(judged: Sequence[Judged], unreadable: Sequence[Refusal], limits: SelectionLimits) -> Wholeness:
    if unreadable:
        return Wholeness(False, False, unreadable[0].text)
    gaps = next((fault for one in judged if (fault := _gap(one))), None)
    if gaps is not None:
        return Wholeness(False, False, gaps)
    best = judged[0] if judged else None
    if best is None or best.stack is None or not best.verdict.eligible:
        return Wholeness(False, False, "No series can be analysed yet.")
    return _lungs(best.stack, limits)


def _gap(judged: Judged) -> str | None:
    verdict = judged.verdict
    said: list[Notice | Refusal] = [*verdict.notices, *([verdict.refusal] if verdict.refusal else [])]
    return next((one.text for one in said if verdict.is_ct and one.code in INCOMPLETE), None)


def _lungs(stack: Stack, limits: SelectionLimits) -> Wholeness:
    hu = _thinned(stack)
    if isinstance(hu, Refusal):
        return Wholeness(True, False, hu.text)
    z_mm = stack.spacing_mm * (len(stack.slices) - 1) / (len(hu) - 1)
    found = find_lungs(hu, (z_mm, *stack.grid.spacing_zyx_mm[1:]), limits)
    if isinstance(found, Refusal):
        return Wholeness(True, False, found.text)
    if found.notices:
        return Wholeness(True, False, found.notices[0].text)
    return Wholeness(True, True, f"{len(stack.slices)} slices form a volume in which the lungs end.")


def _thinned(stack: Stack) -> NDArray[np.int16] | Refusal:
    """Decode the first slice, the last, and as many between them as the lung mask looks at."""
    count = len(stack.slices)
    steps = max(2, round((count - 1) * min(1.0, stack.spacing_mm / CELL_MM)) + 1)
    planes = []
    with quiet_parser():
        for k in np.unique(np.rint(np.linspace(0, count - 1, steps)).astype(int)):
            pixels = next(iter(read_pixels([stack.slices[k]])))
            if isinstance(pixels, Refusal):
                return pixels
            planes.append(pixels.hu)
    return np.stack(planes)
