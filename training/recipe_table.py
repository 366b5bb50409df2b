"""What each recipe's networks are and cost, counted from the networks: the table of ``docs/training.md``.

``python -m training.recipe_table`` writes it there after a recipe has changed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline.detect.nets.residual import PATCH, ResidualNet
from training.recipes import load_recipe
from training.reduction import residual_widths
from training.screening import make_network

if TYPE_CHECKING:
    from training.recipes import Recipe
    from training.runs import StageRecipe

BOX = (240, 500, 500)
"""Voxels z, y, x of 300 x 350 x 350 mm, a large pair of lungs, on the networks' grid."""

CANDIDATES = 220
"""Of a scan, as the paper's first stage gives (Table 2)."""

HEADER = (
    "| recipe | stage 1 | parameters | GMAC a scan | length | stage 2 | parameters | GMAC a scan | length |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def row(recipe: Recipe) -> str:
    """Write the row of a recipe: both networks with widths, parameters, cost of a scan and length of training.

    A scan is ``BOX`` without skipping anything, and ``CANDIDATES`` for the second stage.
    """
    first, second = recipe.screening, recipe.reduction
    neck = f", neck {first.neck}" if first.network == "modern" else ""
    with torch.device("meta"):
        one, two = make_network(first), ResidualNet(residual_widths(second))
    margin = (0, 0, 0) if first.network == "modern" else (9, 28, 28)
    box = [size + extra for size, extra in zip(BOX, margin, strict=True)]
    cells = [
        recipe.name,
        f"{first.network} {_widths(first.widths)}{neck}",
        f"{_count(one):.2f} M",
        f"{gmac(one, box):,.0f}",
        _length(first),
        f"{second.network} {_widths(second.shared)}, {_widths(second.deep)}{', SE' if second.squeeze else ''}",
        f"{_count(two):.2f} M",
        f"{gmac(two, list(PATCH)) * CANDIDATES:,.0f}",
        _length(second),
    ]
    return "| " + " | ".join(cells) + " |"


def gmac(network: nn.Module, shape: list[int]) -> float:
    """Count the multiplications of convolutions and linear layers for one input ``(z, y, x)``; thousand million.

    The network is on the meta device: nothing is computed.
    """
    total = 0

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv3d | nn.Linear)
        total += output.numel() * layer.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv3d | nn.Linear)]
    with torch.no_grad():
        network.eval()(torch.empty(1, 1, *shape, device="meta"))
    for hook in hooks:
        hook.remove()
    return total / 1e9


def _count(network: nn.Module) -> float:
    return sum(p.numel() for p in network.parameters()) / 1e6


def _widths(widths: tuple[int, ...]) -> str:
    return "/".join(str(width) for width in widths)


def _length(stage: StageRecipe) -> str:
    length = f"{stage.steps:,} steps" if stage.steps else f"{stage.minutes:g} min"
    return f"{length} of {stage.batch}"


def write(root: Path) -> None:
    """Put the rows of all recipes of a checkout into its page."""
    page = root / "docs" / "training.md"
    rows = [row(load_recipe(path)) for path in sorted((root / "config" / "recipes").glob("*.toml"))]
    table = "\n".join([HEADER, *rows])
    page.write_text(re.sub(re.escape(HEADER) + r"(\n\|.*)*", lambda _: table, page.read_text()))


if __name__ == "__main__":
    write(Path(__file__).parents[1])
