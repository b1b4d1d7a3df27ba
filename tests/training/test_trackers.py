"""Figures sent to a tracker are read back from its own files."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import tiny_recipe

from deploy_prune.commands import check
from deploy_prune.errors import MissingDependencyError
from deploy_prune.run import pipeline
from deploy_prune.training import trackers
from deploy_prune.training.loop import make_accelerator


def scalars(folder):
    found = {}
    for place in {path.parent for path in folder.rglob("events.*tfevents*")}:
        events = EventAccumulator(str(place))
        events.Reload()
        found |= {name: [point.value for point in events.Scalars(name)] for name in events.Tags()["scalars"]}
    return found


def test_every_figure_is_logged_and_told_on(tmp_path):
    told = []
    accelerator = make_accelerator("cpu", trackers=["tensorboard"], folder=tmp_path)
    progress = trackers.Tracked(
        lambda *args, **figures: told.append((*args, figures)), accelerator, "mine", {"recipe": "{}"}
    )
    progress("train", 1, 2, loss=0.5)
    progress("train", 2, 2, loss=0.25)
    progress("cut", 1, 1)
    accelerator.end_training()
    assert told == [("train", 1, 2, {"loss": 0.5}), ("train", 2, 2, {"loss": 0.25}), ("cut", 1, 1, {})]
    assert scalars(tmp_path) == {"train/loss": [0.5, 0.25]}


@pytest.mark.slow
def test_a_run_sends_losses_and_costs(tmp_path):
    run = pipeline.run(tiny_recipe(track=["tensorboard"]), tmp_path)
    found = scalars(run.folder / "tracking")
    assert {"search/loss", "search/cost", "search/limit", "search/kept"} <= set(found)
    assert any(name.startswith("search/kept/") for name in found)
    assert all(0 < cost <= 1 for cost in found["search/cost"])


def test_a_tracker_that_is_not_installed_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.AVAILABLE, "wandb", lambda: False)
    with pytest.raises(MissingDependencyError, match="wandb is not installed: pip install wandb"):
        pipeline.run(tiny_recipe(track=["wandb"]), tmp_path)
    assert not list(tmp_path.iterdir()), "before anything is written"


def test_a_check_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check.check(tiny_recipe(track=["tensorboard"]))
    assert list(tmp_path.rglob("*")) == []
    monkeypatch.setitem(trackers.AVAILABLE, "wandb", lambda: False)
    with pytest.raises(MissingDependencyError, match="wandb is not installed"):
        check.check(tiny_recipe(track=["wandb"]))
