"""Going on with a training that was stopped: bit for bit as if it had not been."""

import logging
import random
from functools import partial

import numpy as np
import picture_sets
import pytest
import torch
from torch import nn

from deploy_prune.data.examples import ClassExamples
from deploy_prune.errors import RunFolderError
from deploy_prune.families import raw_form
from deploy_prune.networks.grid_detector import GridDetector
from deploy_prune.recipe.parts import TrainPart
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.tasks.detection import DETECTION
from deploy_prune.tasks.task import Objective
from deploy_prune.training import kept, loop
from deploy_prune.training.kept import Kept
from deploy_prune.training.loop import Session, make_accelerator, set_seed, train_network

STEPS, STOPPED = 10, 9


class StoppedError(Exception):
    """Stands in for the end of the process."""


class Noisy(nn.Module):
    """Draws from every global generator, and counts in a buffer that is in no state dict."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2))
        self.last = nn.Linear(16, 2)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.calls += 1
            x = x * (1 + 0.1 * random.random() + 0.1 * np.random.rand() + 0.01 * self.calls)  # noqa: NPY002
        return self.last(self.inner(x))


def pictures():
    images = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    norm = {"mean": torch.tensor([0.5]), "std": torch.tensor([0.3])}
    return ClassExamples(images=images, labels=torch.arange(40) % 2, augment="shift_flip", **norm)


def train(where=None, stop=None, accumulate=1, objective=CLASSIFIER, network=None, examples=None):
    """(network, losses, the steps that were taken); it stops in step ``stop``."""
    set_seed(0)
    network, taken = network or Noisy(), []

    def progress(work, done, total, **figures):
        taken.append(done)
        if done == stop:
            raise StoppedError

    session = Session(
        accelerator=make_accelerator("cpu", accumulate=accumulate), seed=0, progress=progress, kept=where
    )  # fmt: skip
    part = TrainPart(steps=STEPS, batch_size=4)
    losses = train_network(network, examples or pictures(), objective, part, session=session, work="train")
    return network, losses, taken


def stopped(path, key="key", **how):
    with pytest.raises(StoppedError):
        train(Kept(path, key, print, 0.0), STOPPED, **how)
    assert path.exists()


def assert_same(one, other):
    assert one[1] == other[1]
    ours, theirs = one[0].state_dict(), other[0].state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_it_goes_on_as_if_it_had_not_stopped(tmp_path, accumulate):
    told = []
    stopped(tmp_path / "kept", accumulate=accumulate)
    gone_on = train(Kept(tmp_path / "kept", "key", told.append, 0.0), accumulate=accumulate)
    assert told == ["train goes on at step 9 of 10"]
    assert gone_on[2] == [9, 10]
    assert_same(gone_on, train(accumulate=accumulate))


@pytest.mark.parametrize("workers", [0, 2])
def test_detectors_too_whoever_reads_their_pictures(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(loop, "reestimate", partial(loop.reestimate, num_examples=12))
    examples = picture_sets.load(picture_sets.voc(tmp_path / "voc"), augment="mosaic").source_train
    examples = examples.framed(examples.frame, "mosaic", workers=workers)

    def detector():
        torch.manual_seed(0)
        network = GridDetector(3)
        form = raw_form(network, [torch.zeros_like(x) for x in examples.take(torch.tensor([0])).inputs])
        return {"network": form.network, "objective": Objective(task=DETECTION, form=form), "examples": examples}

    stopped(tmp_path / "kept", **detector())
    gone_on = train(Kept(tmp_path / "kept", "key", print), **detector())
    assert gone_on[2] == [9, 10]
    assert_same(gone_on, train(**detector()))


def test_another_trainings_file_is_ignored_and_replaced(tmp_path, caplog):
    stopped(tmp_path / "kept", key="another")
    began = train(Kept(tmp_path / "kept", "key", pytest.fail, 0.0))
    assert began[2] == list(range(1, STEPS + 1))
    assert_same(began, train())
    assert not caplog.records
    assert torch.load(tmp_path / "kept", weights_only=True)["key"] == "key"


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flipped(path):
    """One bit of a loss."""
    content = bytearray(path.read_bytes())
    content[content.index(b"data/0") + 200] ^= 1
    path.write_bytes(content)


def unfit(path):
    told = torch.load(path, weights_only=True)
    told["parts"][-1]["state"]["torch"] = torch.zeros(3)
    torch.save(told, path)


def of_another_shape(path):
    told = torch.load(path, weights_only=True)
    told["parts"][0]["state"]["last.weight"] = torch.zeros(3)
    torch.save(told, path)


def text(path):
    path.write_text("not a file of torch")


@pytest.mark.parametrize("damage", [cut_off, flipped, unfit, of_another_shape, text])
def test_a_damaged_file_is_named_and_ignored(tmp_path, caplog, damage):
    stopped(tmp_path / "kept")
    damage(tmp_path / "kept")
    with caplog.at_level(logging.WARNING):
        began = train(Kept(tmp_path / "kept", "key", pytest.fail))
    assert [r.getMessage().startswith(f"{tmp_path / 'kept'} can't be read (") for r in caplog.records] == [True]
    assert began[2] == list(range(1, STEPS + 1))
    assert_same(began, train())


def test_the_file_is_written_every_so_often(tmp_path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(kept.time, "monotonic", lambda: now[0])
    where = Kept(tmp_path / "kept", "key", print, 300.0)
    for losses in ([1.0] * step for step in range(1, 12)):
        now[0] += 100.0
        where.keep([], losses)
        written.append(len(torch.load(where.path, weights_only=True)["losses"]) if where.path.exists() else 0)
    assert written == [0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9]


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(told, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept.torch, "save", full)
    with pytest.raises(RunFolderError, match=r"kept can't be written \(No space left on device\)"):
        Kept(tmp_path / "kept", "key", print, 0.0).keep([], [1.0])
