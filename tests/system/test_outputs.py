"""What is written never replaces a run's own files, nor files of something else."""

import json

import pytest
import torch
from click.testing import CliRunner
from tiny_run import tiny_recipe
from torch import nn

from deploy_prune import export_network
from deploy_prune.cli import main
from deploy_prune.commands.transfer import as_settings, transfer
from deploy_prune.errors import DeployPruneError, RunFolderError
from deploy_prune.run import pipeline
from deploy_prune.system.outputs import run_around
from deploy_prune.system.shell import digest


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return pipeline.run(tiny_recipe(), tmp_path_factory.mktemp("runs")).folder


@pytest.fixture
def made(tmp_path):
    """What marks a run's folder, for what needs no more of it."""
    folder = tmp_path / "made"
    (folder / ".stages").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("name: made\n")
    return folder


def small():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))


@pytest.mark.parametrize("inside", ["", "pixel-8/50% macs", "pixel-8", "new"])
def test_a_transfer_leaves_a_run_as_it_is(run, inside):
    before = digest(run)
    settings = [*as_settings("digits", 3), "data.target_classes=[5,6,7,8]", "retrain.steps=2"]
    with pytest.raises(RunFolderError, match="is in the run folder .*tiny") as raised:
        transfer(run / "pixel-8" / "50% macs", settings, out=run / inside, trust=True)
    assert str(run) in str(raised.value)
    assert digest(run) == before


def test_a_transfer_replaces_its_own_files_and_no_others(run, tmp_path):
    settings = [*as_settings("digits", 3), "data.target_classes=[5,6,7,8]", "retrain.steps=2"]
    place = run / "pixel-8" / "50% macs"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "weights.safetensors").write_bytes(b"precious")
    with pytest.raises(RunFolderError, match=r"weights\.safetensors that transfer didn't write"):
        transfer(place, settings, out=tmp_path / "mine", trust=True)
    assert (tmp_path / "mine" / "weights.safetensors").read_bytes() == b"precious"
    for _ in range(2):
        assert transfer(place, settings, out=tmp_path / "new", trust=True).folder == tmp_path / "new"


@pytest.mark.parametrize("where", ["model.onnx", "host/50%/model.onnx", "host/50%/new.onnx"])
def test_no_artifact_is_written_into_a_run(made, where):
    with pytest.raises(RunFolderError, match="is in the run folder"):
        export_network(small(), torch.zeros(1, 1, 8, 8), path=made / where)
    result = CliRunner().invoke(main, ["export", str(made), "--target", "pixel-8", "--out", str(made / where)])
    assert result.exit_code != 0
    assert [p.name for p in made.rglob("*.onnx")] == []


def test_an_artifact_does_not_take_the_place_of_a_folder_of_photos(tmp_path):
    photos = tmp_path / "photos.onnx"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(RunFolderError, match=r"has cat\.jpg, which is not of an artifact"):
        export_network(small(), torch.zeros(1, 1, 8, 8), path=photos)
    assert (photos / "cat.jpg").read_bytes() == b"cat"


@pytest.mark.parametrize("command", [["schema", "--out"], ["profile", "resnet20", "--target", "host", "--out"]])
@pytest.mark.parametrize("name", ["made/results.json", "made/new.json", "notes.txt"])
def test_no_result_takes_the_place_of_another_file(made, tmp_path, command, name):
    (tmp_path / "notes.txt").write_text("precious")
    (made / "results.json").write_text("[]")
    result = CliRunner().invoke(main, [*command, str(tmp_path / name)])
    assert result.exit_code == RunFolderError.exit_code
    assert (tmp_path / "notes.txt").read_text() == "precious"
    assert (made / "results.json").read_text() == "[]"
    assert not (made / "new.json").exists()


def test_a_result_is_written_again(tmp_path):
    for _ in range(2):
        assert CliRunner().invoke(main, ["schema", "--out", str(tmp_path / "s.json")]).exit_code == 0
    assert json.loads((tmp_path / "s.json").read_text())


def test_only_a_run_is_a_run(made, tmp_path):
    assert run_around(made / "a" / "b") == made.resolve()
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "recipe.yaml").write_text("name: mine\n")
    assert run_around(tmp_path / "project" / "out.onnx") is None
    assert issubclass(RunFolderError, DeployPruneError)
