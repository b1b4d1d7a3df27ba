"""Branches: what a network adds to a value is found, gated, left out with proof, and priced."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deploy_prune import cost
from deploy_prune.errors import SurgeryError
from deploy_prune.networks import build
from deploy_prune.recipe.parts import ModelPart, PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery import cut as surgery_cut
from deploy_prune.surgery import leave_out, try_branches
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.graph_network import GraphNetwork
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.try_branches import prunable
from deploy_prune.surgery.verify import prove
from deploy_prune.types import Keep, Structure

DEEP = PrunePart(depth=True)


class Block(nn.Module):
    """A residual block; ``shortcut`` where it halves the picture."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, out // channels, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        inner += self.shortcut(x)
        return inner.relu()


class Residual(nn.Module):
    """Three blocks."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 16), Block(16, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Added(nn.Module):
    """x + something, in a way of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.inner = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.added(self.stem(x)).relu())

    def added(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Scaled(Added):
    """A scale of its own for every channel, and a number."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(8, 1, 1) + 0.5)

    def added(self, x: Tensor) -> Tensor:
        return torch.add(x, 0.3 * (self.gamma * self.inner(x)), alpha=0.7)


class Weighed(Added):
    """One number for all channels, which is learned (SkipInit, arXiv 2002.10444)."""

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def added(self, x: Tensor) -> Tensor:
        return x + self.alpha * self.inner(x)


class Excited(Added):
    """Squeeze and excitation at the end, as SENet has it."""

    def __init__(self):
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Sigmoid())

    def added(self, x: Tensor) -> Tensor:
        inner = self.inner(x)
        return x + inner * self.squeeze(inner.mean((2, 3), keepdim=True))


class Resized(Added):
    """What is added comes from a smaller picture."""

    def added(self, x: Tensor) -> Tensor:
        small = self.inner(nn.functional.avg_pool2d(x, 2))
        return x + nn.functional.interpolate(small, scale_factor=2, mode="nearest").relu()


class Twofold(Added):
    """Two ways that end in one sum: both have to be shut."""

    def __init__(self):
        super().__init__()
        self.other = nn.Conv2d(8, 8, 1)

    def added(self, x: Tensor) -> Tensor:
        return x + (self.inner(x) + self.other(x))


class Nested(Added):
    """A branch on a branch."""

    def __init__(self):
        super().__init__()
        self.within, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def added(self, x: Tensor) -> Tensor:
        inner = self.inner(x)
        return x + self.last(inner + self.within(inner).relu())


class Attending(nn.Module):
    """Two Transformer layers, norm first."""

    def __init__(self):
        super().__init__()
        layers = [nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True, norm_first=True) for _ in range(2)]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x.flatten(2).mT @ torch.ones(3, 16, device=x.device) + x.flatten(2).mT[..., :1]))


NETWORKS = [Residual, Added, Scaled, Weighed, Excited, Resized, Twofold, Nested]


def deep(network: nn.Module, x: Tensor, part: PrunePart = DEEP) -> Structure:
    network.eval()
    return prunable(network, find_groups(network, [x[:1]], part), [x], gates_of, part)


def draw(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network, x = kind(), torch.randn(4, 3, 18, 18)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5), nn.init.normal_(module.bias)
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 1.5)
    return network.eval(), x


def masks(structure: Structure, gone: set[str], seed: int) -> Keep:
    lot = torch.Generator().manual_seed(seed)
    keep: Keep = {}
    for group in structure.groups:
        keep[group.name] = torch.rand(group.channels, generator=lot) < 0.6
        keep[group.name][0] = group.name not in gone
    return keep


def names(structure: Structure) -> list[str]:
    return [branch.name for branch in structure.branches]


def test_the_blocks_of_a_residual_network_are_branches():
    network, x = draw(Residual)
    structure = deep(network, x)
    assert names(structure) == ["blocks.0:branch", "blocks.1:branch", "blocks.2:branch"]
    (first, second, _) = structure.branches
    assert {axis.tensor for axis in first.consumers} == {"blocks.0.bn2.weight", "blocks.0.bn2.bias"}
    assert "blocks.0.conv1.weight" in first.vanishes
    assert "blocks.1.shortcut.weight" not in second.vanishes, "the cheaper side stays"
    on = {layer.name: layer.branches for layer in structure.layers}
    assert on["blocks.0.conv2"] == ("blocks.0:branch",)
    assert on["stem.0"] == on["blocks.1.shortcut"] == on["head"] == ()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("seed", range(4))
def test_what_is_left_out_is_what_was_masked(kind, seed):
    network, x = draw(kind)
    structure = deep(network, x)
    assert names(structure), structure.whole
    lot = torch.Generator().manual_seed(seed)
    gone = {name for name in names(structure) if seed == 0 or torch.rand(1, generator=lot) < 0.5}
    keep = masks(structure, gone, seed)
    assert prove(network, structure, keep, [x], gates_of(structure)).difference < 1e-5
    slim, counts = cut(network, structure, keep), {name: int(mask.sum()) for name, mask in keep.items()}
    assert sum(p.numel() for p in slim.parameters()) == cost.params(structure, network)(counts)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        slim(x[:1])
    assert counted.get_total_flops() / 2 == cost.macs(structure)(counts)
    for branch in structure.branches:
        if branch.name in gone:
            assert not set(branch.vanishes) & set(slim.state_dict())


def test_attention_and_its_layer_are_two_branches():
    network, x = draw(Attending)
    structure = deep(network, x)
    assert [name.rpartition(".")[2] for name in names(structure)].count("self_attn:branch") == 2
    assert len(names(structure)) == 4
    gone = {name for name in names(structure) if "0" in name}
    assert prove(network, structure, masks(structure, gone, 1), [x], gates_of(structure)).difference < 1e-5


def test_a_nested_branch_may_go_alone_or_with_the_one_it_lies_on():
    network, x = draw(Nested)
    structure = deep(network, x)
    outer, inner = sorted(structure.branches, key=lambda branch: -len(branch.vanishes))
    assert set(inner.vanishes) < set(outer.vanishes)
    for gone in ({inner.name}, {outer.name}, {inner.name, outer.name}):
        assert prove(network, structure, masks(structure, gone, 0), [x], gates_of(structure)).difference < 1e-5


def test_without_its_branches_nothing_is_left_of_them():
    network, x = draw(Residual)
    structure = deep(network, x)
    slim = cut(network, structure, {name: torch.tensor([False]) for name in names(structure)})
    assert isinstance(slim, GraphNetwork)
    assert [name for name, _ in slim.named_children()] == ["stem", "blocks", "head"]
    assert set(slim.state_dict()) == {
        name for name in network.state_dict() if not name.startswith("blocks") or "shortcut" in name
    }
    operators = [str(node.target) for node in slim.graph.nodes if node.op == "call_function"]
    assert sum("relu" in name for name in operators) == 2, "not once for each block that is gone"
    assert not any("add" in name for name in operators)
    slim.train()
    nn.functional.cross_entropy(slim(x), torch.arange(4)).backward()
    assert all(p.grad is not None for p in slim.parameters())


def test_as_long_as_all_branches_stay_the_networks_own_modules_are_cut():
    network, x = draw(Residual)
    structure = deep(network, x)
    slim = cut(network, structure, masks(structure, set(), 0))
    assert isinstance(slim, Residual)


def test_a_branch_is_no_group_unless_the_recipe_says_so():
    network, x = draw(Residual)
    assert not deep(network, x, PrunePart()).branches
    assert names(deep(network, x, PrunePart(depth=True, skip=["blocks.1*"]))) == ["blocks.0:branch", "blocks.2:branch"]
    assert names(deep(network, x, PrunePart(depth=True, only=["blocks.2*"]))) == ["blocks.2:branch"]
    assert names(deep(network, x, PrunePart(depth=True, skip=["*:branch"]))) == []


class Positions(nn.Module):
    """Position embeddings: without what they are added to, nothing of the input is left."""

    def __init__(self):
        super().__init__()
        self.patch, self.table, self.head = (
            nn.Conv2d(3, 8, 6, 6),
            nn.Parameter(torch.randn(1, 8, 3, 3)),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.patch(x) + self.table).relu().mean((2, 3)))


class ReadTwice(Added):
    """What is added is read elsewhere, too."""

    def added(self, x: Tensor) -> Tensor:
        inner = self.inner(x)
        return (x + inner) * inner.mean()


class Broadcast(Added):
    """One number a channel is added."""

    def added(self, x: Tensor) -> Tensor:
        return x + self.inner(x).mean((2, 3), keepdim=True)


class NotZero(Added):
    """A sigmoid of 0 isn't 0."""

    def added(self, x: Tensor) -> Tensor:
        return x + self.inner(x).sigmoid()


class Shared(Added):
    """The last weight on it is at work elsewhere, too."""

    def added(self, x: Tensor) -> Tensor:
        return self.inner(x + self.inner(x))


@pytest.mark.parametrize("kind", [Positions, ReadTwice, Broadcast, NotZero, Shared])
def test_what_is_no_branch(kind):
    network, x = draw(kind)
    assert names(deep(network, x)) == []


class InPlace(Added):
    """The branch changes what stays, in place."""

    def added(self, x: Tensor) -> Tensor:
        return x + self.inner(x.relu_())


def test_what_a_branch_does_in_place_stays_done():
    network, x = draw(InPlace)
    structure = deep(network, x)
    (name,) = names(structure)
    assert prove(network, structure, masks(structure, {name}, 0), [x], gates_of(structure)).difference < 1e-5


def test_a_branch_whose_removal_is_wrong_is_left_whole_with_the_reason(monkeypatch):
    right = leave_out.leave_out

    def wrong(graph, branches):
        right(graph, [replace(b, stays=1 - b.stays) if b.name == "blocks.0:branch" else b for b in branches])

    monkeypatch.setattr(surgery_cut, "leave_out", wrong)
    network, x = draw(Residual)
    structure = deep(network, x)
    assert names(structure) == ["blocks.1:branch", "blocks.2:branch"]
    (whole,) = [w for w in structure.whole if "branch" in w.name]
    assert whole.name == "blocks.0:branch"
    assert not any("blocks.0:branch" in layer.branches for layer in structure.layers)


def test_where_there_is_no_graph_the_reason_is_told(monkeypatch):
    def untraceable(*given):
        message = "no free batch size"
        raise SurgeryError(message)

    monkeypatch.setattr(try_branches, "with_blueprint", untraceable)
    network, x = draw(Residual)
    structure = deep(network, x)
    assert names(structure) == []
    assert any(w.name == "*:branch" and "no free batch size" in w.reason for w in structure.whole)


def test_only_a_branch_may_go_to_nothing():
    network, x = draw(Residual)
    structure = deep(network, x)
    with pytest.raises(SurgeryError, match="keeps nothing"):
        cut(network, structure, {"stem.0": torch.zeros(8, dtype=torch.bool)})


def test_the_given_network_stays_as_it_is():
    network, x = draw(Residual)
    before = copy.deepcopy(network.state_dict())
    structure = deep(network, x)
    cut(network, structure, {name: torch.tensor([False]) for name in names(structure)})
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "number"),
    [
        ("torchvision:resnet18", 8), ("torchvision:mobilenet_v2", 10), ("torchvision:efficientnet_b0", 9),
        ("torchvision:regnet_y_400mf", 16), ("torchvision:convnext_tiny", 18), ("resnet20", 9),
        ("torchvision:densenet121", 0), ("torchvision:mobilenet_v3_small", 6),
    ],
)  # fmt: skip
def test_published_networks(source, number):
    torch.manual_seed(0)
    network, x = build.build_network(ModelPart(source=source), 10), torch.randn(2, 3, 64, 64)
    structure = deep(network, x)
    assert len(names(structure)) == number
    keep = masks(structure, set(names(structure)[::2]), 3)
    assert prove(network, structure, keep, [x], gates_of(structure)).difference < 1e-5
