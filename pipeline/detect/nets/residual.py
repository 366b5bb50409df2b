"""Stage 2: the 3D residual network that tells nodules from mimics and regresses centre and diameter.

The layer table stands in decision 0010.
References: Dou et al., MICCAI 2017, sections 2.2 and 2.3, equations 1 to 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pipeline.detect.nets.blocks import ConvUnit
from pipeline.detect.nets.fcn import SharedLayers

PATCH = (24, 60, 60)
"""Voxels z, y, x of a second-stage patch: 60x60x24 in the paper's order."""

MEDIAN_LOG_DIAMETER = -2.34
"""T_d of the median LUNA16 nodule (6.43 mm) on the shipped grid: first value of that output's bias."""


@dataclass(frozen=True, slots=True)
class ResidualWidths:
    """What makes one second-stage network differ from another.

    Attributes
    ----------
    shared
        Channels of C1, C2, C3, which are those of the first stage when its weights are taken over.
    deep
        Channels after the second and the third residual unit.
    head
        Hidden units of each head.
    skips
        Whether the units add their input: ``False`` is the paper's plain DeepNet.
    regression
        Whether there is a regression head: ``False`` is the paper's ResNet without hybrid loss.
    squeeze
        Whether each unit weighs its channels (squeeze and excitation), as recipe ``modern`` does.
    """

    shared: tuple[int, int, int] = (32, 32, 64)
    deep: tuple[int, int] = (128, 128)
    head: int = 128
    skips: bool = True
    regression: bool = True
    squeeze: bool = False


DEEPNET = ResidualWidths(skips=False, regression=False)
RESNET = ResidualWidths(regression=False)
RESNET_HYBRID = ResidualWidths()


class SqueezeExcite(nn.Module):
    """Weigh each channel by what all channels hold on average (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, ratio: int = 8) -> None:
        super().__init__()
        self.down = nn.Linear(channels, max(channels // ratio, 4))
        self.up = nn.Linear(max(channels // ratio, 4), channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the weights."""
        weights = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3, 4))))))
        return x * weights[:, :, None, None, None]


class PreActivation(nn.Module):
    """Batch norm and ReLU ahead of a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both."""
        return torch.relu(self.norm(x))


class PreActivationUnit(nn.Module):
    """x + F(x), F being BN-ReLU-convolution twice, padded to keep the size."""

    def __init__(self, channels: int, widths: ResidualWidths) -> None:
        super().__init__()
        self.before = PreActivation(channels)
        self.first = ConvUnit(channels, channels, 3, padding=1)
        self.second = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.weigh = SqueezeExcite(channels) if widths.squeeze else nn.Identity()
        self.skips = widths.skips

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the unit."""
        y: torch.Tensor = self.weigh(self.second(self.first(self.before(x))))
        return x + y if self.skips else y


class Head(nn.Sequential):
    """Flatten, one hidden layer, outputs. Flattened, not pooled: pooling would destroy the position."""

    def __init__(self, features: int, hidden: int, outputs: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class ResidualNet(nn.Module):
    """Two logits (mimic, nodule) and, with a regression head, T_z, T_y, T_x, T_d of equation 2 for each patch."""

    def __init__(self, widths: ResidualWidths = RESNET_HYBRID) -> None:
        super().__init__()
        w1, (w2, w3) = widths.shared[2], widths.deep
        self.shared = SharedLayers(widths.shared)
        self.unit1 = PreActivationUnit(w1, widths)
        self.down1 = nn.Conv3d(w1, w2, 3, stride=2, padding=1, bias=False)
        self.unit2 = PreActivationUnit(w2, widths)
        self.down2 = nn.Conv3d(w2, w3, 3, stride=2, padding=1, bias=False)
        self.unit3 = PreActivationUnit(w3, widths)
        self.after = PreActivation(w3)
        features = w3 * 5 * 5 * 5
        self.classify = Head(features, widths.head, 2)
        self.regress = Head(features, widths.head, 4) if widths.regression else None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.regress is not None:
            last = self.regress[-1]
            assert isinstance(last, nn.Linear)
            with torch.no_grad():
                last.bias[3] = MEDIAN_LOG_DIAMETER

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Everything below the heads; shapes for the paper's widths."""
        y = self.shared(x)  # (64, 18, 20, 20)
        y = self.unit1(y)  # (64, 18, 20, 20)
        y = self.unit2(self.down1(y))  # (128, 9, 10, 10)
        y = self.unit3(self.down2(y))  # (128, 5, 5, 5)
        deep: torch.Tensor = self.after(y)  # (128, 5, 5, 5)
        return deep

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map patches ``(n, 1, 24, 60, 60)`` to logits ``(n, 2)`` and, with that head, targets ``(n, 4)``."""
        y = self.features(x)
        return self.classify(y), None if self.regress is None else self.regress(y)
