"""A network that is its own exported graph behaves as a module does."""

import io

import pytest
import torch
from surgery_networks import cut_right, tried
from torch import Tensor, nn

from deploy_prune.api.prune import prune
from deploy_prune.networks import build
from deploy_prune.recipe.parts import ModelPart, PrunePart
from deploy_prune.surgery.graph_network import _BATCH, GraphNetwork
from deploy_prune.surgery.groups import with_blueprint


def slim() -> GraphNetwork:
    torch.manual_seed(0)
    network = build.build_network(ModelPart(source="resnet20"), 10).eval()
    x = torch.randn(4, 3, 32, 32)
    found = prune(network, x, lambda forward, batch: forward(batch).sum(), [x], method="uniform")[0].network
    assert isinstance(found, GraphNetwork)
    return found


def test_a_saved_network_comes_back_whole():
    network, x = slim(), torch.randn(4, 3, 32, 32)
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded, GraphNetwork)
    assert loaded.training is False
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert torch.equal(loaded(x), network(x))
    for one in (loaded, network):
        one.train()
        nn.functional.cross_entropy(one(x), torch.arange(4)).backward()
    assert torch.equal(loaded.conv1.weight.grad, network.conv1.weight.grad)
    loaded.eval(), network.eval()
    assert torch.equal(loaded(x), network(x)), "the same running statistics"


def test_labels_of_sequences_take_little_memory():
    layer = nn.TransformerEncoderLayer(256, 4, 512, dropout=0, batch_first=True)
    structure = with_blueprint(nn.Sequential(layer, nn.Linear(256, 4)).eval(), [torch.randn(2, 400, 256)], PrunePart())
    fields = [f for value in structure.blueprint.values.values() for f in getattr(value, "fields", ())]
    held = {f.untyped_storage().data_ptr(): f.untyped_storage().nbytes() for f in fields}
    assert sum(held.values()) < 1_000_000, "8 bytes a channel, or a unit of the hidden layer; not of each position"


class KeepsItsShape(nn.Module):
    """A head that makes its anchors anew when the shape of its input changes, and halves in the body."""

    shape, anchors = None, torch.empty(0)

    def __init__(self):
        super().__init__()
        self.body, self.part, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        first, second = self.body(x).relu().chunk(2, 1)
        y = self.head(torch.cat([self.part(first), second], 1))
        if self.shape != y.shape:
            self.anchors, self.shape = torch.linspace(0, 1, y.shape[-1]), y.shape
        return y + self.anchors


@pytest.mark.parametrize("ran", [None, 1, _BATCH])
def test_what_the_last_run_left_fixes_no_batch_size(ran):
    network, x = KeepsItsShape().eval(), torch.randn(4, 3, 8, 8)
    if ran:
        network(x[:1].expand(ran, -1, -1, -1))
    (found,) = prune(network, x, lambda forward, batch: forward(batch).sum(), [x], method="magnitude")
    assert isinstance(found.network, GraphNetwork)
    assert found.network(x[:3]).shape == (3, 4, 8, 8)


class Sizes(nn.Module):
    """Sizes in its code, and statistics over channels with and without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.norm, self.plain = nn.LayerNorm(16), nn.RMSNorm(12, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)).split(16, -1)[0]
        z = self.plain(self.second(y.softmax(-1) + y).split([5, 7], -1)[1].repeat(1, 2)[:, :12])
        return self.head(z * z.mean(-1, keepdim=True).sigmoid())


def test_a_graph_with_norms_is_cut_again():
    """There, norms and means are operators, not functions of torch."""
    torch.manual_seed(0)
    network, x = Sizes().eval(), torch.randn(6, 6)
    for width in (8, 4):
        slim = cut_right(network, tried(network, x), x)
        assert isinstance(slim, GraphNetwork)
        assert slim.first.weight.shape[0] == width
        network = slim
