"""Stage 1 of recipe ``paper``: the fully convolutional screening network.

Five convolutions, all valid, and one max-pooling; layer table in decision 0010.
References: Dou et al., MICCAI 2017, section 2.1 (arXiv 1708.03867).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline.detect.nets.blocks import ConvUnit

if TYPE_CHECKING:
    from collections.abc import Sequence

PAPER = (32, 32, 64, 250)
"""Channels of C1 to C4: 1.83 M parameters."""

INITIAL_STD = 0.01
"""Standard deviation of the Gaussian that the paper draws the weights from."""


class SharedLayers(nn.Module):
    """C1, M1, C2, C3: the layers that the second stage takes over from the first.

    Their output for a patch of ``(z, y, x)`` voxels has ``(z - 6, (y - 4) / 2 - 8, (x - 4) / 2 - 8)`` places.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        c1, c2, c3 = widths
        self.conv1 = ConvUnit(1, c1, (3, 5, 5))
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.conv2 = ConvUnit(c1, c2, (3, 5, 5))
        self.conv3 = ConvUnit(c2, c3, (3, 5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layers; shapes for one training patch of 10x30x30 and the paper's widths."""
        y = self.conv1(x)  # (32, 8, 26, 26)
        y = self.pool(y)  # (32, 8, 13, 13)
        y = self.conv2(y)  # (32, 6, 9, 9)
        shared: torch.Tensor = self.conv3(y)  # (64, 4, 5, 5)
        return shared


class FCN(nn.Module):
    """Score of "a nodule is centred here" for every patch of 10x30x30 voxels, two voxels apart in y and x.

    Attributes
    ----------
    PATCH
        Receptive field of one score, which is the training patch; voxels z, y, x.
    WINDOW
        Kernel of C4: the part of C3's output that one score sees.
    """

    PATCH = (10, 30, 30)
    WINDOW = (4, 5, 5)
    LAYERS = (
        ((3, 5, 5), (1, 1, 1)),
        ((1, 2, 2), (1, 2, 2)),
        ((3, 5, 5), (1, 1, 1)),
        ((3, 5, 5), (1, 1, 1)),
        ((4, 5, 5), (1, 1, 1)),
        ((1, 1, 1), (1, 1, 1)),
    )
    """Kernel and stride of each layer, from which the index mapping follows."""

    def __init__(self, widths: Sequence[int] = PAPER) -> None:
        super().__init__()
        c1, c2, c3, c4 = widths
        self.shared = SharedLayers((c1, c2, c3))
        self.conv4 = ConvUnit(c3, c4, self.WINDOW)
        self.conv5 = nn.Conv3d(c4, 2, 1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.normal_(module.weight, 0.0, INITIAL_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, 1, z, y, x)`` to logits ``(n, 2, z - 9, (y - 28) / 2, (x - 28) / 2)``: background, nodule."""
        y = self.shared(x)  # (64, 4, 5, 5)
        y = self.conv4(y)  # (250, 1, 1, 1)
        logits: torch.Tensor = self.conv5(y)  # (2, 1, 1, 1)
        return logits
