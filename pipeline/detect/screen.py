"""Stage 1, candidate screening: a scan in, places that may be nodules out.

Two networks stand behind one interface. Both write scores for cells of a lattice; the paper's gives a score alone,
the modern one also where in the cell the centre lies and how large the nodule is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch.nn.functional import linear

from pipeline.detect.box_code import DIAMETERS_MM, WILD
from pipeline.detect.mapping import Lattice, derive
from pipeline.detect.nets.fcn import FCN
from pipeline.detect.nets.modern import ModernNet
from pipeline.detect.nms import local_maxima, rank, suppress
from pipeline.detect.tiles import Tile, cut, padded_tiles, valid_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.detect.placement import Placement
    from pipeline.detect.resample import Prepared
    from pipeline.detect.weights import ScreeningNet, ScreeningSpec
    from pipeline.domain.geometry import Vector

    Index = tuple[int, int, int]
    Fraction = Callable[[float], None]

FCN_PADDING = (5, 15, 15)
"""Voxels put before the scan, so that every voxel can be the centre of a patch (decision 0010)."""

FCN_LATTICE, FCN_FIELD = derive(FCN.LAYERS, FCN_PADDING)
MODERN_LATTICE = Lattice(ModernNet.STRIDE, (0.0, 0.0, 0.0))
PLATEAU_MM = 5.0  # reach of the centroid that settles where on a plateau of the FCN's score a candidate lies
LARGEST_OFFSET = 1.5  # cells; a centre farther from its cell than this is a wild value
WINDOWS = 2048  # windows of C3 output multiplied at once: 26 MB in bfloat16
NOT_SEARCHED = -1.0


@dataclass(frozen=True, slots=True)
class Proposal:
    """A candidate on the prepared scan's grid.

    Attributes
    ----------
    index_zyx
        Its centre; continuous voxel index.
    score
        In [0, 1], not calibrated.
    diameter_mm
        Where the network regresses it; mm.
    """

    index_zyx: Vector
    score: float
    diameter_mm: float | None


class Screening(Protocol):
    """The first stage, whichever network it has."""

    def candidates(self, scan: Prepared, progress: Fraction) -> tuple[Proposal, ...]:
        """Propose places within the search region, by falling score; ``progress`` is told the part done."""


def make_screening(net: ScreeningNet, spec: ScreeningSpec, placement: Placement) -> Screening:
    """Put a network behind the interface; the network is changed for inference in place."""
    placement.place(net)
    return FCNScreening(net, spec, placement) if isinstance(net, FCN) else ModernScreening(net, spec, placement)


class ModernScreening:
    """Screening with the encoder-decoder of recipe ``modern``.

    Its layers are padded, so a tile's edge is seen by cells near it; these are thrown away. What remains of the
    dependence on where tiles lie is far below the differences between float32 and bfloat16.
    """

    def __init__(self, net: ModernNet, spec: ScreeningSpec, placement: Placement) -> None:
        self._net, self._spec, self._placement = net, spec, placement
        net.out.float()  # eight bits of mantissa would tie neighbouring logits

    def answer(self, scan: Prepared, progress: Fraction) -> NDArray[np.float32]:
        """Compute the five channels for all cells, ``(5, z, y, x)``; the heat is -inf where nothing is searched."""
        shape = _modern_shape(scan)
        search = scan.search_at(*MODERN_LATTICE.axes(shape))
        answer = np.zeros((ModernNet.CHANNELS, *shape), np.float32)
        spec = self._spec
        plan = padded_tiles(search, spec.tile_zyx, spec.margin_zyx, ModernNet.STRIDE, ModernNet.COARSEST)
        for tile, x in _inputs(scan, plan, self._placement, progress):
            y = self._net.out(self._net.features(x).float())[0].cpu().numpy()
            answer[:, *tile.in_scores] = y[:, *tile.in_answer]
        answer[0][~search] = -np.inf
        return answer

    @torch.inference_mode()
    def candidates(self, scan: Prepared, progress: Fraction) -> tuple[Proposal, ...]:
        """Propose local maxima of the heat with their regressed centre and diameter, at least 5 mm apart."""
        answer, spec = self.answer(scan, progress), self._spec
        heat = answer[0].astype(np.float64)
        scores = np.where(np.isfinite(heat), 1.0 / (1.0 + np.exp(-heat)), NOT_SEARCHED)
        cells = local_maxima(scores, spec.window_zyx, spec.floor)
        if not len(cells):
            return ()
        _, dz, dy, dx, log_diameter = answer[:, *cells.T].astype(np.float64)
        offsets = np.clip(np.stack([dz, dy, dx], 1), -LARGEST_OFFSET, LARGEST_OFFSET)
        centres = MODERN_LATTICE.to_index(cells + offsets)
        diameters = np.clip(np.exp(np.minimum(log_diameter, WILD)), *DIAMETERS_MM)
        spacing = np.asarray(scan.grid.spacing_zyx_mm)
        kept = suppress(centres * spacing, np.maximum(spec.distance_mm, diameters / 2), spec.cap)
        values = scores[tuple(cells.T)]
        return tuple(Proposal(_vector(centres[i]), float(values[i]), float(diameters[i])) for i in kept)


class FCNScreening:
    """Screening with the paper's fully convolutional network.

    C1 to C3 run on every tile; C4, which is most of the work, only at the cells to search, as one matrix product
    over windows of C3's output. That equals the dense map up to rounding.
    """

    def __init__(self, net: FCN, spec: ScreeningSpec, placement: Placement) -> None:
        self._net, self._spec, self._placement = net, spec, placement
        net.conv5.float()

    @torch.inference_mode()
    def scores(self, scan: Prepared, progress: Fraction) -> NDArray[np.float32]:
        """Compute the nodule probability of every cell to search, ``(z, y, x)``; -1 elsewhere."""
        shape = _fcn_shape(scan)
        search = scan.search_at(*FCN_LATTICE.axes(shape))
        scores = np.full(shape, NOT_SEARCHED, np.float32)
        plan = valid_tiles(search, self._spec.tile_zyx, FCN_LATTICE.stride_zyx, FCN_FIELD, FCN_PADDING)
        for tile, x in _inputs(scan, plan, self._placement, progress):
            cells = np.argwhere(search[tile.in_scores])
            scores[tile.in_scores][tuple(cells.T)] = self._at(self._net.shared(x)[0], cells)
        return scores

    def _at(self, shared: torch.Tensor, cells: NDArray[np.int64]) -> NDArray[np.float32]:
        """C4, C5 and softmax at some cells of a tile: ``shared`` is (c, z, y, x), ``cells`` is (n, 3)."""
        kz, ky, kx = FCN.WINDOW
        windows = shared.unfold(1, kz, 1).unfold(2, ky, 1).unfold(3, kx, 1)  # (c, z, y, x, kz, ky, kx)
        conv4, conv5 = self._net.conv4.conv, self._net.conv5
        weight4, weight5 = conv4.weight.flatten(1), conv5.weight.flatten(1)
        parts = []
        for z, y, x in (part.T for part in np.array_split(cells, max(1, -(-len(cells) // WINDOWS)))):
            seen = windows[:, z, y, x].transpose(0, 1).flatten(1)  # (n, c kz ky kx)
            hidden = torch.relu_(linear(seen, weight4, conv4.bias))
            parts.append(linear(hidden.float(), weight5, conv5.bias).softmax(1)[:, 1])
        return np.asarray(torch.cat(parts).cpu().numpy())

    def candidates(self, scan: Prepared, progress: Fraction) -> tuple[Proposal, ...]:
        """Propose local maxima at least 5 mm apart, each moved to the middle of its plateau."""
        scores, spec = self.scores(scan, progress), self._spec
        spacing = np.asarray(scan.grid.spacing_zyx_mm)
        cell_mm = spacing * np.asarray(FCN_LATTICE.stride_zyx)
        cells = local_maxima(scores, spec.window_zyx, spec.floor)
        values = scores[tuple(cells.T)]
        first = suppress(cells * cell_mm, spec.distance_mm, len(cells))
        centred = np.array([_plateau_centre(scores, cells[i], cell_mm, spec.floor) for i in first]).reshape(-1, 3)
        order = rank(values[first], centred)
        kept = order[suppress(centred[order] * cell_mm, spec.distance_mm, spec.cap)]
        centres = FCN_LATTICE.to_index(centred)
        return tuple(Proposal(_vector(centres[i]), float(values[first][i]), None) for i in kept)


def _plateau_centre(
    scores: NDArray[np.float32], cell: NDArray[np.int64], cell_mm: NDArray[np.float64], floor: float
) -> NDArray[np.int64]:
    """Centroid of the scores above the floor within 5 mm of a cell, weighted by them, on the nearest cell."""
    reach = np.floor(PLATEAU_MM / cell_mm).astype(int)
    low = np.maximum(cell - reach, 0)
    high = np.minimum(cell + reach + 1, scores.shape)
    near = scores[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))]
    places = np.indices(near.shape).reshape(3, -1).T + low
    inside = np.linalg.norm((places - cell) * cell_mm, axis=1) <= PLATEAU_MM
    weights = np.where(inside & (near.ravel() >= floor), near.ravel(), 0.0).astype(np.float64)
    return np.asarray(np.rint((places * weights[:, None]).sum(0) / weights.sum()), np.int64)


def _inputs(
    scan: Prepared, tiles: tuple[Tile, ...], placement: Placement, progress: Fraction
) -> Iterator[tuple[Tile, torch.Tensor]]:
    """Give every tile with the network's input ``(1, 1, z, y, x)`` for it."""
    for done, tile in enumerate(tiles):
        progress(done / len(tiles))
        hu = cut(scan.hu, tile.first_zyx, tile.shape_zyx, scan.preprocessing.padding_hu)
        yield tile, placement.tensor(hu[None], scan.preprocessing)
    progress(1.0)


def _modern_shape(scan: Prepared) -> Index:
    z, y, x = (-(-n // s) for n, s in zip(scan.hu.shape, ModernNet.STRIDE, strict=True))
    return z, y, x


def _fcn_shape(scan: Prepared) -> Index:
    """As many cells as reach from half a voxel before the scan to its last voxel or the half behind it."""
    z, y, x = (n // stride + 1 for n, stride in zip(scan.hu.shape, FCN_LATTICE.stride_zyx, strict=True))
    return z, y, x


def _vector(values: NDArray[np.float64]) -> Vector:
    z, y, x = values
    return float(z), float(y), float(x)
