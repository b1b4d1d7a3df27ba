"""The cut: what it leaves alone, what it refuses, and that cuts compose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from surgery_networks import build, gates_of, groups_of, half
from torch import Tensor, nn

from deploy_prune.errors import SurgeryError
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.verify import relative_difference


def keep_all(structure: object) -> dict[str, Tensor]:
    return {g.name: torch.ones(g.channels, dtype=torch.bool) for g in structure.groups}


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


class Chain(nn.Module):
    """Blocks in a row, each of a random kind, over a residual stream or widening it."""

    def __init__(self, kinds: list[str], width: int) -> None:
        super().__init__()
        self.kinds = kinds
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        blocks: list[nn.Module] = []
        for kind in kinds:
            blocks.append(self._block(kind, width))
            width = 2 * width if kind == "concat" else width
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width, 3)

    @staticmethod
    def _block(kind: str, width: int) -> nn.Module:
        if kind == "depthwise":
            return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width), nn.ReLU6())
        if kind == "grouped":
            return nn.Conv2d(width, width, 3, padding=1, groups=2)
        if kind == "squeeze":
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1))
        if kind == "residual":
            inner = nn.Conv2d(width, 2 * width, 1)
            return nn.Sequential(
                inner, nn.BatchNorm2d(2 * width), nn.Sigmoid(), nn.Conv2d(2 * width, width, 3, padding=1)
            )
        return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.Hardswish())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            y = block(x)
            if kind == "residual":
                x = x + y
            elif kind == "squeeze":
                x = x * y.sigmoid()
            elif kind == "concat":
                x = torch.cat([y, x], 1)
            else:
                x = y
        return self.head(x.mean((2, 3)))


KINDS = st.lists(
    st.sampled_from(["plain", "depthwise", "grouped", "squeeze", "residual", "concat"]), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kinds=KINDS, width=st.sampled_from([4, 6, 8]), seed=st.integers(0, 2**16))
def test_any_network_of_these_blocks_is_cut_right(kinds: list[str], width: int, seed: int) -> None:
    torch.manual_seed(seed)
    network = Chain(kinds, width).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    network.eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    structure = groups_of(network, x)
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in structure.groups:
        keep[group.name] = torch.rand(group.channels, generator=generator) < 0.5
        keep[group.name][int(torch.randint(group.channels, (1,), generator=generator))] = True
    gates = {n: m.double() for n, m in keep.items()}
    assert structure.groups
    with torch.no_grad():
        slim = cut(network, structure, keep)
        assert relative_difference(gates_of(structure)(network, gates)(x), slim(x)) < 1e-10
