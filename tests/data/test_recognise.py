"""What a folder is recognised as is what the loaders read; nested folders, several kinds, and nothing known."""

import shutil

import numpy as np
import picture_sets as sets
import pytest

from deploy_prune.data.recognise import readings
from deploy_prune.errors import DataError
from deploy_prune.recipe.file import resolve
from deploy_prune.tasks import task_named

MAKERS = {
    ("detection", "voc"): sets.voc, ("detection", "coco"): sets.coco, ("detection", "yolo"): sets.yolo,
    ("segmentation", "folders"): sets.masks,
}  # fmt: skip


def classes(root, parts=("",), names=("ant", "bee")):
    """A folder of images for each class."""
    for part in parts:
        for number, name in enumerate(names):
            for i in range(5):
                sets.save(root / part / name / f"{i}.png", sets.picture(10 * number + i)[0])
    return root


def kinds(root):
    return [(one.task, one.source) for one in readings(root)]


@pytest.mark.parametrize("kind", MAKERS, ids="-".join)
@pytest.mark.parametrize("below", ["", "archive", "archive/unpacked"])
def test_what_is_recognised_can_be_read(kind, below, tmp_path):
    MAKERS[kind](tmp_path / below)
    found = readings(tmp_path)
    assert found[0][:2] == kind
    assert found[0].root == tmp_path / below
    data = {"source": found[0].source, "root": str(found[0].root), "image_size": [64, 96]}
    recipe = resolve({"name": "x", "task": kind[0], "model": {"source": "unet"}, "data": data})
    assert len(task_named(kind[0]).load(recipe.data, 0).source_train) == 6


def test_outlines_are_boxes_and_masks(tmp_path):
    sets.coco(tmp_path)
    assert kinds(tmp_path) == [("detection", "coco"), ("segmentation", "coco")]


def test_voc_with_masks_is_both(tmp_path):
    sets.voc(tmp_path)
    sets.save(tmp_path / "SegmentationClass/p0.png", np.zeros((64, 96), np.uint8))
    assert kinds(tmp_path)[:2] == [("detection", "voc"), ("segmentation", "voc")]


@pytest.mark.parametrize("parts", [("",), ("train", "val"), ("Train", "TEST")])
def test_folders_of_classes(parts, tmp_path):
    classes(tmp_path, parts)
    assert kinds(tmp_path) == [("classification", "folder")]


def test_arrays(tmp_path):
    np.savez(tmp_path / "all.npz", x=np.zeros(1))
    assert kinds(tmp_path / "all.npz") == [("classification", "npz")]


def test_an_archive_s_own_clutter_is_not_looked_at(tmp_path):
    classes(tmp_path)
    sets.voc(tmp_path / "__MACOSX" / "inside")
    shutil.copytree(tmp_path / "ant", tmp_path / ".git" / "train")
    assert kinds(tmp_path) == [("classification", "folder")]


def test_what_is_not_known_is_said(tmp_path):
    with pytest.raises(DataError, match="There is no folder or file"):
        readings(tmp_path / "nowhere")
    with pytest.raises(DataError, match="Nothing in .* is known"):
        readings(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"no folder and no \.npz"):
        readings(tmp_path / "a.txt")
    classes(tmp_path / "one", names=("ant",))
    with pytest.raises(DataError, match="Nothing in .* is known"):
        readings(tmp_path / "one")
