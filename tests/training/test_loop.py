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
