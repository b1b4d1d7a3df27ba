"""What a structure says a network costs, for any choice of channels, against the network that is cut to them."""

from __future__ import annotations

import counted_networks
import pytest
import torch
from flops import real_macs
from torch import nn

from deploy_prune import cost
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups, with_blueprint
from deploy_prune.types import Keep, Structure


def random_keep(structure: Structure, seed: int) -> Keep:
    """A random number of random units of every group, not all of them."""
    generator = torch.Generator().manual_seed(seed)
    keep = {g.name: torch.rand(g.channels, generator=generator) < 0.6 for g in structure.groups}
    for mask in keep.values():
        stays, goes = torch.randperm(len(mask), generator=generator)[:2]
        mask[stays], mask[goes] = True, False
    return keep


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(counted_networks.NETWORKS))
def test_macs_and_params_are_exact_for_every_choice(name: str) -> None:
    network, x = counted_networks.make(name)
    find = with_blueprint if name in counted_networks.AS_GRAPHS else find_groups
    structure = find(network, (x,), PrunePart())
    assert structure.groups
    macs, params = cost.macs(structure), cost.params(structure, network)
    assert macs(structure.dense_counts) == real_macs(network, x[:1])
    for seed in range(3):
        keep = random_keep(structure, seed)
        slim, counts = cut(network, structure, keep), {n: int(m.sum()) for n, m in keep.items()}
        assert macs(counts) == real_macs(slim, x[:1]) < macs(structure.dense_counts)
        assert params(counts) == sum(p.numel() for p in slim.parameters()) < params(structure.dense_counts)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["attention", "mixer", "computed", "gru", "blocks_bmm"])
def test_macs_are_those_of_one_example_however_many_are_traced(name: str) -> None:
    network, x = counted_networks.make(name)
    counted = []
    for batch in (1, 2, 4):
        structure = find_groups(network, (x[:batch],), PrunePart())
        counted.append(cost.macs(structure)(structure.dense_counts))
    assert counted == [real_macs(network, x[:1])] * 3


@pytest.mark.filterwarnings("ignore")
def test_every_layer_under_weight_norm_has_a_name_of_its_own() -> None:
    for name in ("weight_norm", "weight_norm_old"):
        network, x = counted_networks.make(name)
        layers = [layer for layer in find_groups(network, (x,), PrunePart()).layers if layer.taps]
        assert len({layer.tensor for layer in layers}) == len(layers) == 3


def test_a_recurrent_layer_is_left_whole_by_its_units() -> None:
    network, x = counted_networks.make("lstm")
    whole = {w.name: (w.channels, w.reason) for w in find_groups(network, (x,), PrunePart()).whole}
    assert whole["layers"] == (4 * 6, "layers is a recurrent layer (lstm), which is left whole"), (
        "2 layers, 2 directions"
    )


def test_sizes_of_files_go_by_embeddings_too() -> None:
    """Files of 4 bytes a number, and 500 beside them: dense, smallest and any other."""
    network, x = counted_networks.make("tokens")
    structure = find_groups(network, (x,), PrunePart())
    file = cost.params(structure, network).scaled(4, "size", exact=(structure.dense_counts, 20_000))
    smallest = dict.fromkeys(structure.dense_counts, 1)
    size = cost.size(structure, "fp32", file(structure.dense_counts), (smallest, file(smallest)))
    for counts in ({"places": 4, "inner": 20}, {"places": 13, "inner": 2}):
        assert counts.keys() == smallest.keys()
        assert size(counts) == pytest.approx(file(counts), rel=0.03)


class Halves(nn.Module):
    """A product of one half of a layer's channels; which of them are cut decides, not only how many."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        y = self.first(x)
        seen = torch.bmm(x, x.transpose(1, 2)).softmax(-1)
        a, b = y.chunk(2, -1)
        return self.last(torch.cat([torch.bmm(seen, a), b], -1))


def test_what_a_count_does_not_decide_is_counted_whole() -> None:
    structure = find_groups(Halves(), (torch.randn(2, 6, 8),), PrunePart())
    macs = cost.macs(structure)
    counts = {name: channels // 2 for name, channels in structure.dense_counts.items()}
    assert macs(counts) == 6 * 8 * 8 + 6 * 6 * 8 + 6 * 6 * 8 + 6 * 8 * 4
