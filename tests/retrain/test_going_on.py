"""Retraining that was stopped goes on as if it had not been."""

import pytest
import torch
from torch import nn

from deploy_prune.data.examples import ClassExamples
from deploy_prune.recipe.parts import RetrainPart
from deploy_prune.retrain.fewshot import adapt
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training.kept import Kept
from deploy_prune.training.loop import Session, make_accelerator

STEPS, STOPPED = 40, 37


class StoppedError(Exception):
    """Stands in for the end of the process."""


def noise():
    images = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 2
    return ClassExamples(images=images, labels=labels, mean=torch.tensor([0.5]), std=torch.tensor([0.3]))


def retrain(part, stop=None, kept=None):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    network, taken = nn.Sequential(*layers), []

    def progress(work, done, total, **figures):
        taken.append(done)
        if done == stop:
            raise StoppedError

    session = Session(accelerator=make_accelerator("cpu"), seed=0, progress=progress, kept=kept)
    told = adapt(network, noise(), CLASSIFIER, part, teacher=None, session=session)
    return network.state_dict(), (told.losses, told.num_held_out, told.chosen_step), taken


@pytest.mark.parametrize(
    "settings", [{}, {"ema": 0.9}, {"mix": "mixup"}, {"hold_out": 0.2, "lr": 0.1}, {"hold_out": 0.2, "ema": 0.9}]
)
def test_it_ends_the_same(tmp_path, settings):
    part = RetrainPart(**{"steps": STEPS, "batch_size": 8, **settings})
    weights, told, taken = retrain(part)
    last = taken[-1]
    stop = min(STOPPED, last - 1)
    with pytest.raises(StoppedError):
        retrain(part, stop, Kept(tmp_path / "kept", "key", print, 0.0))
    same, told_again, again = retrain(part, kept=Kept(tmp_path / "kept", "key", print))
    assert again == list(range(stop, last + 1))
    assert told_again == told
    assert all(torch.equal(tensor, same[name]) for name, tensor in weights.items())
