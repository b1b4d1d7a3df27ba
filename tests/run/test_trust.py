"""Code that a run folder names is not run unasked: its recipe may come from anyone."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from deploy_prune.architecture import json_file
from deploy_prune.cli import main
from deploy_prune.commands import bench
from deploy_prune.device.targets import load_target, targets_folder
from deploy_prune.errors import ArchitectureError, RunFolderError, TargetError
from deploy_prune.networks import build
from deploy_prune.recipe.file import load_recipe
from deploy_prune.recipe.parts import ModelPart, PrunePart
from deploy_prune.run.trust import found_recipe, found_targets
from deploy_prune.surgery.groups import find_groups

EVIL = "from pathlib import Path\nPath('RAN').touch()\ndef make(*args, **options): raise SystemExit(0)\n"
NAMED = {
    "data": "name: run\nmodel: {source: resnet20}\ndata: {source: 'evil:make'}\n",
    "data named as a library": "name: run\nmodel: {source: resnet20}\ndata: {source: 'torchvision:make'}\n",
    "network": "name: run\nmodel: {source: 'evil:make'}\n",
    "task": "name: run\ntask: 'evil:make'\nmodel: {source: resnet20}\n",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder of one network, whole."""
    place = tmp_path_factory.mktemp("made") / "run" / "host" / "50%"
    place.mkdir(parents=True)
    part, x = ModelPart(source="conv2"), torch.zeros(1, 3, 32, 32)
    network = build.build_network(part, 10)
    keep = {g.name: torch.ones(g.channels, dtype=torch.bool) for g in find_groups(network, (x,), PrunePart()).groups}
    described = json_file.describe(part, 10, (x,), keep, network, network)
    (place / "architecture.json").write_text(json_file.dumps(described))
    save_file(network.state_dict(), place / "weights.safetensors")
    return place.parent.parent


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in the current folder, beside code that leaves a mark."""
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    return Path(shutil.copytree(made, tmp_path / "run"))


COMMANDS = (
    ("transfer", "run/host/50%", "--out", "out", "--quiet"),
    ("transfer", "run/host/50%", "--data", "digits", "--out", "out", "--quiet"),
    ("export", "run/host/50%", "--target", "jetson-nano", "--out", "x.tensorrt"),
    ("export", "run/host/50%", "--target", "x86-avx2", "--out", "x.onnx"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("named", NAMED)
def test_a_runs_recipe_is_not_followed_unasked(run: Path, command: tuple[str, ...], named: str) -> None:
    (run / "recipe.yaml").write_text(NAMED[named])
    result = CliRunner().invoke(main, command)
    error = ArchitectureError if named == "network" else RunFolderError
    assert result.exit_code == error.exit_code, result.output
    assert "--trust" in result.stderr
    assert not Path("RAN").exists()
    assert not Path("out").exists()


@pytest.mark.parametrize("command", COMMANDS[::2], ids=" ".join)
def test_nor_is_an_earlier_transfers(run: Path, command: tuple[str, ...]) -> None:
    (run / "host" / "50%" / "transfer.yaml").write_text(NAMED["data"])
    assert CliRunner().invoke(main, command).exit_code == RunFolderError.exit_code
    assert not Path("RAN").exists()


def test_nor_is_a_finished_runs(run: Path) -> None:
    (run / "recipe.yaml").write_text(NAMED["data"])
    told = {"recipe_sha256": hashlib.sha256((run / "recipe.yaml").read_bytes()).hexdigest(), "files": {}}
    (run / "provenance.json").write_text(json.dumps(told))
    (run / "results.json").write_text("[]")
    result = CliRunner().invoke(main, ["export", "run", "--target", "host"])
    assert result.exit_code == RunFolderError.exit_code
    assert "--trust" in result.stderr
    assert not Path("RAN").exists()


def test_trust_is_the_users_word(run: Path) -> None:
    (run / "recipe.yaml").write_text(NAMED["data"])
    assert found_recipe(run / "recipe.yaml", trust=True).data.source == "evil:make"
    assert load_recipe(str(run / "recipe.yaml")).data.source == "evil:make"  # the recipe itself was asked for


def test_a_runs_target_starts_no_program_unasked(run: Path) -> None:
    text = (targets_folder() / "pixel-8.yaml").read_text()
    text = text.replace("runner: none", "runner: adb://AB12\nprogram: ./benchmark_model")
    Path("x.yaml").write_text(text)
    (run / "recipe.yaml").write_text("name: run\nmodel: {source: conv2}\ntargets: [./x.yaml]\n")
    (run / "results.json").write_text("[]")
    with pytest.raises(RunFolderError, match="benchmark_model"):
        bench.bench(run, 10)
    recipe = load_recipe(str(run / "recipe.yaml"))
    assert list(found_targets(recipe, run / "recipe.yaml", trust=True)) == [load_target("./x.yaml").name]


def test_a_target_sends_no_file_but_a_known_program(tmp_path: Path) -> None:
    text = (targets_folder() / "pixel-8.yaml").read_text()
    path = tmp_path / "x.yaml"
    path.write_text(text.replace("runner: none", "runner: ssh://elsewhere\nprogram: ~/.ssh/id_rsa"))
    with pytest.raises(TargetError, match="id_rsa"):
        load_target(str(path))
