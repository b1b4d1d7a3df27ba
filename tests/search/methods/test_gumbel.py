from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from search_run import run_search
from torch import nn

from deploy_prune.search.gated_network import gated
from deploy_prune.search.methods.gumbel import gumbel_gate
from deploy_prune.search.relaxed import Relaxation
from deploy_prune.search.subnetwork import MaskedNetwork, shares_left

search = partial(run_search, "gumbel", share=0.4, steps=60)

DRAWS = 40_000


@pytest.mark.parametrize("m", [-3.0, -0.5, 0.0, 2.0])
def test_a_gate_is_open_as_often_as_sigmoid_m(m):
    torch.manual_seed(0)
    z = gumbel_gate(torch.full((DRAWS,), m), 1.0).detach()
    p = torch.sigmoid(torch.tensor(m))
    assert set(z.unique().tolist()) == {0.0, 1.0}
    assert abs(float(z.mean() - p)) < 4 * float((p * (1 - p) / DRAWS).sqrt())


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_it_is_torchs_gumbel_softmax_over_m_and_0(tau):
    """The same distribution of derivatives: quantiles of a great many draws."""
    torch.manual_seed(0)
    m = torch.full((DRAWS,), 0.7, requires_grad=True)
    (ours,) = torch.autograd.grad(gumbel_gate(m, tau).sum(), m)
    pair = torch.stack([m, torch.zeros_like(m)], dim=1)
    (theirs,) = torch.autograd.grad(F.gumbel_softmax(pair, tau=tau, hard=True)[:, 0].sum(), m)
    at = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    torch.testing.assert_close(ours.quantile(at), theirs.quantile(at), rtol=0.03, atol=2e-3)


def test_gradients_stay_finite_at_extreme_logits():
    torch.manual_seed(0)
    m = torch.tensor([-60.0, 60.0], requires_grad=True)
    z = gumbel_gate(m.repeat(1000, 1), 1.0)
    z.sum().backward()
    assert bool(m.grad.isfinite().all())
    assert z[:, 1].min() == 1
    assert z[:, 0].max() == 0


@pytest.mark.parametrize("weights", ["frozen", "joint"])
@pytest.mark.parametrize("share", [0.7, 0.3])
def test_the_expected_cost_comes_down_to_the_budget(chained, accelerator, weights, share):
    result = search(chained, accelerator, share=share, steps=100, weights=weights)
    last = [row["cost"] for row in result.trace[-30:]]
    assert share / 3 < sum(last) / len(last) < share + 0.1


def test_a_scale_is_a_factor_of_its_weight_and_its_gradient_follows(chained):
    network, x = chained.network.eval(), next(chained.batches()).inputs[0]
    gates = {g.name: torch.ones(g.channels) for g in chained.structure.groups}
    scales = {n: torch.tensor(2.0, requires_grad=True) for n in ("3.weight", "11.weight")}
    found = gated(network, chained.structure).forward(gates, scales)(x)
    (slope,) = torch.autograd.grad(found.sum(), scales["3.weight"])
    with torch.no_grad():
        for name in scales:
            network.get_parameter(name).mul_(2)
    torch.testing.assert_close(found, network(x))
    h = 1e-3
    shifted = gated(network, chained.structure).forward(gates, {"3.weight": torch.tensor(1 + h / 2)})(x)
    assert float((shifted - found).detach().sum() / h) == pytest.approx(float(slope), rel=0.02)


@pytest.mark.parametrize("rescale", [True, False])
def test_learned_scales_come_back_in_the_weights(chained, accelerator, rescale):
    before = {n: t.clone() for n, t in chained.network.state_dict().items()}
    state = search(chained, accelerator, steps=10, weights="frozen", rescale=rescale, lr_scale=0.05).state
    ratio = state["11.weight"] / before["11.weight"]
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
    assert (abs(float(ratio.mean()) - 1) > 1e-4) == rescale
    assert torch.equal(state["0.weight"], before["0.weight"]), "no gate sits on the first layer's input"


# --- a mask on every weight -------------------------------------------------------------------------------------------


def test_a_weight_level_search_zeroes_weights_and_keeps_the_rest(chained, accelerator):
    before = {n: t.clone() for n, t in chained.network.state_dict().items()}
    result = search(
        chained, accelerator, unit="weight", weights="frozen", start=0.0, steps=30, lr_gates=20.0, lr_scale=0.01
    )
    for name in ("0.weight", "3.weight", "6.weight", "11.weight"):
        on = result.state[name] != 0
        assert 0 < on.float().mean() < 1, name
        ratio = (result.state[name] / before[name])[on]
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
    assert torch.equal(result.state["11.bias"], before["11.bias"])
    assert all(0 < row["kept"] <= 1 for row in result.trace)


def test_a_better_subnetwork_is_found_among_random_weights(chained, accelerator):
    losses = [row["loss"] for row in search(
        chained, accelerator, unit="weight", weights="frozen", start=0.0, steps=120, lr_gates=50.0
    ).trace]  # fmt: skip
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


def test_a_tie_at_the_initial_value_is_kept():
    masked = MaskedNetwork(nn.Linear(3, 2), Relaxation(sample=torch.sigmoid, start=0.0))
    assert masked.kept() == 1
    assert bool((masked.extract()["weight"] != 0).all())


def test_signed_weights_have_one_size():
    network = nn.Linear(5, 4)
    before = network.weight.detach().clone()
    MaskedNetwork(network, Relaxation(sample=torch.sigmoid, start=0.0)).sign_weights()
    torch.testing.assert_close(network.weight.detach(), before.sign() * before.std())


def test_units_whose_weights_are_all_off_score_lowest(chained):
    state = chained.network.state_dict()
    state["3.weight"][:, [1, 5]] = 0
    state["3.weight"][0, 2] = 0
    shares = shares_left(chained.structure, state)["0"]
    assert shares[[1, 5]].tolist() == [0, 0]
    assert 0 < shares[2] < 1
    assert shares[0] == 1
