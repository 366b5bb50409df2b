"""Stage 1 of recipe ``modern``: a light residual encoder-decoder that sees far and answers at stride (2, 4, 4).

It owns the layers only; what its five channels mean in millimetres stands in ``screen.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import interpolate

from pipeline.detect.nets.blocks import ConvUnit

if TYPE_CHECKING:
    from collections.abc import Sequence

FULL = ((24, 48, 96, 128, 160), 64)
"""Widths of the five encoder levels and of the decoder in the shipped recipe: 5.92 M parameters."""

PRIOR_LOGIT = -4.6
"""First value of the heat bias: a prior of 0.01, so that the first steps do not drown in background."""


class ResidualUnit(nn.Module):
    """Two 3x3x3 convolutions around a skip; the skip is a 1x1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.first = ConvUnit(channels_in, channels_out, 3, stride=stride, padding=1)
        self.second = ConvUnit(channels_out, channels_out, 3, padding=1, relu=False)
        same = channels_in == channels_out and stride == 1
        self.skip = nn.Identity() if same else ConvUnit(channels_in, channels_out, 1, stride=stride, relu=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the unit."""
        return torch.relu_(self.second(self.first(x)) + self.skip(x))


class Level(nn.Sequential):
    """One level of the encoder: a residual unit that halves each axis, and one that keeps it."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            ResidualUnit(channels_in, channels_out, stride=2), ResidualUnit(channels_out, channels_out)
        )


class Merge(nn.Module):
    """One level of the decoder: the coarser map, enlarged, added to this level's and smoothed."""

    def __init__(self, channels_level: int, neck: int) -> None:
        super().__init__()
        self.lateral = nn.Conv3d(channels_level, neck, 1)
        self.smooth = ConvUnit(neck, neck, 3, padding=1)

    def forward(self, level: torch.Tensor, coarser: torch.Tensor) -> torch.Tensor:
        """Merge ``coarser`` into ``level``; the answer has the size of ``level``."""
        enlarged = interpolate(coarser, size=level.shape[2:], mode="nearest")
        merged: torch.Tensor = self.smooth(self.lateral(level) + enlarged)
        return merged


class ModernNet(nn.Module):
    """Centre heat map, centre offset and log diameter for every cell of (2, 4, 4) voxels.

    Output cell ``(k, j, i)`` is centred on input voxel ``(2k, 4j, 4i)`` exactly: every kernel is odd and padded to
    its half. Sizes that are multiples of (16, 32, 32) keep all levels aligned.

    Attributes
    ----------
    STRIDE
        Voxels a cell, along z, y, x.
    COARSEST
        Voxels a cell of the deepest level; tiles begin at its multiples.
    CHANNELS
        Heat logit; dz, dy, dx in cells; natural logarithm of the diameter in mm.
    """

    STRIDE = (2, 4, 4)
    COARSEST = (16, 32, 32)
    CHANNELS = 5

    def __init__(self, widths: Sequence[int] = FULL[0], neck: int = FULL[1]) -> None:
        super().__init__()
        w1, w2, w3, w4, w5 = widths
        self.stem = ConvUnit(1, w1, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2))
        self.level1 = ResidualUnit(w1, w1)
        self.level2 = Level(w1, w2)
        self.level3 = Level(w2, w3)
        self.level4 = Level(w3, w4)
        self.level5 = Level(w4, w5)
        self.bottom = nn.Conv3d(w5, neck, 1)
        self.merge4 = Merge(w4, neck)
        self.merge3 = Merge(w3, neck)
        self.merge2 = Merge(w2, neck)
        self.head = ConvUnit(neck, neck, 3, padding=1)
        self.out = nn.Conv3d(neck, self.CHANNELS, 1)
        self._initialise()

    def _initialise(self) -> None:
        assert self.out.bias is not None
        with torch.no_grad():
            self.out.bias.zero_()
            self.out.bias[0] = PRIOR_LOGIT

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Everything but the last 1x1x1 convolution; shapes for one tile of 96x160x160 and the full widths."""
        a = self.level1(self.stem(x))  # (24, 96, 80, 80)
        b = self.level2(a)  # (48, 48, 40, 40)
        c = self.level3(b)  # (96, 24, 20, 20)
        d = self.level4(c)  # (128, 12, 10, 10)
        e = self.bottom(self.level5(d))  # (64, 6, 5, 5)
        p = self.merge4(d, e)  # (64, 12, 10, 10)
        p = self.merge3(c, p)  # (64, 24, 20, 20)
        p = self.merge2(b, p)  # (64, 48, 40, 40)
        y: torch.Tensor = self.head(p)  # (64, 48, 40, 40)
        return y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, 1, z, y, x)`` to ``(n, 5, z/2, y/4, x/4)``."""
        y: torch.Tensor = self.out(self.features(x))
        return y
