"""One checkpoint out of several: the mean of weights that were trained apart from a common start.

Runs that begin with the same weights stay in one valley of the loss, and their mean is steadier than each of them
(Wortsman et al., Model soups, ICML 2022). On few cores it lets every core train: decision 0081.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class UnlikeCheckpointsError(Exception):
    """Checkpoints whose weights do not fit each other."""


def mean_weights(states: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Average weights and running statistics; whole numbers (the count of batches) are the first's.

    Raises
    ------
    UnlikeCheckpointsError
        When names or shapes differ.
    """
    first = states[0]
    for other in states[1:]:
        if {k: v.shape for k, v in first.items()} != {k: v.shape for k, v in other.items()}:
            raise UnlikeCheckpointsError("These checkpoints are of different networks; their mean means nothing.")
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0)
        if value.dtype.is_floating_point
        else value.clone()
        for name, value in first.items()
    }


def average_checkpoints(paths: Sequence[Path], out: Path) -> int:
    """Write the mean of several checkpoints' averaged weights as a checkpoint to export or to begin from.

    Recipe and everything else are the first one's; steps are summed. The file is written aside, then renamed.

    Returns
    -------
    int
        Steps of all runs together.

    Raises
    ------
    UnlikeCheckpointsError
        When their networks differ.
    """
    states: list[dict[str, Any]] = [torch.load(path, weights_only=True, map_location="cpu") for path in paths]
    mean = mean_weights([state["average"] for state in states])
    steps = sum(int(state["step"]) for state in states)
    aside = out.with_suffix(".part")
    torch.save({**states[0], "network": mean, "average": mean, "step": steps}, aside)
    aside.replace(out)
    return steps
