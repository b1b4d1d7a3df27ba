"""What a shell completes: asked for in the way that bash, zsh and fish ask, and through bash itself."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deploy_prune
from deploy_prune.cli import main
from deploy_prune.commands.completion import target_names
from deploy_prune.system.shipped import shipped_files

ROOT = Path(deploy_prune.__file__).parents[1]
START = "import sys; from deploy_prune.cli import main; sys.argv[0] = 'deploy-prune'; main(prog_name='deploy-prune')"
RECIPES, TARGETS = sorted(shipped_files("recipes")), sorted(shipped_files("edge_targets"))
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def asked(*words: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """What is answered when the last word is to be completed."""
    line = {"COMP_WORDS": shlex.join(["deploy-prune", *words]), "COMP_CWORD": str(len(words))}
    env = os.environ | line | {"_DEPLOY_PRUNE_COMPLETE": "bash_complete", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *options, "-c", START]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=60)


def plain(*words: str) -> list[str]:
    lines = [line.partition(",") for line in asked(*words).stdout.splitlines()]
    return sorted(value for kind, _, value in lines if kind == "plain")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("recipe", ""), RECIPES),
        (("recipe", "quickstart", "mob"), ["mobilenet"]),
        (("check", "det"), ["detector"]),
        (("export", "runs/mobilenet", "--target", "pixel"), ["pixel-6", "pixel-8"]),
        (("predict", "torchvision:resnet18", "--target", ""), TARGETS),
        (("profile", "torchvision:resnet18", "--target", "ho"), ["host"]),
        (("show", "architecture.json", "--target", "iph"), ["iphone-12", "iphone-15"]),
        (("init", "photos", "--target", "jetson-agx"), ["jetson-agx-orin", "jetson-agx-xavier"]),
        (("recipe", "nothing-like-it"), []),
    ],
    ids=" ".join,
)
def test_names_are_completed(words, wanted):
    assert plain(*words) == wanted


def test_every_target_option_is_completed():
    found = [(name, p) for name, one in main.commands.items() for p in one.params if "--target" in p.opts]
    assert len(found) > 4
    assert [name for name, option in found if option._custom_shell_complete is not target_names] == []


def test_a_file_is_completed_where_a_recipe_or_target_may_be_one():
    for words in (("recipe", "./mi"), ("show", "x", "--target", "./mi")):
        assert asked(*words).stdout.splitlines()[0] == "file,./mi"


def test_completion_loads_neither_torch_nor_what_reads_recipes():
    heavy = ("torch", "numpy", "pydantic", "ruamel.yaml", "rich")
    loaded = asked("recipe", "", options=("-X", "importtime")).stderr
    names = {line.rpartition("|")[2].strip() for line in loaded.splitlines()}
    assert "deploy_prune.commands.completion" in names
    assert [name for name in heavy if name in names] == []


@needs_bash
@pytest.mark.parametrize(("typed", "wanted"), [("mobi", ["mobilenet"]), ("no-name", [])])
def test_bash_completes_after_the_documented_line(typed, wanted, tmp_path):
    """``complete`` must know the function, and the function must fill COMPREPLY."""
    shim = tmp_path / "deploy-prune"
    shim.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -c {shlex.quote(START)} "$@"\n'
    )
    shim.chmod(0o755)
    script = f"""
        eval "$(_DEPLOY_PRUNE_COMPLETE=bash_source deploy-prune)"
        complete -p deploy-prune | grep -q -- '-F _deploy_prune_completion' || exit 3
        COMP_WORDS=(deploy-prune recipe {typed}) COMP_CWORD=2
        compopt() {{ :; }}  # bash has it only while a line is typed
        _deploy_prune_completion deploy-prune {typed} recipe
        echo "${{COMPREPLY[@]}}"
    """
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=env, timeout=60)
    assert done.stdout.split() == wanted
