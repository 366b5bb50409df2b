"""Every coded concept the report uses, each with its source, and how outcomes map to codes."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from pydicom.sr.coding import Code as Concept

from pipeline.domain.outcome import Code

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Titles, PS3.16 CID 7021. Some viewers draw only 126000 and show a blank pane for one without measurements,
# but show any other title as readable text: hence the second one when there is nothing to draw.
TITLE_WITH_MARKS = Concept("126000", "DCM", "Imaging Measurement Report")
TITLE_WITHOUT_MARKS = Concept("126001", "DCM", "Oncology Measurement Report")

# PS3.16 TID 1204, TID 1500, CID 100 (the only plain CT code of its baseline).
ENGLISH = Concept("en-US", "RFC5646", "English (United States)")
PROCEDURE_REPORTED = Concept("121058", "DCM", "Procedure reported")
CT_OF_ANY_REGION = Concept("25045-6", "LN", "CT unspecified body region")
IMAGING_MEASUREMENTS = Concept("126010", "DCM", "Imaging Measurements")
QUALITATIVE_EVALUATIONS = Concept("C0034375", "UMLS", "Qualitative Evaluations")
DEVICE = Concept("121007", "DCM", "Device")

# PS3.16 TID 1600 to 1604.
IMAGE_LIBRARY = Concept("111028", "DCM", "Image Library")
IMAGE_LIBRARY_GROUP = Concept("126200", "DCM", "Image Library Group")
SOURCE = Concept("260753009", "SCT", "Source")
MODALITY = Concept("121139", "DCM", "Modality")
CT = Concept("CT", "DCM", "Computed Tomography")
FRAME_OF_REFERENCE = Concept("112227", "DCM", "Frame of Reference UID")
PIXEL_ROWS = Concept("110910", "DCM", "Pixel Data Rows")
PIXEL_COLUMNS = Concept("110911", "DCM", "Pixel Data Columns")
HORIZONTAL_SPACING = Concept("111026", "DCM", "Horizontal Pixel Spacing")
VERTICAL_SPACING = Concept("111066", "DCM", "Vertical Pixel Spacing")
SLICE_THICKNESS = Concept("112225", "DCM", "Slice Thickness")
POSITION = (
    Concept("110901", "DCM", "Image Position (Patient) X"),
    Concept("110902", "DCM", "Image Position (Patient) Y"),
    Concept("110903", "DCM", "Image Position (Patient) Z"),
)
ORIENTATION = (
    Concept("110904", "DCM", "Image Orientation (Patient) Row X"),
    Concept("110905", "DCM", "Image Orientation (Patient) Row Y"),
    Concept("110906", "DCM", "Image Orientation (Patient) Row Z"),
    Concept("110907", "DCM", "Image Orientation (Patient) Column X"),
    Concept("110908", "DCM", "Image Orientation (Patient) Column Y"),
    Concept("110909", "DCM", "Image Orientation (Patient) Column Z"),
)

# PS3.16 TID 1410, TID 1419. The diameter is that of the regressed sphere: not a long axis (103339001).
# The score is nodule against non-nodule: never (111047, DCM, "Probability of cancer").
MEASUREMENT_GROUP = Concept("125007", "DCM", "Measurement Group")
FINDING = Concept("121071", "DCM", "Finding")
NODULE = Concept("27925004", "SCT", "Nodule")
LUNG = Concept("39607008", "SCT", "Lung")
DIAMETER = Concept("81827009", "SCT", "Diameter")
CERTAINTY = Concept("111012", "DCM", "Certainty of Finding")
IMAGE_REGION = Concept("111030", "DCM", "Image Region")
CENTRE = Concept("111010", "DCM", "Center")

# UCUM, PS3.16 CID 7181.
MILLIMETRE = Concept("mm", "UCUM", "millimeter")
PERCENT = Concept("%", "UCUM", "percent")
PIXELS = Concept("{pixels}", "UCUM", "Pixels")
COSINE = Concept("{-1:1}", "UCUM", "{-1:1}")

# PS3.16 TID 4017 and CID 6047, as in PS3.17 F.3.1 (chest CAD without findings).
SUMMARY = Concept("111017", "DCM", "CAD Processing and Findings Summary")
DETECTION_PERFORMED = Concept("111022", "DCM", "Detection Performed")
COMMENT = Concept("121106", "DCM", "Comment")
ALL_SUCCEEDED_WITH = Concept("111242", "DCM", "All algorithms succeeded; with findings")
ALL_SUCCEEDED_WITHOUT = Concept("111241", "DCM", "All algorithms succeeded; without findings")
PART_SUCCEEDED_WITH = Concept("111244", "DCM", "Not all algorithms succeeded; with findings")
PART_SUCCEEDED_WITHOUT = Concept("111243", "DCM", "Not all algorithms succeeded; without findings")
NONE_SUCCEEDED = Concept("111245", "DCM", "No algorithms succeeded; without findings")

# PS3.16 CID 7005.
PROCESSING_EQUIPMENT = Concept("109102", "DCM", "Processing Equipment")

PARTIAL = frozenset(
    {
        Code.SLICES_INTERPOLATED,
        Code.TIMED_OUT_INCOMPLETE,
        Code.MISSING_SLICES,
        Code.CORRUPT_INSTANCE,
        Code.DECODE_FAILED,
        Code.UNSUPPORTED_PIXELS,
    }
)
"""Notices saying that a part of the series could not be read."""

_SUMMARIES: Mapping[tuple[bool, bool], Concept] = MappingProxyType(
    {
        (True, True): PART_SUCCEEDED_WITH,
        (True, False): PART_SUCCEEDED_WITHOUT,
        (False, True): ALL_SUCCEEDED_WITH,
        (False, False): ALL_SUCCEEDED_WITHOUT,
    }
)


def summary_of(notices: Iterable[Code], *, with_findings: bool) -> Concept:
    """Choose the CID 6047 value of an analysed series from its notices."""
    return _SUMMARIES[not PARTIAL.isdisjoint(notices), with_findings]
