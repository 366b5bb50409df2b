"""The blocks that the three networks share. Tensors are (batch, channel, z, y, x)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

if TYPE_CHECKING:
    Size = int | tuple[int, int, int]


class ConvUnit(nn.Module):
    """Convolution, batch norm and, unless it closes a residual unit, ReLU."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: Size,
        *,
        stride: Size = 1,
        padding: Size = 0,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.norm: nn.Module = nn.BatchNorm3d(channels_out)
        self.relu = relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the unit."""
        y: torch.Tensor = self.norm(self.conv(x))
        return torch.relu_(y) if self.relu else y

    def fold(self) -> None:
        """Merge the batch norm into the convolution; for inference only, the result is the same up to rounding."""
        if isinstance(self.norm, nn.BatchNorm3d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


def fold_batch_norms(net: nn.Module) -> None:
    """Fold every :class:`ConvUnit` of a network in evaluation mode, in place."""
    for module in net.modules():
        if isinstance(module, ConvUnit):
            module.fold()
