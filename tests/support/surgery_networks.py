"""Networks of the surgery tests, with batch-norm statistics that make their outputs depend on their inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploy_prune.networks.build import build_network
from deploy_prune.networks.compare import relative_difference
from deploy_prune.recipe.parts import ModelPart, PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.try_groups import keep_cuttable
from deploy_prune.types import Keep, Structure


def calibrated(network: nn.Module, x: Tensor) -> nn.Module:
    """Random affine parameters, and running statistics that are the data's own: deep networks aren't blind then."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        network.train()(x)
    return network.eval()


def build(source: str, size: int) -> tuple[nn.Module, Tensor]:
    """The network with ten classes, and 16 random inputs."""
    torch.manual_seed(0)
    x = torch.randn(16, 3, size, size)
    return calibrated(build_network(ModelPart(source=source), 10), x), x


def groups_of(network: nn.Module, x: Tensor, prune: PrunePart | None = None) -> Structure:
    return find_groups(network, (x[:1],), prune or PrunePart())


def half(structure: Structure, seed: int = 0) -> Keep:
    """A random half of every group."""
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.randperm(g.channels, generator=generator) < max(1, g.channels // 2) for g in structure.groups}


def tried(network: nn.Module, x: Tensor) -> Structure:
    """The groups that can be cut together."""
    return keep_cuttable(network, groups_of(network, x), (x,), gates_of, PrunePart())


def cut_right(network: nn.Module, structure: Structure, x: Tensor) -> nn.Module:
    """The network with a random half of every group: it computes what masking does, and masking shows in the output."""
    keep = half(structure)
    slim = cut(network, structure, keep).eval()
    with torch.no_grad():
        masked = gates_of(structure)(network, {name: mask.float() for name, mask in keep.items()})(x)
        assert relative_difference(masked, slim(x)) < 1e-5
        assert relative_difference(network(x), masked) > 1e-3
    return slim
