"""The benchmarks' kept rows: used again only where everything that they depend on is the same."""

import argparse
import ast
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deploy_prune.data.examples import ClassExamples
from deploy_prune.latency.ops import list_ops

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("_results")


@pytest.fixture
def recovery(monkeypatch):
    """recovery.py, whose rows are the number of those made so far."""
    monkeypatch.syspath_prepend(FOLDER)
    module, made = importlib.import_module("recovery"), []
    monkeypatch.setattr(module, "retrained", lambda *args: made.append(args) or len(made))
    return module


def asked(path, **changes):
    values = {
        "rows": path, "seeds": 1, "shots": "10", "ablate": False, "only": None, "retrain": {}, "network": "resnet20",
        "point": "25%", "method": "dap", "search_steps": 400,
    }  # fmt: skip
    return argparse.Namespace(**(values | changes))


def bench(weight=0.0, pixel=0):
    network = nn.Linear(2, 2)
    nn.init.constant_(network.weight, weight)
    nn.init.zeros_(network.bias)
    images = torch.full((3, 1, 2, 2), pixel, dtype=torch.uint8)
    examples = ClassExamples(images=images, labels=torch.arange(3), mean=torch.zeros(1), std=torch.ones(1))
    return SimpleNamespace(network=network, examples=SimpleNamespace(source_train=examples, source_test=examples))


def make(module, arguments, bench=None):
    return module.make(bench, None, None, arguments)


def test_rows_that_say_nothing_of_how_they_were_made_are_not_used(recovery, tmp_path):
    path = tmp_path / "recovery.json"
    path.write_text(json.dumps({"10, all defaults, 0": 0.92}))
    assert make(recovery, asked(path)) == {"10, all defaults, 0": 1}
    assert make(recovery, asked(path)) == {"10, all defaults, 0": 1}, "and are made once"


@pytest.mark.parametrize(
    "changes",
    [{"network": "resnet56"}, {"point": "50%"}, {"method": "gate"}, {"search_steps": 7}, {"retrain": {"steps": 9}}],
    ids=str,
)
def test_a_row_of_other_settings_is_made_anew_and_takes_no_other_ones_place(recovery, tmp_path, changes):
    path = tmp_path / "recovery.json"
    (first,) = make(recovery, asked(path)).values()
    (other,) = make(recovery, asked(path, **changes)).values()
    assert other != first
    assert make(recovery, asked(path)) == {"10, all defaults, 0": first}


def test_rows_are_added_under_the_same_conditions(recovery, tmp_path):
    path = tmp_path / "recovery.json"
    make(recovery, asked(path))
    assert make(recovery, asked(path, seeds=2)) == {"10, all defaults, 0": 1, "10, all defaults, 1": 2}


@pytest.mark.parametrize("changed", [{"weight": 1.0}, {"pixel": 1}])
def test_weights_and_data_count_by_content(recovery, tmp_path, changed):
    path = tmp_path / "recovery.json"
    assert make(recovery, asked(path), bench()) == make(recovery, asked(path), bench())
    assert make(recovery, asked(path), bench(**changed)) == {"10, all defaults, 0": 2}


@pytest.mark.parametrize("part", ["own_code", "_benchmarks_code", "cpu_name", "versions"])
def test_what_made_a_row_counts(recovery, results, tmp_path, monkeypatch, part):
    path = tmp_path / "recovery.json"
    make(recovery, asked(path))
    monkeypatch.setattr(results, part, lambda *args: "another")
    assert make(recovery, asked(path)) == {"10, all defaults, 0": 2}


def test_every_script_that_keeps_rows_asks_for_their_conditions():
    keeping = [path for path in FOLDER.glob("*.py") if '"--rows"' in path.read_text(encoding="utf-8")]
    assert len(keeping) >= 7
    for path in keeping:
        text = path.read_text(encoding="utf-8")
        assert "_results.kept(" in text, path.name
        assert "_results.conditions(" in text, path.name
        assert "rows.read_text" not in text, path.name


def imported(path):
    """(module, name) of all that a script takes from the package, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("deploy_prune"):
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_all_that_a_script_takes_from_the_package_is_there(path):
    for module, name in imported(path):
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")


def test_a_row_of_other_formats_is_made_anew(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    zoo = importlib.import_module("zoo")
    monkeypatch.setattr(zoo, "alone", lambda name, mode, timeout, formats: dict.fromkeys(formats, 1e-7))
    options = {"json": tmp_path / "zoo.json", "timeout": 1.0, "plain": None}
    for formats in (["onnx"], ["onnx", "litert"], ["onnx"]):
        rows = zoo.run(["tv:resnet18"], argparse.Namespace(**options, formats=formats))
        assert rows["tv:resnet18"].keys() == set(formats)


def test_a_function_costs_what_its_network_takes_beyond_the_plain_one(monkeypatch):
    """A device whose functions take 7 multiply-accumulates: found from the ratio of two networks' times alone."""
    monkeypatch.syspath_prepend(FOLDER)
    calibrate, activations = importlib.import_module("_calibrate"), importlib.import_module("activations")
    x = torch.zeros(1, 3, 16, 16)
    asked = [
        calibrate.features(list_ops(torch.export.export(nn.Sequential(nn.Conv2d(3, 16, 3), f()).eval(), (x,))), 8)
        for f in (nn.ReLU, nn.SiLU)
    ]
    monkeypatch.setitem(calibrate.FUNCTIONS, "cpu", 7.0)
    plain, curved = (calibrate.predict_ms(activations.FIRST, f, calibrate.LAST, "cpu") for f in asked)
    assert activations.macs_of_a_function(curved / plain, *asked) == pytest.approx(7.0)
    fused = [calibrate.predict_ms(activations.FIRST, f, calibrate.LAST, "accelerator") for f in asked]
    assert fused == pytest.approx([plain, plain])
