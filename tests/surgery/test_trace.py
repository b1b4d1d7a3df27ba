"""Tracing: what training alone runs, masks, and the end of what hangs."""

from __future__ import annotations

import pytest
import torch
from surgery_networks import groups_of, half
from torch import Tensor, nn

from deploy_prune.errors import SurgeryError
from deploy_prune.networks.compare import relative_difference
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.try_groups import keep_cuttable


class Auxiliary(nn.Module):
    """A second head that only training has; dropout, and a batch norm without a momentum, which no trace can run."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU(), nn.Dropout(0.5))
        self.head, self.aux = nn.Conv2d(8, 4, 1), nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.body(x)
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


def test_a_head_that_only_training_has_is_cut_with_the_rest() -> None:
    network, x = Auxiliary(), torch.randn(4, 3, 8, 8)
    network.body[3].eval()
    modes = [m.training for m in network.modules()]
    structure = groups_of(network, x)
    assert [m.training for m in network.modules()] == modes
    assert [g.name for g in structure.groups] == ["body.0", "aux.0"]
    slim = cut(network, structure, half(structure)).train()
    assert (slim.aux[0].in_channels, slim.aux[0].out_channels, slim.aux[2].out_channels) == (4, 3, 4)
    assert [t.shape for t in slim(x)] == [t.shape for t in network.train()(x)]


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        self.transformer = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.transformer(self.stem(x), self.stem(x.flip(1)), tgt_mask=mask))


@pytest.mark.filterwarnings("ignore")
def test_torchs_transformer_with_a_causal_mask_is_cut_right() -> None:
    torch.manual_seed(0)
    network, x = Translator().eval(), torch.randn(4, 6, 8)
    structure = keep_cuttable(network, groups_of(network, x), (x[:2],), gates_of, PrunePart())
    keep = half(structure)
    slim = cut(network, structure, keep).eval()
    gates = {n: m.float() for n, m in keep.items()}
    masked = gates_of(structure)(network, gates)
    assert relative_difference(masked(x), slim(x)) < 1e-5
    later = torch.cat([x[:, 1:], x[:, :1]], 1)
    assert relative_difference(masked(later), slim(later)) < 1e-5
    assert slim.get_parameter("transformer.encoder.layers.0.linear1.weight").shape == (8, 4)


class Unpredictable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_traced_is_named_so() -> None:
    with pytest.raises(SurgeryError, match="can't be traced"):
        find_groups(Unpredictable(), (torch.zeros(1),), PrunePart())
