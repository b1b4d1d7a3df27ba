"""What README, CHANGELOG and CONTRIBUTING say is true of the package."""

import ast
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

import deploy_prune
from deploy_prune import cli, errors
from deploy_prune.recipe import Recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMMANDS = cli.main.commands
ALL_COMMANDS = COMMANDS | {
    f"{name} {below}": command
    for name, group in COMMANDS.items()
    if isinstance(group, click.Group)
    for below, command in group.commands.items()
}
ERRORS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DeployPruneError)
]


def code_lines(text: str) -> list[str]:
    """Lines of indented code, comments cut off."""
    return [line.partition(" #")[0].strip() for line in text.splitlines() if line.startswith("    ")]


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


SHOWN = [line for line in code_lines(README) if line.startswith("deploy-prune ")]


def test_there_is_something_to_check():
    assert len(SHOWN) >= len(COMMANDS)
    assert fenced("python")
    assert fenced("yaml")


@pytest.mark.parametrize("line", SHOWN)
def test_a_shown_command_can_be_parsed(line):
    words = shlex.split(line)[1:]
    name = next(name for name in (" ".join(words[:2]), words[0]) if name in ALL_COMMANDS)
    command = ALL_COMMANDS[name]
    context = click.Context(command, info_name=name)
    values, left_over, _ = command.make_parser(context).parse_args(words[len(name.split()) :])
    assert left_over == []
    missing = [p.name for p in command.params if p.required and values.get(p.name) in (None, click.core.UNSET)]
    assert missing == []


def test_every_command_is_shown():
    assert {line.split()[1] for line in SHOWN} == set(COMMANDS)
    assert all(any(line.startswith(f"deploy-prune {name}") for line in SHOWN) for name in ALL_COMMANDS)


@pytest.mark.parametrize("name", sorted(ALL_COMMANDS))
def test_every_command_and_option_has_help(name):
    done = CliRunner().invoke(cli.main, [*name.split(), "--help"])
    assert done.exit_code == 0
    assert ALL_COMMANDS[name].help
    options = [parameter for parameter in ALL_COMMANDS[name].params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_make_commands_exist():
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    shown = {line.split()[1] for line in code_lines(text) if line.startswith("make ")}
    assert shown
    assert shown <= targets


def test_the_first_screen_has_the_two_commands():
    first = "\n".join(README.splitlines()[:25])
    assert "make run" in first
    assert "make test" in first
    assert "deploy-prune recipe mobilenet.yaml" in first


def test_the_results_have_their_place():
    assert README.count("<!-- results:begin -->") == README.count("<!-- results:end -->") == 1
    assert README.index("<!-- results:begin -->") < README.index("<!-- results:end -->")


def test_markers_come_in_pairs():
    found = re.findall(r"^<!-- ([a-z-]+):(begin|end) -->$", README, flags=re.MULTILINE)
    names = list(dict.fromkeys(name for name, _ in found))
    assert {"results", "promise", "benchmarks", "latency-table", "budgets"} == set(names)
    assert found == [(name, kind) for name in names for kind in ("begin", "end")]


def test_tables_are_what_the_results_say(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    texts = importlib.import_module("_readme").written()
    assert {file: (ROOT / file).read_text(encoding="utf-8") for file in texts} == texts


@pytest.mark.parametrize("code", fenced("python"))
def test_python_blocks_compile_and_use_names_that_exist(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "deploy_prune":
            assert hasattr(deploy_prune, node.attr)


def test_the_recipe_reference_is_a_recipe_with_every_part():
    (text,) = fenced("yaml")
    values = YAML(typ="safe").load(text)
    Recipe.model_validate(values)
    assert set(Recipe.model_fields) - {"threads"} == set(values)


def test_every_exit_code_is_in_the_table():
    table = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| `(\w+)`", README, flags=re.MULTILINE)}
    assert table == {kind.__name__: kind.exit_code for kind in ERRORS if kind is not errors.DeployPruneError}


def test_exit_codes_are_one_error_each():
    codes = [kind.exit_code for kind in ERRORS]
    assert len(set(codes)) == len(codes)


def test_every_dependency_has_a_reason():
    section = README[README.index("## Dependencies") : README.index("## Limits")]
    shown = {name for row in re.findall(r"^\| ([^|]+) \|", section, flags=re.MULTILINE) for name in row.split(", ")}
    needed = {re.split(r"[<>=\[ ]", dependency)[0] for dependency in PROJECT["dependencies"]}
    assert shown - {"package"} == needed


def test_every_recipe_and_target_file_is_named():
    recipes = [path.stem for path in (ROOT / "recipes").glob("*.yaml")]
    targets = [path.stem for path in (ROOT / "edge_targets").glob("*.yaml")]
    assert recipes
    assert targets
    assert [name for name in (*recipes, *targets) if f"`{name}`" not in README] == []


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_changelog_and_package_have_one_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## (\S+)", changelog, flags=re.MULTILINE)
    assert first[1] == PROJECT["version"] == deploy_prune.__version__
