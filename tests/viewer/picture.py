"""Looks at the screenshot itself: does the image lie under the circle where the report says it does?

Independent of the viewer's own arithmetic: a patch of the CT around the mark is compared with the screen.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

WINDOW_HU = (-1350.0, 150.0)
HALF_PIXELS = 16
SEARCH_PIXELS = 4.0


def image_shift(
    png: bytes, at: tuple[float, float], scale: float, image: Dataset, centre: tuple[float, float]
) -> float:
    """Find how far the image on the screen is shifted against the circle.

    Parameters
    ----------
    png
        The screenshot.
    at
        Where the circle's centre is drawn; x, y in screen pixels.
    scale
        Screen pixels for one CT pixel.
    image
        The CT image, with its pixels.
    centre
        Where the report's circle has its centre; column, row, pixel centres at integers.

    Returns
    -------
    float
        Length of the shift at which both agree best; CT pixels.
    """
    search = int(np.ceil(SEARCH_PIXELS * scale))
    half = round(HALF_PIXELS * scale)
    screen = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.float64)
    left, top = (int(np.floor(v)) for v in at)
    rest = (at[0] - left - 0.5, at[1] - top - 0.5)
    reach = half + search
    seen = screen[top - reach : top + reach + 1, left - reach : left + reach + 1]
    grey, drawn_over = seen[..., 0], np.ptp(seen, axis=-1) > 12
    expected = _patch(image, centre, scale, half, rest)
    misses = {
        (dy, dx): _difference(grey, drawn_over, expected, dy, dx)
        for dy in range(2 * search + 1)
        for dx in range(2 * search + 1)
    }
    dy, dx = min(misses, key=lambda shift: misses[shift])
    return float(np.hypot(dy - search, dx - search)) / scale


def _patch(
    image: Dataset, centre: tuple[float, float], scale: float, half: int, rest: tuple[float, float]
) -> NDArray[np.float64]:
    """The CT around a place as grey values, ``2 half + 1`` screen pixels wide, its middle where the circle's is."""
    hu = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
    low, high = WINDOW_HU
    grey = Image.fromarray((np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.float32))
    middle = [c + 0.5 - r / scale for c, r in zip(centre, rest, strict=True)]
    width = (half + 0.5) / scale
    box = (middle[0] - width, middle[1] - width, middle[0] + width, middle[1] + width)
    size = 2 * half + 1
    affine = ((box[2] - box[0]) / size, 0, box[0], 0, (box[3] - box[1]) / size, box[1])
    made = grey.transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return np.asarray(made, np.float64)


def _difference(
    grey: NDArray[np.float64], drawn_over: NDArray[np.bool_], expected: NDArray[np.float64], dy: int, dx: int
) -> float:
    """Mean absolute difference at a shift, without the screen pixels that the viewer drew over."""
    window = (slice(dy, dy + len(expected)), slice(dx, dx + len(expected)))
    usable = ~drawn_over[window]
    return float(np.abs(grey[window] - expected)[usable].mean())
