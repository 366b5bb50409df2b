"""What the networks are punished for: the paper's hybrid loss, and the focal loss of recipe ``modern``.

References: Dou et al., MICCAI 2017, equations 1, 3, 4; Lin et al., ICCV 2017 (focal loss).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterable

LAMBDA = 0.5
"""Weight of localisation in equation 4."""

BETA = 1e-4
"""Weight of the squared weights in equation 4."""

SGD_WEIGHT_DECAY = 2 * BETA
"""The same in torch's optimisers: the gradient of beta |W|^2 is 2 beta W."""


def hybrid_loss(
    logits: torch.Tensor, box: torch.Tensor, labels: torch.Tensor, target_box: torch.Tensor, weight: float = LAMBDA
) -> torch.Tensor:
    """Equation 4 without its last term, which the optimiser's weight decay provides.

    Parameters
    ----------
    logits
        ``(n, 2)``: background, nodule.
    box, target_box
        ``(n, 4)``: T_x, T_y, T_z, T_d, predicted and true (equation 2).
    labels
        ``(n,)``: 1 for a nodule.
    weight
        Lambda.

    Notes
    -----
    The localisation term is divided by the number of nodules in the batch, at least 1.
    """
    classification = functional.cross_entropy(logits.float(), labels.long())
    nodules = labels > 0
    difference = functional.smooth_l1_loss(box.float()[nodules], target_box[nodules], reduction="sum")
    return classification + weight * difference / max(1, int(nodules.sum()))


def squared_weights(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """Sum of the squares of all weights with more than one axis; biases and batch norms are left out."""
    return torch.stack([(p * p).sum() for p in parameters if p.ndim > 1]).sum()


def dense_loss(
    answer: torch.Tensor,
    heat: torch.Tensor,
    shape: torch.Tensor,
    *,
    alpha: float = 0.75,
    gamma: float = 2.0,
    hard_negatives: int = 4000,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of stage 1 of recipe ``modern``: focal for the heat map, smooth L1 for centre and size.

    Parameters
    ----------
    answer
        ``(n, 5, z, y, x)``: heat logit; dz, dy, dx, ln d.
    heat
        ``(n, z, y, x)``: 1 nodule, 0 background, -1 no loss.
    shape
        ``(n, 4, z, y, x)``, used where ``heat`` is 1.
    alpha, gamma
        Of the focal loss.
    hard_negatives
        Only so many background cells, the worst of the batch, take part.

    Returns
    -------
    tuple
        Heat loss and shape loss, both divided by the number of nodule cells (at least 5).
    """
    answer = answer.float()
    logits = answer[:, 0]
    positive, negative = heat == 1, heat == 0
    count = positive.sum().clamp(min=5).float()
    entropy = functional.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
    probability = torch.sigmoid(logits)
    found = (alpha * (1 - probability) ** gamma * entropy)[positive].sum()
    false = ((1 - alpha) * probability**gamma * entropy)[negative]
    false = false.topk(min(hard_negatives, false.numel())).values.sum()
    predicted = answer[:, 1:].movedim(1, -1)[positive]
    true = shape.movedim(1, -1)[positive].float()
    return (found + false) / count, functional.smooth_l1_loss(predicted, true, reduction="sum") / count
