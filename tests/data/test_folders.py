"""Folders as people have them. `read` in these tests is how many images of each class are trained on and scored."""

import os
from collections import Counter

import pytest
from PIL import Image

from deploy_prune.data import splits
from deploy_prune.data.folders import TEST, TRAIN, VALIDATION, find
from deploy_prune.errors import DataError
from deploy_prune.recipe.parts import DataPart


def fill(folder, names=("ant", "bee"), num=2, suffix=".png", where=""):
    for name in names:
        (folder / name / where).mkdir(parents=True, exist_ok=True)
        for i in range(num):
            Image.new("L", (6, 6), 50 + i).save((folder / name / where / f"{i}.png").with_suffix(suffix))


def counts(images):
    return None if images is None else dict(sorted(Counter(number for _, number in images).items()))


@pytest.mark.parametrize("change", [str, str.title, str.upper])
@pytest.mark.parametrize("name", sorted(TRAIN))
def test_every_name_of_the_training_folder(tmp_path, name, change):
    fill(tmp_path / change(name))
    found = find(tmp_path)
    assert (found.classes, counts(found.train), found.test, found.ignored) == (("ant", "bee"), {0: 2, 1: 2}, None, {})


@pytest.mark.parametrize("change", [str, str.title, str.upper])
@pytest.mark.parametrize("name", sorted(TEST | VALIDATION))
def test_every_name_of_what_is_scored(tmp_path, name, change):
    fill(tmp_path / "train", num=3)
    fill(tmp_path / change(name), num=1)
    found = find(tmp_path)
    assert (counts(found.train), counts(found.test), found.ignored) == ({0: 3, 1: 3}, {0: 1, 1: 1}, {})


def test_of_test_and_validation_the_test_folder_is_scored_and_it_is_said(tmp_path, caplog):
    fill(tmp_path / "train", num=4)
    fill(tmp_path / "test", num=1)
    fill(tmp_path / "valid", num=3)
    loaded = splits.load(DataPart(source="folder", root=str(tmp_path), image_size=8, shots=None), 0)
    assert len(loaded.target_test) == 2
    assert loaded.ignored == {"in valid/, for test/ is what is scored": 6}
    assert caplog.messages == ["data.root: files that are not read: 6 in valid/, for test/ is what is scored"]


@pytest.mark.parametrize("with_validation", [True, False])
def test_a_test_folder_without_classes_is_counted(tmp_path, with_validation):
    fill(tmp_path / "train")
    (tmp_path / "test").mkdir()
    for i in range(5):
        Image.new("L", (6, 6)).save(tmp_path / "test" / f"{i}.jpg")
    if with_validation:
        fill(tmp_path / "val", num=1)
    found = find(tmp_path)
    assert counts(found.test) == ({0: 1, 1: 1} if with_validation else None)
    assert found.ignored == {"in test/, which has no folders of classes with images": 5}


def test_folders_of_classes_alone_are_one_set(tmp_path, caplog):
    fill(tmp_path, num=5)
    loaded = splits.load(DataPart(source="folder", root=str(tmp_path), image_size=8, shots=None), 0)
    assert (len(loaded.target_train), len(loaded.target_test), loaded.target_names) == (8, 2, ("ant", "bee"))
    assert caplog.messages == []


def test_images_at_any_depth_and_of_any_suffix(tmp_path):
    fill(tmp_path / "train", num=1)
    fill(tmp_path / "train", ["ant"], num=3, where="session 1/b")
    for suffix in (".JPG", ".jpeg", ".tif", ".TIFF", ".gif", ".webp", ".avif", ".ppm", ".jfif", ".bmp"):
        fill(tmp_path / "train", ["bee"], num=1, suffix=suffix, where="many")
    found = find(tmp_path)
    assert (counts(found.train), found.ignored) == ({0: 4, 1: 11}, {})


def test_what_is_no_image_is_counted_by_kind(tmp_path):
    fill(tmp_path / "train")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / ".ipynb_checkpoints" / "0-checkpoint.png").write_bytes(b"x")
    fill(tmp_path / "__MACOSX" / "train")
    for name in ("ant/._0.png", "ant/.DS_Store", "ant/Thumbs.db", "ant/a.txt", "bee/b.TXT", "bee/c.heic", "bee/README"):
        (tmp_path / "train" / name).write_bytes(b"x")
    Image.new("L", (6, 6)).save(tmp_path / "train" / "loose.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "all.csv").write_text("x")
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "train" / "ant" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "train" / "ant" / "pipe.png")
    found = find(tmp_path)
    assert counts(found.train) == {0: 2, 1: 2}
    assert found.ignored == {
        "hidden": 8, ".txt files": 2, ".heic files": 1, "files without a suffix": 1, ".md files": 1,
        "images outside the folders of classes": 1, "in labels/": 1, "links to nothing": 1, "no regular file": 1,
    }  # fmt: skip


def test_links_are_followed_once(tmp_path):
    fill(tmp_path / "elsewhere")
    (tmp_path / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "ant" / "again").symlink_to(tmp_path / "elsewhere" / "ant")
    (tmp_path / "elsewhere" / "ant" / "self.png").symlink_to("self.png")
    found = find(tmp_path)
    assert counts(found.train) == {0: 2, 1: 2}
    assert found.ignored == {"links to a folder that is read already": 1, "links in a circle": 1}


def test_many_links_to_each_other_take_no_longer(tmp_path):
    fill(tmp_path / "train")
    steps = [tmp_path / f"step{i}" for i in range(30)]
    for here, there in zip(steps, [*steps[1:], tmp_path / "train" / "ant"], strict=True):
        here.mkdir()
        for name in ("a", "b"):
            (here / name).symlink_to(there)
    (tmp_path / "train" / "bee" / "deep").symlink_to(steps[0])
    assert counts(find(tmp_path).train) == {0: 2, 1: 4}


def test_a_name_that_is_no_utf8(tmp_path):
    fill(tmp_path / "train")
    (tmp_path / "train" / "ant" / os.fsdecode(b"\xff.png")).hardlink_to(tmp_path / "train/ant/0.png")
    assert counts(find(tmp_path).train) == {0: 3, 1: 2}
    (tmp_path / "train" / "ant" / os.fsdecode(b"\xfe.png")).touch()
    part = DataPart(source="folder", root=str(tmp_path), image_size=8, shots=None)
    with pytest.raises(DataError) as caught:
        splits.load(part, 0)
    assert r"/train/ant/\xfe.png can't be read as an image: its content is empty" in str(caught.value)
    assert splits.load(part.model_copy(update={"unreadable": "skip"}), 0).skipped == (r"train/ant/\xfe.png",)
    (tmp_path / "train" / os.fsdecode(b"\xffly")).mkdir()
    with pytest.raises(DataError, match=r"the name of the folder .*/train/\\xffly is no UTF-8; rename it"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        (
            ["train/ant", "train/bee", "train/empty"],
            r"train has no images \(.*\) of the class 'empty'; add some, or remove",
        ),
        (["train/ant", "train/bee", "Train/ant"], "two folders for the same part, Train and train; keep one"),
        (["train/ant", "train/bee", "val/ant", "valid/bee"], "two folders for the same part, val and valid"),
        (["train/ant", "train/bee", "val/cow"], "val has a class 'cow' that the training folder has not"),
        (["train/ant", "train/bee", "val/Ant"], r"has a class 'Ant' that the training folder has not \(it has 'ant'\)"),
        (["train/ant", "train/Ant"], "the classes 'Ant' and 'ant', which differ by case or Unicode form only"),
        (["train/ant"], "train has one class only, 'ant'; a task needs at least 2"),
        (["val/ant", "val/bee"], "has a folder val, which would be scored, and none for training"),
        (["photos/train/ant", "photos/train/bee", "notes/x"], "photos has a folder train; set data.root to the folder"),
        ([], r"has no images \(.*\) in folders of classes; put a folder for each class into it"),
    ],
)
def test_what_is_no_set_of_classes_is_named(tmp_path, folders, says):
    for name in folders:
        (tmp_path / name).mkdir(parents=True) if name.endswith("empty") else fill(tmp_path, [name])
    with pytest.raises(DataError, match=says):
        find(tmp_path)


def test_nothing_is_scored_on_the_folder_that_is_trained_on(tmp_path):
    fill(tmp_path / "train")
    (tmp_path / "test").symlink_to(tmp_path / "train")
    with pytest.raises(DataError, match="are the same folder; score on other images"):
        find(tmp_path)


def test_an_empty_folder_of_a_class_is_nothing_to_score(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "val", ["ant"])
    for name in ("bee", "unknown"):
        (tmp_path / "val" / name).mkdir()
    assert counts(find(tmp_path).test) == {0: 2}
