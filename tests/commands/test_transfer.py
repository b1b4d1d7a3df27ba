"""An architecture, with and without weights, on new data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from tiny_run import tiny_recipe

from deploy_prune.api import load
from deploy_prune.api.export import export_saved
from deploy_prune.architecture import json_file
from deploy_prune.cli import main
from deploy_prune.commands import transfer as transfer_module
from deploy_prune.commands.transfer import as_settings, transfer
from deploy_prune.data import splits
from deploy_prune.errors import ArchitectureError, DataError, RecipeError, RunFolderError, WeightsError
from deploy_prune.retrain.fewshot import FEATURES, RATES
from deploy_prune.run import pipeline
from deploy_prune.run.folder import load_tensors
from deploy_prune.run.pipeline import Run

SETTINGS = ("data.target_classes=[5, 6, 7, 8]", "retrain.steps=6", "device=cpu")
PLACE = "pixel-8/50% macs"
ASKED = ("collection", "shots", "init")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on digits, from classes 0 to 2 to classes 3 to 5. Not to be changed."""
    return pipeline.run(tiny_recipe(), tmp_path_factory.mktemp("finished"))


def move(source: Path, out: Path, *settings: str, **how: Any) -> Any:
    given = {"collection": "digits", "shots": 3, "init": None} | {k: how.pop(k) for k in list(how) if k in ASKED}
    return transfer(source, [*as_settings(**given), *SETTINGS, *settings], **({"out": out, "trust": True} | how))


def test_an_architecture_without_weights_learns_from_scratch(finished, tmp_path):
    file = finished.folder / PLACE / "architecture.json"
    found = move(file, tmp_path / "new")
    assert found.init == "fresh"
    assert found.episodes[0].score_teacher is None
    before, after = json_file.load(file), json_file.load(tmp_path / "new" / "architecture.json")
    assert after.num_classes == 4
    assert all(torch.equal(mask, before.keep[name]) for name, mask in after.keep.items())
    assert load.load(tmp_path / "new", trust=True)(torch.zeros(2, 1, 16, 16)).shape == (2, 4)


def test_a_slim_run_hands_on_its_weights_but_not_its_classifier(finished, tmp_path):
    found = move(
        finished.folder / PLACE,
        tmp_path / "new",
        "retrain.steps=0",
        "retrain.repair=false",
        "retrain.batchnorm=running",
    )
    assert found.init == "inherit"
    assert found.episodes[0].score_teacher is not None
    old, new = (load_tensors(f / "weights.safetensors") for f in (finished.folder / PLACE, tmp_path / "new"))
    changed = {name for name in old if old[name].shape != new[name].shape or not torch.equal(old[name], new[name])}
    assert changed == {"11.weight", "11.bias"}
    assert new["11.weight"].shape[0] == 4


@pytest.mark.parametrize(
    ("setting", "same"),
    [
        (f"retrain.lr={RATES['fresh']}", True),
        (f"retrain.lr={RATES['inherit']}", False),
        (f"retrain.features={FEATURES['inherit']}", True),
        ("retrain.features=0", False),
    ],
)
def test_inherited_weights_match_features_at_the_rate_of_a_new_classifier(finished, tmp_path, setting, same):
    """Both are the default, and both change what is learned."""
    place = finished.folder / PLACE
    default, told = move(place, tmp_path / "a"), move(place, tmp_path / "b", setting)
    assert default.init == told.init == "inherit"
    weights = [load_tensors(tmp_path / name / "weights.safetensors") for name in ("a", "b")]
    assert [torch.equal(weights[0][n], weights[1][n]) for n in ("0.weight", "11.weight")] == [same, same]


def test_the_teacher_learns_the_new_classes_at_their_rate(finished, tmp_path, monkeypatch):
    """So does the slim network; a rate of the recipe's own holds for both."""
    asked = []
    adapt = transfer_module.adapt
    monkeypatch.setattr(transfer_module, "adapt", lambda *args, **how: asked.append(args[3].lr) or adapt(*args, **how))
    move(finished.folder / PLACE, tmp_path / "a")
    move(finished.folder / PLACE, tmp_path / "b", "retrain.lr=0.002")
    assert asked == [RATES["fresh"]] * 2 + [0.002] * 2


def test_fresh_weights_are_new(finished, tmp_path):
    move(finished.folder / PLACE, tmp_path / "new", "retrain.steps=0", "retrain.repair=false", init="fresh")
    old, new = (load_tensors(f / "weights.safetensors") for f in (finished.folder / PLACE, tmp_path / "new"))
    assert not torch.equal(old["0.weight"], new["0.weight"])


def test_inherited_weights_keep_their_normalisation(finished, tmp_path):
    move(finished.folder / PLACE, tmp_path / "new")
    told = json.loads((finished.folder / "dense" / "training.json").read_text())
    text = (tmp_path / "new" / "transfer.yaml").read_text()
    assert f"- {told['mean'][0]}" in text
    move(tmp_path / "new", tmp_path / "again", "data.target_classes=[0, 1]")
    assert f"- {told['mean'][0]}" in (tmp_path / "again" / "transfer.yaml").read_text()
    move(finished.folder / PLACE, tmp_path / "own", "data.mean=[0.25]", "data.std=[0.5]")
    assert "- 0.25" in (tmp_path / "own" / "transfer.yaml").read_text()


def test_episodes_draw_other_examples_and_have_an_interval(finished, tmp_path):
    file = finished.folder / PLACE / "architecture.json"
    found = move(file, tmp_path / "a", episodes=3)
    assert len({one.split for one in found.episodes}) == 3
    assert [one.seed for one in found.episodes] == [0, 1, 2]
    assert found.score == pytest.approx(sum(one.score for one in found.episodes) / 3)
    assert found.interval > 0
    told = json.loads((tmp_path / "a" / "transfer.json").read_text())
    assert [one["split"] for one in told["episodes"]] == [one.split for one in found.episodes]
    again = move(file, tmp_path / "b", episodes=3)
    assert [one.score for one in again.episodes] == [one.score for one in found.episodes]


def test_splits_are_the_same_whatever_is_adapted(finished, tmp_path):
    with_weights = move(finished.folder / PLACE, tmp_path / "a")
    without = move(finished.folder / PLACE / "architecture.json", tmp_path / "b")
    assert with_weights.episodes[0].split == without.episodes[0].split


def test_without_other_data_it_is_the_runs(finished, tmp_path):
    given = {"out": tmp_path / "new", "episodes": 2, "trust": True}
    found = transfer(finished.folder / PLACE, [*as_settings(None), "retrain.steps=2"], **given)
    assert [episode.classes for episode in found.episodes] == [(3, 4, 5)] * 2
    first, second = (episode.split for episode in found.episodes)
    assert first == splits.load(tiny_recipe().data, tiny_recipe().seed).digest != second
    with pytest.raises(RecipeError, match="data.source"):
        transfer(finished.folder / PLACE / "architecture.json", as_settings(None), **given)


def test_ways_draw_the_classes(finished, tmp_path):
    file = finished.folder / PLACE / "architecture.json"
    found = move(file, tmp_path / "new", "data.target_classes=null", "data.ways=5", episodes=2)
    assert [len(one.classes) for one in found.episodes] == [5, 5]
    assert found.episodes[0].classes != found.episodes[1].classes


def test_another_size_of_input_is_allowed(finished, tmp_path):
    move(finished.folder / PLACE, tmp_path / "new", "data.image_size=24")
    assert json_file.load(tmp_path / "new" / "architecture.json").input_shape == (1, 1, 24, 24)


def test_an_npz_is_data_too(finished, tmp_path):
    images = (torch.rand(40, 16, 16, 1, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    labels = numpy.arange(40) % 2
    numpy.savez(tmp_path / "mine.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    file = finished.folder / PLACE / "architecture.json"
    settings = ["data.target_classes=null", "retrain.steps=2"]
    found = move(file, tmp_path / "new", *settings, collection=str(tmp_path / "mine.npz"))
    assert found.episodes[0].classes == (0, 1)
    with pytest.raises(DataError, match="there is no file"):
        move(file, tmp_path / "other", *settings, collection=str(tmp_path / "nowhere.npz"))


def test_what_came_of_it_can_be_moved_on_and_exported(finished, tmp_path):
    move(finished.folder / PLACE, tmp_path / "a")
    move(tmp_path / "a", tmp_path / "b", "data.target_classes=[0, 1]")
    made = export_saved(tmp_path / "b", "pixel-8", tmp_path / "slim.onnx", trust=True)
    assert made.path.is_file()


def test_faults_are_named(finished, tmp_path):
    place = finished.folder / PLACE
    for error, words, source, settings in (
        (
            DataError,
            "data.channels: inputs are 3x16x16, and the architecture reads 1x16x16",
            place,
            ["data.channels=3"],
        ),
        (RunFolderError, "There is no", tmp_path / "nowhere", []),
        (RecipeError, "--set retrain.stesp=1", place, ["retrain.stesp=1"]),
        (DataError, "1000 are asked for", place, ["data.shots=1000"]),
        (DataError, "at least 2 classes", place, ["data.target_classes=[1]"]),
        (RecipeError, "no weights to inherit", place / "architecture.json", ["retrain.init=inherit"]),
    ):
        with pytest.raises(error, match=words):
            move(source, tmp_path / "new", *settings)
    with pytest.raises(ArchitectureError, match="trust"):
        move(place, tmp_path / "new", trust=False)
    assert not (tmp_path / "new").exists()


def test_the_command_shows_every_episode(finished, tmp_path):
    arguments = [finished.folder / PLACE, "--data", "digits", "--shots", 2, "--episodes", 2, "--out", tmp_path / "new"]
    sets = [part for text in SETTINGS for part in ("--set", text)]
    result = CliRunner().invoke(main, ["transfer", *map(str, arguments), *sets, "--trust", "--quiet"])
    assert result.exit_code == 0, result.stderr
    assert "mean" in result.stdout
    assert "±" in result.stdout
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "architecture.json", "transfer.json", "transfer.yaml", "weights.safetensors",
    ]  # fmt: skip


def test_another_networks_teacher_is_refused(finished, tmp_path):
    save_file({"0.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="another network's: 0.weight is"):
        move(finished.folder / PLACE, tmp_path / "new", teacher=tmp_path / "other.safetensors")
