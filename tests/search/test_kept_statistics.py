"""Norms over kept channels: torch's own with open gates, a narrower norm with closed ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deploy_prune.search.kept_statistics import REDUCTIONS, KeptStatistics, group_norm, inside, layer_norm, rms_norm


def test_open_gates_are_torchs_own_norms():
    x, ones = torch.randn(4, 5, 12), torch.ones(12)
    weight, bias = torch.randn(12), torch.randn(12)
    torch.testing.assert_close(layer_norm(ones, x, (12,), weight, bias), F.layer_norm(x, (12,), weight, bias))
    torch.testing.assert_close(rms_norm(ones, x, (12,), weight), F.rms_norm(x, (12,), weight))
    image = torch.randn(4, 12, 5, 5)
    torch.testing.assert_close(group_norm(ones, image, 3, weight, bias), F.group_norm(image, 3, weight, bias))


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_closed_gates_are_a_narrower_norm(norm):
    x, weight = torch.randn(4, 12), torch.randn(12)
    kept = torch.arange(12) % 3 != 0
    ours, theirs = (layer_norm, F.layer_norm) if norm == "layer" else (rms_norm, F.rms_norm)
    wide = ours(kept.float(), x, (12,), weight)
    torch.testing.assert_close(wide[:, kept], theirs(x[:, kept], (8,), weight[kept]))


def test_group_norm_keeps_the_same_channels_of_every_group():
    x, weight, bias = torch.randn(2, 12, 3, 3), torch.randn(12), torch.randn(12)
    kept = torch.tensor([True, False, True, True] * 3)
    wide = group_norm(kept.float(), x, 3, weight, bias)
    torch.testing.assert_close(wide[:, kept], F.group_norm(x[:, kept], 3, weight[kept], bias[kept]))


def test_only_the_named_norms_are_answered():
    first, second = nn.LayerNorm(6), nn.LayerNorm(6)
    x, gate = torch.randn(3, 6), torch.tensor([1.0, 1, 1, 1, 0, 0])
    with KeptStatistics({id(first.weight): gate}):
        changed, same = first(x), second(x)
    assert not torch.allclose(changed, first(x))
    torch.testing.assert_close(same, second(x))


def test_gates_of_a_norm_have_a_gradient():
    norm, gate = nn.LayerNorm(6), torch.ones(6, requires_grad=True)
    with KeptStatistics({id(norm.weight): gate}):
        norm(torch.randn(3, 6))[:, 0].sum().backward()
    assert gate.grad is not None
    assert bool(gate.grad.abs().sum() > 0)


CALLS = {
    "mean": lambda x: x.mean(1),
    "mean over channels and positions": lambda x: torch.mean(x, dim=(1, 2, 3), keepdim=True),
    "mean of all": lambda x: x.mean(),
    "sum": lambda x: x.sum(1, keepdim=True),
    "variance": lambda x: x.var(1, unbiased=False),
    "deviation": lambda x: torch.std(x, (1, 2)),
    "largest and where": lambda x: torch.max(x, 1)[0],
    "largest": lambda x: x.amax(1, keepdim=True) + x.max(),
    "smallest": lambda x: x.min(1, keepdim=True)[0] - x.amin((1, 3), keepdim=True),
    "length": lambda x: x.norm(dim=1),
    "length of order 1": lambda x: torch.linalg.vector_norm(x, ord=1, dim=1),
    "of length 1": lambda x: F.normalize(x),
    "softmax": lambda x: x.softmax(1) + F.log_softmax(x, dim=1),
    "layer norm": lambda x: F.layer_norm(x.movedim(1, 3), (x.shape[1],)).movedim(3, 1),
    "RMS norm": lambda x: F.rms_norm(x.movedim(1, 3), (x.shape[1],)).movedim(3, 1),
    "group norm": lambda x: F.group_norm(x, 2),
}


class Calls(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, x):
        return self.run(x)


def gated(module, gate, x, path=""):
    kept = KeptStatistics({})
    with kept, inside(module, kept, {path: {(4, 1, 6): gate, (4, 3, 6): gate}}):
        return module(x)


@pytest.mark.parametrize("name", CALLS)
def test_statistics_without_weights_are_of_the_kept_channels(name):
    module, x = Calls(CALLS[name]), torch.randn(2, 6, 3, 5)
    torch.testing.assert_close(gated(module, torch.ones(6), x), module(x))
    kept = torch.tensor([True, False, True] * 2)
    wide, narrow = gated(module, kept.float(), x), module(x[:, kept])
    assert bool(wide.isfinite().all())
    torch.testing.assert_close(wide[:, kept] if wide.dim() > 1 and wide.shape[1] == 6 else wide, narrow)
    assert not torch.allclose(gated(module, kept.float(), x).sum(), module(x).sum())


def test_every_reduction_is_tried():
    called = {f.__name__.partition(".")[0] for f in REDUCTIONS}
    tried = {"mean", "sum", "var", "std", "max", "amax", "min", "amin", "norm", "vector_norm", "linalg_vector_norm"}
    assert called <= tried | {"normalize", "softmax", "log_softmax"}


@pytest.mark.parametrize("run", [lambda x: x.mean(2), lambda x: x.flatten(2).mean(1), lambda x: x[:, :5].amax(1)])
def test_other_dimensions_ranks_and_sizes_are_left_alone(run):
    module, x = Calls(run), torch.randn(2, 6, 6, 5)
    assert torch.equal(gated(module, torch.tensor([1.0, 0] * 3), x), module(x))


def test_statistics_of_other_modules_are_left_alone():
    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.child = Calls(lambda x: x.mean(1))

        def forward(self, x):
            return self.child(x), x.mean(1)

    parent, x, gate = Parent(), torch.randn(2, 6, 3, 5), torch.tensor([1.0, 0] * 3)
    before = parent(x)
    for path, answered in (("", 1), ("child", 0)):
        after = gated(parent, gate, x, path)
        assert not torch.allclose(after[answered], before[answered])
        assert torch.equal(after[1 - answered], before[1 - answered])
