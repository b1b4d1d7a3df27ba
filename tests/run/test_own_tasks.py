"""Tasks by recipe: a user's own, a detector and a segmenter, from training to the checked artifact."""

import pytest
import torch
from tiny_run import arithmetic_device

from deploy_prune import load
from deploy_prune.device import targets
from deploy_prune.errors import DataError, RecipeError
from deploy_prune.recipe.file import resolve
from deploy_prune.run import pipeline

SHORT = {
    "train": {"steps": 20, "batch_size": 16, "lr": 0.02}, "search": {"steps": 4, "batch_size": 16},
    "retrain": {"steps": 4, "batch_size": 16}, "measure": {"runs": 20, "warmup": 2}, "budgets": ["60% macs"],
    "device": "cpu", "threads": 1,
}  # fmt: skip


def run(path, **values):
    """On a device that isn't attached, in fp16."""
    known = (targets.targets_folder() / "pixel-8.yaml").read_text()
    (path / "half.yaml").write_text(known.replace("name: pixel-8", "name: half").replace("fp32", "fp16", 1))
    recipe = resolve({"name": "own", "targets": [str(path / "half.yaml")], **SHORT, **values})
    with arithmetic_device(path / "cache"):
        return pipeline.run(recipe, path)


def test_a_task_of_ones_own_goes_from_training_to_checked_artifacts(tmp_path):
    done = run(tmp_path, task="own_tasks:tones", model={"source": "own_tasks:sound"}, data={"args": {"examples": 45}})
    assert [row.error for row in done.rows] == [None] * 2
    assert {(row.score_name, row.score_unit, row.higher_is_better) for row in done.rows} == {("tones right", "%", True)}
    assert {row.train_examples for row in done.rows} == {45}
    assert all(row.score is not None and 0 <= row.score <= 1 for row in done.rows)
    assert done.rows[0].score > 0.6, "a third is chance"
    half = next(row for row in done.rows if row.precision == "fp16")
    assert half.score_artifact is not None
    assert "Input: 1x128." in done.summary
    assert load(done.folder / "half" / "60% macs", trust=True)(torch.zeros(1, 1, 128)).shape == (1, 3)
    assert "tones right" in (done.folder / "report.html").read_text()


def test_two_inputs_and_a_score_that_should_be_low(tmp_path):
    done = run(
        tmp_path, task="own_tasks:SHIFTS", model={"source": "own_tasks:Shift"}, budgets=["60% macs", "50% params"],
        search={"steps": 4, "batch_size": 16, "lr": 0.001},
    )  # fmt: skip
    assert [row.error for row in done.rows] == [None] * 3
    assert {(row.score_name, row.score_unit, row.higher_is_better) for row in done.rows} == {
        ("end-point error", "px", False)
    }
    assert all(row.score is not None and row.score > 0 for row in done.rows)


@pytest.mark.parametrize(
    ("task", "model", "name"),
    [("detection", "grid_detector", "mAP50"), ("segmentation", "unet", "mIoU")],
)
def test_detectors_and_segmenters_by_recipe(tmp_path, task, model, name):
    data = {"source": "scenes", "image_size": [32, 48]}
    done = run(tmp_path, task=task, score=name, model={"source": model}, data=data)
    assert [row.error for row in done.rows] == [None] * 2
    assert {row.score_name for row in done.rows} == {name}
    assert all(row.score is not None and 0 <= row.score <= 1 for row in done.rows)
    halves = [row for row in done.rows if row.precision == "fp16"]
    assert [abs(row.score_artifact - row.score) < 0.02 for row in halves] == [True, True]
    page = (done.folder / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 * 3, "truth, dense and slim, of three pictures"
    assert all(f'alt="Example 3, {name}: ' in page for name in ("truth", "dense", "half 60% macs"))
    assert len(page) < 500_000


def test_what_is_no_task_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"task: there is no task 'detect'; known: .*Perhaps you meant 'detection'\?"):
        resolve({"name": "own", "task": "detect", "model": {"source": "unet"}})
    with pytest.raises(RecipeError, match=r"task: 'own_tasks:moved' failed: TypeError"):
        run(tmp_path, task="own_tasks:moved", model={"source": "own_tasks:Shift"})
    with pytest.raises(RecipeError, match=r"task: 'own_tasks:Shift' gave Shift, not a deploy_prune\.Task"):
        run(tmp_path, task="own_tasks:Shift", model={"source": "own_tasks:Shift"})
    with pytest.raises(DataError, match="can't be read as a pair"):
        run(tmp_path, task="own_tasks:unpaired", model={"source": "own_tasks:Shift"})
    with pytest.raises(RecipeError, match=r"data\.source: this is not a key of data; known: root, shots, args"):
        resolve({"name": "own", "task": "own_tasks:tones", "model": {"source": "unet"}, "data": {"source": "digits"}})
