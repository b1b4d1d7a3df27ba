"""Detectors, segmenters and tasks of one's own on new data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy_prune.api import load
from deploy_prune.architecture import json_file
from deploy_prune.commands import transfer as transfer_module
from deploy_prune.commands.transfer import as_settings, transfer
from deploy_prune.errors import DataError, RecipeError
from deploy_prune.recipe.file import load_recipe, resolve
from deploy_prune.retrain.fewshot import RATES, peak_rate
from deploy_prune.run import pipeline
from deploy_prune.run.folder import load_tensors

SHORT = {
    "train": {"steps": 2, "batch_size": 8}, "search": {"steps": 2, "batch_size": 8},
    "retrain": {"steps": 1, "batch_size": 8}, "targets": ["pixel-8"], "budgets": ["60% macs"], "device": "cpu",
    "threads": 1,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "detection": {"model": {"source": "grid_detector"}, "data": {"image_size": [32, 48]}},
    "segmentation": {"model": {"source": "unet"}, "data": {"image_size": [32, 48], "fit": "stretch"}},
    "own_tasks:tones": {"model": {"source": "own_tasks:sound"}, "data": {"args": {"examples": 12}}},
    "own_tasks:SHIFTS": {"model": {"source": "own_tasks:Shift"}},
}


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TARGET/BUDGET of a short run of the task. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    run = pipeline.run(resolve({"name": "run", "task": request.param, **KINDS[request.param], **SHORT}), folder)
    assert [row.error for row in run.rows] == [None, None]
    return run.folder / "pixel-8" / "60% macs"


def of(*tasks: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("place", tasks, indirect=True)


def move(source: Path, out: Path, *settings: str, collection: str | None = None, **how: Any) -> Any:
    given = [
        *as_settings(collection, how.pop("shots", None), None),
        "retrain.steps=1",
        "device=cpu",
        "threads=1",
        *settings,
    ]
    return transfer(source, given, out=out, trust=True, **how)


@of("detection", "segmentation")
def test_other_classes_get_new_class_layers_and_keep_all_else(place: Path, tmp_path: Path) -> None:
    found = move(
        place, tmp_path / "new", "data.target_classes=[0, 6, 7]", "retrain.steps=0", "retrain.repair=false",
        "retrain.batchnorm=running",
        collection="scenes", shots=2,
    )  # fmt: skip
    (episode,) = found.episodes
    assert episode.classes == (0, 6, 7)
    assert episode.score_teacher is not None
    assert (found.score_name, found.init) in {("mAP50-95", "inherit"), ("mIoU", "inherit")}
    before, after = (json_file.load(folder / "architecture.json") for folder in (place, tmp_path / "new"))
    assert (before.num_classes, after.num_classes) in {(10, 3), (11, 3)}
    assert after.input_shape == before.input_shape == (1, 3, 32, 48)
    old, new = load_tensors(place / "weights.safetensors"), load_tensors(tmp_path / "new" / "weights.safetensors")
    other = {name for name in old if not torch.equal(old[name], new[name])}
    assert other == {name for name in old if old[name].shape != new[name].shape} != set()


@of("detection")
def test_shots_are_objects_and_their_draw_is_the_episodes(place: Path, tmp_path: Path) -> None:
    found = move(place, tmp_path / "new", collection="scenes", shots=1, episodes=2)
    assert len({one.split for one in found.episodes}) == 2
    assert [one.steps for one in found.episodes] == [1, 1]
    told = load_recipe(str(tmp_path / "new" / "transfer.yaml"))
    assert (told.task, told.data.shots, told.data.source) == ("detection", 1, "scenes")
    assert told.data.image_size == [32, 48]


@of("segmentation")
def test_without_other_data_it_is_the_runs_and_how_pictures_fit_stays(place: Path, tmp_path: Path) -> None:
    assert move(place, tmp_path / "a").episodes[0].classes == tuple(range(11))
    move(place, tmp_path / "b", collection="scenes", shots=1)
    files = [load_recipe(str(tmp_path / name / "transfer.yaml")).data for name in ("a", "b")]
    assert [(data.fit, data.shots) for data in files] == [("stretch", None), ("stretch", 1)]
    assert load.load(tmp_path / "b")(torch.zeros(1, 3, 32, 48)).shape == (1, 11, 32, 48)


@of("detection")
def test_an_architecture_alone_is_told_its_task(place: Path, tmp_path: Path) -> None:
    file = place / "architecture.json"
    found = move(file, tmp_path / "new", "task=detection", collection="scenes", shots=1)
    assert (found.init, found.score_name) == ("fresh", "mAP50-95")
    with pytest.raises(
        RecipeError, match="'scenes' is a data set for task: detection or segmentation, and the task is"
    ):
        move(file, tmp_path / "other", collection="scenes")
    with pytest.raises(RecipeError, match="'folder' is a data set for task: classification, and the task is detection"):
        move(place, tmp_path / "other", collection=str(tmp_path))
    with pytest.raises(DataError, match=r"data\.channels: inputs are 1x32x48, and the architecture reads 3x32x48"):
        move(place, tmp_path / "other", "data.channels=1", collection="scenes", shots=1)


@of("own_tasks:tones")
def test_a_task_of_ones_own_with_classes(place: Path, tmp_path: Path) -> None:
    found = move(place, tmp_path / "new", "data.args={examples: 9}")
    assert (found.score_name, found.episodes[0].classes) == ("tones right", (0, 1, 2))
    assert load_recipe(str(tmp_path / "new" / "transfer.yaml")).data.args == {"examples": 9}
    alone = move(place / "architecture.json", tmp_path / "alone", "task=own_tasks:tones", "data.args={examples: 9}")
    assert alone.init == "fresh"


@of("own_tasks:SHIFTS")
def test_a_task_without_classes_begins_with_every_weight_at_their_rate(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    adapt = transfer_module.adapt
    monkeypatch.setattr(transfer_module, "adapt", lambda *args, **how: asked.append(args[3]) or adapt(*args, **how))
    move(place, tmp_path / "new", "retrain.steps=0", "retrain.repair=false")
    assert [peak_rate(part) for part in asked] == [RATES["inherit"]] * 2
    old, new = load_tensors(place / "weights.safetensors"), load_tensors(tmp_path / "new" / "weights.safetensors")
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert json.loads((tmp_path / "new" / "transfer.json").read_text())["score_unit"] == "px"
