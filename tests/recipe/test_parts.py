"""The recipe's values: budgets, and what each part refuses."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from deploy_prune.errors import BudgetError
from deploy_prune.recipe.parts import TASK_SCORES, DataPart, ModelPart, Recipe, SearchPart, parse_budget
from deploy_prune.recipe.tasks import recipe_for, schema
from deploy_prune.tasks import TASKS, task_named

MINIMAL = {"name": "a", "model": {"source": "resnet20"}}


@pytest.mark.parametrize(
    ("text", "metric", "limit", "relative"),
    [
        ("50%", "latency", 0.5, True),
        ("50 %", "latency", 0.5, True),
        ("12.5% macs", "macs", 0.125, True),
        ("100% size", "size", 1.0, True),
        ("4 ms", "latency", 4.0, False),
        ("4ms", "latency", 4.0, False),
        (".5 ms latency", "latency", 0.5, False),
        ("250 us", "latency", 0.25, False),
        ("1 s", "latency", 1000.0, False),
        ("120 MMACs", "macs", 120e6, False),
        ("1.2 GMACs", "macs", 1.2e9, False),
        ("3 Mparams", "params", 3e6, False),
        ("300 kparams", "params", 300e3, False),
        ("2.5 MB", "size", 2.5e6, False),
        ("2 MiB", "size", 2.0 * 2**20, False),
    ],
)
def test_a_budget_is_read_in_its_metrics_unit(text, metric, limit, relative):
    budget = parse_budget(text, "latency")
    assert (budget.metric, budget.relative) == (metric, relative)
    assert budget.limit == pytest.approx(limit, rel=1e-12)


def test_a_percentage_without_a_metric_takes_the_recipes():
    assert parse_budget("50%", "params").metric == "params"
    assert parse_budget("4 ms", "params").metric == "latency"


@pytest.mark.parametrize(
    "text",
    ["", "50", "%", "0%", "-5%", "100.1%", "50% flops", "4 ms macs", "4 lightyears", "0 ms", "nan ms", "50%%",
     "9" * 400 + " ms", "1e3 ms", "4 ms 5 ms", "٤ ms"],
)  # fmt: skip
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(BudgetError, match="the budget "):
        parse_budget(text, "latency")


@given(st.floats(min_value=0.01, max_value=100).map(lambda x: round(x, 2)))
def test_a_percentage_is_a_fraction_of_dense(percent):
    assert parse_budget(f"{percent}%", "macs").absolute(200.0) == pytest.approx(2 * percent)


@given(st.text(max_size=20))
def test_any_other_text_is_a_budget_or_a_budget_error(text):
    try:
        budget = parse_budget(text, "latency")
    except BudgetError:
        return
    assert 0 < budget.limit < float("inf")
    assert parse_budget(budget.text, "latency") == budget


def test_parsed_budgets_are_in_the_recipes_order():
    recipe = Recipe.model_validate(MINIMAL | {"metric": "macs", "budgets": ["75%", "4 ms", "50%"]})
    assert [(b.text, b.metric) for b in recipe.budgets_of("host")] == [
        ("75%", "macs"),
        ("4 ms", "latency"),
        ("50%", "macs"),
    ]


def test_a_target_may_have_budgets_of_its_own():
    recipe = Recipe.model_validate(
        MINIMAL | {"budgets": ["50%", "4 ms"], "target_budgets": {"pixel-8": ["9 ms", "50%"]}}
    )
    assert [b.text for b in recipe.budgets_of("host")] == ["50%", "4 ms"]
    assert [b.text for b in recipe.budgets_of("pixel-8")] == ["9 ms", "50%"]
    assert recipe.all_budgets == ("50%", "4 ms", "9 ms")
    for wrong in ([], ["50%", "50% latency"], ["half"]):
        with pytest.raises(ValidationError, match="target_budgets"):
            Recipe.model_validate(MINIMAL | {"target_budgets": {"pixel-8": wrong}})


def test_same_share_of_two_metrics_is_no_duplicate():
    assert len(Recipe.model_validate(MINIMAL | {"budgets": ["50%", "50% macs"]}).budgets_of("host")) == 2
    with pytest.raises(ValidationError, match="is the same budget as"):
        Recipe.model_validate(MINIMAL | {"metric": "macs", "budgets": ["50%", "50% macs"]})


@pytest.mark.parametrize(
    "source", ["resnet20", "resnet110", "torchvision:resnet18", "timm:resnet10t", "my.module_2:make"]
)
def test_forms_of_a_network(source):
    assert ModelPart(source=source).source == source


@pytest.mark.parametrize(
    "source", ["", ":", "resnet", "torchvision", "timm: ", "my module:make", "my.module:", "a:b:c", "a:b.c"]
)
def test_what_is_no_network(source):
    with pytest.raises(ValidationError):
        ModelPart(source=source)


def test_a_network_without_its_prefix_is_recognised():
    with pytest.raises(ValidationError, match="One of torchvision is written 'torchvision:mobilenet_v2'"):
        ModelPart(source="mobilenet_v2")


def test_few_shot_classes_are_not_source_classes():
    with pytest.raises(ValidationError, match="class 4 is a source class too"):
        DataPart(source_classes=[3, 4], target_classes=[4, 5], shots=10)
    DataPart(source_classes=[3, 4], target_classes=[4, 5], shots=None)
    DataPart(source_classes=[3, 4], target_classes=[4, 3], shots=10)  # the same task, little data
    DataPart(source_classes=[3, 4], target_classes=[5, 6], shots=10)


def test_ways_of_the_source_classes_are_no_few_shot_classes():
    same = {"source_classes": [3, 4, 5], "target_classes": [5, 4, 3]}
    with pytest.raises(ValidationError, match="the classes drawn would be source classes too"):
        DataPart(**same, ways=2, shots=10)
    for changes in ({"ways": 2, "shots": None}, {"ways": 3}, {"ways": 2, "target_classes": [6, 7, 8]}):
        DataPart(**same | changes)


@pytest.mark.parametrize(
    "values", [{"mean": [0.5]}, {"std": [0.5] * 4}, {"std": [1, 0, 1]}, {"channels": 1, "mean": [0, 0, 0]}]
)
def test_mean_and_std_are_one_per_channel_and_std_above_zero(values):
    with pytest.raises(ValidationError):
        DataPart(**values)
    DataPart(channels=1, mean=[0.5], std=[0.1])


@pytest.mark.parametrize("method", ["gate", "uniform", "random", "magnitude", "bn_scale", "taylor"])
def test_known_methods(method):
    assert SearchPart(method=method).method == method


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_known_devices(device):
    assert Recipe.model_validate(MINIMAL | {"device": device}).device == device


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu\n", "", "CPU"])
def test_unknown_devices(device):
    with pytest.raises(ValidationError):
        Recipe.model_validate(MINIMAL | {"device": device})


@pytest.mark.parametrize("name", ["", ".", "../up", "a/b", "a b", "-a", "a\n", "ä"])
def test_a_name_is_fit_for_a_folder(name):
    with pytest.raises(ValidationError):
        Recipe.model_validate(MINIMAL | {"name": name})


def test_a_recipe_is_frozen():
    recipe = Recipe.model_validate(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 3


def test_the_schema_is_one_and_agrees_with_the_parser():
    document = json.loads(json.dumps(schema()))
    Draft202012Validator.check_schema(document)
    validator = Draft202012Validator(document)
    assert document["title"] == "deploy-prune recipe"
    assert validator.is_valid(MINIMAL)
    detector, own = MINIMAL | {"task": "detection"}, MINIMAL | {"task": "my_module:my_task"}
    for right in (
        detector | {"data": {"fit": "cut"}}, own | {"data": {"args": {"rate": 8000}}}, detector | {"score": "mAP50"},
        MINIMAL | {"score": "accuracy"}, own | {"score": None},
    ):  # fmt: skip
        assert validator.is_valid(right)
    for other in (
        MINIMAL | {"data": {"fit": "cut"}},
        detector | {"data": {"ways": 5}},
        own | {"data": {"source": "coco"}},
        MINIMAL | {"score": "mAP50"},
        own | {"score": "accuracy"},
    ):
        assert not validator.is_valid(other), "those are another task's keys"
    for wrong in ({"name": "a"}, MINIMAL | {"sed": 1}, MINIMAL | {"seed": "1"}, MINIMAL | {"device": "gpu"}):
        assert not validator.is_valid(wrong)


def test_recipes_are_read_without_torch_and_click():
    code = "import sys, deploy_prune.recipe.file; sys.exit(bool({'torch', 'click', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("given", [{"weights_key": "model"}, {"head": "new"}])
def test_how_weights_are_read_needs_weights(given):
    with pytest.raises(ValidationError, match="it needs model.weights, which is not given"):
        ModelPart(source="resnet20", **given)
    ModelPart(source="resnet20", weights="w.pt", **given)


def with_score(task, score=None):
    return recipe_for(task)(**MINIMAL, task=task, score=score)


def test_a_score_is_one_of_the_tasks():
    defaults = {"classification": "accuracy", "detection": "mAP50-95", "segmentation": "mIoU", "a:b": None}
    assert {task: with_score(task).score for task in defaults} == defaults
    assert with_score("detection", "mAP50").score == "mAP50"
    with pytest.raises(ValidationError, match="there is no score of detection 'mAP'; known: mAP50-95, mAP50"):
        with_score("detection", "mAP")
    with pytest.raises(ValidationError, match=r"there is no score of classification 'mAP50'; known: accuracy\."):
        with_score("classification", "mAP50")
    with pytest.raises(ValidationError, match="the task a:b says itself what it is judged by"):
        with_score("a:b", "accuracy")


def test_the_scores_are_those_that_the_tasks_have():
    assert {name: tuple(task.score.name for task in of) for name, of in TASKS.items()} == TASK_SCORES
    assert task_named("detection").score.name == "mAP50-95"
    assert task_named("detection", "mAP50").score.name == "mAP50"


def test_a_detector_is_retrained_at_a_rate_and_with_a_share_of_its_own():
    parts = {task: recipe_for(task)(**MINIMAL, task=task).retrain for task in ("classification", "detection", "a:b")}
    assert {task: (part.lr, part.distill) for task, part in parts.items()} == {
        "classification": (None, 0.9), "detection": (0.01, 0.5), "a:b": (None, 0.9),
    }  # fmt: skip
    given = recipe_for("detection")(**MINIMAL, task="detection", retrain={"lr": 0.1})
    assert (given.retrain.lr, given.retrain.distill) == (0.1, 0.5)


def test_the_searchs_learning_rate_is_the_tasks():
    rates = {task: recipe_for(task)(**MINIMAL, task=task).search.lr for task in ("classification", "detection", "a:b")}
    assert rates == {"classification": 0.02, "detection": 0.001, "a:b": 0.002}


def test_compiled_networks_cant_be_checkpointed():
    with pytest.raises(ValidationError, match="compile and gradient_checkpointing don't go together; remove one"):
        recipe_for("classification")(**MINIMAL, compile=True, gradient_checkpointing=True)
