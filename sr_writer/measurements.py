"""One mark to one measurement group: tracking, finding, site, numbers, circle on a slice, centre in space."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING

import numpy as np
from highdicom import sr

from pipeline.domain.geometry import SCOORD_HALF_PIXEL
from sr_writer import codes
from sr_writer.items import container, image_item, point_3d_item

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.sr.coding import Code as Concept

    from pipeline.domain.geometry import SlicePlane
    from sr_writer.evidence import PlacedImage
    from sr_writer.record import Mark, ReportRecord

OUTLINE_POINTS = 24
"""Corners of the outline drawn where pixels are not square."""


def measurement_group(number: int, mark: Mark, image: PlacedImage, record: ReportRecord) -> sr.ContentItem:
    """Make the measurement group of one nodule.

    Parameters
    ----------
    number
        1-based place in the display order.
    mark
        The nodule; LPS mm.
    image
        The slice nearest to its centre.
    record
        Names the algorithm, and the SOP class: only Comprehensive 3D SR takes 3D coordinates.

    References
    ----------
    PS3.16 TID 1410, 1419, 4019. The order of the children matters to viewers: the circle precedes the centre.
    """
    children: list[sr.ContentItem] = [
        *sr.TrackingIdentifier(uid=mark.tracking_uid, identifier=f"Nodule {number}"),
        sr.CodeContentItem(codes.FINDING, codes.NODULE, relationship_type="CONTAINS"),
        sr.FindingSite(anatomic_location=codes.LUNG),
        *_number(codes.DIAMETER, rounded(mark.diameter_mm), codes.MILLIMETRE, record),
        *_number(codes.CERTAINTY, percent(mark.probability), codes.PERCENT, record),
        _region(mark, image),
    ]
    if record.sr == "comprehensive3d" and image.frame_of_reference_uid:
        centre = np.asarray(mark.position_lps_mm, np.float64)
        children.append(point_3d_item(codes.CENTRE, centre, image.frame_of_reference_uid))
    return container(codes.MEASUREMENT_GROUP, children, template="1410")


def rounded(value: float | Decimal) -> float:
    """Round half up to one decimal place: the only rounding between the detector and the report."""
    exact = value if isinstance(value, Decimal) else Decimal(repr(value))
    return float(exact.quantize(Decimal("0.1"), ROUND_HALF_UP))


def percent(probability: float) -> float:
    """Give a probability in percent, rounded half up to one decimal place."""
    return rounded(Decimal(repr(probability)) * 100)


def algorithm_version(record: ReportRecord) -> str:
    """Name the software and the weights that made the numbers."""
    model = record.model
    return record.node.version if model is None else f"{record.node.version}+{model.version}.{model.sha256[:8]}"


def algorithm(record: ReportRecord) -> sr.AlgorithmIdentification:
    """Name the algorithm, its version and its parameters, one item for each.

    References
    ----------
    PS3.16 TID 4019.
    """
    parameters = list(record.parameters)
    if record.operating_point is not None:
        parameters.insert(0, f"operating_point={record.operating_point.threshold:g}")
    return sr.AlgorithmIdentification(
        name="nodule-node" if record.model is None else record.model.name,
        version=algorithm_version(record),
        parameters=parameters or None,
    )


def outline(mark: Mark, plane: SlicePlane) -> tuple[str, NDArray[np.float64]]:
    """Draw the nodule's outline on a slice.

    Returns
    -------
    graphic type
        ``CIRCLE``, or a closed ``POLYLINE`` where rows and columns are not equally far apart.
    points
        ``(column, row)`` in SCOORD's frame, where the centre of the first pixel is (0.5, 0.5). A circle is its
        centre and the point of its rim along the row.

    References
    ----------
    PS3.3 C.18.6.1.2 (Graphic Type), C.10.5.1.2 (pixel coordinates).
    """
    centre = np.asarray(plane.lps_to_pixel(mark.position_lps_mm)) + SCOORD_HALF_PIXEL
    radius = mark.diameter_mm / 2 / np.array([plane.column_spacing_mm, plane.row_spacing_mm])
    if np.isclose(plane.column_spacing_mm, plane.row_spacing_mm, rtol=1e-3):
        return "CIRCLE", np.array([centre, (centre[0] + radius[0], centre[1])])
    angles = np.linspace(0, 2 * np.pi, OUTLINE_POINTS + 1)
    points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points[-1] = points[0]
    return "POLYLINE", points


def _number(name: Concept, value: float, unit: Concept, record: ReportRecord) -> sr.Measurement:
    return sr.Measurement(name=name, value=value, unit=unit, algorithm_id=algorithm(record))


def _region(mark: Mark, image: PlacedImage) -> sr.ContentItem:
    kind, points = outline(mark, image.plane)
    region = sr.ScoordContentItem(
        codes.IMAGE_REGION, graphic_type=kind, graphic_data=points, relationship_type="CONTAINS"
    )
    region.ContentSequence = sr.ContentSequence([image_item(image.reference, "SELECTED FROM")])
    return region
