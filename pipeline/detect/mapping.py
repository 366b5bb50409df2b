"""Index mapping: where in the image a score lies. Derived from the layers, never measured.

References: Dou et al., TMI 2016 (microbleeds), section III-A; decision 0010 for the half voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from pipeline.domain.geometry import Vector

    Index = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Lattice:
    """The score cells among the voxels: cell ``k`` is centred on voxel index ``stride * k + offset``.

    Attributes
    ----------
    stride_zyx
        Voxels from one cell to the next.
    offset_zyx
        Voxel index of cell 0's centre; halves where a receptive field is even.
    """

    stride_zyx: Index
    offset_zyx: Vector

    def to_index(self, cells: ArrayLike) -> NDArray[np.float64]:
        """Convert cells ``(..., 3)`` to voxel indices ``(..., 3)``; fractions of a cell are allowed."""
        return np.asarray(np.asarray(cells, np.float64) * np.asarray(self.stride_zyx) + np.asarray(self.offset_zyx))

    def to_cell(self, index_zyx: ArrayLike) -> NDArray[np.float64]:
        """Convert voxel indices ``(..., 3)`` to continuous cells ``(..., 3)``."""
        return np.asarray(
            (np.asarray(index_zyx, np.float64) - np.asarray(self.offset_zyx)) / np.asarray(self.stride_zyx)
        )

    def axes(self, shape_zyx: Index) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Give the voxel indices of all cells of a score volume, axis by axis."""
        z, y, x = (
            np.arange(n, dtype=np.float64) * stride + offset
            for n, stride, offset in zip(shape_zyx, self.stride_zyx, self.offset_zyx, strict=True)
        )
        return z, y, x


def derive(layers: Sequence[tuple[Index, Index]], padding_zyx: Index = (0, 0, 0)) -> tuple[Lattice, Index]:
    """Derive lattice and receptive field of a chain of valid layers.

    Parameters
    ----------
    layers
        Kernel and stride of each layer along z, y, x, from the image on.
    padding_zyx
        Voxels put before the image; they are subtracted again, so that the lattice counts in the image's indices.

    Returns
    -------
    Lattice, Index
        Stride ``D`` = product of strides, offset ``C`` = sum of (kernel - 1) / 2 times the strides before it; and
        the receptive field in voxels.
    """
    stride, offset, field = [1, 1, 1], [-float(p) for p in padding_zyx], [1, 1, 1]
    for kernel, step in layers:
        for axis in range(3):
            offset[axis] += (kernel[axis] - 1) / 2 * stride[axis]
            field[axis] += (kernel[axis] - 1) * stride[axis]
            stride[axis] *= step[axis]
    lattice = Lattice((stride[0], stride[1], stride[2]), (offset[0], offset[1], offset[2]))
    return lattice, (field[0], field[1], field[2])
