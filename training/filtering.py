"""Online sample filtering: of a batch, the hard half and a random half of the rest take part in the update.

References: Dou et al., MICCAI 2017, section 2.1; counts in decision 0020.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np

SMALLEST_BATCH = 4


def keep(losses: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Choose the samples of a batch that take part in the update.

    Parameters
    ----------
    losses
        Loss of each sample, shape ``(n,)``; the gradient is not followed.
    rng
        Chooses among the easy ones.

    Returns
    -------
    torch.Tensor
        Indices: the ``n // 2`` samples with the largest losses (equal losses by index), then half of the others.

    Raises
    ------
    ValueError
        For a batch of fewer than four, of which nothing sensible would remain.
    """
    count = len(losses)
    if count < SMALLEST_BATCH:
        raise ValueError(f"A batch of {count} is too small to filter; use at least {SMALLEST_BATCH}.")
    order = torch.argsort(losses.detach(), descending=True, stable=True)
    hard = count // 2
    easy = torch.from_numpy(rng.permutation(count - hard)[: (count - hard) // 2])
    return torch.cat([order[:hard], order[hard:][easy.to(order.device)]])
