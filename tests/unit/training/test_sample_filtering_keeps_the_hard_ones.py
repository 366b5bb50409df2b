from __future__ import annotations

import numpy as np
import pytest
import torch

from training.filtering import keep


@pytest.mark.parametrize(("batch", "kept"), [(256, 192), (9, 6), (4, 3), (10, 7)])
def test_the_hard_half_and_half_of_the_rest_are_kept(batch: int, kept: int):
    losses = torch.arange(batch, dtype=torch.float32)
    chosen = keep(losses, np.random.default_rng(0))
    assert len(chosen) == kept
    assert set(range(batch - batch // 2, batch)) <= set(chosen.tolist())
    assert len(set(chosen.tolist())) == kept


def test_the_same_seed_keeps_the_same_easy_samples():
    losses = torch.rand(64, generator=torch.Generator().manual_seed(1))
    first, second, other = (keep(losses, np.random.default_rng(s)) for s in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_equal_losses_are_taken_in_the_order_of_the_batch():
    assert keep(torch.ones(8), np.random.default_rng(0))[:4].tolist() == [0, 1, 2, 3]


def test_no_gradient_flows_through_the_choice():
    losses = torch.rand(8, requires_grad=True)
    assert not keep(losses, np.random.default_rng(0)).requires_grad


def test_a_batch_of_three_is_refused():
    with pytest.raises(ValueError, match=r"A batch of 3 is too small to filter; use at least 4\."):
        keep(torch.ones(3), np.random.default_rng(0))
