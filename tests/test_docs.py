"""What README, docs, CHANGELOG and CONTRIBUTING say is true of the package, and everything in it is described."""

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
from deploy_prune.device.targets import file_schema, load_target
from deploy_prune.recipe.parts import Recipe
from deploy_prune.recipe.tasks import DetectionRecipe, SegmentationRecipe, recipe_for
from deploy_prune.search.methods import METHODS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
TEXTS = {"README.md": README, **PAGES}
ALL = "\n".join(TEXTS.values())
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
    return re.findall(rf"^```{language}\n(.*?)^```", ALL, flags=re.MULTILINE | re.DOTALL)


def headings(text: str) -> set[str]:
    """A page's anchors, as GitHub and MyST make them of its headings."""
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


TYPED = [line.removeprefix("$ ") for block in fenced("console") for line in block.splitlines() if line[:2] == "$ "]
SHOWN = list(dict.fromkeys(line for line in (*code_lines(ALL), *TYPED) if line.startswith("deploy-prune ")))


def test_there_is_something_to_check():
    assert len(SHOWN) >= len(COMMANDS)
    assert fenced("python")
    assert fenced("yaml")


@pytest.fixture
def transcripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("_transcripts")


def test_transcripts_are_whole(transcripts):
    page = TEXTS["docs/first-ten-minutes.md"]
    blocks = re.findall(r"^```console\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert [block.splitlines()[0].removeprefix("$ ") for block in blocks] == transcripts.commands(page)
    assert [line.split()[1] for line in transcripts.commands(page)] == [
        "init", "check", "recipe", "show", "export", "verify"
    ]  # fmt: skip
    for block in blocks:
        typed, *printed = block.splitlines()
        assert len(printed) > 1, typed


def test_a_transcript_is_what_a_command_prints_now(transcripts, tmp_path):
    page = "a\n\n```console\n$ echo new\nold\nolder\n```\n\n```console\n$ echo 'two words'\n```\nb\n"
    made = transcripts.made(page, tmp_path)
    assert made == "a\n\n```console\n$ echo new\nnew\n```\n\n```console\n$ echo 'two words'\ntwo words\n```\nb\n"
    assert transcripts.made(made, tmp_path) == made
    with pytest.raises(RuntimeError, match="no such"):
        transcripts.made("```console\n$ ls 'no such'\n```\n", tmp_path)


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


def test_every_command_is_in_the_readme_and_shown():
    section = README[README.index("## The commands") : README.index("## How well it works")]
    assert {
        name
        for row in re.findall(r"^\| (`.+?`) \|", section, flags=re.MULTILINE)
        for name in row.strip("`").split("`, `")
    } == set(ALL_COMMANDS)
    assert [name for name in ALL_COMMANDS if not any(line.startswith(f"deploy-prune {name}") for line in SHOWN)] == []


@pytest.mark.parametrize("name", sorted(ALL_COMMANDS))
def test_every_command_and_option_has_help(name):
    done = CliRunner().invoke(cli.main, [*name.split(), "--help"])
    assert done.exit_code == 0
    assert ALL_COMMANDS[name].help
    assert f"deploy-prune {name} " in f"{ALL_COMMANDS[name].help} {ALL_COMMANDS[name].epilog} "
    options = [parameter for parameter in ALL_COMMANDS[name].params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_make_commands_exist():
    text = ALL + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    shown = {line.split()[1] for line in code_lines(text) if line.startswith("make ")}
    assert shown
    assert shown <= targets


def test_the_readme_is_short_and_begins_with_a_picture_and_a_table():
    lines = README.splitlines()
    assert len(lines) <= 200
    first = "\n".join(lines[:25])
    assert "](docs/images/report.png)" in first
    assert "<!-- results:begin -->" in first
    assert "make run" in "\n".join(lines[:40])


@pytest.mark.parametrize("name", [*TEXTS, "benchmarks/README.md"])
def test_markers_come_in_pairs(monkeypatch, name):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    readme = importlib.import_module("_readme")
    found = re.findall(
        r"^<!-- ([a-z-]+):(begin|end) -->$", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    names = list(dict.fromkeys(marker for marker, _ in found))
    assert found == [(marker, kind) for marker in names for kind in ("begin", "end")]
    runs = readme.RUNS if name == "README.md" else {}
    assert set(names) == {*readme.BLOCKS.get(name, {}), *runs}


def test_tables_are_what_the_results_say(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    texts = importlib.import_module("_readme").written()
    assert {file: (ROOT / file).read_text(encoding="utf-8") for file in texts} == texts


@pytest.mark.parametrize("code", fenced("python"))
def test_python_blocks_compile_and_use_names_that_exist(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "deploy_prune":
            assert hasattr(deploy_prune, node.attr)


@pytest.mark.parametrize("text", fenced("yaml"))
def test_yaml_blocks_are_recipes(text):
    values = YAML(typ="safe").load(text)
    recipe_for(values.get("task", "classification")).model_validate(values)


def described(schema: dict, definitions: dict, above: str = "") -> dict[str, str | None]:
    """Every key of a schema, and its description."""
    found = {}
    for name, of in schema.get("properties", {}).items():
        part = definitions.get(of.get("$ref", "").rpartition("/")[2])
        found[f"{above}{name}"] = (part or of).get("description")
        found |= described(part, definitions, f"{above}{name}.") if part else {}
    return found


MODELS = [Recipe, DetectionRecipe, SegmentationRecipe, *{method.options: None for method in METHODS.values()}]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_has_a_description(model):
    schema = model.model_json_schema()
    found = described(schema, schema.get("$defs", {}))
    assert [key for key, text in found.items() if not text or not text.endswith(".")] == []


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("_reference")


def test_the_references_have_everything(reference):
    keys, options = reference.recipe_keys(), reference.options()
    schema = Recipe.model_json_schema()
    for key in described(schema, schema["$defs"]):
        assert f"```{{confval}} {key}\n" in keys or f"### {key}\n" in keys
    for kind, text in ((DetectionRecipe, reference.boxes_keys()), (SegmentationRecipe, reference.masks_keys())):
        assert all(f"- `data.{name}`: " in text for name in kind.model_fields["data"].annotation.model_fields)
    for method, found in METHODS.items():
        for name in found.options.model_fields:
            assert f"{{confval}} {method}: {name}\n" in options or f"{{confval}} search.options.{name}\n" in options
    assert all(f"## deploy-prune {name}\n" in reference.commands() for name in ALL_COMMANDS)


def test_the_reference_has_every_key_of_a_target_file(reference):
    text, schema = reference.target_keys(), file_schema()
    for above, part in {
        "": schema,
        "roofline.": schema["$defs"]["_Roofline"],
        "error.": schema["$defs"]["_Error"],
    }.items():
        for name, of in part["properties"].items():
            assert f"- `{above}{name}`: " in text
            assert of["description"].endswith(".")


def test_shown_target_files_can_be_read(tmp_path):
    shown = [text for text in fenced("text") if text.startswith("name: ")]
    for number, text in enumerate(shown):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text, encoding="utf-8")
        assert load_target(str(path)).title
    assert len(shown) >= 3


def test_every_generated_part_has_its_page(reference):
    assert sorted(reference.MARKER.findall(ALL)) == sorted(reference.PARTS)


def test_every_error_says_what_happened_and_what_to_do(reference):
    assert [
        kind.__name__ for kind in ERRORS[1:] if len([p for p in (kind.__doc__ or "").split("\n\n") if p.strip()]) != 2
    ] == []
    table = dict(re.findall(r"^\| (\d+) \| `(\w+)` \|", reference.error_table(), flags=re.MULTILINE))
    assert table == {str(kind.exit_code): kind.__name__ for kind in ERRORS if kind is not errors.DeployPruneError}


def test_every_public_function_is_documented():
    assert [
        name for name in deploy_prune.__all__ if not name.startswith("_") and not getattr(deploy_prune, name).__doc__
    ] == []
    assert [
        name for name in deploy_prune.__all__ if not name.startswith("_") and f":: deploy_prune.{name}\n" not in ALL
    ] == []


def test_exit_codes_are_one_error_each():
    codes = [kind.exit_code for kind in ERRORS]
    assert len(set(codes)) == len(codes)


def test_every_dependency_has_a_reason():
    rows = re.findall(r"^\| ([^|]+) \|", PAGES["docs/dependencies.md"], flags=re.MULTILINE)
    shown = {name for row in rows for name in row.split(", ")}
    needed = {re.split(r"[<>=\[ ]", dependency)[0] for dependency in PROJECT["dependencies"]}
    assert shown - {"package"} == needed


def test_every_recipe_and_target_file_is_named():
    recipes = [path.stem for path in (ROOT / "recipes").glob("*.yaml")]
    targets = [path.stem for path in (ROOT / "edge_targets").glob("*.yaml")]
    assert recipes
    assert targets
    assert [name for name in (*recipes, *targets) if f"`{name}`" not in ALL] == []


@pytest.mark.parametrize("name", [*TEXTS, "benchmarks/README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name):
    text, place = (ROOT / name).read_text(encoding="utf-8"), (ROOT / name).parent
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lost = []
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        path, _, anchor = link.partition("#")
        if "://" in link:
            assert re.fullmatch(r"https://[a-z0-9.-]+(/[^ ]*)?", link)
        elif path and not (place / path).exists():
            lost.append(link)
        elif anchor and (place / path).suffix in {".md", ""}:
            there = (place / path).read_text(encoding="utf-8") if path else text
            generated = "<!-- generated:" in there  # the site's own build checks these
            lost += [link] if anchor not in headings(there) and not generated else []
    assert lost == []


def test_contributing_names_every_folder_of_the_package():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text[text.index("## Where things live") : text.index("## Style")]
    named = {
        name
        for row in re.findall(r"^\| (`.+?`) \|", section, flags=re.MULTILINE)
        for name in re.findall(r"`(\w+)/`", row)
    }
    assert named == {path.parent.name for path in (ROOT / "deploy_prune").glob("*/__init__.py")}


def test_every_page_is_in_the_contents():
    listed = {
        line
        for block in re.findall(r"```{toctree}\n(.*?)```", PAGES["docs/index.md"], flags=re.DOTALL)
        for line in block.splitlines()
    }
    assert {Path(name).stem for name in PAGES} - listed == {"index"}


def test_changelog_and_package_have_one_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## (\S+)", changelog, flags=re.MULTILINE)
    assert first[1] == PROJECT["version"] == deploy_prune.__version__
