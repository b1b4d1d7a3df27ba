"""The cut: what it leaves alone, what it refuses, and that cuts compose."""

from __future__ import annotations

import pytest
import torch
from fuzzing import memory_kb
from surgery_networks import build, groups_of, half, tried
from torch import Tensor, nn

from deploy_prune.errors import SurgeryError
from deploy_prune.networks.build import build_network
from deploy_prune.networks.compare import relative_difference
from deploy_prune.recipe.parts import ModelPart, PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.try_groups import keep_cuttable


def keep_all(structure: object) -> dict[str, Tensor]:
    return {g.name: torch.ones(g.channels, dtype=torch.bool) for g in structure.groups}


def test_a_cut_takes_the_memory_of_what_stays() -> None:
    network = nn.Sequential(nn.Linear(4000, 6000), nn.ReLU(), nn.Linear(6000, 4000)).eval()  # 192 MB
    structure, few = groups_of(network, torch.randn(2, 4000)), torch.arange(6000) < 600
    before = memory_kb("VmRSS", reset=True)
    slim = cut(network, structure, {group.name: few for group in structure.groups})
    assert memory_kb("VmHWM") - before < 60_000, "19 MB stay"
    assert torch.equal(slim[2].weight, network[2].weight[:, :600])


def test_what_a_user_set_survives() -> None:
    network, x = build("torchvision:mobilenet_v2", 64)
    structure = groups_of(network, x)
    network.to(memory_format=torch.channels_last).double().train()
    network.features[1].eval()
    for parameter in network.features[2].parameters():
        parameter.requires_grad_(requires_grad=False)
    network(x.double()).sum().backward()
    calls: list[str] = []
    network.features[3].register_forward_hook(lambda *_: calls.append("hook"))

    slim = cut(network, structure, half(structure))

    assert [m.training for m in slim.modules()] == [m.training for m in network.modules()]
    for (name, old), (also, new) in zip(network.named_parameters(), slim.named_parameters(), strict=True):
        assert (name, old.requires_grad, old.dtype) == (also, new.requires_grad, new.dtype)
        assert (old.grad is None) == (new.grad is None)
        if new.grad is not None:
            assert new.grad.shape == new.shape
        if new.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last):
            assert new.is_contiguous(memory_format=torch.channels_last)
    slim(x.double())
    assert calls == ["hook"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.inner = nn.Linear(12, 12)
        self.decode = nn.Linear(12, 20, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.relu(self.inner(self.embed(x))))


def test_tied_weights_stay_tied() -> None:
    network = Tied().eval()
    x = torch.arange(6).view(2, 3)
    structure = groups_of(network, x)
    keep = half(structure)
    slim = cut(network, structure, keep)
    assert slim.decode.weight is slim.embed.weight
    assert slim.embed.weight.shape[0] == 20
    gates = {n: m.float() for n, m in keep.items()}
    assert relative_difference(gates_of(structure)(network, gates)(x), slim(x)) < 1e-5


def test_a_cut_of_a_cut_is_one_cut() -> None:
    network, x = build("torchvision:resnet18", 64)
    structure = groups_of(network, x)
    first = half(structure, seed=1)
    once = cut(network, structure, first)
    again = groups_of(once, x)
    second = half(again, seed=2)
    twice = cut(once, again, second)
    both = {name: mask.clone() for name, mask in first.items()}
    for name, mask in both.items():
        mask[mask.nonzero().flatten()] = second[name]
    direct = cut(network, structure, both)
    assert all(
        torch.equal(a, b) for a, b in zip(twice.state_dict().values(), direct.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda k: {**k, "layer9": torch.ones(4, dtype=torch.bool)}, "doesn't have"),
        (lambda k: {**k, "conv1": torch.ones(15, dtype=torch.bool)}, r"must be bool\[16\]"),
        (lambda k: {**k, "conv1": torch.ones(16)}, r"must be bool\[16\]"),
        (lambda k: {**k, "conv1": torch.zeros(16, dtype=torch.bool)}, "keeps nothing"),
    ],
)
def test_a_bad_keep_mask_is_refused(change: object, cause: str) -> None:
    network, x = build("resnet20", 32)
    structure = groups_of(network, x)
    with pytest.raises(SurgeryError, match=cause):
        cut(network, structure, change(keep_all(structure)))


def test_groups_that_are_not_named_stay_whole() -> None:
    network, x = build("resnet20", 32)
    structure = groups_of(network, x)
    slim = cut(network, structure, {"layer1.0.conv1": torch.arange(16) < 4})
    assert slim.layer1[0].conv1.out_channels == 4
    assert slim.layer1[1].conv1.out_channels == 16


@pytest.mark.parametrize("name", ["module", "graph"])
def test_nothing_lies_in_the_dense_networks_memory(name: str) -> None:
    """Not even what no cut touches: training one must not change the other."""
    network = build_network(
        ModelPart(source={"module": "torchvision:mobilenet_v2", "graph": "resnet20"}[name]), 10
    ).eval()
    x = torch.randn(2, 3, 32, 32)
    structure = keep_cuttable(network, find_groups(network, (x[:1],), PrunePart()), (x,), gates_of, PrunePart())
    assert (structure.blueprint is None) == (name == "module")
    keep = {g.name: torch.ones(g.channels, dtype=torch.bool) for g in structure.groups}
    keep[structure.groups[0].name][0] = False
    slim = cut(network, structure, keep)
    before = {n: t.clone() for n, t in network.state_dict().items()}
    with torch.no_grad():
        for tensor in (*slim.parameters(), *slim.buffers()):
            tensor.zero_()
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


class Channels(nn.Module):
    """A norm of [B, C, H, W] over its last dimension."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, 3)).movedim(3, 1)


NORMS = {
    "instance": (nn.InstanceNorm2d(8), "num_features", 4),
    "layer": (Channels(nn.LayerNorm(8, elementwise_affine=False)), "normalized_shape", (4,)),
    "rms": (Channels(nn.RMSNorm(8, elementwise_affine=False)), "normalized_shape", (4,)),
    "rms with weights": (Channels(nn.RMSNorm(8)), "normalized_shape", (4,)),
    "group": (nn.GroupNorm(2, 8, affine=False), "num_channels", 4),
    "groups of one": (nn.GroupNorm(8, 8, affine=False), "num_groups", 4),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_note_how_many_channels_are_left(name: str) -> None:
    norm, attribute, left = NORMS[name]
    network = nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.Conv2d(8, 4, 1)).eval()
    x = torch.randn(2, 3, 4, 4)
    structure = tried(network, x)
    assert structure.blueprint is None
    keep = {"0": torch.arange(structure.groups[0].channels) % 2 == 0}
    slim = cut(network, structure, keep)
    assert getattr(getattr(slim[1], "norm", slim[1]), attribute) == left
    masked = gates_of(structure)(network, {"0": keep["0"].float()})
    assert relative_difference(masked(x), slim(x)) < 1e-5
