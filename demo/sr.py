"""Reads a structured report as any other program would: with pydicom alone, nothing of ours that wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom.dataset import Dataset

# Code values of PS3.16, with the scheme they belong to in the comment.
MEASUREMENT_GROUP = "125007"  # DCM
TRACKING_IDENTIFIER = "112039"  # DCM
DIAMETER = "81827009"  # SCT
CERTAINTY = "111012"  # DCM
SUMMARY = "111017"  # DCM, CAD Processing and Findings Summary
COMMENT = "121106"  # DCM


@dataclass(frozen=True, slots=True)
class Mark:
    """One nodule of a report.

    Attributes
    ----------
    name
        Tracking Identifier, such as ``Nodule 1``.
    diameter_mm, certainty_percent
        The two numbers of the group.
    sop_instance_uid, frame
        The image on which the circle lies; ``frame`` counts from 1 and is 1 for a classic image.
    centre_pixel
        ``(column, row)`` of the circle's centre, pixel centres at integers (PS3.3 C.10.5.1.2 less one half).
    radius_pixel
        Radius of the circle; pixels.
    centre_lps_mm
        The centre in space ``(x, y, z)``; ``None`` in a Comprehensive SR.
    """

    name: str
    diameter_mm: float
    certainty_percent: float
    sop_instance_uid: str
    frame: int
    centre_pixel: tuple[float, float]
    radius_pixel: float
    centre_lps_mm: tuple[float, float, float] | None


def read_marks(report: Dataset) -> list[Mark]:
    """The nodules of a report, in its own order."""
    return [_mark(item) for item in _walk(report) if _name(item) == MEASUREMENT_GROUP]


def analysed_series(report: Dataset) -> str:
    """The Series Instance UID of the images that the report rests on, from its evidence."""
    return str(report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].SeriesInstanceUID)


def read_summary(report: Dataset) -> str:
    """The coded outcome of the analysis as text, such as ``All algorithms succeeded; with findings``."""
    for item in _walk(report):
        if _name(item) == SUMMARY:
            return str(item.ConceptCodeSequence[0].CodeMeaning)
    return ""


def read_comments(report: Dataset) -> list[str]:
    """The comments of the report: counts, operating point, reason, research use."""
    return [str(item.TextValue) for item in _walk(report) if _name(item) == COMMENT and item.ValueType == "TEXT"]


def dump(report: Dataset) -> str:
    """The whole report as an indented tree, one content item a line."""
    head = [
        f"{report.SOPClassUID.name}  {report.SOPInstanceUID}",
        f"Study       {report.StudyInstanceUID}",
        f"Series      {report.get('SeriesDescription', '')}",
        f"Written     {report.ContentDate} {report.ContentTime}  by {report.get('Manufacturer', '')}",
        f"Flags       {report.CompletionFlag}, {report.VerificationFlag}, {report.get('PreliminaryFlag', '')}",
        "",
        f"{_meaning(report.ConceptNameCodeSequence)}",
    ]
    return "\n".join([*head, *_lines(report, 1)]) + "\n"


def _lines(parent: Dataset, depth: int) -> Iterator[str]:
    for item in parent.get("ContentSequence", []):
        name = _meaning(item.get("ConceptNameCodeSequence")) or "(unnamed)"
        value = _value(item)
        yield "  " * depth + name + (f": {value}" if value else "")
        yield from _lines(item, depth + 1)


def _value(item: Dataset) -> str:
    match item.ValueType:
        case "CODE":
            return _meaning(item.ConceptCodeSequence)
        case "TEXT":
            return str(item.TextValue)
        case "UIDREF":
            return str(item.UID)
        case "NUM":
            measured = item.MeasuredValueSequence[0]
            return f"{measured.NumericValue} {measured.MeasurementUnitsCodeSequence[0].CodeValue}"
        case "IMAGE":
            reference = item.ReferencedSOPSequence[0]
            frame = f" frame {reference.ReferencedFrameNumber}" if "ReferencedFrameNumber" in reference else ""
            return f"{reference.ReferencedSOPInstanceUID}{frame}"
        case "SCOORD" | "SCOORD3D":
            return f"{item.GraphicType} {', '.join(f'{v:.2f}' for v in item.GraphicData)}"
        case _:
            return ""


def _mark(group: Dataset) -> Mark:
    items = list(_walk(group))
    numbers = {
        _name(item): float(item.MeasuredValueSequence[0].NumericValue) for item in items if item.ValueType == "NUM"
    }
    circle = next(item for item in items if item.ValueType == "SCOORD")
    image = circle.ContentSequence[0].ReferencedSOPSequence[0]
    column, row, rim_column, rim_row = (float(v) for v in circle.GraphicData)
    point = next((item for item in items if item.ValueType == "SCOORD3D"), None)
    x, y, z = (0.0, 0.0, 0.0) if point is None else (float(v) for v in point.GraphicData)
    return Mark(
        name=next(str(item.TextValue) for item in items if _name(item) == TRACKING_IDENTIFIER),
        diameter_mm=numbers[DIAMETER],
        certainty_percent=numbers[CERTAINTY],
        sop_instance_uid=str(image.ReferencedSOPInstanceUID),
        frame=int(image.get("ReferencedFrameNumber", 1)),
        centre_pixel=(column - 0.5, row - 0.5),
        radius_pixel=((rim_column - column) ** 2 + (rim_row - row) ** 2) ** 0.5,
        centre_lps_mm=None if point is None else (x, y, z),
    )


def _walk(parent: Dataset) -> Iterator[Dataset]:
    for item in parent.get("ContentSequence", []):
        yield item
        yield from _walk(item)


def _name(item: Dataset) -> str:
    concept = item.get("ConceptNameCodeSequence")
    return str(concept[0].get("CodeValue", "")) if concept else ""


def _meaning(concept: list[Dataset] | None) -> str:
    return str(concept[0].CodeMeaning) if concept else ""
