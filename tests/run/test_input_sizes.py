"""Runs whose input may have several sizes."""

from __future__ import annotations

import json
from math import prod

import numpy
import onnx
import pytest
import torch
from rich.console import Console
from tiny_run import ArithmeticDevice, arithmetic_device, tiny_recipe
from torch import nn

import deploy_prune
from deploy_prune.api.export import export_saved
from deploy_prune.api.load import load
from deploy_prune.commands.check import check
from deploy_prune.commands.export import bundles
from deploy_prune.commands.export_folder import folder_bundle
from deploy_prune.commands.transfer import transfer
from deploy_prune.device import RUNNERS
from deploy_prune.errors import DataError, MeasurementError, SurgeryError
from deploy_prune.report.table import results_table
from deploy_prune.run import pipeline, preprocessing, trained
from deploy_prune.run.context import RunContext

SIDES = (16, 8)
BUDGETS = ("60%", "30%")
DATA = {
    "image_size": [[8, 8], [16, 16]], "channels": 1, "source_classes": [0, 1, 2], "target_classes": [3, 4, 5],
    "shots": 5,
}  # fmt: skip
SIZES = {"data": DATA, "targets": ["host"], "budgets": list(BUDGETS)}


class PixelDevice(ArithmeticDevice):
    """Takes time for each pixel of a network's input; as long as the arithmetic device where it is 16 x 16."""

    def node_ms(self, path):
        (first,) = onnx.load(path).graph.input
        pixels = prod(d.dim_value for d in first.type.tensor_type.shape.dim[2:])
        return {name: ms * pixels / 256 for name, ms in super().node_ms(path).items()}


@pytest.fixture
def pixel_device(tmp_path, monkeypatch):
    with arithmetic_device(tmp_path / "cache"):
        device = PixelDevice()
        monkeypatch.setitem(RUNNERS, "local", device)
        yield device


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with arithmetic_device(tmp_path_factory.mktemp("cache")), pytest.MonkeyPatch.context() as patch:
        device = PixelDevice()
        patch.setitem(RUNNERS, "local", device)
        out = tmp_path_factory.mktemp("runs")
        yield device, out, pipeline.run(tiny_recipe(**SIZES), out)


def tried_of(out, budget):
    return json.loads((out / "tiny" / "host" / budget / "size.json").read_text())


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_best_size_on_held_out_examples_is_delivered_within_the_budget(finished, budget):
    _, out, done = finished
    row = next(row for row in done.rows if row.budget == budget)
    tried = tried_of(out, budget)
    assert [one["size"] for one in tried] == [[16, 16], [8, 8]]
    best = max((one for one in tried if one["score"] is not None), key=lambda one: one["score"])
    assert row.status == "ok"
    assert list(row.image_size) == best["size"]
    share = row.measured_p50_ms / row.dense_p50_ms
    assert share <= float(budget.rstrip("%")) / 100 * 1.03, "of the dense network at the largest size"
    assert load(out / "tiny" / "host" / budget, trust=True)(torch.zeros(1, 1, *row.image_size)).shape == (1, 3)
    graph = onnx.load(out / "tiny" / "host" / budget / "model.onnx").graph
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim[2:]] == best["size"]


def test_the_dense_row_is_the_largest_sizes(finished):
    _, out, done = finished
    (dense,) = (row for row in done.rows if row.budget == "dense")
    assert dense.image_size == (16, 16)
    adapted = json.loads((out / "tiny" / "dense" / "adapted.json").read_text())
    assert dense.score == adapted["score"]
    assert {row.score_dense for row in done.rows} == {dense.score}


def test_each_size_has_a_dense_network_that_was_trained_on(finished):
    _, out, _ = finished
    large, small = (
        json.loads((out / "tiny" / name / "training.json").read_text())["loss"] for name in ("dense", "dense@8x8")
    )
    assert len(small) == 6, "as many steps as the search"
    assert len(large) == 10
    files = [out / "tiny" / name / "weights.safetensors" for name in ("dense", "dense@8x8")]
    assert files[0].read_bytes() != files[1].read_bytes()


def test_a_second_run_does_nothing_again(finished):
    device, out, done = finished
    asked = sum(device.asked.values())
    assert pipeline.run(tiny_recipe(**SIZES), out).rows == done.rows
    assert sum(device.asked.values()) == asked


def test_tables_and_bundles_say_the_size(finished, tmp_path):
    _, out, done = finished
    console = Console(width=80, record=True)
    console.print(results_table(done.rows))
    text = console.export_text()
    for row in done.rows:
        assert "{} x {} px".format(*row.image_size) in text
    page = (out / "tiny" / "report.html").read_text()
    for row in done.rows:
        assert "{} x {} px".format(*row.image_size) in page
        (made,) = bundles(out / "tiny", "host", row.budget, tmp_path / row.budget, trust=True).bundles
        assert numpy.load(made.folder / "sample" / "input.npy").shape[-2:] == row.image_size


def test_what_is_made_of_a_smaller_network_has_its_size(finished, tmp_path):
    _, out, done = finished
    row = next(row for row in done.rows if row.image_size == (8, 8))
    place = out / "tiny" / "host" / row.budget
    assert export_saved(place, "host@int8", tmp_path / "slim.onnx", trust=True).input_shape == (1, 1, 8, 8)
    transfer(place, ["retrain.steps=2"], out=tmp_path / "moved", trust=True)
    saved = deploy_prune.save(load(place, trust=True), tmp_path / "saved", like=place)
    for number, folder in enumerate((place, tmp_path / "moved", saved)):
        made = folder_bundle(folder, "pixel-8@onnx", tmp_path / str(number), trust=True)
        assert numpy.load(made.folder / "sample" / "input.npy").shape[-2:] == (8, 8)


@pytest.mark.parametrize("side", SIDES)
def test_the_choice_follows_the_score(side, pixel_device, tmp_path, monkeypatch):
    def score(context, structure, keep, start):
        return float(context.data.source_train.take(torch.tensor([0])).inputs[0].shape[-1] == side)

    monkeypatch.setattr(trained, "score_of_cut", score)
    done = pipeline.run(tiny_recipe(**{**SIZES, "budgets": ["40%"]}), tmp_path)
    assert [row.image_size for row in done.rows] == [(16, 16), (side, side)]
    assert [row.status for row in done.rows] == ["ok", "ok"]


def test_a_size_that_cannot_be_tried_ends_no_run(pixel_device, tmp_path, monkeypatch, caplog):
    def fails(*_):
        message = "the device is gone"
        raise MeasurementError(message)

    recipe = tiny_recipe(**{**SIZES, "budgets": ["60%"]})
    with monkeypatch.context() as patch:
        patch.setattr(trained, "score_of_cut", fails)
        rows = pipeline.run(recipe, tmp_path).rows
    assert [(row.status, row.image_size) for row in rows] == [("ok", (16, 16))] * 2
    assert "host 60%: the largest input is taken, for others can't be tried: the device is gone" in caplog.text
    assert not (tmp_path / "tiny/host/60%/size.json").exists()
    pipeline.run(recipe, tmp_path)
    assert len(tried_of(tmp_path, "60%")) == 2, "the next run tries again"


def test_a_budget_that_only_a_smaller_input_meets(pixel_device, tmp_path):
    recipe = tiny_recipe(**{**SIZES, "budgets": ["40%"], "prune": {"min_channels": 15}})
    (met,) = check(recipe).budgets
    assert met.met
    _, row = pipeline.run(recipe, tmp_path).rows
    assert (row.status, row.image_size) == ("ok", (8, 8))
    large, small = tried_of(tmp_path, "40%")
    assert large["score"] is None
    assert "can't be met" in large["error"]
    assert small["error"] is None


def test_sizes_and_branches_go_together(pixel_device, tmp_path):
    changes = {"model": {"source": "tiny_run:residual"}, "prune": {"depth": True}, "budgets": ["30%"]}
    rows = pipeline.run(tiny_recipe(**{**SIZES, **changes}), tmp_path).rows
    assert [row.status for row in rows] == ["ok", "ok"]


def test_several_devices_at_once_find_the_same(finished, tmp_path, monkeypatch):
    _, _, done = finished
    with arithmetic_device(tmp_path / "cache"):
        monkeypatch.setitem(RUNNERS, "local", PixelDevice())
        rows = pipeline.run(tiny_recipe(**SIZES), tmp_path, jobs=2).rows
    assert [(row.budget, row.image_size, row.macs) for row in rows] == [
        (row.budget, row.image_size, row.macs) for row in done.rows
    ]


def opened(recipe, path):
    found = preprocessing.resolve(recipe)
    return RunContext(
        recipe=found.recipe, task=found.task, folder=path, data=found.data, session=None, targets=(), since=0.0,
        summary=(),
    )  # fmt: skip


def test_nothing_is_trained_on_what_a_size_is_chosen_by(tmp_path):
    context = opened(tiny_recipe(**SIZES), tmp_path)
    small = context.at_size((8, 8))
    (train, held), (small_train, small_held) = trained.source_parts(context), trained.source_parts(small)
    assert len(train) + len(held) == len(context.data.source_train)
    assert len(held) == pytest.approx(trained.HELD_OUT * len(context.data.source_train), abs=3)
    seen = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in seen for image in held.images)
    assert torch.equal(train.labels, small_train.labels)
    assert torch.equal(held.labels, small_held.labels), "all sizes are judged by the same examples"
    assert small_train.size == (8, 8)


def test_with_one_size_everything_is_trained_on(tmp_path):
    context = opened(tiny_recipe(), tmp_path)
    assert trained.source_parts(context) == (context.data.source_train, None)


def test_a_list_of_one_is_that_size():
    one = tiny_recipe(data={**DATA, "image_size": [[16, 8]]})
    assert one.data.image_size == [16, 8]


def test_too_few_examples_to_hold_some_out(tmp_path):
    images = torch.rand(12, 1, 16, 16).mul(255).byte().numpy()
    labels = numpy.arange(12) % 3
    numpy.savez(tmp_path / "few.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    recipe = tiny_recipe(
        data={"source": "npz", "root": str(tmp_path / "few.npz"), "image_size": [[16, 16], [8, 8]], "channels": 1}
    )
    with pytest.raises(DataError, match=r"data.image_size: a share of 0.1 of the 4 examples .* or give one size"):
        pipeline.run(recipe, tmp_path / "runs")


def of_16(num_classes: int) -> nn.Module:
    """A network whose classifier fixes the size."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(),
        nn.Linear(8 * 256, num_classes),
    )  # fmt: skip


def test_a_network_that_takes_one_size_only(tmp_path):
    recipe = tiny_recipe(**{**SIZES, "model": {"source": f"{__name__}:of_16"}, "targets": ["pixel-8"]})
    with pytest.raises(SurgeryError, match=r"data.image_size: the network can't be cut at 8x8: "):
        pipeline.run(recipe, tmp_path)
