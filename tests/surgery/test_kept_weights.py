"""Networks that keep what they compute from their weights in evaluation mode, and throw it away for training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from surgery_networks import half
from torch import Tensor, nn

from deploy_prune.recipe.parts import PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups, with_blueprint
from deploy_prune.surgery.try_groups import keep_cuttable
from deploy_prune.surgery.verify import verify

X = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Heads with a table of biases, which is spread out once and kept; ``written``: their number is in the code."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.written = 4 if written else None
        self.qkv, self.out = nn.Linear(16, 96), nn.Linear(32, 16)
        self.table = nn.Parameter(torch.randn(4, 11))
        self.register_buffer("places", torch.arange(6)[:, None] - torch.arange(6) + 5)
        self.kept: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Attention:
        super().train(mode)
        if mode:
            self.kept.clear()
        return self

    def biases(self) -> Tensor:
        if self.training:
            return self.table[:, self.places]
        if "biases" not in self.kept:
            self.kept["biases"] = self.table[:, self.places]
        return self.kept["biases"]

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        qkv = self.qkv(x).view(B, N, self.written or self.table.shape[0], -1)
        q, k, v = (y.transpose(1, 2) for y in qkv.chunk(3, dim=-1))
        attention = (q @ k.transpose(2, 3) / 8**0.5 + self.biases()).softmax(-1)
        return self.out((attention @ v).transpose(1, 2).reshape(B, N, -1))


def network(written: bool = True) -> nn.Module:
    torch.manual_seed(1)
    blocks = [nn.Sequential(Attention(written), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)) for _ in range(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(96, 5)).eval()


def kept_by(net: nn.Module) -> list[Any]:
    return [m.kept.get("biases") for m in net.modules() if isinstance(m, Attention)]


@pytest.mark.parametrize("written", [True, False], ids=["graph", "module"])
@pytest.mark.parametrize("ran", [True, False])
def test_all_groups_are_cut_and_tables_stay_weights(written: bool, ran: bool) -> None:
    net = network(written)
    if ran:
        with torch.no_grad():
            net(X)
    before = kept_by(net)
    structure = keep_cuttable(net, find_groups(net, (X[:1],), PrunePart()), (X[:2],), gates_of, PrunePart())
    assert (structure.blueprint is not None) is written
    assert sorted(g.channels for g in structure.groups) == [4, 4, 16, 16, 16, 16, 24, 24]
    assert not [w for w in structure.whole if "written" in w.reason]
    keep = half(structure)
    slim = cut(net, structure, keep)
    assert verify(net, slim, structure, keep, (X,), gates_of(structure)).difference < 1e-5
    assert [a is b for a, b in zip(kept_by(net), before, strict=True)] == [True, True]
    tables = [p for name, p in slim.named_parameters() if name.endswith("table")]
    assert [t.shape[0] for t in tables] == [2, 2]
    slim(X).sum().backward()
    assert all(t.grad is not None and bool(t.grad.any()) for t in tables)


def test_a_graph_follows_the_weights_though_it_was_traced_after_a_run_of_another_size() -> None:
    net = network()
    structure = with_blueprint(net, (X[:2],), PrunePart())
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, Attention):
                module.table.mul_(-2)
    whole = {g.name: torch.ones(g.channels, dtype=torch.bool) for g in structure.groups}
    torch.testing.assert_close(cut(net, structure, whole)(X), net(X))
