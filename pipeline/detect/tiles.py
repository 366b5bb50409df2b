"""Tiles: which pieces of a scan a network must see so that every place to be searched gets its score.

Those without a place to search are skipped. Places and shapes depend on the mask alone. The valid network's tiles
have one shape, the padded one's have one in each slab, so that a device plans few kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Index = tuple[int, int, int]
    Slices = tuple[slice, slice, slice]


class CoverageError(RuntimeError):
    """A place to be searched lies in no tile: a bug of ours, never to be passed over."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One piece of work.

    Attributes
    ----------
    first_zyx, shape_zyx
        First voxel the network reads, which may lie before the scan, and how many it reads.
    begin_zyx, end_zyx
        Cells of the score volume it answers for: the first, and the one behind the last.
    skip_zyx
        Cells of its answer before the first of those.
    """

    first_zyx: Index
    shape_zyx: Index
    begin_zyx: Index
    end_zyx: Index
    skip_zyx: Index

    @property
    def in_scores(self) -> Slices:
        """The cells as slices of the score volume."""
        z, y, x = (slice(b, e) for b, e in zip(self.begin_zyx, self.end_zyx, strict=True))
        return z, y, x

    @property
    def in_answer(self) -> Slices:
        """The same cells as slices of the network's answer."""
        z, y, x = (slice(s, s + e - b) for b, e, s in zip(self.begin_zyx, self.end_zyx, self.skip_zyx, strict=True))
        return z, y, x


@dataclass(frozen=True, slots=True)
class Span:
    """A tile along one axis: first voxel, voxels, first cell, cell behind the last, cells to skip."""

    first: int
    length: int
    begin: int
    end: int
    skip: int


def valid_tiles(
    search: NDArray[np.bool_], core_zyx: Index, stride_zyx: Index, field_zyx: Index, padding_zyx: Index
) -> tuple[Tile, ...]:
    """Tile for a network of valid layers: the answer is that for the whole scan, up to rounding.

    Slabs first, then rows within a slab, then tiles within a row; each begins at the first cell to search that is
    not yet covered.

    Parameters
    ----------
    search
        Cells to search, shape ``(z, y, x)`` of the score volume.
    core_zyx
        Cells a tile answers for.
    stride_zyx, field_zyx
        Of the network, in voxels; tiles overlap by the receptive field less one stride.
    padding_zyx
        Voxels before the scan that cell 0 reads.

    Raises
    ------
    CoverageError
        When a cell to search would be skipped.
    """
    cz, cy, cx = core_zyx
    shape = tuple((c - 1) * s + f for c, s, f in zip(core_zyx, stride_zyx, field_zyx, strict=True))
    origins = [
        (z, y, x)
        for z in _begins(search, 0, cz)
        for y in _begins(search[z : z + cz], 1, cy)
        for x in _begins(search[z : z + cz, y : y + cy], 2, cx)
    ]
    tiles = tuple(
        _tile(
            [
                Span(o * s - p, v, o, min(o + c, n), 0)
                for o, v, s, p, c, n in zip(
                    origin, shape, stride_zyx, padding_zyx, core_zyx, search.shape, strict=True
                )
            ]
        )
        for origin in origins
    )
    check_coverage(search, tiles)
    return tiles


def padded_tiles(
    search: NDArray[np.bool_], most_zyx: Index, margin_zyx: Index, stride_zyx: Index, coarsest_zyx: Index
) -> tuple[Tile, ...]:
    """Tile for a network of padded layers: neighbours overlap by two margins and meet in the middle.

    The box around the cells to search is divided evenly into slabs, and the box around a slab's cells evenly into
    as few tiles as ``most_zyx`` allows: lungs are narrow at their top. Of all heights of a slab the one with the
    fewest voxels in all is taken.

    Parameters
    ----------
    search
        Cells to search, shape ``(z, y, x)`` of the score volume.
    most_zyx
        Most voxels of a tile.
    margin_zyx
        Voxels at an inner edge whose answer is thrown away, because it saw the edge.
    stride_zyx, coarsest_zyx
        Voxels of a cell, and of a cell of the network's deepest level; tiles are multiples of the latter.

    Raises
    ------
    CoverageError
        When a cell to search would be skipped.
    ValueError
        When a tile of ``most_zyx`` has no room beside its margins.
    """
    axes = list(zip(margin_zyx, stride_zyx, coarsest_zyx, strict=True))
    least, step = 2 * margin_zyx[0] + coarsest_zyx[0], coarsest_zyx[0]
    heights = range(most_zyx[0], min(least, most_zyx[0]) - 1, -step)
    tiles = min((_slabs(search, (height, *most_zyx[1:]), axes) for height in heights), key=_voxels)
    check_coverage(search, tiles)
    return tiles


def _voxels(tiles: tuple[Tile, ...]) -> int:
    return sum(tile.shape_zyx[0] * tile.shape_zyx[1] * tile.shape_zyx[2] for tile in tiles)


def _slabs(search: NDArray[np.bool_], most: Index, axes: list[Index]) -> tuple[Tile, ...]:
    """Divide along z, then each slab along y and x; ``axes`` holds margin, stride and coarsest step of each."""
    tiles: list[Tile] = []
    for z in _divide(*_extent(search, 0), most[0], axes[0]):
        slab = search[z.begin : z.end]
        across = [_divide(*_extent(slab, axis), most[axis], axes[axis]) for axis in (1, 2)]
        every = (_tile([z, y, x]) for y in across[0] for x in across[1])
        tiles.extend(tile for tile in every if search[tile.in_scores].any())
    return tuple(tiles)


def _extent(search: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    """First cell to search along an axis, and the one behind the last."""
    cells = np.flatnonzero(search.any(axis=tuple(a for a in range(3) if a != axis)))
    return (int(cells[0]), int(cells[-1]) + 1) if len(cells) else (0, 0)


def _tile(spans: list[Span]) -> Tile:
    z, y, x = spans
    return Tile(
        (z.first, y.first, x.first),
        (z.length, y.length, x.length),
        (z.begin, y.begin, x.begin),
        (z.end, y.end, x.end),
        (z.skip, y.skip, x.skip),
    )


def _begins(search: NDArray[np.bool_], axis: int, length: int) -> Iterator[int]:
    """First cells of the tiles along one axis."""
    begin = 0
    for cell in np.flatnonzero(search.any(axis=tuple(a for a in range(3) if a != axis))):
        if cell >= begin:
            yield int(cell)
            begin = int(cell) + length


def _divide(low: int, high: int, most: int, axis: Index) -> list[Span]:
    """Divide cells ``low`` to ``high - 1`` among equally long tiles of at most ``most`` voxels."""
    margin, stride, coarsest = axis
    if most < 2 * margin + coarsest:
        raise ValueError(f"A tile of {most} voxels is too short for margins of {margin} and steps of {coarsest}.")
    voxels, parts = max(high - low, 1) * stride, 1
    while (length := -(-(voxels + (parts - 1) * 2 * margin) // (parts * coarsest)) * coarsest) > most:
        parts += 1
    spare = (voxels - length) // stride  # cells between the first and the last tile's begin; negative for one tile
    firsts = [low + (spare * i // (parts - 1) if parts > 1 else spare // 2) for i in range(parts)]
    meets = [(a + b + length // stride) // 2 for a, b in pairwise(firsts)]
    edges = [low, *meets, high]
    return [
        Span(first * stride, length, begin, end, begin - first)
        for first, (begin, end) in zip(firsts, pairwise(edges), strict=True)
    ]


def check_coverage(search: NDArray[np.bool_], tiles: tuple[Tile, ...]) -> None:
    """Make sure that every cell to search lies in a tile.

    Raises
    ------
    CoverageError
        Naming the number of cells missed and the first of them.
    """
    missed = search.copy()
    for tile in tiles:
        missed[tile.in_scores] = False
    if missed.any():
        first = tuple(int(i) for i in np.argwhere(missed)[0])
        raise CoverageError(f"{int(missed.sum())} cells to search lie in no tile, the first at {first}.")


def cut(hu: NDArray[np.int16], first_zyx: Index, shape_zyx: Index, padding_hu: int) -> NDArray[np.int16]:
    """Cut a box out of a volume; what lies outside the volume is ``padding_hu``."""
    box = np.full(shape_zyx, padding_hu, np.int16)
    inner, outer = [], []
    for first, length, size in zip(first_zyx, shape_zyx, hu.shape, strict=True):
        low, high = min(max(first, 0), size), max(min(first + length, size), 0)
        outer.append(slice(low, max(high, low)))
        inner.append(slice(low - first, max(high, low) - first))
    if all(part.stop > part.start for part in outer):
        box[tuple(inner)] = hu[tuple(outer)]
    return box
