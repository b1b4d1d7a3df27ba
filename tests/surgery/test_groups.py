"""Channel groups: the same as torch-pruning's where it can trace, right where it can't, and whole with a reason."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from surgery_networks import build, groups_of, half
from torch import Tensor, nn

from deploy_prune import cost
from deploy_prune.errors import RecipeError
from deploy_prune.networks.compare import relative_difference
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.cut import cut
from deploy_prune.types import Structure

Sides = frozenset[tuple[str, str]]


def our_sides(network: nn.Module, structure: Structure) -> set[Sides]:
    """Per group, the (layer, side) pairs of convolutions and linear layers."""
    layers = dict(network.named_modules())
    found = set()
    for group in structure.groups:
        sides = set()
        for member in group.members:
            path, _, name = member.tensor.rpartition(".")
            if name == "weight" and isinstance(layers[path], nn.Conv2d | nn.Linear):
                sides.add((path, "out" if member.axis == 0 else "in"))
                if getattr(layers[path], "groups", 1) > 1:
                    sides |= {(path, "in"), (path, "out")}
        found.add(frozenset(sides))
    return found


def their_sides(network: nn.Module, x: Tensor) -> set[Sides]:
    """The same by torch-pruning's dependency graph, its groups that hold the network's output left out."""
    graph = tp.DependencyGraph().build_dependency(network, example_inputs=x[:1])
    last = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]
    found = set()
    for group in graph.get_all_groups(ignored_layers=[last], root_module_types=(nn.Conv2d, nn.Linear)):
        sides = set()
        for dependency, _ in group:
            module = dependency.target.module
            if isinstance(module, nn.Conv2d | nn.Linear):
                path = dependency.target.name.partition(" (")[0]
                sides.add((path, "out" if "out_channels" in dependency.handler.__name__ else "in"))
                if getattr(module, "groups", 1) > 1:
                    sides |= {(path, "in"), (path, "out")}
        found.add(frozenset(sides))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "vgg11_bn", "squeezenet1_1"])
def test_the_same_groups_as_torch_pruning(name: str) -> None:
    network, x = build(f"torchvision:{name}", 64)
    assert our_sides(network, groups_of(network, x)) == their_sides(network, x)


@pytest.mark.parametrize(
    ("name", "gmacs", "mparams"),
    [("resnet18", 1.814, 11.690), ("mobilenet_v2", 0.301, 3.505), ("vgg11_bn", 7.609, 132.869)],
)
def test_layers_count_as_published(name: str, gmacs: float, mparams: float) -> None:
    """MACs and parameters at 224 x 224 with 1000 classes, as torchvision's documentation gives them."""
    from deploy_prune.networks import build
    from deploy_prune.recipe.parts import ModelPart

    network = build.build_network(ModelPart(source=f"torchvision:{name}"), 1000)
    structure = groups_of(network, torch.zeros(1, 3, 224, 224))
    counted = cost.params(structure, network)
    assert cost.macs(structure)(structure.dense_counts) == pytest.approx(gmacs * 1e9, rel=1e-3)
    assert counted(structure.dense_counts) == pytest.approx(mparams * 1e6, rel=1e-3)


def test_finding_groups_changes_nothing() -> None:
    network, x = build("torchvision:mobilenet_v2", 64)
    network.train()
    network.features[3].eval()
    for parameter in network.features[0].parameters():
        parameter.requires_grad_(requires_grad=False)
    modes = [m.training for m in network.modules()]
    flags = [p.requires_grad for p in network.parameters()]
    state = {k: v.clone() for k, v in network.state_dict().items()}
    with torch.no_grad():
        assert groups_of(network, x).groups
    assert [m.training for m in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == flags
    assert all(torch.equal(state[k], v) for k, v in network.state_dict().items())


class Net(nn.Module):
    """A small network around one construct: stem -> ``middle`` -> head."""

    def __init__(self, middle: object, width: int = 8, read: int = 8) -> None:
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, width, 3, padding=1), middle
        if isinstance(middle, nn.Module):
            self.inner = middle
        self.read = nn.Conv2d(read, 6, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.read(self.middle(self.stem(x))))  # type: ignore[operator]
        return self.head(x.mean((2, 3)))


def roundtrip(network: nn.Module) -> tuple[Structure, float]:
    """The structure of a network and how far its cut is from its masked self."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    network.eval()
    structure = groups_of(network, x)
    keep = half(structure)
    slim = cut(network, structure, keep)
    gates = {n: m.float() for n, m in keep.items()}
    with torch.no_grad():
        return structure, relative_difference(gates_of(structure)(network, gates)(x), slim(x))


def two_ways(x: Tensor) -> Tensor:
    return torch.cat([x, x.flip(2)], 1)


CONSTRUCTS = {
    "concatenation with itself": Net(two_ways, read=16),
    "flip of positions": Net(lambda x: x.flip(3)),
    "sum with a reversed copy": Net(lambda x: x + x.flip(1)),
    "grouped, wide": Net(nn.Conv2d(8, 8, 3, padding=1, groups=2)),
    "grouped, narrow": Net(nn.Conv2d(8, 8, 3, padding=1, groups=4)),
    "depthwise": Net(nn.Conv2d(8, 8, 3, padding=1, groups=8)),
    "depthwise, twice as many out": Net(nn.Conv2d(8, 16, 3, padding=1, groups=8), read=16),
    "slope per channel": Net(nn.PReLU(8)),
    "instance norm": Net(nn.InstanceNorm2d(8, affine=True)),
    "group norm, wide groups": Net(nn.GroupNorm(2, 8)),
    "group norm, narrow groups": Net(nn.GroupNorm(4, 8)),
    "group norm, one group": Net(nn.GroupNorm(1, 8)),
    "sigmoid": Net(nn.Sigmoid()),
    "repeated": Net(lambda x: x.repeat(1, 2, 1, 1), read=16),
    "no gradient": Net(lambda x: x.detach() + x),
    "pixel shuffle": Net(nn.PixelShuffle(2), read=2),
    "transposed": Net(nn.ConvTranspose2d(8, 8, 2, stride=2)),
    "squeeze and excite": Net(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()),
}


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_construct_is_cut_right(name: str) -> None:
    structure, difference = roundtrip(CONSTRUCTS[name])
    assert "stem" in {g.name for g in structure.groups}
    assert difference < 1e-5


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (lambda x: x.sort(1)[0], "sort mixes"),
        (nn.LocalResponseNorm(3), "avg_pool3d mixes"),
        (lambda x: x.cumsum(1), "cumsum mixes"),
        (lambda x: x + x.roll(1, 1), "single unit"),
        (lambda x: x * x.median(1, keepdim=True)[0], "median reduces"),
        (lambda x: x * x.prod(1, keepdim=True), "prod reduces"),
    ],
)
def test_what_mixes_channels_is_whole_with_the_reason(middle: object, reason: str) -> None:
    structure = groups_of(Net(middle), torch.zeros(1, 3, 8, 8))
    assert "stem" not in {g.name for g in structure.groups}
    assert any(reason in w.reason for w in structure.whole if w.name == "stem")


def test_outputs_are_protected_whatever_layer_makes_them() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1))
    structure = groups_of(network, torch.zeros(1, 3, 8, 8))
    assert [g.name for g in structure.groups] == ["0"]


def test_vgg_units_have_a_period_in_the_classifier() -> None:
    network, x = build("torchvision:vgg11_bn", 64)
    group = next(g for g in groups_of(network, x).groups if g.name == "features.25")
    reader = group.consumers[0]
    assert (group.channels, group.period) == (512, 1)
    assert reader.tensor == "classifier.0.weight"
    assert torch.equal(reader.unit_of, torch.arange(512).repeat_interleave(49))


def test_only_and_skip_by_pattern() -> None:
    network, x = build("resnet20", 32)
    with pytest.raises(RecipeError, match=r"prune\.skip: 'layr3\.\*' matches no group.*nearest names are layer3"):
        groups_of(network, x, PrunePart(skip=["layr3.*"]))
    only = groups_of(network, x, PrunePart(only=["layer3.*"]))
    assert {g.name.partition(".")[0] for g in only.groups} == {"layer3"}
    skip = groups_of(network, x, PrunePart(skip=["layer3.*", "conv1"]))
    assert not any(g.name.startswith("layer3") or g.name == "conv1" for g in skip.groups)
    assert {w.reason for w in skip.whole} == {"prune.skip names it", "it reaches the network's output"}


class Placed(nn.Module):
    """Weights for positions, made from their coordinates (Swin V2, ConViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.rand(64, 3))
        self.first, self.second, self.read = nn.Linear(3, 6), nn.Linear(6, 8), nn.Conv2d(8, 4, 1)
        self.stem = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.stem(x) + self.second(self.first(self.places).relu()).t().reshape(1, 8, 8, 8))


def test_a_table_of_coordinates_is_no_group() -> None:
    structure = groups_of(Placed(), torch.zeros(1, 3, 8, 8))
    assert [g.name for g in structure.groups] == ["first", "second"]
    assert not any(a.tensor == "places" for g in structure.groups for a in g.members)
    assert not any(w.name == "places" for w in structure.whole)
