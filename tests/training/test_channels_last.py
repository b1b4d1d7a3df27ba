"""Channels last in memory, where a network can be trained so."""

import pytest
import torch
from torch import nn

from deploy_prune.training import channels_last as layout
from deploy_prune.training.channels_last import channels_last


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


class Rows(nn.Module):
    """Looks at its feature map as rows, which takes channels first: always, or only while it is trained."""

    def __init__(self, always):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 1), nn.Dropout(), nn.BatchNorm2d(8))
        self.linear, self.always = nn.Linear(32, 2), always

    def forward(self, x):
        x = self.convs(x)
        rows = x.view(len(x), -1) if self.always or self.training else x.flatten(1)
        return self.linear(rows)


def strides(network):
    return {name: parameter.stride() for name, parameter in network.named_parameters()}


def test_channels_lie_last_inside_and_as_before_afterwards():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x, before = torch.randn(2, 3, 8, 8), strides(network)
    plain = network(x)
    with channels_last(network, (x,), torch.device("cpu")):
        assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
        assert network[0](x).is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(network(x), plain)
    assert strides(network) == before


def test_outputs_without_values_have_nothing_to_compare():
    class Found(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x):
            return {"found": self.conv(x)[:0], "names": "none"}

    network = Found()
    with channels_last(network, (torch.randn(2, 1, 4, 4),), torch.device("cpu")):
        assert network.conv.weight.is_contiguous(memory_format=torch.channels_last)


class Strides(nn.Module):
    """Reads its feature map by strides, without a look at how it lies."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 4, 3), nn.Linear(16, 2)

    def forward(self, x):
        return self.linear(self.conv(x).as_strided((len(x), 16), (16, 1)) * torch.arange(16))


def test_networks_whose_outputs_would_change_keep_channels_first():
    network, before = Strides(), strides(Strides())
    with channels_last(network, (torch.randn(2, 1, 4, 4),), torch.device("cpu")):
        assert strides(network) == before


def test_an_output_that_is_not_finite_is_not_the_same():
    ones = torch.ones(3)
    assert layout._alike(ones, ones + 1e-5)
    for bad in (float("inf"), float("-inf"), float("nan")):
        other = torch.tensor([1.0, bad, 1.0])
        assert not any(layout._alike(*pair) for pair in ((ones, other), (other, ones), (other, other)))


@pytest.mark.parametrize("always", [True, False])
def test_networks_that_need_channels_first_keep_them(always):
    network, before = Rows(always), strides(Rows(always))
    with channels_last(network, (torch.randn(2, 1, 4, 4),), torch.device("cpu")):
        assert strides(network) == before
    x = torch.randn(2, 1, 4, 4)
    with channels_last(network.train(), (x,), torch.device("cpu")):
        network(x).sum().backward()


def test_looking_at_the_layout_changes_nothing():
    network = small()
    state, random = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    with channels_last(network, (torch.randn(2, 1, 4, 4, generator=torch.Generator()),), torch.device("cpu")):
        assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


def test_other_devices_keep_their_layout():
    network = small()
    with channels_last(network, (), torch.device("meta")):
        assert network[0].weight.is_contiguous()
