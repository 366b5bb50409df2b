"""The images behind a report: where each lies, in which order, and how the report refers to them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from highdicom import sr
from pydicom.dataset import Dataset

from pipeline.domain.geometry import SlicePlane, nearest_plane
from sr_writer import codes
from sr_writer.items import container, image_item, image_reference, uid_item
from sr_writer.raw import from_text, items, numbers, put, text_of, whole_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom.sr.coding import Code as Concept

    from pipeline.domain.geometry import Vector
    from sr_writer.record import ReportRecord

SAME_DIRECTION = 0.999
"""Least cosine between normals of one stack: orientations of one scan differ in their last decimals."""


@dataclass(frozen=True, slots=True, eq=False)
class PlacedImage:
    """An image, or a frame of one, whose place in the patient is known.

    Attributes
    ----------
    sop_class_uid, sop_instance_uid, frame_of_reference_uid
        As received; the last may be empty.
    frame_number
        1-based; ``None`` for a single-frame image.
    plane
        Its plane; LPS mm.
    thickness_mm
        Slice Thickness; ``None`` where missing.
    """

    sop_class_uid: str
    sop_instance_uid: str
    frame_of_reference_uid: str
    frame_number: int | None
    plane: SlicePlane
    thickness_mm: float | None

    @property
    def reference(self) -> Dataset:
        """The item that refers to it."""
        return image_reference(self.sop_class_uid, self.sop_instance_uid, self.frame_number)


def placed_images(slices: Sequence[Dataset]) -> tuple[PlacedImage, ...]:
    """Place the images of a series in the patient, as far as their headers allow.

    Parameters
    ----------
    slices
        Headers of single-frame or multi-frame images, in any order.

    Returns
    -------
    tuple of PlacedImage
        Along the normal of the stack. Images of another orientation than most (scouts) are left out, and so are
        images without a usable position, orientation, pixel spacing or matrix.

    References
    ----------
    PS3.3 C.7.6.2.1.1, C.7.6.16.2.1 (Pixel Measures), C.7.6.16.2.3 and 2.4 (Plane Position and Orientation).
    """
    placed = [image for header in slices for image in _images_of(header)]
    if not placed:
        return ()
    directions = [tuple(np.round(image.plane.normal, 2) + 0.0) for image in placed]
    usual = Counter(sorted(directions)).most_common(1)[0][0]
    normal = np.asarray(usual) / np.linalg.norm(usual)
    stack = [image for image in placed if float(image.plane.normal @ normal) > SAME_DIRECTION]
    return tuple(sorted(stack, key=lambda i: (float(np.dot(i.plane.origin_lps_mm, normal)), i.sop_instance_uid)))


def analysed_headers(record: ReportRecord, slices: Sequence[Dataset]) -> Sequence[Dataset]:
    """Keep the headers of the analysed images; all where the record names none, or none of them is there."""
    analysed = {uid for uid, _ in record.analysed}
    return [header for header in slices if text_of(header, "SOPInstanceUID") in analysed] or slices


def analysed_images(record: ReportRecord, placed: Sequence[PlacedImage]) -> Sequence[PlacedImage]:
    """Keep the analysed images, or frames; all where the record names none, or none of them has a place."""
    analysed = frozenset(record.analysed)
    return [image for image in placed if (image.sop_instance_uid, image.frame_number) in analysed] or placed


def reference_header(slices: Sequence[Dataset], placed: Sequence[PlacedImage]) -> Dataset:
    """Choose the header that patient and study come from: the first image along the normal.

    Without any geometry, that of the smallest SOP Instance UID: never that of the first to arrive.
    """
    by_uid = {text_of(header, "SOPInstanceUID"): header for header in slices}
    return by_uid[placed[0].sop_instance_uid if placed else min(by_uid)]


def frame_count(slices: Sequence[Dataset]) -> int:
    """Count the images, each frame for one."""
    return sum(int((numbers(header, "NumberOfFrames", 1) or (1.0,))[0]) for header in slices)


def nearest_image(placed: Sequence[PlacedImage], position_lps_mm: Vector) -> PlacedImage:
    """Find the image nearest to a position (mm, LPS) along the normal.

    Raises
    ------
    ValueError
        When no image has a place: a finding cannot come from such a series.
    """
    if not placed:
        raise ValueError("The record has findings, but no image of the series has a usable geometry.")
    return placed[nearest_plane([image.plane for image in placed], position_lps_mm)]


def evidence_sequence(record: ReportRecord, slices: Sequence[Dataset]) -> list[Dataset]:
    """List the images whose headers are given for the Current Requested Procedure Evidence Sequence.

    References
    ----------
    PS3.3 C.17.2.3 and table C.17-3 (Hierarchical SOP Instance Reference).
    """
    uids = {text_of(header, "SOPInstanceUID"): text_of(header, "SOPClassUID") for header in slices}
    series = Dataset()
    series.ReferencedSOPSequence = [image_reference(uids[uid], uid) for uid in sorted(uids)]
    put(series, from_text("SeriesInstanceUID", record.image_series_instance_uid))
    study = Dataset()
    study.ReferencedSeriesSequence = [series]
    put(study, from_text("StudyInstanceUID", record.study_instance_uid))
    return [study]


def image_library(images: Sequence[PlacedImage]) -> sr.ContainerContentItem | None:
    """Describe the referenced images; nothing when one of them lacks a slice thickness.

    References
    ----------
    PS3.16 TID 1600, 1601, 1602, 1604.
    """
    unique = {(image.sop_instance_uid, image.frame_number): image for image in images}
    entries = [_library_entry(image, image.thickness_mm) for image in unique.values() if image.thickness_mm]
    if not entries or len(entries) < len(unique):
        return None
    return container(codes.IMAGE_LIBRARY, [container(codes.IMAGE_LIBRARY_GROUP, entries)])


def _library_entry(image: PlacedImage, thickness_mm: float) -> sr.ImageContentItem:
    context = "HAS ACQ CONTEXT"
    plane = image.plane
    described: list[sr.ContentItem] = [sr.CodeContentItem(codes.MODALITY, codes.CT, relationship_type=context)]
    if image.frame_of_reference_uid:
        described.append(uid_item(codes.FRAME_OF_REFERENCE, image.frame_of_reference_uid, context))
    cosines = (*plane.along_row, *plane.along_column)
    values: list[tuple[Concept, float, Concept]] = [
        (codes.PIXEL_ROWS, plane.rows, codes.PIXELS),
        (codes.PIXEL_COLUMNS, plane.columns, codes.PIXELS),
        (codes.HORIZONTAL_SPACING, plane.column_spacing_mm, codes.MILLIMETRE),
        (codes.VERTICAL_SPACING, plane.row_spacing_mm, codes.MILLIMETRE),
        (codes.SLICE_THICKNESS, thickness_mm, codes.MILLIMETRE),
        *((name, value, codes.MILLIMETRE) for name, value in zip(codes.POSITION, plane.origin_lps_mm, strict=True)),
        *((name, value, codes.COSINE) for name, value in zip(codes.ORIENTATION, cosines, strict=True)),
    ]
    described += [sr.NumContentItem(name, value, unit, relationship_type=context) for name, value, unit in values]
    entry = image_item(image.reference, "CONTAINS")
    entry.ContentSequence = sr.ContentSequence(described)
    return entry


def _images_of(header: Dataset) -> list[PlacedImage]:
    frames = items(header, "PerFrameFunctionalGroupsSequence")
    if not frames:
        image = _placed(header, [header], [header], [header], None)
        return [] if image is None else [image]
    shared = items(header, "SharedFunctionalGroupsSequence")
    images = [
        _placed(
            header,
            _macro([frame, *shared], "PlanePositionSequence"),
            _macro([frame, *shared], "PlaneOrientationSequence"),
            _macro([frame, *shared], "PixelMeasuresSequence"),
            number,
        )
        for number, frame in enumerate(frames, start=1)
    ]
    return [image for image in images if image is not None]


def _macro(groups: Sequence[Dataset], keyword: str) -> list[Dataset]:
    return next((found for group in groups if (found := items(group, keyword))), [])


def _placed(
    header: Dataset,
    position: Sequence[Dataset],
    orientation: Sequence[Dataset],
    measures: Sequence[Dataset],
    frame_number: int | None,
) -> PlacedImage | None:
    if not (position and orientation and measures):
        return None
    plane = _plane(header, position[0], orientation[0], measures[0])
    if plane is None:
        return None
    thickness = numbers(measures[0], "SliceThickness", 1)
    return PlacedImage(
        text_of(header, "SOPClassUID"),
        text_of(header, "SOPInstanceUID"),
        text_of(header, "FrameOfReferenceUID"),
        frame_number,
        plane,
        None if thickness is None else thickness[0],
    )


def _plane(header: Dataset, position: Dataset, orientation: Dataset, measures: Dataset) -> SlicePlane | None:
    origin = numbers(position, "ImagePositionPatient", 3)
    cosines = numbers(orientation, "ImageOrientationPatient", 6)
    spacing = numbers(measures, "PixelSpacing", 2)
    rows, columns = whole_number(header, "Rows"), whole_number(header, "Columns")
    if origin is None or cosines is None or spacing is None or not rows or not columns or min(spacing) <= 0:
        return None
    lengths = np.linalg.norm(np.reshape(cosines, (2, 3)), axis=1)
    if not np.allclose(lengths, 1, atol=0.01):
        return None
    row, column = np.reshape(cosines, (2, 3)) / lengths[:, None]
    return SlicePlane(
        (origin[0], origin[1], origin[2]),
        (float(row[0]), float(row[1]), float(row[2])),
        (float(column[0]), float(column[1]), float(column[2])),
        spacing[0],
        spacing[1],
        rows,
        columns,
    )
