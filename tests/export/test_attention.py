"""Attention that isn't 4-D is exported as 4-D attention: the same numbers, in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from surgery_networks import groups_of, half
from torch import Tensor, nn

from deploy_prune.export import FORMATS
from deploy_prune.export.artifact import export_program
from deploy_prune.export.parity import TOLERANCE, check_parity
from deploy_prune.export.rewrite import rewritten
from deploy_prune.recipe.parts import ExportPart, PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.try_groups import keep_cuttable


class Windows(nn.Module):
    """Attention in windows, as in Hiera and NesT: over [B, windows, heads, positions, width]. Inputs [B, 3, 8, 8]."""

    def __init__(self, mask: tuple[int, ...] = (), *, no_heads: bool = False, causal: bool = False) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, 12, 1), nn.Linear(12, 24)
        self.out, self.head = nn.Linear(8, 12), nn.Linear(12, 5)
        self.no_heads, self.causal = no_heads, causal
        self.register_buffer("mask", torch.randn(mask) if mask else None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).unflatten(2, (4, 2)).movedim(1, -1).flatten(2, 3)  # [B, windows, positions, width]
        q, k, v = self.qkv(y).unflatten(-1, (3, 1 if self.no_heads else 2, -1)).movedim(-3, 0).transpose(-2, -3)
        if self.no_heads:
            q, k, v = (t.flatten(0, 2) for t in (q, k, v))
        z = F.scaled_dot_product_attention(q, k, v, self.mask, is_causal=self.causal)
        z = z.view(x.shape[0], 4, -1, 16, z.shape[-1])
        return self.head(self.out(z.transpose(2, 3).flatten(3)).mean((1, 2)))


class OneKey(nn.Module):
    """All windows look at the same keys: leading dimensions are broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.randn(1, 1, 1, 6, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x.unflatten(1, (3, 1)).unsqueeze(2), self.key, self.key.sin())


NETWORKS = {
    "windows": lambda: Windows(),
    "causal": lambda: Windows(causal=True),
    "a mask for all": lambda: Windows((16, 16)),
    "a mask for each head": lambda: Windows((2, 16, 16)),
    "a mask for each window": lambda: Windows((4, 1, 16, 16)),
    "a mask for each window, of 5 dimensions": lambda: Windows((1, 4, 1, 16, 16)),
    "a mask for each head, of 5 dimensions": lambda: Windows((1, 1, 2, 16, 16)),
    "without heads": lambda: Windows(no_heads=True),
    "the same keys": OneKey,
}


@pytest.mark.parametrize("batch", ["static", "dynamic"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_program_computes_the_same(name: str, batch: str) -> None:
    torch.manual_seed(0)
    network, x = NETWORKS[name]().eval(), torch.randn(4, 3, 8, 8)
    sizes = [2] if batch == "static" else [2, 4]
    program = export_program(network, x[:2], ExportPart(dynamic_batch=batch == "dynamic"))
    calls = program.graph.find_nodes(op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default)
    assert [arg.meta["val"].dim() for arg in calls[0].args[:3]] == [4, 4, 4]
    for size in sizes:
        assert torch.allclose(program.module()(x[:size]), network(x[:size]), atol=1e-6)


def test_4d_attention_is_left_alone() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    program = torch.export.export(Plain(), (torch.randn(1, 2, 4, 8),), strict=False)
    before = program.graph_module.code
    assert rewritten(program).graph_module.code == before


def test_attention_in_an_autocast_region_is_found() -> None:
    class Region(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=False):
                return F.scaled_dot_product_attention(x[:, 0], x[:, 1], x[:, 2])

    x = torch.randn(2, 3, 8, 8)
    program = export_program(Region(), x, ExportPart())
    assert torch.allclose(program.module()(x), Region()(x), atol=1e-6)
    regions = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    ranks = [
        n.args[0].meta["val"].dim()
        for m in regions
        for n in m.graph.find_nodes(op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default)
    ]
    assert ranks == [4]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "width"), [("a mask for each window", "dense"), ("windows", "cut"), ("without heads", "cut")]
)
def test_the_artifact_computes_the_same(name: str, width: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = NETWORKS[name]().eval(), torch.randn(4, 3, 8, 8)
    if width == "cut":
        structure = keep_cuttable(network, groups_of(network, x), (x[:2],), gates_of, PrunePart())
        assert {"stem", "out"} <= {g.name for g in structure.groups}, structure.whole
        network = cut(network, structure, half(structure)).eval()
    part = ExportPart(dynamic_batch=True)
    artifact = FORMATS["onnx"].write(network, x[:1], tmp_path / "network.onnx", "fp32", part)
    assert check_parity(network, artifact, x).max_rel <= TOLERANCE
