"""Training with torch.compile."""

import shutil

import pytest
import torch
from torch import nn

from deploy_prune.errors import TrainingError
from deploy_prune.retrain.features import Watch
from deploy_prune.training.compiled import compiled

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of what it is made of


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def gradients(network, forward, x):
    network.zero_grad()
    forward(x).square().sum().backward()
    return [p.grad.clone() for p in network.parameters()]


def test_without_it_the_network_is_itself(network):
    with compiled(network, wanted=False) as forward:
        assert forward is network


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_gradients_are_those_of_the_network_and_it_is_left_as_it_was(network):
    x, before = torch.randn(3, 4), dict(vars(network))
    plain = gradients(network, network, x)
    with compiled(network, wanted=True) as forward, Watch(forward, ["2.weight"]) as watch:
        for ours, theirs in zip(gradients(network, forward, x), plain, strict=True):
            torch.testing.assert_close(ours, theirs)
        assert watch.read["2.weight"].shape == (3, 8)
    assert vars(network) == before


def test_what_cant_be_compiled_is_told(network, monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    message, cause = "can't compile the network here: no compiler; leave `compile` out", "no compiler\nmore"
    with pytest.raises(TrainingError, match=message), compiled(network, wanted=True):
        raise TorchDynamoException(cause)
