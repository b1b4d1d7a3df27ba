"""The package's shape, held by reading its source: who may import whom, and how long things may be."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import deploy_prune

PACKAGE = Path(deploy_prune.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "payload" not in path.parts)
PAYLOAD = sorted(PACKAGE.rglob("payload/*.py"))
STAGES = frozenset({"search", "surgery", "retrain", "export", "latency", "report"})
LEVELS = (
    frozenset({"errors", "version"}),
    frozenset({"system"}),
    frozenset({"types"}),
    frozenset({"cost", "recipe"}),
    frozenset({"networks", "device"}),
    frozenset({"families"}),
    frozenset({"data"}),
    frozenset({"tasks"}),
    frozenset({"training"}),
    STAGES,
    frozenset({"architecture", "budget", "bundle"}),
    frozenset({"run"}),
    frozenset({"api"}),
    frozenset({"commands"}),
    frozenset({"cli", "__init__"}),
)
"""From the lowest; a folder or module imports only what is below it."""
ROOT = frozenset({"__init__", "cli", "cost", "errors", "types", "version"})
WITHOUT_TORCH = ("cli", "types", "errors", "recipe.parts", "recipe.data")
NOT_COUNTED = frozenset({"self", "cls"})
MAX_FUNCTION_LINES, MAX_ARGUMENTS, MAX_FILE_LINES = 60, 8, 400

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def part_of(path: Path) -> str:
    """The module or package directly under deploy_prune that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def level_of(part: str) -> int:
    """Its level, 0 the lowest."""
    found = [level for level, parts in enumerate(LEVELS) if part in parts]
    assert found, f"deploy_prune/{part} has no level: add it to LEVELS"
    return found[0]


def modules(tree: ast.AST) -> Iterator[str]:
    """Every module imported anywhere below a node, spelled out: ``from deploy_prune import x`` is deploy_prune.x."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the level"
            if node.module == "deploy_prune":
                yield from (f"deploy_prune.{alias.name}" for alias in node.names)
            elif node.module:
                yield node.module


def own_parts(path: Path) -> set[str]:
    """The parts of the package that a file imports, its own left out."""
    own = {name.split(".")[1] for name in modules(parse(path)) if name.startswith("deploy_prune.")}
    return own - {part_of(path)}


def importers(library: str) -> set[str]:
    """The parts that import a library."""
    return {part_of(path) for path in FILES if library in {name.split(".")[0] for name in modules(parse(path))}}


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_there_is_something_to_read():
    assert len(FILES) > 20
    assert {part_of(path) for path in FILES} >= STAGES | {"cli", "run", "types"}


def test_the_root_fits_on_one_hand():
    assert {path.stem for path in PACKAGE.glob("*.py")} == ROOT


def test_every_folder_says_what_it_holds():
    folders = [path.parent for path in FILES if path.stem == "__init__"]
    assert all(ast.get_docstring(parse(folder / "__init__.py")) for folder in folders)
    assert {path.parent for path in FILES} == set(folders)


def test_tests_lie_where_what_they_test_does():
    here = Path(__file__).parent
    tests = {path.parent.relative_to(here) for path in here.rglob("test_*.py")}
    package = {path.parent.relative_to(PACKAGE) for path in FILES}
    assert tests - {Path("fuzz")} <= package


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_never_point_up(path):
    level = level_of(part_of(path))
    upward = {part for part in own_parts(path) if level_of(part) > level}
    assert not upward, f"{relative(path)} imports {upward} from above"


@pytest.mark.parametrize("path", [p for p in FILES if part_of(p) in STAGES], ids=relative)
def test_stages_do_not_import_each_other(path):
    assert not own_parts(path) & STAGES


def test_modules_of_one_level_do_not_import_in_circles():
    graph = {part: set[str]() for level in LEVELS for part in level}
    for path in FILES:
        graph[part_of(path)] |= own_parts(path) & graph.keys()
    while leaves := {part for part, below in graph.items() if not below}:
        graph = {part: below - leaves for part, below in graph.items() if part not in leaves}
    assert not graph, f"a circle among {set(graph)}"


def test_torch_pruning_only_in_surgery():
    assert importers("torch_pruning") <= {"surgery"}


def test_ultralytics_is_imported_nowhere():
    """It is AGPL-3.0: its own networks bring it along, and building one asks for it by name."""
    assert importers("ultralytics") == set()


def test_click_only_in_the_command_line():
    assert importers("click") == {"cli", "commands"}


@pytest.mark.parametrize("path", PAYLOAD, ids=relative)
def test_what_runs_on_a_device_does_not_need_the_package(path):
    known = {"deploy_prune"} if path.stem == "executorch" else {"deploy_prune", "torch"}  # which brings torch along
    assert not [name for name in modules(parse(path)) if name.split(".")[0] in known]


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_these_modules_load_without_torch(part):
    code = f"import sys, deploy_prune.{part}; print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "False"


def functions(path: Path) -> list[Function]:
    return [node for node in ast.walk(parse(path)) if isinstance(node, Function)]


def num_arguments(function: Function) -> int:
    """Arguments in all; a method's own object is not one."""
    spec = function.args
    names = [argument.arg for argument in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
    return len([name for name in names if name not in NOT_COUNTED])


@pytest.mark.parametrize("path", [*FILES, *PAYLOAD], ids=relative)
def test_functions_fit_on_a_screen(path):
    long = {f.name: length for f in functions(path) if (length := f.end_lineno - f.lineno + 1) > MAX_FUNCTION_LINES}
    assert not long


@pytest.mark.parametrize("path", [*FILES, *PAYLOAD], ids=relative)
def test_functions_take_few_arguments(path):
    many = {f.name: count for f in functions(path) if (count := num_arguments(f)) > MAX_ARGUMENTS}
    assert not many


@pytest.mark.parametrize("path", [*FILES, *PAYLOAD], ids=relative)
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
