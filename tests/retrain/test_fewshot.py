import copy

import pytest
import torch
from torch import nn

from deploy_prune.data.examples import ClassExamples, all_of
from deploy_prune.errors import TrainingError
from deploy_prune.recipe.parts import PrunePart, RetrainPart
from deploy_prune.retrain import fewshot
from deploy_prune.retrain.features import match
from deploy_prune.retrain.fewshot import adapt, feature_weight, for_new_classes, is_repaired, num_steps, peak_rate
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training.batchnorm import reestimate
from deploy_prune.training.loop import Session, make_accelerator, network_score


def bars(num, seed):
    """A vertical or a horizontal bar anywhere, in noise."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(num, 1, 8, 8, generator=generator) * 0.6
    labels = torch.arange(num) % 2
    for i, place in enumerate(torch.randint(8, (num,), generator=generator).tolist()):
        (images[i, 0, :, place] if labels[i] else images[i, 0, place]).fill_(1.0)
    return ClassExamples(images=images, labels=labels, mean=torch.tensor([0.4]), std=torch.tensor([0.3]))


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        nn.Linear(8, 2),
    )  # fmt: skip


def retrain(network, examples=None, teacher=None, **part):
    settings = {"steps": 60, "batch_size": 64, "lr": 0.02, **part}
    return adapt(
        network, examples or bars(20, 0), CLASSIFIER, RetrainPart(**settings), teacher=teacher,
        session=Session(accelerator=make_accelerator("cpu"), seed=0),
    )  # fmt: skip


@pytest.fixture(scope="module")
def taught():
    """A network that knows the task from many examples."""
    network = small(1)
    retrain(network, bars(600, 5), steps=150)
    return network


def test_few_examples_are_enough_for_something(taught):
    network = small()
    losses = retrain(network)
    assert len(losses.losses) == 60
    assert network_score(network, bars(200, 9), CLASSIFIER) > 0.85


def test_teacher_helps_and_is_left_alone(taught):
    before = copy.deepcopy(taught.state_dict())
    taught.zero_grad()
    network = small()
    retrain(network, teacher=taught, distill=1.0)
    (x,), _ = all_of(bars(200, 9))
    alone = small()
    retrain(alone)
    with torch.no_grad():
        agree, agree_alone = (
            (n.eval()(x).argmax(1) == taught.eval()(x).argmax(1)).float().mean() for n in (network, alone)
        )
    assert agree >= agree_alone
    assert all(torch.equal(tensor, before[name]) for name, tensor in taught.state_dict().items())
    assert all(p.grad is None for p in taught.parameters())


def test_without_a_share_the_teacher_is_not_asked():
    def refuse(*_args):
        message = "the teacher was asked"
        raise AssertionError(message)

    teacher = small(2)
    teacher.register_forward_pre_hook(refuse)
    retrain(small(), teacher=teacher, distill=0.0, steps=2)
    with pytest.raises(AssertionError, match="the teacher was asked"):
        retrain(small(), teacher=teacher, distill=0.1, steps=2)


def test_same_seed_same_weights():
    first, second = small(), small()
    retrain(first, steps=5)
    retrain(second, steps=5)
    assert all(torch.equal(t, second.state_dict()[name]) for name, t in first.state_dict().items())


@pytest.mark.parametrize("asked", ["reestimate", "running", "freeze"])
def test_batchnorm_is_reestimated_if_asked(asked):
    network = small()
    network[1].running_mean.fill_(1e4)
    retrain(network, steps=0, batchnorm=asked)
    assert (network[1].running_mean.abs().max() < 10) == (asked == "reestimate")


def test_loss_that_is_not_finite_stops():
    network = small()
    network[0].weight.data.fill_(torch.nan)
    with pytest.raises(TrainingError, match="^retrain: the loss is nan at step 1"):
        retrain(network)


def test_modes_are_restored():
    network, teacher = small().eval(), small(1).train()
    retrain(network, teacher=teacher, steps=1)
    assert not network.training
    assert teacher.training


def weights_after(**part):
    network = small()
    retrain(network, steps=8, **part)
    return network.state_dict()


@pytest.mark.parametrize(
    "option", [{"mix": "mixup"}, {"mix": "cutmix"}, {"ema": 0.9}, {"first_layer_lr": 0.01}, {"batchnorm": "freeze"}]
)
def test_every_option_reaches_the_training(option):
    plain, changed = weights_after(), weights_after(**option)
    assert any(not torch.equal(plain[name], changed[name]) for name in ("0.weight", "5.weight"))


def test_the_first_layer_moves_less_if_asked():
    before = small().state_dict()
    moved = [(weights_after(**part)["0.weight"] - before["0.weight"]).norm() for part in ({}, {"first_layer_lr": 0.01})]
    assert moved[1] < moved[0] / 10


def test_held_out_examples_are_not_trained_on_and_choose_the_step():
    network = small()
    done = retrain(network, bars(40, 0), hold_out=0.25, steps=60)
    assert done.num_held_out == 10
    assert 0 < done.chosen_step <= len(done.losses) <= 60
    assert retrain(small(), bars(40, 0), steps=3).num_held_out == 0


@pytest.mark.parametrize(("num", "steps"), [(10, 400), (500, 400), (5000, 1562), (50000, 4000)])
def test_steps_follow_the_number_of_examples(num, steps):
    assert num_steps(RetrainPart(), num) == steps
    assert num_steps(RetrainPart(steps=7), num) == 7


def test_new_weights_and_new_classes_learn_faster():
    assert peak_rate(RetrainPart()) < peak_rate(RetrainPart(init="fresh"))
    assert peak_rate(for_new_classes(RetrainPart())) == peak_rate(RetrainPart(init="fresh"))
    assert peak_rate(for_new_classes(RetrainPart(lr=0.1))) == 0.1


def test_only_weights_that_were_kept_follow_the_features():
    assert feature_weight(RetrainPart()) > feature_weight(RetrainPart(init="fresh")) == 0
    assert feature_weight(for_new_classes(RetrainPart())) == feature_weight(RetrainPart())
    assert feature_weight(RetrainPart(init="fresh", features=3.0)) == 3


@pytest.mark.parametrize(
    ("asked", "steps", "repaired"), [(None, 0, True), (None, 400, False), (True, 2, True), (False, 0, False)]
)
def test_a_cut_network_is_repaired_where_few_steps_follow(taught, monkeypatch, asked, steps, repaired):
    measured = []
    monkeypatch.setattr(fewshot, "reestimate", lambda *args: measured.append(args) or reestimate(*args))
    x = bars(4, 0).images
    structure = find_groups(taught, (x,), PrunePart())
    made = match(structure, {group.name: torch.arange(group.channels) % 2 == 0 for group in structure.groups})
    slim = cut(taught, structure, made.keep)
    part = RetrainPart(steps=steps, batch_size=16, repair=asked)
    session = Session(accelerator=make_accelerator("cpu"), seed=0)
    done = adapt(slim, bars(20, 0), CLASSIFIER, part, teacher=taught, session=session, match=made)
    assert (done.repaired is not None) is repaired
    assert len(done.losses) == steps
    assert len(measured) == (0 if repaired and not steps else 1), "a repair has measured batch norms"
    if steps == 0 and repaired:
        assert network_score(slim, bars(200, 9), CLASSIFIER) > 0.85


def test_new_weights_are_repaired_only_where_it_is_asked_for():
    assert is_repaired(RetrainPart(), 99)
    assert not is_repaired(RetrainPart(), 100)
    assert not is_repaired(RetrainPart(init="fresh"), 0)
    assert is_repaired(RetrainPart(init="fresh", repair=True), 400)
