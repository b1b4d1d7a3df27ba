import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from deploy_prune.data.examples import Batch, ClassExamples, all_of
from deploy_prune.errors import TrainingError
from deploy_prune.recipe.parts import TrainPart
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training import loop
from deploy_prune.training.loop import (
    Session,
    channels_last,
    decay_groups,
    fit,
    make_accelerator,
    network_score,
    one_cycle,
    placed,
    set_seed,
    train_network,
)

CPU = make_accelerator("cpu")


def two_kinds(num=40):
    """Bright on the left, or on the right."""
    images = torch.rand(num, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.3
    labels = torch.arange(num) % 2
    images[labels == 0, :, :, :2] += 0.5
    images[labels == 1, :, :, 2:] += 0.5
    return ClassExamples(images=images, labels=labels, mean=torch.tensor([0.5]), std=torch.tensor([0.3]))


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def train(network=None, **part):
    network = network or small()
    losses = train_network(
        network, two_kinds(), CLASSIFIER, TrainPart(**{"steps": 20, "batch_size": 8, **part}), work="train",
        session=Session(accelerator=CPU, seed=0),
    )  # fmt: skip
    return network, losses


# --- training ---


def test_training_learns():
    network = small()
    before = network_score(network, two_kinds(), CLASSIFIER)
    _, losses = train(network)
    assert network_score(network, two_kinds(), CLASSIFIER) == 1.0 > before
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert len(losses) == 20


def test_same_seed_same_weights():
    first, second = train()[0].state_dict(), train()[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


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
    assert loop._alike(ones, ones + 1e-5)
    for bad in (float("inf"), float("-inf"), float("nan")):
        other = torch.tensor([1.0, bad, 1.0])
        assert not any(loop._alike(*pair) for pair in ((ones, other), (other, ones), (other, other)))


@pytest.mark.parametrize("always", [True, False])
def test_networks_that_need_channels_first_keep_them(always):
    network, before = Rows(always), strides(Rows(always))
    with channels_last(network, (torch.randn(2, 1, 4, 4),), torch.device("cpu")):
        assert strides(network) == before
    assert train(Rows(always), steps=2)[1]


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


def test_no_steps_change_nothing():
    before = small().state_dict()
    network, losses = train(steps=0)
    assert losses == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_short_training_leaves_no_first_statistics_behind():
    """torchvision's MobileNetV3 has this momentum: after 20 steps four fifths of its statistics are the first ones."""
    network = small()
    network[1].momentum = 0.01
    train(network)
    assert network[1].momentum == 0.01
    assert network_score(network, two_kinds(), CLASSIFIER) == 1.0
    x = all_of(two_kinds()).inputs[0]
    assert torch.allclose(network[1].running_mean, network[0](x).mean((0, 2, 3)), atol=0.05)


def test_loss_that_is_not_finite_stops_with_step_and_rate():
    network = small()
    network[0].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"^train: the loss is nan at step 1, learning rate 0\.005"):
        train(network)
    with pytest.raises(TrainingError, match=r"lower the learning rate"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 2)), lr=1000, steps=300)


def test_nothing_is_updated_on_a_loss_that_is_not_finite():
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    losses = iter([1.0, torch.inf])
    with pytest.raises(TrainingError, match=r"^search: the loss is inf at step 2, learning rate 0\.5"):
        fit(
            lambda batch: (weight * next(losses)).sum(),
            iter(lambda: torch.zeros(1), None),
            [optimizer],
            session=Session(accelerator=CPU, seed=0),
            steps=5,
            work="search",
        )
    assert weight.item() == 0.5


def test_fit_tells_progress_and_steps_all_optimizers():
    weights = [nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))]
    told = []
    fit(
        lambda batch: weights[0] + weights[1] + batch["x"][0],
        iter(lambda: {"x": [torch.tensor(1.0)]}, None),
        [torch.optim.SGD([w], lr=0.25) for w in weights],
        session=Session(
            accelerator=CPU,
            seed=0,
            progress=lambda work, done, total, **figures: told.append((work, done, total, figures)),
        ),
        steps=2,
        work="both",
    )
    assert told == [("both", 1, 2, {"loss": 3.0}), ("both", 2, 2, {"loss": 2.5})]
    assert [w.item() for w in weights] == [0.5, 0.5]


def mean_squares(network, accumulate, batches, steps=3):
    """Losses, when trained to answer 0; dropout and batch norm aside, examples don't see each other."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return fit(
        lambda x: network(x).square().mean(),
        iter(batches),
        [optimizer],
        session=Session(accelerator=make_accelerator("cpu", accumulate=accumulate), seed=0),
        steps=steps,
        work="fit",
        schedulers=[torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)],
    )


def test_accumulated_batches_are_one_large_batch():
    torch.manual_seed(0)
    batches = [torch.rand(12, 4) for _ in range(3)]
    whole, parts = (nn.Linear(4, 3) for _ in range(2))
    parts.load_state_dict(whole.state_dict())
    losses = mean_squares(whole, 1, batches), mean_squares(parts, 4, [p for b in batches for p in b.split(3)])
    make_accelerator("cpu")
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert len(losses[1]) == 3
    torch.testing.assert_close(whole.weight, parts.weight)
    torch.testing.assert_close(whole.bias, parts.bias)


def test_half_precision_computes_in_it_and_keeps_the_weights():
    network, seen = nn.Linear(4, 1), []
    before = network.weight.clone()

    def loss(x):
        y = network(x)
        seen.append(y.dtype)
        return y.float().square().mean()

    fit(
        loss, iter(lambda: torch.ones(2, 4), None), [torch.optim.SGD(network.parameters(), lr=0.1)],
        session=Session(accelerator=make_accelerator("cpu", "bf16"), seed=0), steps=2, work="fit",
    )  # fmt: skip
    make_accelerator("cpu")
    assert seen == [torch.bfloat16] * 2
    assert network.weight.dtype == torch.float32
    assert not torch.equal(network.weight, before)


@pytest.mark.parametrize(("precision", "accumulate"), [("fp16", 1), ("half", 1), ("no", 0)])
def test_precisions_and_accumulation_that_there_are_not(precision, accumulate):
    with pytest.raises(TrainingError, match=f"not '{precision}'; accumulate at least 1"):
        make_accelerator("cpu", precision, accumulate)


def test_learning_rate_makes_one_cycle():
    optimizer = torch.optim.SGD(small().parameters(), lr=0.1)
    (scheduler,) = one_cycle(optimizer, steps=100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.1, rel=1e-3)
    assert 15 <= rates.index(max(rates)) <= 25
    assert 0 < rates[-1] < 1e-3


def test_rates_grow_from_the_first_layer_to_the_last():
    groups = decay_groups(small(), 0.5, 0.1, 0.01)
    rates = sorted({group["lr"] for group in groups})
    assert rates[0] == pytest.approx(0.001)
    assert rates[-1] == pytest.approx(0.1)
    steps = [after / before for before, after in pairwise(rates)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert sum(len(group["params"]) for group in groups) == len([*small().parameters()])


def test_biases_and_norms_do_not_decay():
    groups = decay_groups(small(), 0.5, 0.1)
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.5, 2), (0, 4)]


# --- accuracy, place and mode ---


class Constant(nn.Module):
    """Says class 1 while it is evaluated, class 0 while it is trained."""

    def forward(self, x):
        return torch.tensor([[1.0, 0.0], [0.0, 1.0]])[int(not self.training)].expand(len(x), 2)


@pytest.mark.parametrize("at_a_time", [1, 7, 100])
def test_accuracy_is_the_share_of_hits_in_evaluation_mode(at_a_time, monkeypatch):
    monkeypatch.setattr(loop, "SCORED", at_a_time)
    examples = two_kinds(10)
    examples.labels[:4] = 1
    network = Constant().train()
    assert network_score(network, examples, CLASSIFIER) == pytest.approx(7 / 10)
    assert network.training


def test_placed_restores_every_mode():
    network = small().train()
    network[1].eval()
    with placed(network, torch.device("cpu"), training=True) as inside:
        assert inside[1].training
    assert network.training
    assert not network[1].training


def test_classification_is_cross_entropy():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    loss = CLASSIFIER.batch_loss(lambda x: logits, Batch((torch.zeros(2),), torch.tensor([0, 1])))
    assert loss.item() == pytest.approx(np.log(2))


# --- seeds and devices ---


def test_seed_sets_every_generator():
    def draw(seed):
        set_seed(seed)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw(1) == draw(1)
    assert all(a != b for a, b in zip(draw(1), draw(2), strict=True))


def test_devices():
    assert make_accelerator("cpu").device.type == "cpu"
    assert make_accelerator("auto").device.type in {"cpu", "cuda", "mps"}
    assert make_accelerator("cpu").device.type == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cpu:1", "cuda:99"])
def test_devices_that_are_not_there(device):
    with pytest.raises(TrainingError, match=f"device: '?{device}"):
        make_accelerator(device)


@pytest.mark.parametrize("steps", range(2, 12))
def test_the_learning_rate_rises_and_falls_however_few_the_steps(steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    (schedule,) = one_cycle(optimizer, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) <= 1 + 1e-9
    assert rates[-1] < max(rates) or steps == 2
