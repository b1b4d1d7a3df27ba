"""One construct at a time: masked == cut, or left whole with the reason."""

from __future__ import annotations

import pytest
import torch
from surgery_constructs import CUT, WHOLE, Net
from surgery_networks import groups_of, half

from deploy_prune.networks.compare import relative_difference
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.try_groups import keep_cuttable
from deploy_prune.types import Structure


def settled(network: Net) -> tuple[Structure, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    network.eval()
    return keep_cuttable(network, groups_of(network, x), (x[:2],), gates_of, PrunePart()), x


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CUT)
def test_construct_is_cut_right(name: str) -> None:
    network = CUT[name]
    structure, x = settled(network)
    assert any(a.tensor == "stem.weight" for g in structure.groups for a in g.members), structure.whole
    keep = half(structure)
    slim = cut(network, structure, keep).eval()
    gates = {n: m.float() for n, m in keep.items()}
    with torch.no_grad():
        assert relative_difference(gates_of(structure)(network, gates)(x), slim(x)) < 1e-5
        dense = relative_difference(network(x), slim(x))
    assert dense > 1e-3
    assert slim.stem.weight.shape[0] < 8


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WHOLE)
def test_construct_is_whole_with_the_reason(name: str) -> None:
    network, reason = WHOLE[name]
    structure, _ = settled(network)
    assert not any(a.tensor == "stem.weight" for g in structure.groups for a in g.members)
    assert any(reason in w.reason for w in structure.whole), structure.whole
