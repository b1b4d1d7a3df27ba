"""What the differentiable methods have in common, beside what test_methods.py holds every method to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.optim import SGD

from deploy_prune.cost import macs
from deploy_prune.recipe.parts import SearchPart
from deploy_prune.search.frame import SearchGoal
from deploy_prune.search.relaxed import GateSearch, Relaxation, RelaxedOptions, settling


def rates(share: float, steps: int) -> list[float]:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = settling(optimizer, share, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_gates_learning_rate_stays_and_then_falls_to_nothing():
    assert rates(0.4, 10) == pytest.approx([2.0] * 7 + [1.5, 1.0, 0.5])


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_one_step_is_taken_at_full_rate(share):
    assert rates(share, 1) == [2.0]


def test_a_groups_strongest_gate_is_open_and_learns_on(chained, accelerator):
    """Of three groups whose logits all say closed."""
    cost = macs(chained.structure)
    goal = SearchGoal(cost=cost, limit=0.1 * cost(chained.structure.dense_counts))
    job = SimpleNamespace(
        structure=chained.structure, config=SearchPart(method="gate", steps=9), goal=goal,
        session=SimpleNamespace(accelerator=accelerator),
    )  # fmt: skip
    closed = Relaxation(sample=lambda w_N: w_N * 0, expected=lambda w_N: w_N * 0 + 0.25, start=0.0)
    search = GateSearch(chained.network, job, RelaxedOptions(), closed)
    strongest = torch.tensor([2, 8 + 11, 8 + 12 + 0])
    with torch.no_grad():
        search.logit_N.copy_(-torch.arange(36.0) - 1)
        search.logit_N[strongest] = -0.5
    gates_N, expected_N = search._gates()
    is_strongest_N = torch.isin(torch.arange(36), strongest)
    assert gates_N.tolist() == is_strongest_N.float().tolist()
    assert expected_N.tolist() == torch.where(is_strongest_N, 1.0, 0.25).tolist()
    assert gates_N.requires_grad
