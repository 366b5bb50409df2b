"""The only place that converts between indices and patient millimetres.

All positions are LPS millimetres as ``(x, y, z)``; all indices are ``(z, y, x)`` with voxel centres at integers.
A pixel of a slice is ``(column, row)``, its centre at integers too; DICOM SCOORD adds one half (PS3.3 C.10.5.1.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Vector = tuple[float, float, float]

SCOORD_HALF_PIXEL = 0.5


@dataclass(frozen=True, slots=True)
class Grid:
    """A regular grid of voxels in patient space, its three axes at right angles.

    Attributes
    ----------
    shape_zyx
        Number of voxels along each index axis.
    spacing_zyx_mm
        Distance between neighbouring voxel centres along each index axis; mm.
    origin_lps_mm
        Centre of voxel ``(0, 0, 0)``; mm, LPS.
    axes_zyx
        Unit vectors in LPS along which the z, y and x index grow.
    """

    shape_zyx: tuple[int, int, int]
    spacing_zyx_mm: Vector
    origin_lps_mm: Vector
    axes_zyx: tuple[Vector, Vector, Vector] = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))

    def index_to_lps(self, index_zyx: ArrayLike) -> NDArray[np.float64]:
        """Convert continuous indices ``(..., 3)`` in z, y, x to positions ``(..., 3)`` in x, y, z; mm, LPS."""
        steps = np.asarray(self.axes_zyx, np.float64) * np.asarray(self.spacing_zyx_mm, np.float64)[:, None]
        return np.asarray(index_zyx, np.float64) @ steps + np.asarray(self.origin_lps_mm, np.float64)

    def lps_to_index(self, position_lps_mm: ArrayLike) -> NDArray[np.float64]:
        """Convert positions ``(..., 3)`` in x, y, z (mm, LPS) to continuous indices ``(..., 3)`` in z, y, x."""
        offset = np.asarray(position_lps_mm, np.float64) - np.asarray(self.origin_lps_mm, np.float64)
        along = offset @ np.asarray(self.axes_zyx, np.float64).T
        return np.asarray(along / np.asarray(self.spacing_zyx_mm, np.float64))

    def resampled(self, spacing_zyx_mm: Vector) -> Grid:
        """Give the grid of another spacing that starts at the same voxel centre and ends inside this one."""
        extent = [(n - 1) * s for n, s in zip(self.shape_zyx, self.spacing_zyx_mm, strict=True)]
        shape = tuple(int(np.floor(e / s + 1e-6)) + 1 for e, s in zip(extent, spacing_zyx_mm, strict=True))
        return Grid((shape[0], shape[1], shape[2]), spacing_zyx_mm, self.origin_lps_mm, self.axes_zyx)

    def cropped(self, start_zyx: tuple[int, int, int], shape_zyx: tuple[int, int, int]) -> Grid:
        """Give the grid of a box of this one, which begins at an index and keeps spacing and axes."""
        x, y, z = self.index_to_lps(start_zyx)
        return Grid(shape_zyx, self.spacing_zyx_mm, (float(x), float(y), float(z)), self.axes_zyx)


@dataclass(frozen=True, slots=True)
class SlicePlane:
    """Where one image lies in patient space.

    Attributes
    ----------
    origin_lps_mm
        Centre of the first pixel, Image Position (Patient); mm, LPS.
    along_row
        Unit vector along which the column index grows: first half of Image Orientation (Patient).
    along_column
        Unit vector along which the row index grows: second half of Image Orientation (Patient).
    row_spacing_mm, column_spacing_mm
        Distance between rows, and between columns: first and second value of Pixel Spacing; mm.
    rows, columns
        Size of the pixel matrix.

    References
    ----------
    PS3.3 C.7.6.2.1.1 (Image Position and Orientation), 10.7.1.3 (Pixel Spacing value order).
    """

    origin_lps_mm: Vector
    along_row: Vector
    along_column: Vector
    row_spacing_mm: float
    column_spacing_mm: float
    rows: int
    columns: int

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector along_row x along_column; LPS."""
        (a, b, c), (d, e, f) = self.along_row, self.along_column
        return np.array((b * f - c * e, c * d - a * f, a * e - b * d))  # np.cross takes twenty times as long

    def distance_mm(self, position_lps_mm: ArrayLike) -> float:
        """Signed distance of a position from the plane, along its normal; mm."""
        offset = np.asarray(position_lps_mm, np.float64) - np.asarray(self.origin_lps_mm)
        return float(offset @ self.normal)

    def lps_to_pixel(self, position_lps_mm: ArrayLike) -> tuple[float, float]:
        """Project a position (mm, LPS) onto the plane: continuous ``(column, row)``, pixel centres at integers."""
        offset = np.asarray(position_lps_mm, np.float64) - np.asarray(self.origin_lps_mm)
        column = float(offset @ np.asarray(self.along_row)) / self.column_spacing_mm
        row = float(offset @ np.asarray(self.along_column)) / self.row_spacing_mm
        return column, row

    def pixel_to_lps(self, column: float, row: float) -> NDArray[np.float64]:
        """Convert a continuous ``(column, row)``, pixel centres at integers, to a position; mm, LPS."""
        return (
            np.asarray(self.origin_lps_mm)
            + np.asarray(self.along_row) * (column * self.column_spacing_mm)
            + np.asarray(self.along_column) * (row * self.row_spacing_mm)
        )


def nearest_plane(planes: Sequence[SlicePlane], position_lps_mm: ArrayLike) -> int:
    """Find the index of the plane with the smallest distance to a position (mm, LPS) along its normal."""
    return int(np.argmin([abs(plane.distance_mm(position_lps_mm)) for plane in planes]))
