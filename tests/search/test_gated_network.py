from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy_prune.recipe.parts import PrunePart
from deploy_prune.search.gated_network import _input_rank, gated
from deploy_prune.surgery.groups import find_groups
from deploy_prune.types import Axis, ChannelGroup, Layer, Structure, Width


def randomise_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)


def random_gates(structure: Structure, *, hard: bool) -> dict[str, Tensor]:
    lot = torch.Generator().manual_seed(1)
    soft = {g.name: torch.rand(g.channels, generator=lot) for g in structure.groups}
    return {name: (gate > 0.4).float() if hard else gate for name, gate in soft.items()}


def by_hand(network: nn.Module, structure: Structure, gates: dict[str, Tensor]) -> nn.Module:
    """A copy whose consumer weights are multiplied one coordinate at a time."""
    other = copy.deepcopy(network)
    for group in structure.groups:
        for axis in group.consumers:
            weight = other.get_parameter(axis.tensor).data.movedim(axis.axis, 0)
            for coordinate, unit in enumerate(axis.unit_of.tolist()):
                if unit >= 0:
                    weight[coordinate] *= gates[group.name][unit]
    return other


def one_group(name: str, channels: int, *consumers: tuple[str, int, list[int]]) -> ChannelGroup:
    axes = tuple(Axis(tensor=t, axis=a, unit_of=torch.tensor(units)) for t, a, units in consumers)
    return ChannelGroup(name=name, channels=channels, period=1, consumers=axes, members=axes)


@pytest.mark.parametrize("batch", [1, 1000])
@pytest.mark.parametrize("hard", [True, False])
def test_equals_the_network_with_multiplied_weights(example, hard, batch):
    network = example.network.eval()
    randomise_norms(network)
    gates = random_gates(example.structure, hard=hard)
    (x,), _ = next(example.batches())
    expected = by_hand(network, example.structure, gates)(x)
    gating = gated(network, example.structure, batch)
    assert bool(gating.inputs) == (batch == 1), "few examples: the head's input is smaller than its weight"
    torch.testing.assert_close(gating.forward(gates)(x), expected, rtol=0 if batch > 1 or hard else 1e-6, atol=1e-7)
    assert not torch.allclose(expected, network(x))


class Head(nn.Module):
    """Two linear layers; the second is called, or only its weight is used."""

    def __init__(self, *, called: bool) -> None:
        super().__init__()
        self.first, self.second, self.called = nn.Linear(6, 8), nn.Linear(8, 4), called

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.second(input=x) if self.called else F.linear(x, self.second.weight, self.second.bias)


@pytest.mark.parametrize("called", [True, False])
def test_a_small_input_is_gated_where_the_layer_is_called(called):
    """Code that takes ``layer.weight`` doesn't call the layer: there, its input can't be reached."""
    network, x = Head(called=called).eval(), torch.randn(2, 6)
    structure = find_groups(network, (x[:1],), PrunePart())
    gates, gating = random_gates(structure, hard=False), gated(network, structure, batch=2)
    assert (bool(gating.inputs), bool(gating.axes)) == (called, not called)
    torch.testing.assert_close(gating.forward(gates)(x), by_hand(network, structure, gates)(x))
    assert not network.second._forward_pre_hooks, "no hook stays behind"


def test_open_gates_change_nothing(example):
    network = example.network.eval()
    (x,), _ = next(example.batches())
    gates = {g.name: torch.ones(g.channels) for g in example.structure.groups}
    assert torch.equal(gated(network, example.structure).forward(gates)(x), network(x))


def test_a_closed_channel_is_not_there_whatever_it_holds(example):
    """What the producers and norms of a closed channel compute cannot be seen at the output."""
    network = example.network.eval()
    randomise_norms(network)
    gates = random_gates(example.structure, hard=True)
    (x,), _ = next(example.batches())
    before = gated(network, example.structure).forward(gates)(x)
    tensors = network.state_dict()
    with torch.no_grad():
        for group in example.structure.groups:
            for axis in group.members:
                closed = axis.unit_of[gates[group.name][axis.unit_of] == 0]
                tensors[axis.tensor].index_fill_(axis.axis, closed, 3.0)
    after = gated(network, example.structure).forward(gates)(x)
    assert torch.equal(before, after)


def test_bool_masks_and_other_precisions(example):
    network = example.network.eval().double()
    gates = random_gates(example.structure, hard=True)
    x = next(example.batches()).inputs[0].double()
    masks = {name: gate.bool() for name, gate in gates.items()}
    result = gated(network, example.structure).forward(masks)(x)
    assert result.dtype == torch.float64
    assert torch.equal(result, gated(network, example.structure).forward(gates)(x))


def test_train_mode_updates_the_networks_own_statistics(example):
    network, other = example.network.train(), copy.deepcopy(example.network).train()
    gates = {g.name: torch.ones(g.channels) for g in example.structure.groups}
    (x,), _ = next(example.batches())
    gated(network, example.structure).forward(gates)(x)
    other(x)
    for name, buffer in other.named_buffers():
        assert torch.equal(network.get_buffer(name), buffer), name


def test_gradients_reach_gates_and_weights(example):
    network = example.network.train()
    gates = {n: g.requires_grad_() for n, g in random_gates(example.structure, hard=False).items()}
    (x,), y = next(example.batches())
    F.cross_entropy(gated(network, example.structure).forward(gates)(x), y).backward()
    for name, gate in gates.items():
        assert gate.grad is not None, name
        assert bool((gate.grad != 0).all()), name
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in network.parameters())


def test_the_gates_gradient_is_the_sum_of_gradient_times_weight(chained):
    network = chained.network.eval()
    gates = {g.name: torch.ones(g.channels, requires_grad=True) for g in chained.structure.groups}
    (x,), y = next(chained.batches())
    F.cross_entropy(gated(network, chained.structure).forward(gates)(x), y).backward()
    weight = network.get_parameter("3.weight")
    assert torch.allclose(gates["0"].grad, (weight.grad * weight).sum((0, 2, 3)), atol=1e-6)


def test_it_follows_the_networks_weights(chained):
    network = chained.network.eval()
    gating = gated(network, chained.structure)
    gates = random_gates(chained.structure, hard=True)
    (x,), _ = next(chained.batches())
    with torch.no_grad():
        network.get_parameter("6.weight").mul_(2)
    assert torch.equal(gating.forward(gates)(x), by_hand(network, chained.structure, gates)(x))


class Concatenated(nn.Module):
    """Two branches and the input side by side, read by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.two(x), x, self.one(x)], 1))


def test_groups_that_share_an_axis():
    torch.manual_seed(0)
    network = Concatenated()
    groups = (
        one_group("one", 4, ("head.weight", 1, [-1] * 8 + [0, 1, 2, 3])),
        one_group("two", 5, ("head.weight", 1, [0, 1, 2, 3, 4] + [-1] * 7)),
    )
    structure = Structure(groups=groups, layers=(), whole=())
    gates = random_gates(structure, hard=False)
    x = torch.randn(6, 3)
    parts = torch.cat([network.two(x) * gates["two"], x, network.one(x) * gates["one"]], 1)
    gating = gated(network, structure)
    assert len(gating.axes) == 1
    assert torch.allclose(gating.forward(gates)(x), network.head(parts), atol=1e-6)


class Tied(nn.Module):
    """One weight, under two names, read along both of its axes."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out, self.again = nn.Linear(3, 4), nn.Linear(4, 5, bias=False), nn.Linear(4, 5, bias=False)
        self.again.weight = self.out.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(self.into(x))
        return self.again(y @ self.out.weight)


def test_tied_weights_and_a_tensor_gated_along_both_axes():
    torch.manual_seed(0)
    network = Tied()
    groups = (
        one_group("rows", 5, ("out.weight", 0, [0, 1, 2, 3, 4])),
        one_group("columns", 4, ("out.weight", 1, [3, 2, 1, 0])),
    )
    structure = Structure(groups=groups, layers=(), whole=())
    gates = random_gates(structure, hard=False)
    x = torch.randn(6, 3)
    result = gated(network, structure).forward(gates)(x)
    assert torch.allclose(result, by_hand(network, structure, gates)(x), atol=1e-6)
    network.again.weight = nn.Parameter(network.again.weight.detach().clone())  # no longer tied
    assert not torch.allclose(result, gated(network, structure).forward(gates)(x), atol=1e-3)


def test_a_network_without_groups_is_itself():
    network = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    assert torch.equal(gated(network, Structure(groups=(), layers=(), whole=())).forward({})(x), network(x))


@pytest.mark.parametrize(
    ("module", "after"),
    [
        (nn.Linear(64, 64), 0),
        (nn.Conv1d(64, 64, 3), 1),
        (nn.Conv2d(64, 64, 3), 2),
        (nn.Conv3d(64, 64, 3), 3),
        (nn.Conv2d(64, 64, 3, groups=2), -1),  # each half of its input would need gates of its own
        (nn.ConvTranspose2d(64, 64, 3), -1),  # its weight has another order
        (nn.Bilinear(8, 64, 64), -1),
    ],
    ids=["linear", "1d", "2d", "3d", "grouped", "transposed", "bilinear"],
)
def test_a_plain_layers_input_is_gated_where_it_is_smaller_than_the_weight(module, after):
    network = nn.ModuleDict({"x": module})
    use = Layer(
        name="x", kind="conv", tensor="x.weight", taps=1, positions=1, input_positions=1,
        inputs=Width(fixed=64, per_unit={}), outputs=Width(fixed=64, per_unit={}), vectors=0,
    )  # fmt: skip
    assert _input_rank(network, [use], "x.weight", 1) == after
    assert _input_rank(network, [use], "x.weight", 10**6) == -1, "the weight is smaller"
    assert _input_rank(network, [], "x.weight", 1) == -1, "nothing is known of its input"
    assert _input_rank(network, [use, replace(use, name="y")], "x.weight", 1) == -1, "another module reads it, too"
    assert _input_rank(network, [replace(use, tensor="x.bias")], "x.bias", 1) == -1, "no weight"
