"""Random small networks and masks: masked == cut, a cut of a cut is one cut, and the architecture's file is enough."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from surgery_networks import groups_of
from torch import Tensor, nn

from deploy_prune.architecture import json_file
from deploy_prune.networks.compare import relative_difference
from deploy_prune.recipe.parts import ModelPart, PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.try_groups import keep_cuttable
from deploy_prune.types import Keep, Structure


class Split(nn.Module):
    """Two parts of different widths, one convolved, joined the other way round."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (width // 2 - 1, width - width // 2 + 1)
        self.conv = nn.Conv2d(self.sizes[0], self.sizes[0], 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.split(self.sizes, 1)
        return torch.cat([second, self.conv(first)], 1)


class Attention(nn.Module):
    """Two heads over positions, with a layer norm before and a shortcut around."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 12), nn.Linear(4, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(tokens)).reshape(x.shape[0], -1, 3, 2, 2).permute(2, 0, 3, 1, 4)
        heads = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return x + self.out(heads.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)


class Squeeze(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x).sigmoid()


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1),
            nn.BatchNorm2d(2 * width),
            nn.Sigmoid(),
            nn.Conv2d(2 * width, width, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Concat(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([nn.functional.hardswish(self.norm(self.conv(x))), x], 1)


BLOCKS = {
    "plain": lambda w: nn.Sequential(nn.Conv2d(w, w, 3, padding=1), nn.BatchNorm2d(w), nn.Hardswish()),
    "depthwise": lambda w: nn.Sequential(nn.Conv2d(w, w, 3, padding=1, groups=w), nn.BatchNorm2d(w), nn.ReLU6()),
    "grouped": lambda w: nn.Conv2d(w, w, 3, padding=1, groups=2),
    "norm": lambda w: nn.Sequential(nn.Conv2d(w, w, 1), nn.GroupNorm(2, w), nn.GELU()),
    "squeeze": Squeeze,
    "residual": Residual,
    "concat": Concat,
    "split": Split,
    "attention": Attention,
}


class Chain(nn.Module):
    """Blocks in a row."""

    def __init__(self, kinds: tuple[str, ...], width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential()
        for kind in kinds:
            self.blocks.append(BLOCKS[kind](width))
            width = 2 * width if kind == "concat" else width
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def made(kinds: tuple[str, ...], width: int, seed: int) -> tuple[Chain, Tensor]:
    """The network with random weights and statistics, in float64, and two inputs."""
    torch.manual_seed(seed)
    network = Chain(kinds, width).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    return network.eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)


@cache
def structure_of(kinds: tuple[str, ...], width: int) -> Structure:
    """It depends on no weights: traced once for each kind of network."""
    network, x = made(kinds, width, 0)
    found = groups_of(network, x)
    settled = keep_cuttable(network, found, (x,), gates_of, PrunePart())
    assert {g.name for g in settled.groups} == {g.name for g in found.groups}
    return settled


def some(structure: Structure, seed: int) -> Keep:
    """At least one unit of every group."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in structure.groups:
        keep[group.name] = torch.rand(group.channels, generator=generator) < 0.5
        keep[group.name][int(torch.randint(group.channels, (1,), generator=generator))] = True
    return keep


def difference(network: nn.Module, structure: Structure, keep: Keep, slim: nn.Module, x: Tensor) -> float:
    gates = {n: m.double() for n, m in keep.items()}
    with torch.no_grad():
        return relative_difference(gates_of(structure)(network, gates)(x), slim(x))


KINDS = st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=3).map(tuple)
OTHERS = st.lists(st.sampled_from(sorted(BLOCKS)), max_size=2).map(tuple)
WIDTH, SEED = st.sampled_from([4, 6]), st.integers(0, 2**16)
RANDOM = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
EXAMPLES = 500


@pytest.mark.slow
@pytest.mark.parametrize("first", sorted(BLOCKS))
@settings(RANDOM, max_examples=-(-EXAMPLES // len(BLOCKS)))
@given(others=OTHERS, width=WIDTH, seed=SEED)
def test_any_network_of_these_blocks_is_cut_right(first: str, others: tuple[str, ...], width: int, seed: int) -> None:
    kinds = (first, *others)
    structure = structure_of(kinds, width)
    network, x = made(kinds, width, seed)
    keep = some(structure, seed)
    assert difference(network, structure, keep, cut(network, structure, keep), x) < 1e-10


MODULES = KINDS.filter(lambda kinds: not {"split", "attention", "grouped", "norm"} & set(kinds))
"""Without sizes in their code (their cut has the same modules) and without groups (whose number a cut changes)."""


@pytest.mark.slow
@settings(RANDOM, max_examples=30)
@given(kinds=MODULES, width=WIDTH, seed=SEED)
def test_a_cut_of_any_cut_is_one_cut(kinds: tuple[str, ...], width: int, seed: int) -> None:
    structure = structure_of(kinds, width)
    network, x = made(kinds, width, seed)
    both = some(structure, seed)
    once = cut(network, structure, both)
    again = groups_of(once, x)
    second = some(again, seed + 1)
    twice = cut(once, again, second)
    for name, mask in second.items():
        both[name][both[name].nonzero().flatten()] = mask
    direct = cut(network, structure, both).state_dict()
    assert all(torch.equal(tensor, direct[name]) for name, tensor in twice.state_dict().items())


@pytest.mark.slow
@settings(RANDOM, max_examples=30)
@given(kinds=KINDS, width=WIDTH, seed=SEED)
def test_the_file_of_any_cut_is_enough_to_build_it(kinds: tuple[str, ...], width: int, seed: int) -> None:
    structure = structure_of(kinds, width)
    network, x = made(kinds, width, seed)
    keep = some(structure, seed)
    slim = cut(network, structure, keep)
    told = json_file.describe(ModelPart(source="tests:chain"), 3, (x[:1],), keep, network, slim)
    fresh, _ = made(kinds, width, seed + 1)
    again = json_file.build_slim(json_file.loads(json_file.dumps(told)), fresh, example=x[:1])
    json_file.load_weights(again, slim.state_dict(), Path("weights.safetensors"))
    with torch.no_grad():
        assert torch.equal(again(x), slim.eval()(x))
