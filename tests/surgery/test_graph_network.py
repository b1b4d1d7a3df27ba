"""A network that is its own exported graph behaves as a module does."""

import io

import torch
from torch import nn

from deploy_prune.api.prune import prune
from deploy_prune.networks import build
from deploy_prune.recipe.parts import ModelPart
from deploy_prune.surgery.graph_network import GraphNetwork


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
