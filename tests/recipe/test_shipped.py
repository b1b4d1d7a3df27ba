"""Every recipe that is shipped: it loads, it agrees with the schema, it teaches, and `check` accepts it."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from deploy_prune.cli import main
from deploy_prune.device.targets import load_target
from deploy_prune.export import FORMATS
from deploy_prune.recipe.file import load_recipe, shipped
from deploy_prune.recipe.tasks import schema


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A made-up CIFAR-10, two examples a class."""
    images, labels = np.arange(20 * 32 * 32 * 3).astype(np.uint8).reshape(20, 32, 32, 3), np.arange(20) % 10
    np.savez(tmp_path / "cifar10.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    monkeypatch.setenv("DEPLOY_PRUNE_DATA", str(tmp_path))


def test_the_promised_recipes_are_there():
    assert {"quickstart", "mobilenet", "cifar-resnet20"} <= set(shipped())


@pytest.mark.parametrize("name", shipped())
def test_it_loads_and_has_its_files_name(name):
    assert load_recipe(name).name == name


@pytest.mark.parametrize("name", shipped())
def test_it_agrees_with_the_schema(name):
    Draft202012Validator(schema()).validate(YAML(typ="safe", pure=True).load(shipped()[name]))


@pytest.mark.parametrize("name", shipped())
def test_it_begins_with_a_comment_and_the_command(name):
    text = Path(shipped()[name]).read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"deploy-prune recipe {name}" in text


@pytest.mark.parametrize("name", shipped())
def test_its_artifacts_need_no_extra(name):
    formats = [FORMATS[load_target(target).format] for target in load_recipe(name).targets]
    assert formats
    assert [kind.extra for kind in formats] == [None] * len(formats)


MEASURED = "detector"
"""The recipe that is checked on this machine, as it is shipped; the others where latency is predicted."""


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped())
def test_check_accepts_it(name, cifar10, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = ["measure.runs=20", "measure.warmup=2"]
    if name != MEASURED:
        others = [target for target in load_recipe(name).targets if target != "host"] or ["pixel-8"]
        changes.append(f"targets=[{', '.join(others)}]")
    result = CliRunner().invoke(main, ["check", name, *(word for change in changes for word in ("--set", change))])
    assert result.exit_code == 0, result.output
