"""The one preprocessing of node and training: from a CT volume to the networks' grid and number range.

Its constants are a value that travels in the weights' card; weights made with others are refused at load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.domain.geometry import Grid
    from pipeline.lungs import LungMask, Mask

    Index = tuple[int, int, int]

MARGIN_ZYX = (12, 32, 32)
"""Voxels kept around the search region, so that a patch at its edge sees real surroundings."""

SLAB = 16  # output slices at once: keeps the float copies small and in cache


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What the networks expect of their input.

    Attributes
    ----------
    spacing_zyx_mm
        Grid of the networks.
    window_hu
        Hounsfield values that become 0 and 1; what lies outside is clipped.
    shift
        Subtracted afterwards.
    padding_hu
        What lies outside the volume.
    """

    spacing_zyx_mm: tuple[float, float, float] = (1.25, 0.7, 0.7)
    window_hu: tuple[float, float] = (-1000.0, 400.0)
    shift: float = 0.25
    padding_hu: int = -1000

    def normalise(self, hu: torch.Tensor) -> torch.Tensor:
        """Map Hounsfield units of any type to float32 in [-shift, 1 - shift]."""
        low, high = self.window_hu
        return (hu.float() - low).mul_(1.0 / (high - low)).clamp_(0.0, 1.0).sub_(self.shift)


PREPROCESSING = Preprocessing()
"""Ours. Decision 0012 says why these numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A scan as the networks take it: the box around the search region on their grid.

    Attributes
    ----------
    hu
        Hounsfield units, int16, shape ``(z, y, x)``.
    grid
        Where those voxels lie; LPS mm.
    lungs
        Mask on the grid of the volume.
    to_volume
        For each axis ``(scale, offset)``: index in the volume = scale * index here + offset.
    preprocessing
        The constants that made it.
    """

    hu: NDArray[np.int16]
    grid: Grid
    lungs: LungMask
    to_volume: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    preprocessing: Preprocessing

    def search_at(self, z: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]) -> Mask:
        """Tell for the lattice spanned by three vectors of indices here whether nodules are searched there."""
        return self.lungs.search_at(*self._in_volume(z, y, x))

    def lungs_at(self, z: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]) -> Mask:
        """Tell for the lattice spanned by three vectors of indices here whether it lies in the lungs proper."""
        return self.lungs.lungs_at(*self._in_volume(z, y, x))

    def _in_volume(self, *indices: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        return tuple(
            np.asarray(index, np.float64) * scale + offset
            for index, (scale, offset) in zip(indices, self.to_volume, strict=True)
        )


def prepare(
    hu: NDArray[np.int16], grid: Grid, lungs: LungMask, preprocessing: Preprocessing = PREPROCESSING
) -> Prepared:
    """Resample the surroundings of the search region to the networks' grid.

    The new grid's index 0 lies on the centre of the volume's voxel 0 before it is cut to the box, so that no half
    voxel creeps in.

    Parameters
    ----------
    hu, grid
        The volume: int16 ``(z, y, x)`` and its place in LPS mm.
    lungs
        Where to look.
    preprocessing
        Spacing, padding and margin.

    Returns
    -------
    Prepared
        At least one voxel along each axis.
    """
    whole = grid.resampled(preprocessing.spacing_zyx_mm)
    scale = [new / old for new, old in zip(whole.spacing_zyx_mm, grid.spacing_zyx_mm, strict=True)]
    start, shape = [], []
    for axis, (first, behind) in enumerate(zip(*lungs.bounds(), strict=True)):
        margin, size = MARGIN_ZYX[axis], whole.shape_zyx[axis]
        low = min(max(int(np.floor(first / scale[axis])) - margin, 0), size - 1)
        high = min(int(np.ceil((behind - 1) / scale[axis])) + 1 + margin, size)
        start.append(low)
        shape.append(max(high - low, 1))
    box_start, box_shape = (start[0], start[1], start[2]), (shape[0], shape[1], shape[2])
    maps = [(s, s * first) for s, first in zip(scale, box_start, strict=True)]
    return Prepared(
        hu=interpolate(hu, maps, box_shape),
        grid=whole.cropped(box_start, box_shape),
        lungs=lungs,
        to_volume=(maps[0], maps[1], maps[2]),
        preprocessing=preprocessing,
    )


def interpolate(hu: NDArray[np.int16], maps: list[tuple[float, float]], shape_zyx: Index) -> NDArray[np.int16]:
    """Interpolate linearly along each axis in turn.

    Parameters
    ----------
    hu
        Shape ``(z, y, x)``.
    maps
        For each axis ``(scale, offset)``: source index = scale * target index + offset, all within the source.
    shape_zyx
        Shape of the target.
    """
    (z0, z1, zw), (y0, y1, yw), (x0, x1, xw) = (
        _neighbours(n, size, *m) for n, size, m in zip(shape_zyx, hu.shape, maps, strict=True)
    )
    target = torch.empty(shape_zyx, dtype=torch.int16)
    for first in range(0, shape_zyx[0], SLAB):
        part = slice(first, first + SLAB)
        below, above = (torch.from_numpy(hu[z[part].numpy()]).float() for z in (z0, z1))
        slab = torch.lerp(below, above, zw[part, None, None])
        slab = torch.lerp(slab[:, y0], slab[:, y1], yw[:, None])
        slab = torch.lerp(slab[:, :, x0], slab[:, :, x1], xw)
        target[part] = slab.round_().to(torch.int16)
    return target.numpy()


def _neighbours(
    count: int, size: int, scale: float, offset: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Index below, index above, and the weight of the one above, for each target index."""
    position = np.clip(np.arange(count) * scale + offset, 0, size - 1)
    below = np.minimum(np.floor(position).astype(np.int64), max(size - 2, 0))
    weight = torch.from_numpy((position - below).astype(np.float32))
    return torch.from_numpy(below), torch.from_numpy(np.minimum(below + 1, size - 1)), weight
