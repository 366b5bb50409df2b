"""Key images of marks: the axial plane through a mark, cut from the scan, in the lung window."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.domain.geometry import Grid, Vector

LUNG_WINDOW_HU = (-1350.0, 150.0)
SIDE_MM = 60.0
SIDE_PIXELS = 240


@dataclass(frozen=True, slots=True)
class KeyImage:
    """A square picture with the mark in its middle.

    Attributes
    ----------
    png
        A ``data:`` address.
    side
        Pixels.
    radius
        Of the circle to draw; pixels, 0 where no diameter is known.
    """

    png: str
    side: int
    radius: float


def key_image(hu: NDArray[np.int16], grid: Grid, position_lps_mm: Vector, diameter_mm: float | None) -> KeyImage:
    """Cut the plane of the voxel rows and columns through a position; what lies outside the scan is black.

    Parameters
    ----------
    hu, grid
        The scan, shape ``(z, y, x)``, and its place.
    position_lps_mm
        The mark's centre.
    diameter_mm
        The mark's diameter; None draws no circle.
    """
    k, j, i = (float(v) for v in grid.lps_to_index(position_lps_mm))
    step = SIDE_MM / SIDE_PIXELS
    offsets = (np.arange(SIDE_PIXELS) - (SIDE_PIXELS - 1) / 2) * step
    _, dy, dx = grid.spacing_zyx_mm
    rows, columns = np.meshgrid(j + offsets / dy, i + offsets / dx, indexing="ij")
    first = int(np.clip(np.floor(k) - 1, 0, max(len(hu) - 2, 0)))
    slab = hu[first : first + 4].astype(np.float32)
    plane = ndimage.map_coordinates(
        slab, [np.full_like(rows, k - first), rows, columns], order=1, mode="constant", cval=LUNG_WINDOW_HU[0]
    )
    low, high = LUNG_WINDOW_HU
    grey = np.clip((plane - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return KeyImage(
        png="data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii"),
        side=SIDE_PIXELS,
        radius=(diameter_mm or 0.0) / 2 / step,
    )
