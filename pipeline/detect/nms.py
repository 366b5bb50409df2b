"""Non-maximum suppression in 3D, in millimetres and with a fixed order of ties."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Index = tuple[int, int, int]


def local_maxima(scores: NDArray[np.float32], window_zyx: Index, floor: float) -> NDArray[np.int64]:
    """Find the cells that no cell of the window around them exceeds.

    Parameters
    ----------
    scores
        Score volume ``(z, y, x)``; cells that are not searched hold less than ``floor``.
    window_zyx
        Size of the window in cells, odd.
    floor
        Least score.

    Returns
    -------
    NDArray
        Cells ``(n, 3)`` by falling score; equal scores by rising z, y, x. A plateau yields all of its cells.
    """
    peak = ndimage.maximum_filter(scores, window_zyx, mode="constant", cval=-np.inf)
    cells = np.argwhere((scores == peak) & (scores >= floor))
    return cells[rank(scores[tuple(cells.T)], cells)]


def rank(scores: ArrayLike, places: ArrayLike) -> NDArray[np.int64]:
    """Order by falling score; ties by rising first, second and third coordinate of the place ``(n, 3)``."""
    z, y, x = np.asarray(places, np.float64).reshape(-1, 3).T
    return np.lexsort((x, y, z, -np.asarray(scores, np.float64)))


def suppress(places_mm: ArrayLike, radii_mm: ArrayLike, cap: int) -> NDArray[np.int64]:
    """Keep the first of each group of near neighbours.

    Parameters
    ----------
    places_mm
        Positions ``(n, 3)``, the most probable first; mm.
    radii_mm
        Distance below which a kept mark drops a later one, per mark ``(n,)`` or one for all; mm.
    cap
        Most marks to keep.

    Returns
    -------
    NDArray
        Indices of the marks kept, in order.
    """
    places = np.asarray(places_mm, np.float64).reshape(-1, 3)
    radii = np.broadcast_to(np.asarray(radii_mm, np.float64), len(places))
    alive = np.ones(len(places), bool)
    kept: list[int] = []
    for i in range(len(places)):
        if not alive[i]:
            continue
        kept.append(i)
        if len(kept) == cap:
            break
        alive &= np.linalg.norm(places - places[i], axis=1) >= radii[i]
    return np.asarray(kept, np.int64)
