"""What the differentiable methods have in common, beside what test_methods.py holds every method to."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD

from deploy_prune.search.relaxed import settling


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
