"""The truth of a series, where it is known, beside the marks of a report."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from math import dist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from demo.sr import Mark

    Vector = tuple[float, float, float]

PHANTOM_TRUTH = "truth.json"
TABLES = ("annotations.csv", "nodules.csv")
COLUMNS = (("coordX", "coordY", "coordZ"), ("x", "y", "z"))


@dataclass(frozen=True, slots=True)
class Nodule:
    """A true nodule: centre in LPS mm ``(x, y, z)``, diameter in mm."""

    centre_lps_mm: Vector
    diameter_mm: float


def read_truth(folder: Path, series_uid: str) -> list[Nodule] | None:
    """Read the nodules of a series from what lies in the folder or beside it.

    That is a phantom's ``truth.json``, or a table ``annotations.csv`` (as LUNA16's) or ``nodules.csv``.
    ``None`` means that nobody knows; an empty list that there is none.
    """
    for place in (folder, folder.parent):
        if (place / PHANTOM_TRUTH).is_file():
            truth = json.loads((place / PHANTOM_TRUTH).read_text())
            if truth["series_instance_uid"] == series_uid:
                return [_nodule(n["centre_lps_mm"], n["diameter_mm"]) for n in truth["nodules"]]
        for path in (place / name for name in TABLES):
            if path.is_file():
                return _from_table(path, series_uid)
    return None


def nodule_of(mark: Mark, truth: Sequence[Nodule]) -> Nodule | None:
    """The nearest true nodule in which a mark's centre lies: LUNA16's rule, distance below the radius."""
    centre = mark.centre_lps_mm
    if centre is None:
        return None
    hit = [n for n in truth if dist(centre, n.centre_lps_mm) < n.diameter_mm / 2]
    return min(hit, key=lambda n: dist(centre, n.centre_lps_mm), default=None)


def missed(marks: Sequence[Mark], truth: Sequence[Nodule]) -> list[Nodule]:
    """The true nodules that hold no mark."""
    found = {nodule_of(mark, truth) for mark in marks}
    return [nodule for nodule in truth if nodule not in found]


def table(marks: Sequence[Mark], truth: Sequence[Nodule] | None) -> list[str]:
    """The findings beside the truth, as lines of text."""
    lines = [f"{'':10}  {'probability':>11}  {'diameter':>9}  {'position, LPS mm':24}  truth"]
    lines += [
        f"{mark.name:10}  {mark.certainty_percent:9.1f} %  {mark.diameter_mm:6.1f} mm  "
        f"{_position(mark.centre_lps_mm):24}  {verdict(mark, truth)}"
        for mark in marks
    ]
    lines += [
        f"{'missed':10}  {'':11}  {'':9}  {_position(n.centre_lps_mm):24}  nodule of {n.diameter_mm:.1f} mm"
        for n in missed(marks, truth or ())
    ]
    return lines


def verdict(mark: Mark, truth: Sequence[Nodule] | None) -> str:
    """What the truth says of a mark, in a few words."""
    if truth is None:
        return "not known"
    nodule = nodule_of(mark, truth)
    if nodule is None or mark.centre_lps_mm is None:
        return "no nodule here"
    return f"nodule of {nodule.diameter_mm:.1f} mm, {dist(mark.centre_lps_mm, nodule.centre_lps_mm):.1f} mm away"


def _from_table(path: Path, series_uid: str) -> list[Nodule] | None:
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    names = next((names for names in COLUMNS if rows and set(names) <= set(rows[0])), None)
    if names is None:
        return None
    return [_nodule([row[n] for n in names], row["diameter_mm"]) for row in rows if row["seriesuid"] == series_uid]


def _nodule(centre: Sequence[str | float], diameter_mm: str | float) -> Nodule:
    x, y, z = (float(value) for value in centre)
    return Nodule((x, y, z), float(diameter_mm))


def _position(centre: Vector | None) -> str:
    return "-" if centre is None else ", ".join(f"{value:.1f}" for value in centre)
