"""A run's pictures: drawn once for the same network, by the task, and nothing of the stage's own."""

import json

import pytest
import torch
from own_tasks import DRAWN
from PIL import Image

from deploy_prune.errors import DataError
from deploy_prune.recipe.file import resolve
from deploy_prune.run import pictures, stages
from deploy_prune.run.context import prepare
from deploy_prune.run.folder import RunFolder
from deploy_prune.tasks import Drawn


def make_context(path, task="own_tasks:drawn"):
    values = {"name": "own", "task": task, "model": {"source": "own_tasks:sound"}, "device": "cpu", "threads": 1}
    context = prepare(resolve(values), RunFolder(path=path / "own"), lambda *args, **figures: None)
    context.folder.open(fresh=False)
    return context


@pytest.fixture
def context(tmp_path):
    DRAWN.clear()
    return make_context(tmp_path)


def told(context, place):
    return json.loads((context.folder.path / place / "pictures.json").read_text())["pictures"]


def test_the_truth_and_what_a_network_finds_are_drawn(context):
    pictures.draw(context, "truth")
    network = stages.target_network(context, None).form.network
    pictures.draw(context, "host/50%", network, "a network")
    assert [one["file"] for one in told(context, "truth")] == ["pictures/1.jpg", "pictures/2.jpg", "pictures/3.jpg"]
    with Image.open(context.folder.path / "host/50%/pictures/3.jpg") as last:
        assert last.format == "JPEG"
    (places, nothing), (same, outputs) = DRAWN
    assert nothing is None
    assert torch.equal(places, same)
    x = context.data.target_test.take(places).inputs[0]
    with torch.no_grad():
        assert torch.equal(outputs, network.eval()(x))
    said = outputs.argmax(1).tolist()
    assert [one["found"] for one in told(context, "host/50%")] == [[["#1f77b4", f"pitch {i}"]] for i in said]


def test_a_network_keeps_its_mode(context):
    network = stages.target_network(context, None).form.network.train()
    pictures.draw(context, "dense", network, "a network")
    assert network.training


def test_pictures_are_drawn_again_where_the_network_is_another(context):
    network = stages.target_network(context, None).form.network
    for key, times in (("a", 1), ("a", 1), ("b", 2)):
        pictures.draw(context, "dense", network, key)
        assert len(DRAWN) == times
    (context.folder.path / "dense/pictures/2.jpg").unlink()
    pictures.draw(context, "dense", network, "b")
    assert len(DRAWN) == 3
    assert (context.folder.path / "dense/pictures/2.jpg").is_file()


def test_of_a_task_that_can_not_draw_there_are_none(context):
    pictures.draw(context, "truth")
    other = make_context(context.folder.path.parent, "own_tasks:tones")
    pictures.draw(other, "truth")
    assert not (context.folder.path / "truth/pictures.json").exists(), "they were another task's"
    pictures.draw(other, "dense")
    assert not (context.folder.path / "dense").exists()


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda *given: 1 / 0, r"task: the draw of 'own_tasks:drawn' failed: ZeroDivisionError"),
        (lambda *given: [], r"must give a deploy_prune\.Drawn for each of 3 examples"),
        (lambda *given: [Image.new("RGB", (2, 2))] * 3, r"must give a deploy_prune\.Drawn for each of 3 examples"),
        (lambda *given: [Drawn(picture=Image.new("L", (2, 2)))] * 2, r"must give a deploy_prune\.Drawn for each of 3"),
        (lambda *given: None, r"failed: TypeError"),
    ],
)
def test_a_draw_that_fails_is_named(context, draw, said):
    object.__setattr__(context.task, "draw", draw)
    with pytest.raises(DataError, match=said):
        pictures.draw(context, "truth")
    assert not (context.folder.path / "truth/pictures.json").exists()
