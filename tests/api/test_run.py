"""`deploy_prune.run_network`: a run without a recipe's file."""

from __future__ import annotations

import pytest
import tiny_run
import tones

import deploy_prune
from deploy_prune.api import run as run_module
from deploy_prune.errors import RecipeError
from deploy_prune.recipe.parts import Recipe
from deploy_prune.run.folder import RunFolder


@pytest.fixture
def asked(monkeypatch) -> list[Recipe]:
    """The recipes that would be run."""
    found: list[Recipe] = []
    monkeypatch.setattr(run_module, "run", lambda recipe, *rest, **more: found.append(recipe))
    return found


def test_functions_and_tasks_are_known_by_their_names(asked):
    deploy_prune.run_network(tones.network, tones.TASK, budgets=["50% macs", "12 ms"], targets="pixel-8")
    (recipe,) = asked
    assert (recipe.name, recipe.model.source, recipe.task) == ("network", "tones:network", "tones:TASK")
    assert (recipe.targets, recipe.budgets) == (["pixel-8"], ["50% macs", "12 ms"])


def test_other_keys_are_a_recipes(asked):
    deploy_prune.run_network(
        "torchvision:resnet18", name="mine", data={"source": "digits"}, model={"args": {"norm_layer": None}},
        train={"steps": 7},
    )  # fmt: skip
    (recipe,) = asked
    assert (recipe.name, recipe.task, recipe.data.source, recipe.train.steps) == ("mine", "classification", "digits", 7)
    assert recipe.model.args == {"norm_layer": None}
    deploy_prune.run_network("torchvision:resnet18")
    assert asked[1].name == "resnet18"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"network": lambda: None}, "network: a run's files name it as module:name"),
        ({"task": tones.load}, None),
        ({"task": type(tones.TASK)(**{**vars(tones.TASK)})}, "task: a run's files name it as module:name"),
        ({"trian": {"steps": 7}}, "run_network: trian: this is not a key of a recipe. Perhaps you meant 'train'"),
        ({"model": "resnet18"}, "model: it should be a mapping"),
        ({"budgets": "half"}, "can't be read"),
    ],
)
def test_what_cant_be_run_is_refused(given, message, asked):
    given = {"network": tiny_run.network, **given}
    if message is None:
        deploy_prune.run_network(**given)
        assert asked[0].task == "tones:load"
        return
    with pytest.raises(RecipeError, match=message):
        deploy_prune.run_network(**given)
    assert not asked


@pytest.mark.slow
def test_a_task_of_ones_own_is_run_to_the_end(tmp_path):
    made = deploy_prune.run_network(
        tones.network, tones.TASK, targets="pixel-8", budgets="50% macs", out=tmp_path, device="cpu", threads=1,
        train={"steps": 60, "batch_size": 16, "lr": 0.02}, search={"steps": 8, "batch_size": 16, "lr": 0.002},
        retrain={"steps": 200, "batch_size": 16},
    )  # fmt: skip
    dense, slim = made.rows
    assert (slim.status, slim.score_name, slim.error) == ("predicted", "error", None)
    assert dense.score < 0.15, "a constant answer is 0.25 off"
    assert slim.score < 0.1
    assert slim.macs <= 0.5 * dense.macs
    assert RunFolder(path=made.folder).read_results() == made.rows
    again = deploy_prune.run_recipe(made.folder / "recipe.yaml", tmp_path)
    assert again.rows == made.rows
