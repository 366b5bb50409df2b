"""A CT volume in Hounsfield units on a regular grid, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.domain.geometry import Grid, SlicePlane, Vector
    from pipeline.domain.outcome import Notice


@dataclass(frozen=True, slots=True)
class SliceReference:
    """One received image (or frame) of the series, with its place in space.

    Attributes
    ----------
    sop_class_uid, sop_instance_uid
        The image as the archive knows it.
    frame_number
        1-based frame of a multi-frame image; ``None`` for a classic one.
    plane
        Its plane in patient space.
    """

    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None
    plane: SlicePlane


@dataclass(frozen=True, slots=True)
class ReceivedGeometry:
    """The series as received, before anything was filled in or corrected.

    Attributes
    ----------
    slices
        Number of distinct slices.
    spacing_zyx_mm
        Slice distance, row distance, column distance; mm.
    extent_zyx_mm
        Number of voxels times spacing, for each axis; mm.
    """

    slices: int
    spacing_zyx_mm: Vector
    extent_zyx_mm: Vector


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """A chest CT as one array.

    Attributes
    ----------
    hu
        Hounsfield units, int16, shape ``(z, y, x)``, read-only, clipped to [-1024, 3071]; z grows along the
        slice normal.
    grid
        Where the voxels lie; LPS mm.
    study_instance_uid, series_instance_uid
        As received; empty strings for a MetaImage without them.
    slices
        The images behind the volume in the order of z, filled-in positions left out.
    received
        The geometry as received.
    filled_slices
        Indices along z that were interpolated.
    notices
        What the reader of the result should know.
    """

    hu: NDArray[np.int16]
    grid: Grid
    study_instance_uid: str
    series_instance_uid: str
    slices: tuple[SliceReference, ...]
    received: ReceivedGeometry
    filled_slices: tuple[int, ...] = ()
    notices: tuple[Notice, ...] = ()
