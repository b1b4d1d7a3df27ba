"""A block that is computed again gives the same gradients, and leaves the network as one pass does."""

import copy

import pytest
import torch
from search_run import run_search
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from deploy_prune.networks.cifar_resnet import CifarResNet
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.search.gated_network import gated
from deploy_prune.surgery.groups import find_groups
from deploy_prune.training.checkpointing import blocks, checkpointed
from deploy_prune.types import Structure


class Block(nn.Module):
    """A layer norm, statistics over channels of its own code, dropout, and a buffer that its output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.inner, self.drop = nn.LayerNorm(32), nn.Dropout(0.2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        y = self.inner(self.up(self.norm(x)).relu())
        y = self.drop(y - y.mean(-1, keepdim=True))
        self.calls.add_(1)
        return x + self.down(y) * scale / (1 + self.calls)


class Tokens(nn.Module):
    """Patches of 4 x 4 pixels as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.head(x.mean(1))


class Given:
    """What a search is tried on."""

    def __init__(self, network: nn.Module, size: int) -> None:
        self.network, self.size = network, size
        self.structure: Structure = find_groups(
            copy.deepcopy(network).eval(), (torch.randn(1, 3, size, size),), PrunePart()
        )

    def batches(self, seed: int = 0):
        from deploy_prune.data.examples import Batch

        lot = torch.Generator().manual_seed(seed)
        while True:
            yield Batch((torch.randn(8, 3, self.size, self.size, generator=lot),), torch.arange(8) % 4)


@pytest.fixture(params=["resnet20", "tokens"])
def given(request):
    torch.manual_seed(0)
    return Given(CifarResNet(20, 4) if request.param == "resnet20" else Tokens(), 16)


def step(network, forward, x):
    """Gradients of parameters, and the state after a training pass."""
    torch.manual_seed(1)
    network.zero_grad()
    forward(x).square().sum().backward()
    return {n: p.grad for n, p in network.named_parameters()}, {n: t.clone() for n, t in network.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(
        (a is None and other[n] is None) or torch.equal(a, other[n]) for n, a in one.items()
    )


def test_gradients_and_statistics_are_those_of_one_pass(given):
    x, plain, again = torch.randn(8, 3, 16, 16), given.network.train(), copy.deepcopy(given.network).train()
    kinds = [type(m) for m in again.modules()]
    before = step(plain, plain, x)
    with checkpointed(again):
        after = step(again, again, x)
        assert [type(m) for m in again.modules()] != kinds
    assert all(map(same, before, after))
    assert [type(m) for m in again.modules()] == kinds


def test_gates_are_there_again(given):
    """They were put there for the forward pass alone: weights, hooks on inputs, and norms over kept channels."""
    x, found = torch.randn(8, 3, 16, 16), []
    for wanted in (False, True):
        network = copy.deepcopy(given.network).train()
        gates = {g.name: torch.linspace(0, 1, g.channels, requires_grad=True) for g in given.structure.groups}
        with checkpointed(network, wanted):
            parts = step(network, gated(network, given.structure, batch=1).forward(gates), x)
        found.append((*parts, {name: gate.grad for name, gate in gates.items()}))
    assert all(map(same, *found))


@pytest.mark.parametrize("method", ["dap", "gate", "gumbel", "taylor"])
def test_a_search_finds_the_same(given, method, accelerator):
    results = []
    for wanted in (False, True):
        with checkpointed(given.network, wanted):
            results.append(run_search(method, given, accelerator, steps=3))
    one, other = results
    assert same(one.scores, other.scores)
    assert same(one.state, other.state)
    assert one.trace == other.trace


def kept(network, x, wanted):
    """Numbers that are kept for the backward pass."""
    sizes = []
    with checkpointed(network, wanted), saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        network(x).sum().backward()
    return sum(sizes)


def test_less_is_kept_for_the_backward_pass():
    network, x = CifarResNet(20, 4).train(), torch.randn(8, 3, 32, 32)
    assert kept(network, x, wanted=True) < 0.5 * kept(network, x, wanted=False)


def test_blocks_are_the_outermost_entries_of_lists_with_layers_inside():
    lone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    assert blocks(lone) == []
    stages = nn.Sequential(lone, nn.Sequential(Block(), Block()), nn.ModuleList([Tokens()]))
    assert blocks(stages) == [stages[1][0], stages[1][1], stages[2][0]]


def test_a_network_without_blocks_is_trained_as_it_is_and_that_is_said(caplog):
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with checkpointed(network):
        assert type(network[0]) is nn.Linear
    assert "no blocks" in caplog.text


def test_copies_made_meanwhile_compute_with_their_own_weights():
    network = Tokens().train()
    with checkpointed(network):
        other = copy.deepcopy(network)
        other.blocks[0].down.weight.data.zero_()
        x = torch.randn(2, 3, 16, 16)
        assert not torch.equal(step(network, network, x)[0]["patch.weight"], step(other, other, x)[0]["patch.weight"])
    assert type(network.blocks[0]) is Block
