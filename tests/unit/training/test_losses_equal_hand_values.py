from __future__ import annotations

import math

import torch

from training.losses import BETA, SGD_WEIGHT_DECAY, dense_loss, hybrid_loss, squared_weights

EVEN = torch.zeros(2, 2)
TARGET = torch.tensor([[0.1, 0.0, 0.0, -2.0], [0.0, 0.0, 0.0, 0.0]])


def test_a_batch_of_one_nodule_and_one_mimic_gives_equation_4():
    box = torch.tensor([[0.6, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]])
    loss = hybrid_loss(EVEN, box, torch.tensor([1, 0]), TARGET)
    expected = math.log(2) + 0.5 * (0.5 * 0.5**2 + (2.0 - 0.5))
    assert math.isclose(float(loss), expected, rel_tol=1e-6)


def test_a_batch_without_nodules_has_no_localisation_loss():
    box = torch.full((2, 4), 7.0, requires_grad=True)
    loss = hybrid_loss(EVEN, box, torch.tensor([0, 0]), TARGET)
    loss.backward()
    assert math.isclose(float(loss.detach()), math.log(2), rel_tol=1e-6)
    assert box.grad is not None
    assert float(box.grad.abs().sum()) == 0.0


def test_the_localisation_loss_is_divided_by_the_nodules_not_by_the_batch():
    box = torch.zeros(4, 4)
    target = torch.full((4, 4), 0.5)
    one = hybrid_loss(torch.zeros(4, 2), box, torch.tensor([1, 0, 0, 0]), target)
    two = hybrid_loss(torch.zeros(4, 2), box, torch.tensor([1, 1, 0, 0]), target)
    assert math.isclose(float(one), float(two), rel_tol=1e-6)


def test_weight_decay_of_the_optimiser_is_the_last_term_of_equation_4():
    def stepped(*, by_optimiser: bool) -> torch.Tensor:
        torch.manual_seed(0)
        layer = torch.nn.Linear(5, 3)
        others = [{"params": [layer.bias], "weight_decay": 0.0}]
        decay = SGD_WEIGHT_DECAY if by_optimiser else 0.0
        groups = [{"params": [layer.weight], "weight_decay": decay}, *others]
        optimiser = torch.optim.SGD(groups, 0.1, momentum=0.9, nesterov=True)
        for _ in range(3):
            loss = layer(torch.ones(2, 5)).pow(2).mean()
            if not by_optimiser:
                loss = loss + BETA * squared_weights(layer.parameters())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return layer.weight.detach()

    torch.testing.assert_close(stepped(by_optimiser=True), stepped(by_optimiser=False), rtol=0, atol=1e-7)


def test_ignored_cells_cost_nothing_and_the_best_answer_nearly_nothing():
    heat = torch.zeros(1, 2, 4, 4, dtype=torch.int8)
    heat[0, 0, 1, 1] = 1
    heat[0, 1] = -1
    shape = torch.zeros(1, 4, 2, 4, 4)
    shape[0, :, 0, 1, 1] = torch.tensor([0.2, -0.1, 0.3, 1.8])
    answer = torch.full((1, 5, 2, 4, 4), -12.0)
    answer[0, 0, 1] = 12.0
    answer[0, 0, 0, 1, 1] = 12.0
    answer[0, 1:, 0, 1, 1] = shape[0, :, 0, 1, 1]
    found, size = dense_loss(answer, heat, shape)
    assert float(found) < 1e-6
    assert float(size) == 0.0


def test_a_missed_nodule_costs_more_than_a_found_one():
    heat = torch.zeros(1, 1, 3, 3, dtype=torch.int8)
    heat[0, 0, 1, 1] = 1
    shape = torch.zeros(1, 4, 1, 3, 3)
    answer = torch.zeros(1, 5, 1, 3, 3)
    answer[0, 0] = -3.0
    missed, _ = dense_loss(answer, heat, shape)
    answer[0, 0, 0, 1, 1] = 3.0
    found, _ = dense_loss(answer, heat, shape)
    assert float(missed) > 20 * float(found)
