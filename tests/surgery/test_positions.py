"""MACs per example are right wherever a layer's input has its batch; torch's own counter is the judge."""

from __future__ import annotations

import pytest
import torch
from flops import real_macs
from torch import nn

from deploy_prune.cost import macs
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.surgery.groups import find_groups


class Rearranged(nn.Module):
    """A layer that sees [B, 6, 4, 8, 8] as ``there`` makes it."""

    def __init__(self, layer, there):
        super().__init__()
        self.layer, self.there = layer, there

    def forward(self, x):
        return self.layer(self.there(x))


NETWORKS = {
    "attention, positions first": lambda: Rearranged(
        nn.TransformerEncoderLayer(8, 2, 16), lambda x: x.flatten(1, 3).transpose(0, 1)
    ),
    "attention, batch first": lambda: Rearranged(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), lambda x: x.flatten(1, 3)
    ),
    "windows among the batch": lambda: Rearranged(nn.Linear(8, 5), lambda x: x.flatten(0, 1)),
    "all in one dimension": lambda: Rearranged(nn.Linear(8, 5), lambda x: x.flatten(0, 3)),
    "frames among the batch": lambda: Rearranged(nn.Conv2d(4, 5, 3, padding=1), lambda x: x.flatten(0, 1)),
    "batch last": lambda: Rearranged(nn.Linear(8, 5), lambda x: x.movedim(0, -2)),
    "transposed": lambda: Rearranged(nn.ConvTranspose2d(4, 5, 2, stride=2), lambda x: x.flatten(0, 1)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_those_that_torch_counts(name, batch):
    network = NETWORKS[name]().eval()
    x = torch.rand(batch, 6, 4, 8, 8)
    structure = find_groups(network, (x,), PrunePart())
    assert macs(structure)(structure.dense_counts) * batch == real_macs(network, x)
