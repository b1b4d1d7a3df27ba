"""A run that is given again: what changed is made again, and nothing else."""

import json
import re
import sys

import numpy
import pytest
import tiny_run
from tiny_run import arithmetic_device, tiny_recipe

from deploy_prune.device.targets import load_target, targets_folder
from deploy_prune.latency import granularity
from deploy_prune.run import pipeline, stages
from deploy_prune.run import trained as work
from deploy_prune.run.context import prepare
from deploy_prune.run.folder import RunFolder

WIDE = {"source": "tiny_run:network", "args": {"width": 24}}
NETWORK = """
import my_parts
from tiny_run import network
def make(num_classes):
    return my_parts.change(network(num_classes))
"""


@pytest.fixture
def trained(monkeypatch):
    """The names of what was trained, searched and scored anew."""
    calls = []
    adapt, classify = work.adapt, work.train_network
    monkeypatch.setattr(work, "adapt", lambda n, *a, **k: calls.append(k["work"]) or adapt(n, *a, **k))
    monkeypatch.setattr(work, "train_network", lambda n, *a, **k: calls.append(k["work"]) or classify(n, *a, **k))
    methods = {name: counted(method, calls) for name, method in work.METHODS.items()}
    monkeypatch.setattr(work, "METHODS", methods)
    return calls


def counted(method, calls):
    return lambda job: calls.append("search") or method(job)


def images(path, test_pixel=0):
    lot = numpy.random.default_rng(0)
    y = numpy.arange(120) % 6
    x = lot.integers(0, 60, (120, 16, 16, 1)).astype("uint8")
    x[numpy.arange(120), (y * 2), :, 0] = 250
    test = x.copy()
    test[y >= 3, 0, 0] += test_pixel
    numpy.savez(path, x_train=x, y_train=y, x_test=test, y_test=y)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A recipe of the user's own code and data."""
    (tmp_path / "my_net.py").write_text(NETWORK)
    (tmp_path / "my_parts.py").write_text("def change(network):\n    return network\n")
    images(tmp_path / "d.npz")
    monkeypatch.syspath_prepend(tmp_path)
    part = {
        "source": "npz", "root": str(tmp_path / "d.npz"), "image_size": 16, "channels": 1,
        "source_classes": [0, 1, 2], "target_classes": [3, 4, 5], "shots": 5,
    }  # fmt: skip
    yield tiny_recipe(model={"source": "my_net:make"}, data=part)
    for name in ("my_net", "my_parts"):
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_only_what_changed_content_matters_to_is_made_again(own, tmp_path, trained):
    def again():
        trained.clear()
        for name in ("my_net", "my_parts"):
            sys.modules.pop(name, None)
        pipeline.run(own, tmp_path / "runs")
        return [name.rpartition(": ")[2].partition(" with ")[0] for name in trained]

    assert again() == ["train the dense network", "search", "adapt the dense network", "retrain"]
    (tmp_path / "my_net.py").touch()
    (tmp_path / "d.npz").touch()
    assert again() == []
    images(tmp_path / "d.npz", test_pixel=9)
    assert again() == ["adapt the dense network", "retrain"], "scored on other images of the target"
    (tmp_path / "my_parts.py").write_text("from torch import nn\ndef change(n):\n    n[2] = nn.Tanh()\n    return n\n")
    assert again() == ["train the dense network", "search", "adapt the dense network", "retrain"]


def test_what_no_result_depends_on_retrains_nothing(tmp_path, trained):
    own = tmp_path / "mine.yaml"
    text = (targets_folder() / "pixel-8.yaml").read_text().replace("name: pixel-8", "name: mine")
    own.write_text(text)
    pipeline.run(tiny_recipe(targets=[str(own)]), tmp_path / "runs")
    trained.clear()
    own.write_text(text.replace("title: ", "title: A typo mended, "))
    changes = {"measure": {"runs": 21, "warmup": 2}, "export": {"calibration_examples": 128}}
    run = pipeline.run(tiny_recipe(targets=[str(own)], **changes), tmp_path / "runs")
    assert trained == []
    assert [row.error for row in run.rows] == [None, None]


def steps(run):
    return json.loads((run.folder / "host/70%/loop.json").read_text())["steps"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_an_attached_device(tmp_path, trained, monkeypatch):
    """A larger table, another machine, --fresh: one run of each, for a run takes a while."""
    recipe = tiny_recipe(targets=["host"], budgets=["70%"], metric="latency", model=WIDE)
    with arithmetic_device(tmp_path / "cache") as device:
        pipeline.run(recipe, tmp_path / "runs")
        context = prepare(recipe, RunFolder(path=tmp_path / "x"), lambda *args, **figures: None)
        stages.candidate_costs(context, tmp_path / "scratch").tabled(load_target("host"), 8, 0)
        trained.clear()
        first = pipeline.run(recipe, tmp_path / "runs")
        assert trained == [], "a larger latency table retrains nothing"

        there = granularity._this_machine() | {"host": "elsewhere"}
        monkeypatch.setattr(granularity, "_this_machine", lambda: there)
        monkeypatch.setattr(tiny_run, "MS_PER_WEIGHT", 3e-5)
        asked = device.asked["bench"]
        second = pipeline.run(recipe, tmp_path / "runs")
        assert device.asked["bench"] > asked, "another machine is measured, not believed"
        assert second.rows[0].measured_p50_ms > 2 * first.rows[0].measured_p50_ms
        assert steps(second)[-1]["observed"] == pytest.approx(second.rows[1].measured_p50_ms)

        monkeypatch.setattr(tiny_run, "MS_PER_WEIGHT", 9e-5)
        third = pipeline.run(recipe, tmp_path / "runs", fresh=True)
        assert steps(third)[-1]["observed"] == pytest.approx(third.rows[1].measured_p50_ms)
        assert third.rows[0].measured_p50_ms > 2 * second.rows[0].measured_p50_ms


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_order_of_targets_changes_no_network(tmp_path):
    changes = {"budgets": ["80%"], "metric": "latency", "search": {"steps": 20, "batch_size": 16}, "model": WIDE}
    text = (targets_folder() / "pixel-8.yaml").read_text()
    paths = {name: str(tmp_path / f"{name}.yaml") for name in ("a", "b")}
    (tmp_path / "a.yaml").write_text(text.replace("name: pixel-8", "name: a"))
    slower = re.sub(r"(\n  gmacs_per_s:.*?value: )([0-9.]+)", r"\g<1>3", text, count=1, flags=re.DOTALL)
    (tmp_path / "b.yaml").write_text(slower.replace("name: pixel-8", "name: b"))
    assert load_target(paths["a"]).roofline.gmacs_per_s != load_target(paths["b"]).roofline.gmacs_per_s == 3
    found = []
    for number, names in enumerate(("ab", "ba", "a")):
        recipe = tiny_recipe(targets=[paths[name] for name in names], **changes)
        folder = pipeline.run(recipe, tmp_path / str(number)).folder
        found.append([(folder / f"{name}/80%/architecture.json").read_text() for name in sorted(names)])
    assert found[0] == found[1]
    assert found[2] == found[1][:1], "nor does a target that is no stricter"
