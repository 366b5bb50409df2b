"""Whether neighbouring slices of a volume fit together: geometry cannot show images that are exchanged or blank.

Anatomy changes little from one slice to the next, and twice as much over two. Where it does not, slices are of
another place, another acquisition or another scale than their positions and headers say (decision 0108).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.domain.outcome import Code, Notice

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

CELL_MM = 8.0  # large enough that noise averages out, small enough to see a lung end
BODY_HU = -900.0  # cells that are air in both slices say nothing
JUMP_HU = 35.0  # least mean change from slice to slice that counts
JUMP_RATIO = 3.0  # against the usual change in the series; real scans reach 2.0
WINDOW = 8
STEADY = 1.25  # least ratio of the change over two slices to that over one; real scans have 1.5 or more


def unfitting(hu: NDArray[np.int16], pixel_mm: float) -> tuple[int, ...]:
    """Find the places where a slice does not fit the one before it.

    Parameters
    ----------
    hu
        Hounsfield units, shape (z, y, x), z along the slice normal.
    pixel_mm
        Pixel spacing; mm.

    Returns
    -------
    tuple of int
        Indices z of slices that do not follow from slice ``z - 1``.
    """
    cells = _cells(hu, max(1, round(CELL_MM / pixel_mm)))
    if len(cells) < WINDOW + 2:
        return ()
    one, two = _change(cells, 1), _change(cells, 2)
    jumps = one > max(JUMP_HU, JUMP_RATIO * float(np.median(one)))
    return tuple(int(k) + 1 for k in np.flatnonzero(jumps | _restless(one, two, jumps)))


def notice_of(hu: NDArray[np.int16], pixel_mm: float) -> tuple[Notice, ...]:
    """Warn of slices that do not fit together."""
    places = unfitting(hu, pixel_mm)
    if not places:
        return ()
    text = (
        f"Slices do not fit their neighbours at {len(places)} places (first: slice {places[0] + 1} of {len(hu)}): "
        "they may be exchanged, blank, or of another scan; look at these images."
    )
    return (Notice(Code.SLICES_DO_NOT_FIT, text),)


def _cells(hu: NDArray[np.int16], side: int) -> Floats:
    """Mean of square blocks of each slice; shape (z, rows // side, columns // side)."""
    rows, columns = (size // side * side for size in hu.shape[1:])
    sums = np.add.reduceat(hu[:, :rows, :columns], np.arange(0, columns, side), axis=2, dtype=np.int32)
    sums = np.add.reduceat(sums, np.arange(0, rows, side), axis=1)
    return sums.astype(np.float32) / np.float32(side * side)


def _change(cells: Floats, lag: int) -> Floats:
    """Mean absolute change over ``lag`` slices, where there is a body in either; HU."""
    before, after = cells[:-lag], cells[lag:]
    body = np.maximum(before, after) > BODY_HU
    total = np.where(body, np.abs(after - before), 0).sum(axis=(1, 2))
    return np.asarray(total / np.maximum(body.sum(axis=(1, 2)), 1), np.float32)


def _restless(one: Floats, two: Floats, jumps: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Find runs of slices in which two steps lead no farther than one, single jumps left out: in no order."""
    over_two = np.append(jumps[:-1] | jumps[1:], True)
    near = _mean_in_windows(one, ~jumps)
    far = _mean_in_windows(np.append(two, 0), ~over_two)
    starts = np.flatnonzero((near > JUMP_HU) & (far > 0) & (far < STEADY * near))
    found = np.zeros(len(one), bool)
    for start in starts:
        found[start : start + WINDOW] = True
    return found


def _mean_in_windows(values: Floats, counted: NDArray[np.bool_]) -> Floats:
    """Mean of the counted values in each window; 0 where fewer than half of them count."""
    sums = sliding_window_view(np.where(counted, values, 0), WINDOW).sum(axis=1)
    counts = sliding_window_view(counted, WINDOW).sum(axis=1)
    return np.asarray(np.where(counts >= WINDOW // 2, sums / np.maximum(counts, 1), 0), np.float32)
