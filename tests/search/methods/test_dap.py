from __future__ import annotations

from functools import partial

import pytest
import torch
from search_run import run_search

from deploy_prune.search.methods.dap import two_temperatures
from deploy_prune.search.relaxed import redraw

search = partial(run_search, "dap", share=0.4, steps=60)

HARD, SOFT = 0.05, 1.0


def gradient_of(loss, theta, hard, soft):
    theta = theta.clone().requires_grad_()
    gates = two_temperatures(theta, hard, soft)
    return gates.detach(), *torch.autograd.grad(loss(gates), theta)


def penalised(gates):
    """A loss that mixes the gates, and a price."""
    mix = torch.sin(torch.outer(torch.arange(5.0), torch.arange(7.0))).to(gates.dtype)
    return (mix @ gates).square().sum() + 0.3 * gates.sum()


def test_gates_are_nearly_binary_and_their_derivative_is_soft():
    theta = torch.tensor([-1.0, -0.5, 0.5, 1.0], dtype=torch.float64)
    gates, slope = gradient_of(torch.sum, theta, HARD, SOFT)
    assert gates.tolist() == pytest.approx([0, 0, 1, 1], abs=1e-4)
    assert slope.tolist() == pytest.approx((torch.sigmoid(theta) * torch.sigmoid(-theta)).tolist())


def test_with_equal_temperatures_the_gradient_is_exact():
    theta = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: penalised(two_temperatures(t, 0.7, 0.7)), theta)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda t: penalised(two_temperatures(t, 0.1, 0.7)), theta)


@pytest.mark.parametrize("seed", range(10))
def test_the_update_is_a_descent_direction_at_the_forward_gates(seed):
    """<grad J, g s'_s> = sum g_i^2 s'_h,i s'_s,i >= 0, and J falls along a small step."""
    theta = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * HARD
    _, exact = gradient_of(penalised, theta, HARD, HARD)
    gates, update = gradient_of(penalised, theta, HARD, SOFT)
    slope_h = gates * (1 - gates) / HARD
    soft = torch.sigmoid(theta / SOFT)
    g = update / (soft * (1 - soft) / SOFT)
    inner = float((exact * update).sum())
    assert inner == pytest.approx(float((g.square() * slope_h * soft * (1 - soft) / SOFT).sum()))
    assert inner > 0
    before, after = (float(penalised(torch.sigmoid(t / HARD))) for t in (theta, theta - 1e-6 * update))
    assert after < before


@pytest.mark.parametrize("weights", ["resample", "frozen", "joint"])
def test_the_expected_cost_comes_down_whatever_the_weights_do(chained, accelerator, weights):
    result = search(chained, accelerator, weights=weights)
    last = [row["cost"] for row in result.trace[-15:]]
    assert 0.4 / 3 < sum(last) / len(last) < 0.4 + 0.1


def test_the_smaller_the_budget_the_fewer_stay(chained, accelerator):
    """As the complexity weighs more, fewer gates are open: on average over the search, for the end of one swings."""
    traces = [search(chained, accelerator, share=share).trace for share in (0.9, 0.5, 0.1)]
    kept = [sum(row["kept"] for row in trace) for trace in traces]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1]


@pytest.mark.parametrize("weights", ["resample", "frozen"])
def test_the_structure_is_found_without_training_weights(chained, accelerator, weights):
    before = {name: tensor.clone() for name, tensor in chained.network.state_dict().items()}
    state = search(chained, accelerator, steps=5, weights=weights).state
    trained = {name for name, _ in chained.network.named_parameters()}
    assert all(torch.equal(state[name], before[name]) for name in trained)


def test_weights_are_drawn_by_each_layers_own_initialiser(chained):
    torch.manual_seed(1)
    chained.network[4].weight.data.fill_(7.0)
    before = chained.network[3].weight.detach().clone()
    redraw(chained.network)
    after = chained.network[3].weight
    bound = 1 / (before.shape[1] * 9) ** 0.5
    assert not torch.equal(after, before)
    assert float(after.detach().abs().max()) <= bound
    assert bool((chained.network[4].weight == 1).all()), "a batch norm begins with ones"
