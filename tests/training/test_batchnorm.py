from itertools import cycle

import torch
from torch import nn

from deploy_prune.data.examples import Batch
from deploy_prune.training.batchnorm import reestimate


def stream(num=3):
    generator = torch.Generator().manual_seed(0)
    inputs = (torch.randn(20, 3, 4, 4, generator=generator) * 2 + 5 for _ in range(num))
    return [Batch((x,), torch.zeros(20)) for x in inputs]


def test_statistics_are_the_plain_average_over_the_batches():
    norm = nn.BatchNorm2d(3, momentum=0.1)
    norm.running_mean.fill_(100.0)
    data = stream()
    assert reestimate(norm, iter(data), 60) == 1
    means = torch.stack([x.mean((0, 2, 3)) for (x,), _ in data])
    variances = torch.stack([x.var((0, 2, 3)) for (x,), _ in data])  # unbiased, as torch keeps it
    assert torch.allclose(norm.running_mean, means.mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, variances.mean(0), atol=1e-4)


def test_nothing_else_changes():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5)).train()
    network[2].eval()
    before = {name: tensor.clone() for name, tensor in network.named_parameters()}
    reestimate(network, cycle(stream()), 40)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.named_parameters())
    assert network[1].momentum == 0.3
    assert [m.training for m in network] == [True, True, False]


def test_dropout_is_off_while_statistics_are_taken():
    network = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3)).train()
    reestimate(network, iter(data := stream(1)), 20)
    assert torch.allclose(network[1].running_mean, data[0].inputs[0].mean((0, 2, 3)), atol=1e-5)


def test_networks_without_norms_read_no_batch():
    norms = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
    assert reestimate(norms, iter(())) == 0
