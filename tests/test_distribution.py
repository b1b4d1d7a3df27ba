"""The wheel and the sdist, built without a network: what is in them, and that the wheel runs away from the checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE = "deploy_prune"
SHIPPED = ("recipes", "edge_targets")
KINDS = (f"{PACKAGE}/report/*.html.j2", f"{PACKAGE}/report/*.css.j2", f"{PACKAGE}/bundle/handover/*.cpp",
         f"{PACKAGE}/device/payload/*.py", "recipes/*.yaml", "edge_targets/*.yaml")  # fmt: skip
BUILD_SDIST = "import importlib, sys; importlib.import_module(sys.argv[1]).build_sdist(sys.argv[2])"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Built:
    sdist: Path
    wheel: Path  # from the checkout
    again: Path  # from the sdist


def call(*command: str | Path, folder: Path) -> str:
    """What a command prints. It runs in a folder, and finds this project only where it is installed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def build_wheel(source: Path, out: Path, folder: Path) -> Path:
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "--wheel-dir", out)
    call(sys.executable, "-P", "-m", "pip", "wheel", *options, source, folder=folder)
    (wheel,) = out.glob("*.whl")
    return wheel


def leftovers() -> set[str]:
    return {path.name for path in ROOT.iterdir() if path.name in ("build", "dist") or path.suffix == ".egg-info"}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    out, before = tmp_path_factory.mktemp("built"), leftovers()
    backend = PYPROJECT["build-system"]["build-backend"]
    call(sys.executable, "-P", "-c", BUILD_SDIST, backend, out, folder=ROOT)
    (sdist,) = out.glob("*.tar.gz")
    made = Built(sdist, build_wheel(ROOT, out / "wheel", out), build_wheel(sdist, out / "again", out))
    assert leftovers() == before
    return made


@pytest.fixture(scope="module")
def scripts(built, tmp_path_factory) -> Path:
    """The scripts of an environment that has the wheel; what the wheel needs comes from the running environment."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    options = ("--no-deps", "--no-index", "--no-cache-dir")
    call(sys.executable, "-m", "pip", "--python", python, "install", *options, built.wheel, folder=home)
    (packages,) = home.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    return python.parent


def sources() -> set[str]:
    """Every file of the package, the recipes and the targets."""
    found = [path for part in (PACKAGE, *SHIPPED) for path in (ROOT / part).rglob("*") if path.is_file()]
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def contents(wheel: Path) -> dict[str, int]:
    """Name -> checksum of each file in it."""
    with zipfile.ZipFile(wheel) as archive:
        return {one.filename: one.CRC for one in archive.infolist()}


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_something_of_each_kind_to_ship(kind):
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob(kind)} & sources()


def test_the_wheel_has_every_file_of_the_package_and_no_other(built):
    expected = {f"{PACKAGE}/{name}" if name.startswith(SHIPPED) else name for name in sources()}
    assert {name for name in contents(built.wheel) if ".dist-info/" not in name} == expected


def test_the_sdist_has_all_that_a_wheel_is_made_of(built):
    with tarfile.open(built.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    project = PYPROJECT["project"]
    assert sources() | {"pyproject.toml", project["readme"], *project["license-files"]} <= names
    assert contents(built.again) == contents(built.wheel)


def test_the_wheel_runs_away_from_the_checkout(scripts, tmp_path):
    file = call(scripts / "python", "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)", folder=tmp_path)
    assert Path(file).is_relative_to(scripts.parent)
    recipes, targets = ({path.stem for path in (ROOT / kind).glob("*.yaml")} for kind in SHIPPED)
    program = scripts / "deploy-prune"
    assert recipes <= {line.split()[0] for line in call(program, "recipe", folder=tmp_path).splitlines() if line}
    assert targets == {each["name"] for each in json.loads(call(program, "targets", "--json", folder=tmp_path))}
    predicted = ("--quiet", "--set", "targets=[x86-avx2]")  # nothing is measured
    assert re.search(r"x86-avx2 +50% .* yes", call(program, "check", "quickstart", *predicted, folder=tmp_path))
