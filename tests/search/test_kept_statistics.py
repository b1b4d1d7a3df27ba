"""Norms over kept channels: torch's own with open gates, a narrower norm with closed ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deploy_prune.search.kept_statistics import KeptStatistics, group_norm, layer_norm, rms_norm


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
