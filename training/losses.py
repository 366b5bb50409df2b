"""What the networks are punished for: the paper's hybrid loss, and the focal loss of recipe ``modern``.

References: Dou et al., MICCAI 2017, equations 1, 3, 4; Lin et al., ICCV 2017 (focal loss).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from training.team import ALONE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from training.team import Team

LAMBDA = 0.5
"""Weight of localisation in equation 4."""

BETA = 1e-4
"""Weight of the squared weights in equation 4."""

SGD_WEIGHT_DECAY = 2 * BETA
"""The same in torch's optimisers: the gradient of beta |W|^2 is 2 beta W."""


def hybrid_loss(
    logits: torch.Tensor,
    box: torch.Tensor | None,
    labels: torch.Tensor,
    target_box: torch.Tensor,
    weight: float = LAMBDA,
    *,
    taking_part: torch.Tensor | None = None,
    team: Team = ALONE,
) -> torch.Tensor:
    """Equation 4 without its last term, which the optimiser's weight decay provides.

    Parameters
    ----------
    logits
        ``(n, 2)``: background, nodule.
    box, target_box
        ``(n, 4)``: T_x, T_y, T_z, T_d, predicted and true (equation 2); without a prediction (the plain ResNet)
        equation 1 alone.
    labels
        ``(n,)``: 1 for a nodule.
    weight
        Lambda.
    taking_part
        ``(n,)``: 1 for the samples that are the batch of equation 4, 0 for those filtered out; all when ``None``.
    team
        Of more processes than one each gets its share; the shares add up to the loss of the global batch.

    Notes
    -----
    The localisation term is divided by the number of nodules in the batch, at least 1.
    """
    sample = torch.ones(len(labels), device=labels.device) if taking_part is None else taking_part
    nodule = (labels > 0) * sample
    samples, nodules = team.total(torch.stack([sample.sum(), nodule.sum()]))
    entropy = functional.cross_entropy(logits.float(), labels.long(), reduction="none")
    loss: torch.Tensor = (entropy * sample).sum() / samples
    if box is None:
        return loss
    difference = functional.smooth_l1_loss(box.float(), target_box, reduction="none").sum(1) * nodule
    loss += weight * difference.sum() / nodules.clamp(min=1)
    return loss


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
    team: Team = ALONE,
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
    team
        Of more processes than one each gets its share; the shares add up to the loss of the global batch.

    Returns
    -------
    tuple
        Heat loss and shape loss, both divided by the number of nodule cells (at least 5).
    """
    answer = answer.float()
    logits = answer[:, 0]
    positive, negative = (heat == 1).float(), heat == 0
    count = team.total(positive.sum()).clamp(min=5)
    entropy = functional.binary_cross_entropy_with_logits(logits, positive, reduction="none")
    probability = torch.sigmoid(logits)
    found = (alpha * (1 - probability) ** gamma * entropy * positive).sum()
    false = torch.where(negative, (1 - alpha) * probability**gamma * entropy, 0.0).flatten()
    false = _largest(false, hard_negatives, team).sum()
    away = functional.smooth_l1_loss(answer[:, 1:], shape.float(), reduction="none").sum(1)
    return (found + false) / count, (away * positive).sum() / count


def _largest(values: torch.Tensor, count: int, team: Team) -> torch.Tensor:
    """Of this process's values those that are among the ``count`` largest of all processes."""
    own = values.topk(min(count, values.numel())).values
    if team.size == 1:
        return own
    order = torch.argsort(team.joined(own), descending=True, stable=True)[:count]
    begin = team.rank * len(own)
    return own[: int(((order >= begin) & (order < begin + len(own))).sum())]
