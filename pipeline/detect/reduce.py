"""Stage 2, false-positive reduction: each candidate's surroundings in, its score, centre and diameter out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.detect.box_code import decode
from pipeline.detect.nets.residual import PATCH
from pipeline.detect.tiles import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.detect.nets.residual import ResidualNet
    from pipeline.detect.placement import Placement
    from pipeline.detect.resample import Prepared
    from pipeline.detect.screen import Proposal
    from pipeline.domain.geometry import Vector

    Index = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Mark:
    """A candidate after the second stage, or as the first left it where there is no second.

    Attributes
    ----------
    index_zyx
        Decoded centre on the prepared scan's grid; continuous voxel index.
    diameter_mm
        Decoded diameter; mm.
    screening_score, reduction_logit
        Score of the first stage in [0, 1]; log odds of the second, 0 without one.
    """

    index_zyx: Vector
    diameter_mm: float
    screening_score: float
    reduction_logit: float


def patch_start(index_zyx: Vector) -> Index:
    """Give the first voxel of the patch centred on a position, to the nearest voxel.

    Centres of the paper's FCN lie between voxels just where the patch's centre does: nothing is rounded there.
    """
    z, y, x = (round(centre - (size - 1) / 2) for centre, size in zip(index_zyx, PATCH, strict=True))
    return z, y, x


def patch_centre(start_zyx: Index) -> NDArray[np.float64]:
    """Give the centre of the patch with this first voxel, P of equation 2; continuous voxel index."""
    return np.asarray(start_zyx, np.float64) + (np.asarray(PATCH) - 1) / 2


class Reduction:
    """The second stage on one device."""

    def __init__(self, net: ResidualNet, batch: int, placement: Placement) -> None:
        placement.place(net)
        net.classify.float()
        if net.regress is not None:
            net.regress.float()
        self._net, self._batch, self._placement = net, batch, placement

    @torch.inference_mode()
    def judge(
        self, scan: Prepared, proposals: Sequence[Proposal], progress: Callable[[float], None]
    ) -> tuple[Mark, ...]:
        """Score every candidate and decode its centre and diameter, in the order of the candidates.

        A network without a regression head leaves centre and diameter to the first stage.
        """
        marks: list[Mark] = []
        for first in range(0, len(proposals), self._batch):
            progress(first / len(proposals))
            marks += self._judge(scan, proposals[first : first + self._batch])
        progress(1.0)
        return tuple(marks)

    def _judge(self, scan: Prepared, proposals: Sequence[Proposal]) -> list[Mark]:
        starts = [patch_start(p.index_zyx) for p in proposals]
        patches = np.stack([cut(scan.hu, start, PATCH, scan.preprocessing.padding_hu) for start in starts])
        features = self._net.features(self._placement.tensor(patches, scan.preprocessing)).float().contiguous()
        logits = self._net.classify(features).cpu().double().numpy()
        spacing = np.asarray(scan.grid.spacing_zyx_mm)
        if self._net.regress is None:
            centres = np.array([p.index_zyx for p in proposals])
            diameters = np.array([p.diameter_mm for p in proposals], np.float64)
        else:
            targets = self._net.regress(features).cpu().double().numpy()
            proposed = np.array([patch_centre(start) for start in starts]) * spacing
            centres_mm, diameters = decode(targets, proposed, np.asarray(PATCH) * spacing)
            centres = centres_mm / spacing
        return [
            Mark((float(z), float(y), float(x)), float(d), p.score, float(nodule - mimic))
            for (z, y, x), d, p, (mimic, nodule) in zip(centres, diameters, proposals, logits, strict=True)
        ]
