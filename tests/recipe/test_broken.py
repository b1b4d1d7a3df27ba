"""Broken recipes: each ends `deploy-prune check` with one sentence and the exit code of its kind of error."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from deploy_prune.cli import main

HEAD = "name: broken\nmodel:\n  source: resnet20\n"  # lines 1 to 3

# What the recipe alone shows, without data, network or device: text -> the parts of the message; exit code 10.
UNREADABLE = {
    # the file
    "empty": (b"", "r.yaml:1: the recipe is empty"),
    "only a comment": (b"# nothing\n", "r.yaml:1: the recipe is empty"),
    "a list": (b"- name: a\n", "r.yaml:1: the recipe is not a mapping"),
    "a word": (b"recipe\n", "r.yaml:1: the recipe is not a mapping"),
    "open bracket": (b"name: a\nmodel: [\n", "r.yaml:3: the YAML can't be read"),
    "tab": (HEAD + "data:\n\tshots: 3\n", "r.yaml:5: the YAML can't be read", "\\t"),
    "two colons": (b"name: a: b\n", "r.yaml:1: the YAML can't be read", "not allowed here"),
    "two documents": (HEAD + "---\nname: b\n", "r.yaml:4: the YAML can't be read", "another document"),
    "not UTF-8": (HEAD.encode() + b"# caf\xe9\n", "r.yaml:4: the file is not UTF-8", "0xe9"),
    "binary": (b"PK\x03\x04", "r.yaml:1: the YAML can't be read", "'\\x03'"),
    "control character": (HEAD + "\n# \x07\n", "r.yaml:5: the YAML can't be read"),
    "nested without end": (HEAD + "seed: " + "[" * 3000, "r.yaml:4: it is nested more than 50 deep"),
    "impossible date": (HEAD + "seed: 2020-13-45\n", "the YAML can't be read", "month"),
    "same key twice": (HEAD + "seed: 1\nseed: 2\n", "r.yaml:5: ", 'duplicate key "seed"'),
    "same key twice, nested": (HEAD + "train:\n  lr: 1\n  lr: 2\n", "r.yaml:6: ", 'duplicate key "lr"'),
    "alias": (HEAD + "train: &t {lr: 1}\nsearch: *t\n", "r.yaml:4: anchors (&x) and aliases"),
    "merge": (HEAD + "train:\n  <<: {lrr: 1}\n", "r.yaml:5: ", "merges (<<)"),
    "code": (HEAD + "seed: !!python/object/apply:os.getpid []\n", "r.yaml:4: ", "tags"),
    # keys
    "unknown key": (HEAD + "sed: 1\n", "r.yaml:4: sed: ", "Perhaps you meant 'seed'?"),
    "unknown key, other case": (HEAD + "Targets: [host]\n", "r.yaml:4: Targets: ", "Perhaps you meant 'targets'?"),
    "unknown key, nested": (HEAD + "train:\n  lr: 1\n  step: 2\n", "r.yaml:6: train.step: ", "'steps'?"),
    "unknown key, unlike all": (HEAD + "train: {zzz: 1}\n", "r.yaml:4: train.zzz: ", "known: steps, batch_size, lr,"),
    "key of another part": (HEAD + "train: {method: gate}\n", "r.yaml:4: train.method: this is not a key of train"),
    "key that is a number": (HEAD + "3: 4\n", "r.yaml:4: ", "this is not a key of a recipe"),
    "no name": (b"model: {source: resnet20}\n", "r.yaml:1: name: this key is missing."),
    "no model": (b"name: a\n", "r.yaml:1: model: this key is missing."),
    "no source": (b"name: a\nmodel:\n  args: {}\n", "r.yaml:2: model.source: this key is missing."),
    # types
    "text for a number": (HEAD + "train: {lr: fast}\n", "r.yaml:4: train.lr: ", "valid number, not 'fast'"),
    "number in quotes": (HEAD + "train: {steps: '300'}\n", "r.yaml:4: train.steps: ", "valid integer, not '300'"),
    "fraction of a step": (HEAD + "train: {steps: 1.5}\n", "r.yaml:4: train.steps: ", "not 1.5"),
    "boolean for a number": (HEAD + "seed: true\n", "r.yaml:4: seed: ", "not True"),
    "text for a boolean": (HEAD + "export: {dynamic_batch: yes please}\n", "r.yaml:4: export.dynamic_batch: "),
    "number for a budget": (HEAD + "budgets:\n  - 50\n", "r.yaml:5: budgets[0]: it should be text", "not 50"),
    "one budget, no list": (HEAD + "budgets: 50%\n", "r.yaml:4: budgets: it should be a list"),
    "number for a name": (b"name: 2024\nmodel: {source: resnet20}\n", "r.yaml:1: name: it should be text"),
    "part that is a list": (HEAD + "train: [1]\n", "r.yaml:4: train: it should be a mapping"),
    "part without its keys": (HEAD + "train:\nseed: 1\n", "r.yaml:4: train: it should be a mapping", "not empty"),
    "date": (HEAD + "  args: {since: 2020-01-01}\n", "r.yaml:4: model.args.since: a date"),
    # values
    "NaN learning rate": (HEAD + "train:\n  lr: .nan\n", "r.yaml:5: train.lr: it should be a finite number, not nan."),
    "infinite option": (HEAD + "search: {options: {x: -.inf}}\n", "r.yaml:4: search.options.x: ", "not -inf"),
    "overflow": (HEAD + "train: {lr: 1e999}\n", "r.yaml:4: train.lr: ", "finite"),
    "no learning rate": (HEAD + "train: {lr: 0}\n", "r.yaml:4: train.lr: ", "greater than 0, not 0"),
    "negative steps": (HEAD + "search: {steps: -1}\n", "r.yaml:4: search.steps: ", "not -1"),
    "batch of one": (HEAD + "train: {batch_size: 1}\n", "r.yaml:4: train.batch_size: ", "greater than or equal to 2"),
    "no shots": (HEAD + "data: {shots: 0}\n", "r.yaml:4: data.shots: ", "not 0"),
    "one way": (HEAD + "data: {ways: 1}\n", "r.yaml:4: data.ways: ", "greater than or equal to 2, not 1"),
    "two channels": (HEAD + "data: {channels: 2}\n", "r.yaml:4: data.channels: ", "1 or 3, not 2"),
    "tiny image": (HEAD + "data: {image_size: 4}\n", "r.yaml:4: data.image_size: ", "not 4"),
    "opset too new": (HEAD + "export: {opset: 99}\n", "r.yaml:4: export.opset: ", "not 99"),
    "unknown way out": (HEAD + "data: {unreadable: skp}\n", "r.yaml:4: data.unreadable: ", "Perhaps you meant 'skip'?"),
    "unknown choice": (HEAD + "data: {augment: shfit}\n", "r.yaml:4: data.augment: ", "Perhaps you meant 'shift'?"),
    "unknown metric": (HEAD + "metric: latancy\n", "r.yaml:4: metric: ", "Perhaps you meant 'latency'?"),
    "unknown method": (HEAD + "search:\n  method: gates\n", "r.yaml:5: search.method: ", "Perhaps you meant 'gate'?"),
    "unknown data set": (HEAD + "data: {source: cifar}\n", "r.yaml:4: data.source: ", "Perhaps you meant 'cifar10'?"),
    "unknown network": (b"name: a\nmodel:\n  source: resnet21\n", "r.yaml:3: model.source: ", "no network 'resnet21'"),
    "network without a name": (b"name: a\nmodel: {source: 'timm:'}\n", "r.yaml:2: model.source: ", "'timm:NAME'"),
    "unknown device": (HEAD + "device: gpu\n", "r.yaml:4: device: ", "auto, cpu, cuda or cuda:N"),
    "name that is a path": (b"name: ../a\nmodel: {source: resnet20}\n", "r.yaml:1: name: '../a'"),
    "one mean for three channels": (HEAD + "data: {mean: [0.5]}\n", "r.yaml:4: data.mean: ", "is 3, not 1"),
    "no spread": (HEAD + "data:\n  std: [1, 1, 0]\n", "r.yaml:5: data.std[2]: ", "greater than 0"),
    "class twice": (HEAD + "data:\n  source_classes: [1, 2, 1]\n", "r.yaml:5: data.source_classes: 1 is given twice"),
    "negative class": (HEAD + "data: {target_classes: [0, -1]}\n", "r.yaml:4: data.target_classes[1]: ", "not -1"),
    "no class": (HEAD + "data: {target_classes: []}\n", "r.yaml:4: data.target_classes: ", "at least 1 item"),
    "few-shot class seen before": (
        HEAD + "data:\n  shots: 5\n  source_classes: [0, 1]\n  target_classes: [1, 2]\n",
        "r.yaml:7: data.target_classes: class 1 is a source class too",
    ),
    # budgets and targets
    "no budget": (HEAD + "budgets: []\n", "r.yaml:4: budgets: ", "at least 1 item"),
    "budget without a unit": (HEAD + "budgets: ['50']\n", "r.yaml:4: budgets[0]: the budget '50' can't be read"),
    "unknown unit": (HEAD + "budgets:\n- 50%\n- 4 miles\n", "r.yaml:6: budgets[1]: the budget '4 miles' can't be read"),
    "nothing left": (HEAD + "budgets: [0%]\n", "r.yaml:4: budgets[0]: ", "above 0% and at most 100%"),
    "more than all": (HEAD + "budgets: [150%]\n", "r.yaml:4: budgets[0]: ", "above 0% and at most 100%"),
    "same budget twice": (HEAD + "budgets: [50%, 50 % latency]\n", "r.yaml:4: budgets: ", "the same budget as '50%'"),
    "no target": (HEAD + "targets: []\n", "r.yaml:4: targets: ", "at least 1 item"),
    "same target twice": (HEAD + "targets: [host, host]\n", "r.yaml:4: targets: 'host' is given twice"),
    # several at once
    "three errors": (HEAD + "seed: -1\nthreads: 0\nsed: 1\n", "r.yaml:4: seed: ", "(2 more errors after this one.)"),
}  # fmt: skip

# What only the data, the network, its weights or the target show: text -> exit code and the parts of the message.
UNUSABLE = {
    # networks
    "unknown network of torchvision": ("model: {source: 'torchvision:resnet19'}", 11, "resnet19", "'resnet18'"),
    "unknown argument of the builder": ("model: {source: 'torchvision:resnet18', args: {widht: 2}}", 11, "widht"),
    "number of classes given": ("model: {source: resnet20, args: {num_classes: 3}}", 11, "num_classes"),
    "weights to be fetched": ("model: {source: 'torchvision:resnet18', args: {weights: DEFAULT}}", 11, "model.weights"),
    "module that is not there": ("model: {source: 'no_such_module_1:make'}", 11, "model.source", "no_such_module_1"),
    "function that is not there": ("model: {source: 'broken_plugin:nothing'}", 11, "model.source", "nothing"),
    "function that is no network": ("model: {source: 'broken_plugin:not_a_network'}", 11, "torch.nn.Module"),
    "builder that fails": ("model: {source: 'broken_plugin:failing'}", 11, "out of paint"),
    # weights
    "no weights file": ("model: {source: resnet20, weights: none.safetensors}", 12, "none.safetensors"),
    "cut weights file": ("model: {source: resnet20, weights: cut.safetensors}", 12, "cut.safetensors"),
    "pickled network": ("model: {source: resnet20, weights: module.pt}", 12, "module.pt"),
    "pickled code": ("model: {source: resnet20, weights: code.pt}", 12, "code.pt"),
    "weights of another network": ("model: {source: resnet20, weights: other.safetensors}", 12, "other.safetensors"),
    # data
    "no root": ("data: {source: cifar10}", 13, "data.root"),
    "root that is not there": ("data: {source: cifar10, root: no_such_folder}", 13, "no_such_folder"),
    "root without the files": ("data: {source: idx, root: empty_folder}", 13, "empty_folder"),
    "folder without images": ("data: {source: folder, root: empty_images}", 13, "has no images"),
    "damaged file": ("data: {source: cifar10, root: damaged}", 13, "cifar10.npz"),
    "empty data set": ("data: {source: 'broken_plugin:no_examples'}", 13, "empty"),
    "data of the wrong form": ("data: {source: 'broken_plugin:one_array'}", 13, "x_train"),
    "one class only": ("data: {source_classes: [3]}", 13, "data.source_classes", "at least 2 classes"),
    "class that is not there": ("data: {target_classes: [5, 12]}", 13, "data.target_classes", "no class 12"),
    "more shots than examples": ("data: {shots: 1000}", 13, "data.shots", "1000"),
    "more ways than classes": ("data: {ways: 11}", 13, "data.ways", "11 classes", "write 2 to 10"),
    "image that can't be read": ("data: {source: folder, root: one_broken}", 13, "1.png", "data.unreadable"),
    "folder of one class": ("data: {source: folder, root: one_class}", 13, "one class only, 'cat'"),
    "NaN pixels": ("data: {source: 'broken_plugin:nan_pixels'}", 13, "broken_plugin:nan_pixels has pixels", "NaN"),
    "data that fail": ("data: {source: 'broken_plugin:failing_data'}", 13, "out of film"),
    # targets and budgets
    "unknown target": ("targets: [hots]", 14, "'hots'", "'host'"),
    "target file that is not there": ("targets: [./far.yaml]", 14, "far.yaml"),
    "target file without its keys": ("targets: [./odd.yaml]", 14, "odd.yaml:1", "missing"),
    "impossible latency": ("budgets: [0.1 us]", 15, "0.1 us", "host"),
    "impossible share": ("budgets: [90%, 0.01%]", 15, "0.01%", "host"),
    "impossible MACs": ("budgets: [10 MACs]", 15, "10 MACs"),
    "impossible params": ("budgets: [1 params]", 15, "1 params"),
    "budget with all groups skipped": ("prune: {skip: ['*']}\nbudgets: [50% params]", 15, "50% params"),
    # methods
    "unknown option of the method": ("search: {method: gate, options: {zzz: 1}}", 10, "search.options.zzz"),
}  # fmt: skip

PLUGIN = """
import numpy as np

def not_a_network(num_classes):
    return num_classes

def failing(num_classes):
    raise ValueError("out of paint")

def no_examples():
    return np.zeros((0, 8, 8), np.uint8), np.zeros(0, np.int64), np.zeros((0, 8, 8), np.uint8), np.zeros(0, np.int64)

def nan_pixels():
    return np.full((2, 8, 8), np.nan), np.array([0, 1]), np.zeros((2, 8, 8)), np.array([0, 1])

def failing_data():
    raise ValueError("out of film")

def one_array():
    return np.zeros((4, 8, 8), np.uint8)
"""


class _Code:
    def __reduce__(self):
        return Path.touch, (Path("code_was_run"),)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An own current folder; the environment says nothing about data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEPLOY_PRUNE_DATA", raising=False)
    return tmp_path


@pytest.fixture
def material(folder, monkeypatch):
    """The damaged files that the recipes name."""
    monkeypatch.syspath_prepend(folder)
    (folder / "broken_plugin.py").write_text(PLUGIN)
    (folder / "cut.safetensors").write_bytes(struct.pack("<Q", 1000) + b'{"a":')
    save_file({"weight": torch.zeros(2, 2)}, folder / "other.safetensors")
    torch.save(torch.nn.Linear(2, 2), folder / "module.pt")
    (folder / "code.pt").write_bytes(pickle.dumps(_Code()))
    (folder / "empty_folder").mkdir()
    (folder / "empty_images" / "train" / "cat").mkdir(parents=True)
    for root, classes in (("one_broken", ("ant", "cat")), ("one_class", ("cat",))):
        for name in classes:
            (folder / root / "train" / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(folder / root / "train" / name / "0.png")
    (folder / "one_broken" / "train" / "cat" / "1.png").write_bytes(b"GIF8")
    (folder / "damaged").mkdir()
    np.savez(folder / "damaged" / "cifar10.npz", x_train=np.zeros((1, 32, 32, 3), np.uint8))
    (folder / "odd.yaml").write_text("name: odd\n")


def check(text: str | bytes):
    Path("r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return CliRunner().invoke(main, ["check", "r.yaml", "--quiet"])


def assert_one_sentence(result, code: int, parts: tuple[str, ...]) -> None:
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1), result.output
    assert result.stderr.startswith("deploy-prune: error: ")
    assert len(result.stderr) < 600
    for part in parts:
        assert part in result.stderr


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_the_recipe_alone_shows(name):
    text, *parts = UNREADABLE[name]
    assert_one_sentence(check(text), 10, tuple(parts))


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_only_the_road_shows(name, material):
    text, code, *parts = UNUSABLE[name]
    head = "name: broken\n" + ("" if text.startswith("model:") else "model: {source: resnet20}\n")
    assert_one_sentence(check(head + text + "\n"), code, tuple(parts))
    assert not Path("code_was_run").exists()


def test_a_recipe_that_is_not_there():
    result = CliRunner().invoke(main, ["check", "quickstrat"])
    assert_one_sentence(result, 10, ("no recipe 'quickstrat'", "Perhaps you meant 'quickstart'?"))


def test_a_folder_is_no_recipe(folder):
    (folder / "mine").mkdir()
    assert_one_sentence(CliRunner().invoke(main, ["check", "mine"]), 10, ("no recipe 'mine'",))


def test_a_broken_override():
    result = CliRunner().invoke(main, ["check", "quickstart", "--set", "train.lr=-1"])
    assert_one_sentence(result, 10, ("--set train.lr=-1: train.lr: ", "greater than 0"))


def test_there_are_enough_of_them():
    assert len(UNREADABLE) + len(UNUSABLE) >= 40
