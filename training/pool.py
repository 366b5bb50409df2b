"""Voxels of the training scans, resident on the device where patches are cut from them.

Drawing where to cut is cheap and stays on the host; interpolating happens where the network is, on the CPU by the
same code. More scans than fit take turns: which are resident follows from the batch's number alone.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from training.scans import load_scan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from training.sampling import Draw
    from training.scans import TrainingScan

    Index3 = tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Where the patches of a batch lie, as plain tensors that travel between processes; truth beside them.

    Attributes
    ----------
    names
        Scan of each patch.
    matrix, shift, size
        ``(n, 3, 3)`` and ``(n, 3)``: patch index to scan index, float32; ``(n, 3)``: voxels of the scan.
    labels
        ``(n,)``: 1 for a nodule.
    offsets_mm, diameters_mm
        As in ``Draw``; ``(n, 3)`` and ``(n,)``, float64.
    """

    names: tuple[str, ...]
    matrix: torch.Tensor
    shift: torch.Tensor
    size: torch.Tensor
    labels: torch.Tensor
    offsets_mm: torch.Tensor
    diameters_mm: torch.Tensor


def plan_of(draws: Sequence[Draw]) -> Plan:
    """Write draws down without their voxels."""
    return Plan(
        names=tuple(d.scan.name for d in draws),
        matrix=torch.from_numpy(np.stack([d.turn.matrix for d in draws])).float(),
        shift=torch.from_numpy(np.stack([d.turn.shift for d in draws])).float(),
        size=torch.tensor([d.scan.hu.shape for d in draws]),
        labels=torch.tensor([d.label for d in draws]),
        offsets_mm=torch.from_numpy(np.stack([d.offset_mm for d in draws])),
        diameters_mm=torch.tensor([d.diameter_mm for d in draws], dtype=torch.float64),
    )


class VoxelPool:
    """The voxels of some scans, int16 in one flat tensor on a device."""

    def __init__(self, scans: Sequence[TrainingScan], device: torch.device) -> None:
        self.device = device
        sizes = [scan.hu.size for scan in scans]
        self._begin = {scan.name: int(b) for scan, b in zip(scans, np.cumsum([0, *sizes[:-1]]), strict=True)}
        self._voxels = torch.empty(sum(sizes), dtype=torch.int16, device=device)
        for scan in scans:
            begin = self._begin[scan.name]
            self._voxels[begin : begin + scan.hu.size] = torch.from_numpy(scan.hu).reshape(-1)

    def cut(self, plan: Plan, shape: Index3) -> torch.Tensor:
        """Interpolate turned patches, linearly along each axis, the volumes' edges repeated.

        Parameters
        ----------
        plan
            Which patches; their scans are in the pool.
        shape
            Voxels z, y, x of a patch.

        Returns
        -------
        torch.Tensor
            Hounsfield units, float32, ``(n, z, y, x)`` on the pool's device; as ``training.sampling.cut`` up to
            rounding.
        """
        matrix, shift, size = (t.to(self.device, non_blocking=True) for t in (plan.matrix, plan.shift, plan.size))
        begin = torch.tensor([self._begin[name] for name in plan.names]).to(self.device, non_blocking=True)
        k, j, i = (torch.arange(n, dtype=torch.float32, device=self.device) for n in shape)
        one, plane = (slice(None), None), (slice(None), None, None)
        z = matrix[:, 0, 0][one] * k + shift[:, 0][one]
        y, x = (
            matrix[:, a, 1][plane] * j[:, None] + matrix[:, a, 2][plane] * i + shift[:, a][plane] for a in (1, 2)
        )
        z0, wz = _below(z, size[:, 0][one])
        y0, wy = _below(y, size[:, 1][plane])
        x0, wx = _below(x, size[:, 2][plane])
        row, slab = size[:, 2][plane], (size[:, 1] * size[:, 2])[one]
        corner = (begin[one] + z0 * slab)[:, :, None, None] + (y0 * row + x0)[:, None]
        wz, wy, wx = wz[:, :, None, None], wy[:, None], wx[:, None]
        row, slab = row[..., None], slab[:, :, None, None]
        return torch.lerp(self._in_plane(corner, row, wy, wx), self._in_plane(corner + slab, row, wy, wx), wz)

    def _in_plane(
        self, corner: torch.Tensor, row: torch.Tensor, wy: torch.Tensor, wx: torch.Tensor
    ) -> torch.Tensor:
        near = torch.lerp(self._at(corner), self._at(corner + 1), wx)
        far = torch.lerp(self._at(corner + row), self._at(corner + row + 1), wx)
        return torch.lerp(near, far, wy)

    def _at(self, index: torch.Tensor) -> torch.Tensor:
        return self._voxels[index].float()


def _below(position: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of the voxel below each position and the weight of the one above; beyond the edges the edge's voxel."""
    position = torch.minimum(position.clamp(min=0), (size - 1).float())
    below = torch.minimum(position.floor().long(), size - 2)
    return below, position - below


class Residents:
    """Which scans are in memory at a batch: all of them, or ``capacity`` that take turns.

    Every ``every`` batches the longest resident one leaves for the next of a shuffled ring; it is read ahead.
    """

    def __init__(self, folder: Path, names: Sequence[str], seed: int, capacity: int = 0, every: int = 50) -> None:
        listed = list(names) or sorted(path.stem for path in folder.glob("*.npz"))
        self._folder, self._every = folder, every
        self._capacity = min(capacity or len(listed), len(listed))
        self.rotate = self._capacity < len(listed)
        order = np.random.default_rng([seed, 7]).permutation(len(listed)) if self.rotate else range(len(listed))
        self._ring = [listed[i] for i in order]
        self._reader = ThreadPoolExecutor(1)
        self._loaded: dict[str, Future[TrainingScan]] = {}

    def turn(self, number: int) -> int:
        """Number of the exchange before a batch; batches of one turn see the same scans."""
        return number // self._every if self.rotate else 0

    def at(self, number: int) -> list[TrainingScan]:
        """Give the scans of a batch, in order of their names, and read ahead the one that comes next."""
        first = self.turn(number)
        wanted = [self._ring[(first + k) % len(self._ring)] for k in range(self._capacity + self.rotate)]
        for name in [name for name in self._loaded if name not in wanted]:
            del self._loaded[name]
        for name in wanted:
            if name not in self._loaded:
                self._loaded[name] = self._reader.submit(load_scan, self._folder / f"{name}.npz")
        return [self._loaded[name].result() for name in sorted(wanted[: self._capacity])]
