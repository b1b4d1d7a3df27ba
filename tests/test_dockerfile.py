"""The Dockerfile, read as text: it installs this project, from files that there are and that reach the build."""

import json
import re
import shlex
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
FILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
KNOWN = frozenset({"FROM", "WORKDIR", "COPY", "RUN", "ARG", "USER", "ENTRYPOINT", "CMD"})


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, what follows), comments left out and broken lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(word, rest) for line in lines.splitlines() if line for word, _, rest in [line.partition(" ")]]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions from each FROM on."""
    found: list[list[tuple[str, str]]] = []
    for one in instructions(FILE):
        if one[0] == "FROM":
            found.append([])
        found[-1].append(one)
    return found


def values(stage: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for each, rest in stage if each == word]


def copied() -> list[str]:
    """What is copied from this folder."""
    words = [shlex.split(rest)[:-1] for rest in values(instructions(FILE), "COPY") if not rest.startswith("--from")]
    return [source for group in words for source in group]


def test_every_instruction_is_one():
    assert {word for word, _ in instructions(FILE)} <= KNOWN
    assert len(stages()) == 2


def test_the_base_is_a_python_that_the_project_allows():
    for rest in values(instructions(FILE), "FROM"):
        version = re.match(r"python:(\d+\.\d+)-slim\b", rest)
        assert version is not None
        assert SpecifierSet(PROJECT["requires-python"]).contains(version[1])


def test_what_is_copied_is_there_and_is_all_that_the_wheel_is_made_of():
    assert [name for name in copied() if not (ROOT / name).exists()] == []
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], *wheel["packages"]}
    assert set(copied()) == needed | set(wheel["force-include"])


def test_what_is_copied_is_not_ignored_and_nothing_else_is_sent():
    rules = [line for line in IGNORED if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied())


def test_stages_are_copied_from_that_there_are():
    names = {rest.partition(" AS ")[2] for rest in values(instructions(FILE), "FROM")}
    taken = re.findall(r"--from=(\S+)", FILE)
    assert taken
    assert set(taken) <= names


def test_it_starts_the_projects_script_as_a_user_without_rights():
    last = stages()[-1]
    (entry,), (user,) = values(last, "ENTRYPOINT"), values(last, "USER")
    (script,) = PROJECT["scripts"]
    assert json.loads(entry) == [script]
    assert all(json.loads(rest) for rest in values(last, "CMD"))
    assert user not in ("root", "0")
    assert re.search(rf"useradd [^&]*\b{user}\b", values(last, "RUN")[0])
    words = [word for word, _ in last]
    assert words.index("RUN") < words.index("USER") < words.index("ENTRYPOINT")
    (folder,) = values(last, "WORKDIR")
    assert f"install --directory --owner {user} {folder}" in FILE


def test_torch_is_asked_for_as_the_project_asks():
    (wanted,) = [need for need in map(Requirement, PROJECT["dependencies"]) if need.name == "torch"]
    (found,) = [Requirement(text) for text in re.findall(r"'(torch[^']*)'", FILE)]
    assert found.specifier == wanted.specifier


def test_the_page_about_it_is_true():
    page = (ROOT / "docs" / "where-it-runs.md").read_text(encoding="utf-8")
    (extras,) = re.findall(r"`--build-arg EXTRAS=(\S+)`", page)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert "EXTRAS:+[$EXTRAS]" in FILE
    assert f'-v "$PWD":{values(stages()[-1], "WORKDIR")[0]} ' in page
