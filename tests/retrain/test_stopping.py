from math import ceil

import pytest
import torch
from torch import nn

from deploy_prune.data.examples import ClassExamples
from deploy_prune.errors import DataError
from deploy_prune.retrain.stopping import CHECKS, PATIENCE, Average, BestSoFar, hold_out
from deploy_prune.tasks.classification import CLASSIFIER


def examples(*counts):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    images = torch.arange(len(labels)).view(-1, 1, 1, 1) / 1000
    return ClassExamples(images=images, labels=labels, mean=torch.zeros(1), std=torch.ones(1))


def test_all_are_trained_on_where_none_is_to_be_held_out():
    given = examples(200, 200)
    train, held = hold_out(given, 0.0, 0)
    assert train is given
    assert held is None


@pytest.mark.parametrize(
    ("counts", "share", "told"),
    [
        ((4, 4, 4), 0.2, "0.2 of the 4 examples of class 0 .* at least 5 examples"),
        ((9, 9), 0.1, "at least 10 examples"),
        ((1000, 3), 0.25, "0.25 of the 3 examples of class 1 .* at least 4 examples"),
        ((1, 1), 0.99, "at least 2 examples"),
    ],
)
def test_a_share_that_holds_none_of_a_class_out_is_refused(counts, share, told):
    with pytest.raises(DataError, match=rf"retrain\.hold_out.*{told}"):
        hold_out(examples(*counts), share, 0)
    enough = [max(count, ceil(1 / share)) for count in counts]
    assert torch.bincount(hold_out(examples(*enough), share, 0)[1].labels).min() >= 1


def test_as_large_a_part_of_every_class_is_held_out():
    train, held = hold_out(examples(100, 250), 0.1, 0)
    assert torch.bincount(held.labels).tolist() == [10, 25]
    assert torch.bincount(train.labels).tolist() == [90, 225]
    assert not set(train.images.flatten().tolist()) & set(held.images.flatten().tolist())


def test_the_share_is_the_recipes_and_the_draw_the_seeds():
    given = examples(10, 10)
    first, again, other = (hold_out(given, 0.5, seed)[1].images.flatten().tolist() for seed in (0, 0, 1))
    assert len(first) == 10
    assert first == again != other


def test_the_average_is_the_recursion():
    network = nn.Linear(1, 1, bias=False)
    average = Average(network, 0.6)
    expected = None
    for step, value in enumerate([1.0, 5.0, 2.0, 8.0], 1):
        with torch.no_grad():
            network.weight.fill_(value)
        average.step()
        decay = min(0.6, 1 - 1 / (step + 1))
        expected = value if expected is None else decay * expected + (1 - decay) * value
    assert torch.allclose(average.network.weight, torch.tensor([[expected]]))


def test_the_average_has_its_networks_statistics():
    network = nn.BatchNorm1d(2)
    average = Average(network, 0.9)
    network(torch.randn(8, 2) + 5)
    average.step()
    assert torch.equal(average.network.running_mean, network.running_mean)


@pytest.mark.parametrize("right", [4, 13])
def test_the_best_weights_stay_and_patience_ends(right):
    """A bias that moves towards the right answer and past it, and no patience in the first half."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        network[1].weight.zero_()
    held = examples(10, 0)
    best = BestSoFar(network, held, CLASSIFIER, CHECKS)
    ended = None
    for step in range(1, CHECKS + 1):
        with torch.no_grad():
            network[1].bias.copy_(torch.tensor([-abs(step - right), 0.0]))
        if best.step():
            ended = step
            break
    assert best.chosen == right
    assert best.state["1.bias"].tolist() == [0.0, 0.0]
    assert ended == max(right, CHECKS // 2) + PATIENCE
