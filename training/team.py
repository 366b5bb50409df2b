"""The processes of one training run: alone, or as many as ``torchrun`` started, one for each GPU.

Together they learn from one global batch exactly as one process would: each has an equal part of it, and whatever
the loss takes from the whole batch (its size, the nodules in it, the hard samples, the batch norms' statistics) is
taken over all of them. Decision 0092.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CPU = torch.device("cpu")


class UnevenBatchError(ValueError):
    """A batch that cannot be divided evenly among the processes."""


@dataclass(frozen=True, slots=True)
class Team:
    """One process among those of a run.

    Attributes
    ----------
    rank, size
        Which process of how many.
    device
        Where it computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """Whether this process alone writes and speaks."""
        return self.rank == 0

    def part(self, batch: int) -> slice:
        """Give this process's samples of a global batch.

        Raises
        ------
        UnevenBatchError
            When the batch cannot be divided evenly.
        """
        if batch % self.size:
            raise UnevenBatchError(
                f"A batch of {batch} cannot be divided among {self.size} processes; choose a multiple."
            )
        own = batch // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Add up a value over all processes; no gradient flows."""
        value = value.detach()
        if self.size > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def joined(self, values: torch.Tensor) -> torch.Tensor:
        """Put equally long vectors of all processes behind each other, in the order of ranks; no gradient flows."""
        values = values.detach()
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        distributed.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def shared(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Merge what each process knows of different names."""
        if self.size == 1:
            return dict(own)
        parts: list[dict[str, Any] | None] = [None] * self.size
        distributed.all_gather_object(parts, dict(own))
        return {name: value for part in parts if part is not None for name, value in part.items()}

    def wrap(self, network: nn.Module) -> nn.Module:
        """Let a network's gradients and batch norms be those of the global batch; alone it stays as it is.

        Gradients are averaged over the processes, so the loss must be multiplied by their number.
        """
        if self.size == 1:
            return network
        if self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
            return nn.parallel.DistributedDataParallel(network, device_ids=[self.device.index])
        _share_norms(network)
        return nn.parallel.DistributedDataParallel(network)


ALONE = Team()


@contextmanager
def gathered(device: str = "auto") -> Iterator[Team]:
    """Join the processes that ``torchrun`` started; without it a team of one.

    Parameters
    ----------
    device
        ``auto`` (the CUDA device of this process's local rank where there is one), ``cpu``, ``cuda`` or ``cuda:1``.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    place = device_of(device, int(os.environ.get("LOCAL_RANK", "0")))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        yield Team(device=place)
        return
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Team(rank, size, place)
    finally:
        distributed.destroy_process_group()


def device_of(device: str, local_rank: int = 0) -> torch.device:
    """Choose the device of a process; ``auto`` and ``cuda`` mean the GPU with the number of its local rank."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(f"cuda:{local_rank}") if device == "cuda" else torch.device(device)


class _TotalWithGradient(torch.autograd.Function):
    """Sum over all processes; the gradient of a sum is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


class SharedNorm(nn.BatchNorm3d):
    """Batch norm over the global batch on the CPU, where torch's own has none; state as ``BatchNorm3d``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's own name
        """Normalise; in training with mean and variance over all processes, which hold equal parts."""
        if not self.training:
            return super().forward(input)
        axes, shape = (0, 2, 3, 4), (1, -1, 1, 1, 1)
        count = input.numel() // input.shape[1] * distributed.get_world_size()
        x = input.float()
        mean = _total_with_gradient(x.sum(axes)) / count
        centred = x - mean.view(shape)
        variance = _total_with_gradient((centred * centred).sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        return (y * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum or 0.0)
        self.running_var.lerp_(variance, self.momentum or 0.0)


def _total_with_gradient(value: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = _TotalWithGradient.apply(value)  # type: ignore[no-untyped-call]
    return total


def _share_norms(module: nn.Module) -> None:
    """Let every batch norm of a network share its statistics, in place; parameters and state stay the same."""
    for child in module.modules():
        if type(child) is nn.BatchNorm3d:
            child.__class__ = SharedNorm
