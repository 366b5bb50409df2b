"""Content items that more than one part of the tree needs; UIDs of the images go in as received, valid or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from highdicom import sr
from pydicom.dataset import Dataset

from sr_writer import codes
from sr_writer.raw import from_text, put

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from pydicom.sr.coding import Code as Concept

_ANY_UID = "2.25.0"
"""Stands in where highdicom wants a valid UID; the received one replaces it."""


def container(
    name: Concept, children: Sequence[sr.ContentItem], *, template: str | None = None, root: bool = False
) -> sr.ContainerContentItem:
    """Make a CONTAINER of separate items: viewers run continuous ones into one paragraph."""
    item = sr.ContainerContentItem(
        name,
        is_content_continuous=False,
        template_id=template,
        relationship_type=None if root else "CONTAINS",
    )
    item.ContentSequence = sr.ContentSequence(children)
    return item


def image_reference(sop_class_uid: str, sop_instance_uid: str, frame_number: int | None = None) -> Dataset:
    """Make the item of a Referenced SOP Sequence (PS3.3 table 10-11, C.17.3.5 for the frame)."""
    reference = Dataset()
    put(reference, from_text("ReferencedSOPClassUID", sop_class_uid))
    put(reference, from_text("ReferencedSOPInstanceUID", sop_instance_uid))
    if frame_number is not None:
        reference.ReferencedFrameNumber = frame_number
    return reference


def image_item(reference: Dataset, relationship: str) -> sr.ImageContentItem:
    """Make an IMAGE content item, its concept name the one viewers expect."""
    item = sr.ImageContentItem(codes.SOURCE, _ANY_UID, _ANY_UID, relationship_type=relationship)
    item.ReferencedSOPSequence = [reference]
    return item


def uid_item(name: Concept, uid: str, relationship: str) -> sr.UIDRefContentItem:
    """Make a UIDREF content item."""
    item = sr.UIDRefContentItem(name, _ANY_UID, relationship_type=relationship)
    put(item, from_text("UID", uid))
    return item


def point_3d_item(
    name: Concept, position_lps_mm: NDArray[np.float64], frame_of_reference_uid: str
) -> sr.Scoord3DContentItem:
    """Make a SCOORD3D content item of one point; mm, LPS of the frame of reference."""
    item = sr.Scoord3DContentItem(name, "POINT", position_lps_mm[None], _ANY_UID, relationship_type="CONTAINS")
    put(item, from_text("ReferencedFrameOfReferenceUID", frame_of_reference_uid))
    return item
