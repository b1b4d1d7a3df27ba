"""The prices of `obs` against removal and least squares, done by hand."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from search_run import run_search
from torch import Tensor, nn

from deploy_prune.data.examples import Batch
from deploy_prune.errors import RecipeError
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.search.methods.obs import ObsOptions
from deploy_prune.surgery.groups import find_groups

page = sys.modules[ObsOptions.__module__]
TINY_RIDGE = 1e-6


@dataclass(frozen=True)
class Given:
    """A network, its groups, and one batch over and over."""

    network: nn.Module
    shape: tuple[int, ...]
    examples: int = 40

    @property
    def structure(self):
        return find_groups(self.network, (self.inputs()[:1],), PrunePart())

    def inputs(self) -> Tensor:
        return torch.randn(self.examples, *self.shape, generator=torch.Generator().manual_seed(1))

    def batches(self, seed: int):
        while True:
            yield Batch((self.inputs(),), torch.zeros(self.examples, dtype=torch.int64))


def loss(forward, batch) -> Tensor:
    return forward(*batch.inputs).square().mean()


def prices(network, shape, accelerator, **options):
    """The first group's."""
    given = Given(network.eval(), shape)
    options = {"num_batches": 1, "ridge": TINY_RIDGE, **options}
    return next(iter(run_search("obs", given, accelerator, loss=loss, **options).scores.values()))


def fitted(rows_MK: Tensor, wanted_MO: Tensor, weight_KO: Tensor, gone: Tensor, ridge: float, shifted: bool) -> float:
    """Squared error, a mean over rows, when these rows of the weight go and the others are fitted."""
    rows_MK, wanted_MO, weight_KO = rows_MK.double(), wanted_MO.double(), weight_KO.double()
    if shifted:
        rows_MK, wanted_MO = rows_MK - rows_MK.mean(0), wanted_MO - wanted_MO.mean(0)
    r = ridge * rows_MK.square().mean() * len(rows_MK)
    system = torch.cat([rows_MK, r.sqrt() * torch.eye(len(gone), dtype=torch.float64)])[:, ~gone]
    right = torch.cat([wanted_MO, r.sqrt() * weight_KO])
    solved = torch.linalg.lstsq(system, right).solution
    return float((right - system @ solved).square().sum() / len(rows_MK))


def strength(wanted_MO: Tensor, shifted: bool) -> float:
    """Root mean square of an output."""
    wanted_MO = wanted_MO.double() - wanted_MO.double().mean(0) * shifted
    return float(wanted_MO.square().sum(1).mean().sqrt())


def linear(bias: bool) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6, bias=bias))
    mixing = torch.eye(8) + 0.5 * torch.rand(8, 8)
    network[0].weight.data = mixing @ network[0].weight.data
    return network


def by_hand(rows_MK, wanted_MO, weight_KO, units, ridge, shifted):
    """Units go one after another, each the cheapest: the price of each, and what it cost in all."""
    gone, units_gone, priced, spent = torch.zeros(len(weight_KO), dtype=torch.bool), [], {}, 0.0
    while len(units_gone) < int(units.max()) + 1:
        left = [u for u in range(int(units.max()) + 1) if u not in units_gone]
        costs = {u: fitted(rows_MK, wanted_MO, weight_KO, gone | (units == u), ridge, shifted) for u in left}
        cheapest = min(costs, key=costs.get)
        priced[cheapest] = max(costs[cheapest] - spent, *priced.values(), 0.0)
        gone, spent = gone | (units == cheapest), costs[cheapest]
        units_gone.append(cheapest)
    return torch.tensor([priced[u] for u in sorted(priced)], dtype=torch.float64) / strength(wanted_MO, shifted)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ridge", [TINY_RIDGE, 0.1])
def test_a_linear_layers_prices_are_those_of_removal_and_least_squares(accelerator, bias, ridge):
    network = linear(bias)
    rows = network[:2](Given(network, (5,)).inputs()).detach()
    weight = network[2].weight.detach().T
    expected = by_hand(rows, rows @ weight, weight, torch.arange(8), ridge, shifted=bias)
    found = prices(network, (5,), accelerator, ridge=ridge)
    assert torch.allclose(found, expected, rtol=2e-3, atol=1e-6)
    assert expected.max() > 10 * expected.min()


def convolution(channels: int, outputs: int, bias: bool, groups: int):
    """The network, and of its second convolution: rows, outputs, and the weight of each group as [K, O]."""
    torch.manual_seed(0)
    read = nn.Conv2d(channels, outputs, 3, stride=2, padding=1, bias=bias, groups=groups)
    network = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), read, nn.Flatten(), nn.LazyLinear(2))
    given = Given(network, (3, 6, 6)).inputs()
    network(given)
    maps = network[:2](given).detach()
    wanted = F.conv2d(maps, read.weight.detach(), stride=2, padding=1, groups=groups)
    rows = F.unfold(maps, 3, padding=1, stride=2)
    weights = [part.flatten(1).T for part in read.weight.detach().chunk(groups)]
    return network, *(x.flatten(2).movedim(1, 2).flatten(0, 1) for x in (rows, wanted)), weights


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolutions_prices_are_those_of_removal_and_least_squares(accelerator, bias):
    network, rows, wanted, (weight,) = convolution(4, 6, bias, 1)
    expected = by_hand(rows, wanted, weight, torch.arange(4).repeat_interleave(9), 0.01, shifted=bias)
    assert torch.allclose(prices(network, (3, 6, 6), accelerator, ridge=0.01), expected, rtol=2e-3)


def test_a_unit_of_a_grouped_convolution_goes_from_each_of_its_groups(accelerator):
    network, rows, wanted, weights = convolution(8, 16, False, 2)
    units, costs = torch.arange(4).repeat_interleave(9), torch.zeros(4)
    for some, given, weight in zip(rows.chunk(2, 1), wanted.chunk(2, 1), weights, strict=True):
        costs += torch.tensor([fitted(some, given, weight, units == u, 0.01, False) for u in range(4)])
    costs /= strength(wanted, shifted=False)
    found = prices(network, (3, 6, 6), accelerator, ridge=0.01)
    assert len(found) == 4
    assert int(found.argmin()) == int(costs.argmin())
    assert float(found.min()) == pytest.approx(float(costs.min()), rel=2e-3)


def test_a_batch_norm_behind_a_layer_takes_a_constant_up(accelerator):
    """A channel that is always 1 costs nothing where a norm follows, and something where there is no shift."""
    torch.manual_seed(0)
    last = nn.Conv2d(4, 4, 3, bias=False)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), last, nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    network[0].weight.data[1], network[0].bias.data[1] = 0, 1
    found = prices(network, (3, 6, 6), accelerator)
    assert abs(float(found[1])) < 1e-5 < 1e-3 < float(found[[0, 2, 3]].min())
    network[2] = nn.Identity()
    assert prices(network, (3, 6, 6), accelerator)[1] > 1e-3


def test_of_two_channels_that_are_alike_one_costs_nothing_and_then_the_other_does(accelerator):
    network = linear(bias=True)
    for tensor in (network[0].weight.data, network[0].bias.data):
        tensor[3] = tensor[6]
    found = prices(network, (5,), accelerator)
    cheap, dear = found[[3, 6]].sort().values.tolist()
    assert abs(cheap) < 1e-5 < 1e-3 < dear
    assert (found < 1e-5).sum() == 1


def test_a_unit_that_nothing_depends_on_costs_nothing(accelerator):
    """One that is read by weights of 0, at any ridge, and one that is never on: that may be so of other examples."""
    network = linear(bias=False)
    network[0].weight.data[2], network[0].bias.data[2] = 0, -1
    network[2].weight.data[:, 5] = 0
    found = prices(network, (5,), accelerator)
    assert found.argsort()[:2].tolist() == [5, 2]
    assert found[5] == 0 < found[2] < 1e-5
    assert found.sort().values[2] > 1e-4
    assert prices(network, (5,), accelerator, ridge=0.3)[5] == 0


def test_a_wide_layer_is_fitted_in_blocks_which_overestimates(accelerator, monkeypatch):
    network = linear(bias=True)
    whole = prices(network, (5,), accelerator)
    monkeypatch.setattr(page, "WIDEST", 3)
    blocks = prices(network, (5,), accelerator)
    assert float(blocks.min()) > float(whole.min()) + 1e-6
    monkeypatch.setattr(page, "WIDEST", 8)
    assert torch.equal(prices(network, (5,), accelerator), whole)


def test_many_units_go_in_few_rounds(accelerator, monkeypatch):
    network = linear(bias=True)
    monkeypatch.setattr(page, "ROUNDS", 1)
    rows = network[:2](Given(network, (5,)).inputs()).detach()
    weight = network[2].weight.detach().T
    expected = [fitted(rows, rows @ weight, weight, torch.arange(8) == u, 0.1, True) for u in range(8)]
    found = prices(network, (5,), accelerator, ridge=0.1)
    expected = torch.tensor(expected, dtype=torch.float64) / strength(rows @ weight, shifted=True)
    assert torch.allclose(found, expected, rtol=2e-3)


def test_a_unit_that_several_layers_read_costs_what_they_cost_together(accelerator, monkeypatch, make_residual):
    monkeypatch.setattr(page, "ROUNDS", 1)
    whole = make_residual()
    stem, *others = whole.structure.groups

    def priced(consumers) -> Tensor:
        groups = (replace(stem, consumers=consumers), *others)
        some = replace(whole, structure=replace(whole.structure, groups=groups))
        return run_search("obs", some, accelerator, num_batches=2).scores[stem.name]

    each = [priced((consumer,)) for consumer in stem.consumers]
    assert len(each) == 2
    assert torch.allclose(priced(stem.consumers), sum(each))
    assert all(bool((one > 0).any()) for one in each)


def test_some_places_stand_for_all(accelerator, monkeypatch, chained):
    some = run_search("obs", chained, accelerator, num_batches=20).scores["0"]
    other = run_search("obs", chained, accelerator, num_batches=20, seed=1).scores["0"]
    monkeypatch.setattr(page, "PLACES", 64)
    every = run_search("obs", chained, accelerator, num_batches=20).scores["0"]
    assert not torch.equal(some, every)
    assert not torch.equal(some, other)
    assert torch.allclose(some, every, rtol=0.2)


def transposed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), nn.Conv2d(6, 4, 1),
    ).eval()  # fmt: skip


def test_a_group_that_nothing_plain_reads_is_an_error_or_goes_by_magnitude(accelerator):
    given = Given(transposed(), (3, 8, 8))
    with pytest.raises(RecipeError, match=r"obs can't score 0: .*prune\.skip\), or set .*without_rows: magnitude\."):
        run_search("obs", given, accelerator, loss=loss, num_batches=1)
    found = run_search("obs", given, accelerator, loss=loss, num_batches=1, without_rows="magnitude").scores
    plain = run_search("magnitude", given, accelerator, loss=loss).scores
    assert torch.equal(found["0"].argsort(), plain["0"].argsort())
    assert float(found["0"].mean()) == pytest.approx(float(found["2"].mean()), rel=1e-3)


def test_a_network_that_nothing_plain_reads_is_an_error(accelerator):
    given = Given(transposed()[:3], (3, 8, 8))
    with pytest.raises(RecipeError, match=r"can't score 0: .*skip them \(prune\.skip\)\.$"):
        run_search("obs", given, accelerator, loss=loss, num_batches=1, without_rows="magnitude")
