"""masked == cut on the networks people use, and checks that can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from surgery_networks import build, groups_of, half
from torch import Tensor, nn

from deploy_prune.errors import VerificationError
from deploy_prune.recipe import PrunePart
from deploy_prune.search import gates_of
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.settle import _failure, _sound, settle
from deploy_prune.surgery.verify import TOLERANCE, prove, relative_difference, verify

NETWORKS = [
    ("resnet20", 32),
    ("torchvision:resnet18", 64),
    ("torchvision:mobilenet_v2", 64),
    ("torchvision:mobilenet_v3_small", 64),
    ("torchvision:vgg11_bn", 64),
]


@pytest.mark.parametrize(("source", "size"), NETWORKS)
def test_masked_equals_cut(source: str, size: int) -> None:
    network, x = build(source, size)
    structure = settle(network, groups_of(network, x), (x[:2],), gates_of, PrunePart())
    keep = half(structure)
    before = {k: v.clone() for k, v in network.state_dict().items()}

    slim = cut(network, structure, keep)
    proof = verify(network, slim, structure, keep, (x[:8],), gates_of(structure))

    assert proof.precision == "float32"
    assert proof.difference <= TOLERANCE
    assert proof.moved_by_input > 100 * proof.difference
    assert proof.moved_by_channel > 100 * proof.difference
    assert sum(p.numel() for p in slim.parameters()) < 0.75 * sum(p.numel() for p in network.parameters())
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_a_wrong_cut_is_caught() -> None:
    network, x = build("torchvision:resnet18", 64)
    structure = groups_of(network, x)
    keep = half(structure)
    slim = cut(network, structure, keep)
    with torch.no_grad():
        slim.layer1[0].conv2.weight[0] *= 1.5
    with pytest.raises(VerificationError, match="differs from the masked"):
        verify(network, slim, structure, keep, (x[:4],), gates_of(structure))


def test_keeping_the_wrong_channels_is_caught() -> None:
    network, x = build("resnet20", 32)
    structure = groups_of(network, x)
    name = "layer1.0.conv1"
    keep = {g.name: torch.ones(g.channels, dtype=torch.bool) for g in structure.groups}
    keep[name] = torch.arange(16) < 8
    slim = cut(network, structure, {**keep, name: ~keep[name]})
    with pytest.raises(VerificationError, match="differs"):
        verify(network, slim, structure, keep, (x[:4],), gates_of(structure))


def test_a_blind_network_proves_nothing() -> None:
    network, x = build("torchvision:mobilenet_v2", 64)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(1e12)
    structure = groups_of(network, x)
    keep = half(structure)
    with pytest.raises(VerificationError, match="proves nothing"):
        verify(network, cut(network, structure, keep), structure, keep, (x[:4],), gates_of(structure))


def test_a_network_made_blind_by_the_cut_is_proven_on_a_copy_that_sees() -> None:
    network, x = build("torchvision:mobilenet_v2", 64)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(1e12)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    structure = groups_of(network, x)
    proof = prove(network, structure, half(structure), (x[:8],), gates_of(structure))
    assert proof.calibrated
    assert proof.difference <= proof.tolerance
    assert min(proof.moved_by_input, proof.moved_by_channel) > 1e-3
    assert all(torch.equal(state[k], v) for k, v in network.state_dict().items())
    assert not network.training


def test_sizes_written_in_the_code_are_cut_through_the_exported_graph() -> None:
    """CIFAR ResNets pad their shortcuts by numbers written in the code."""
    network, x = build("resnet20", 32)
    found = groups_of(network, x)
    settled = settle(network, found, (x[:2],), gates_of, PrunePart())
    assert settled.blueprint is not None
    assert {g.name for g in settled.groups} == {g.name for g in found.groups}


class Counted(nn.Module):
    """Python that counts channels, and does something else when some are gone: no graph shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.second(x * torch.ones(8).view(8, 1, 1))
        return self.head(x.mean((2, 3)))


def test_what_no_form_can_cut_is_left_whole_with_the_reason() -> None:
    network = Counted().eval()
    x = torch.randn(4, 3, 8, 8)
    found = groups_of(network, x)
    settled = settle(network, found, (x,), gates_of, PrunePart())
    assert "first" not in {g.name for g in settled.groups}
    assert next(w.reason for w in settled.whole if w.name == "first")
    dense = {g.name: g.channels for g in found.groups}
    for before, after in zip(found.layers, settled.layers, strict=True):
        assert before.inputs.at(dense) == after.inputs.at(dense)


def test_settle_keeps_a_sound_structure_as_it_is() -> None:
    network, x = build("torchvision:resnet18", 64)
    structure = groups_of(network, x)
    assert settle(network, structure, (x[:2],), gates_of, PrunePart()) is structure


def test_settle_finds_a_group_whose_cut_is_wrong() -> None:
    network, x = build("torchvision:resnet18", 64)
    structure = groups_of(network, x)
    first = structure.groups[1]
    forgets_consumers = replace(first, consumers=())
    broken = replace(structure, groups=(structure.groups[0], forgets_consumers, *structure.groups[2:]))
    why = _failure(network, broken, [forgets_consumers], (x[:2],), gates_of)
    assert why is not None
    assert "differ by" in why or "RuntimeError" in why
    left = _sound(network, broken, (x[:2],), gates_of)
    assert [w.name for w in left.whole if w.reason == why] == [first.name]


def test_relative_difference_of_nested_outputs() -> None:
    a = {"x": torch.tensor([1.0, -4.0]), "y": [torch.tensor([10.0])]}
    b = {"x": torch.tensor([1.0, -4.4]), "y": [torch.tensor([10.0])]}
    assert relative_difference(a, b) == pytest.approx(0.1)
    assert relative_difference(a, {"x": torch.zeros(3), "y": [torch.tensor([10.0])]}) == float("inf")
    assert relative_difference(torch.ones(2), torch.tensor([1.0, float("nan")])) == float("inf")
