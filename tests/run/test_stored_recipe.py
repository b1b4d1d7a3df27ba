"""A run's own recipe: it belongs to one experiment, and works from any folder."""

import logging
import shutil
from pathlib import Path

import pytest
from tiny_run import tiny_recipe

from deploy_prune.commands import bench
from deploy_prune.device.targets import load_target, targets_folder
from deploy_prune.errors import DataError, RunFolderError
from deploy_prune.recipe.file import load_recipe, resolve
from deploy_prune.run import pipeline, stages, stored_recipe
from deploy_prune.run.folder import RunFolder

OWN = (targets_folder() / "pixel-8.yaml").read_text(encoding="utf-8").replace("name: pixel-8", "name: mine")


@pytest.fixture
def folder(tmp_path):
    """A run folder in which a stage of the tiny recipe was finished."""
    opened = RunFolder(path=tmp_path / "runs" / "tiny")
    opened.open(fresh=False)
    stored_recipe.write(tiny_recipe(), opened.path)
    opened.stage("dense", {}, [], lambda: None)
    return opened.path


def data_from(**changes):
    return {"data": tiny_recipe().data.model_dump() | changes}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"search": {"method": "taylor"}}, "search.method is 'gate' there and 'taylor' here"),
        ({"model": {"source": "resnet20"}}, "model.source is 'tiny_run:network' there and 'resnet20' here"),
        (data_from(source="cifar10"), "data.source is 'digits' there and 'cifar10' here"),
    ],
)
def test_another_experiment_is_refused_and_told_apart(folder, changes, key):
    with pytest.raises(RunFolderError, match=rf"{key}\. .*--set name=.*--fresh") as raised:
        stored_recipe.require_same_experiment(tiny_recipe(**changes), folder)
    assert str(folder) in str(raised.value)


def test_a_task_of_ones_own_is_resumed_and_not_taken_for_another(folder):
    """Its data part has no source."""
    own = resolve({"name": "tiny", "task": "tones:TASK", "model": {"source": "tones:network"}})
    stored_recipe.write(own, folder)
    stored_recipe.require_same_experiment(own, folder)
    with pytest.raises(RunFolderError, match="task is 'tones:TASK' there and 'classification' here"):
        stored_recipe.require_same_experiment(tiny_recipe(), folder)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"budgets": ["40% macs"]},
        {"targets": ["pixel-8", "pixel-6"]},
        {"track": ["tensorboard"]},
        {"threads": 2},
        {"processes": "auto"},
    ],
    ids=str,
)
def test_what_replaces_no_result_goes_on_without_a_word(folder, changes, caplog):
    stored_recipe.require_same_experiment(tiny_recipe(**changes), folder)
    assert caplog.records == []


def test_of_accumulate_and_processes_only_the_product_is_part_of_a_result(tmp_path, caplog):
    (tmp_path / ".stages").mkdir()
    (tmp_path / ".stages/dense.json").write_text("{}")
    stored_recipe.write(tiny_recipe(accumulate=4, processes=2), tmp_path)
    with caplog.at_level(logging.WARNING):
        stored_recipe.require_same_experiment(tiny_recipe(accumulate=1, processes=8), tmp_path)
        assert caplog.records == []
        stored_recipe.require_same_experiment(tiny_recipe(accumulate=4, processes=1), tmp_path)
    assert "other settings than before (processes 2 -> 1)" in caplog.text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"search": {"steps": 7, "batch_size": 16}}, "search.steps 6 -> 7"),
        ({"seed": 1}, "seed 0 -> 1"),
        ({"model": {"source": "tiny_run:network", "args": {"width": 24}}}, "model.args {} -> {'width': 24}"),
    ],
)
def test_settings_that_replace_results_go_on_and_are_named(folder, changes, told, caplog):
    with caplog.at_level(logging.WARNING):
        stored_recipe.require_same_experiment(tiny_recipe(**changes), folder)
    assert told in caplog.text


def test_a_folder_without_results_takes_any_recipe(folder):
    shutil.rmtree(folder / ".stages")
    stored_recipe.require_same_experiment(tiny_recipe(search={"method": "taylor"}), folder)


def test_a_recipe_that_can_not_be_read_is_not_overwritten(folder):
    (folder / "recipe.yaml").write_text("name: [")
    with pytest.raises(RunFolderError, match="--fresh"):
        stored_recipe.require_same_experiment(tiny_recipe(), folder)


def test_a_second_method_leaves_the_first_ones_results_alone(tmp_path, monkeypatch):
    first = pipeline.run(tiny_recipe(search={"method": "magnitude"}), tmp_path)
    before = {p: p.read_bytes() for p in first.folder.rglob("*.*") if p.is_file()}
    other = tiny_recipe(search={"method": "uniform"})
    with pytest.raises(RunFolderError, match=r"search\.method"):
        pipeline.run(other, tmp_path)
    assert {p: p.read_bytes() for p in first.folder.rglob("*.*") if p.is_file()} == before
    monkeypatch.setattr(stages, "train_dense", lambda context: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(other, tmp_path, fresh=True)
    assert load_recipe(str(first.folder / "recipe.yaml")).search.method == "uniform"


# --- paths ------------------------------------------------------------------------------------------------------------


def test_a_run_has_its_own_copy_of_its_target_and_works_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("mine.yaml").write_text(OWN)
    run = pipeline.run(tiny_recipe(targets=["./mine.yaml"]), Path("runs"))
    monkeypatch.chdir("/")
    moved = Path(shutil.copytree(tmp_path / "here" / "runs" / "tiny", tmp_path / "moved"))
    shutil.rmtree(tmp_path / "here")
    assert (moved / "targets" / "mine.yaml").read_text() == OWN
    assert tuple(found.row for found in bench.bench(moved, runs=10)) == run.rows
    pipeline.run(stored_recipe.load(moved).model_copy(update={"name": "moved"}), tmp_path)


def test_paths_are_written_as_they_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(
        model={"source": "resnet20", "weights": "w.safetensors"}, data={"source": "npz", "root": "sub/d.npz"}
    )
    stored_recipe.write(recipe, tmp_path / "run")
    found = stored_recipe.load(tmp_path / "run")
    assert found.model.weights == str(tmp_path / "w.safetensors")
    assert found.data.root == str(tmp_path / "sub" / "d.npz")


def test_a_benchmark_program_is_found_from_the_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "devices").mkdir()
    text = OWN.replace("runner: none", "runner: adb://SERIAL")
    Path("devices/mine.yaml").write_text(f"{text}\nprogram: ./benchmark_model\n")
    before = load_target("devices/mine.yaml")
    stored_recipe.write(tiny_recipe(targets=["devices/mine.yaml"]), tmp_path / "run")
    monkeypatch.chdir("/")
    (name,) = stored_recipe.load(tmp_path / "run").targets
    assert load_target(name).program == str(tmp_path / "devices" / "benchmark_model")
    assert load_target(name).roofline == before.roofline


def test_a_share_that_holds_none_out_ends_a_run_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "train_dense", lambda context: pytest.fail("this trains"))
    with pytest.raises(DataError, match="hold_out"):
        pipeline.run(tiny_recipe(retrain={"steps": 5, "hold_out": 0.1}), tmp_path)
    assert not (tmp_path / "tiny" / "recipe.yaml").exists()


def test_a_target_file_with_another_precision_stays_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((targets_folder() / "host.yaml").read_text().replace("name: host", "name: mine"))
    folder = tmp_path / "run"
    stored_recipe.write(tiny_recipe(targets=[f"{path}@ncnn:fp16", "host@fp16"]), folder)
    path.unlink()
    folder.rename(tmp_path / "moved")
    found = [load_target(name) for name in stored_recipe.load(tmp_path / "moved").targets]
    assert [(one.name, one.format, one.precision) for one in found] == [
        ("mine-ncnn-fp16", "ncnn", "fp16"), ("host-fp16", "onnx", "fp16"),
    ]  # fmt: skip
