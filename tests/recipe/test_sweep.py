"""Lists in a recipe: a recipe for each value, with a name of its own; an error where a list makes no sense."""

import pytest

from deploy_prune.errors import RecipeError
from deploy_prune.recipe.file import load_recipe
from deploy_prune.recipe.sweep import MOST, load_recipes

TEXT = """name: mine
model: {source: resnet20, args: {widths: [1, 2]}}
budgets: [50%, 30%]
targets: [host, pixel-8]
data:
  source_classes: [0, 1]
"""


@pytest.fixture
def file(tmp_path):
    def write(more=""):
        path = tmp_path / "r.yaml"
        path.write_text(TEXT + more)
        return str(path)

    return write


def test_lists_that_a_key_takes_are_no_sweep(file):
    (one,) = load_recipes(file(), ["seed=3"])
    assert one.recipe == load_recipe(file(), ["seed=3"])
    assert one.settings == ("seed=3",)


def test_all_pairs_get_names_in_the_order_of_the_file(file):
    path = file("search: {method: [dap, gate], steps: 7}\nseed: [0, 1]\n")
    found = load_recipes(path)
    assert [one.recipe.name for one in found] == ["mine-dap-0", "mine-dap-1", "mine-gate-0", "mine-gate-1"]
    assert [(one.recipe.search.method, one.recipe.seed) for one in found] == [
        ("dap", 0), ("dap", 1), ("gate", 0), ("gate", 1),
    ]  # fmt: skip
    assert {one.recipe.search.steps for one in found} == {7}
    assert [load_recipe(path, one.settings) for one in found] == [one.recipe for one in found]


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("model.source=[resnet20, 'timm:resnet18']", ["mine-resnet20", "mine-timm-resnet18"]),
        ("train.lr=[0.1, 1.0e-5]", ["mine-0.1", "mine-1e-05"]),
        ("retrain.lr=[null, 0.1]", ["mine-null", "mine-0.1"]),
        ("export.dynamic_batch=[true, false]", ["mine-true", "mine-false"]),
        ("data.shots=[5]", ["mine-5"]),
    ],
)
def test_set_makes_sweeps_too(file, setting, names):
    found = load_recipes(file(), [setting, "name=mine"])
    assert [one.recipe.name for one in found] == names
    assert [load_recipe(file(), one.settings) for one in found] == [one.recipe for one in found]


@pytest.mark.parametrize(
    ("more", "line", "told"),
    [
        ("device: [cpu, cuda]\n", 7, "device: a list makes no sense here: .*--devices"),
        ("threads: [1, 2]\n", 7, "threads: a list makes no sense here"),
        ("task: [detection]\n", 7, "task: a list makes no sense here"),
        ("seed: []\n", 7, "seed: the list is empty"),
        ("seed: [1, [2]]\n", 7, "seed: a sweep's values should be"),
        ("seed: [1, 1]\n", 7, "seed: a sweep should have each value once"),
        ("seed: [1, x]\n", 7, "seed: .*integer, not 'x'"),
        ("search: {steps: 5,\n  method: [dap, gatte]}\n", 8, "search.method: .*'gatte'.*'gate'"),
        ("search: [dap, gate]\n", 7, "search: it should be a mapping"),
        ("model.source: [a]\n", 7, "model.source: this is not a key"),
        ("metric: ['a/b', 'a:b']\n", 7, "metric: "),
        ("seed: [0, 1]\nsearch: {method: [dap, gate]}\nnames: 3\n", 9, "names: this is not a key"),
    ],
)
def test_a_list_that_makes_no_sense_is_named_with_its_line(file, more, line, told):
    with pytest.raises(RecipeError, match=rf"r\.yaml:{line}: {told}"):
        load_recipes(file(more))


def test_names_that_would_be_the_same_are_refused(file):
    with pytest.raises(
        RecipeError, match=r"--set model\.weights.*2 recipes of the sweep would have the name 'mine-a-b'"
    ):
        load_recipes(file(), ["model.weights=['a/b', 'a:b']"])


def test_a_sweep_has_an_end(file):
    many = ",".join(map(str, range(40)))
    with pytest.raises(RecipeError, match=f"more than {MOST} recipes"):
        load_recipes(file(), [f"seed=[{many}]", f"train.steps=[{many}]"])


def test_a_list_of_names_is_refused(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: [a, b]\nmodel: {source: resnet20}\n")
    with pytest.raises(RecipeError, match=r"r\.yaml:1: name: a list makes no sense here"):
        load_recipes(str(path))
