"""YOLO's text files: where they and their pictures lie, and what is broken in them."""

import os

import picture_sets
import pytest
import torch
from picture_sets import coloured_box, everything, load, seeded

from deploy_prune.errors import DataError


def read(root, **keys):
    return load(root, "yolo", **keys)


def test_boxes_lie_on_their_objects(tmp_path):
    data = read(picture_sets.yolo(tmp_path), image_size=[48, 80])
    assert data.target_names == picture_sets.NAMES
    assert (len(data.source_train), len(data.source_test)) == (6, 3)
    inputs, targets = data.source_test.take(everything(data.source_test))
    for x, target in zip(inputs[0], targets, strict=True):
        assert (target["boxes"][0] - coloured_box(x, int(target["labels"]))).abs().max() <= 1


def text(root, *lines):
    (root / "data.yaml").write_text("\n".join(lines) + "\n")


NAMES = "names: [red, green, blue]"


def a_list(root):
    paths = sorted(root.glob("images/train/*.png"))
    (root / "train.txt").write_text("\n".join([str(paths[0]), *(f"./images/train/{p.name}" for p in paths[1:])]))
    text(root, "train: train.txt", "val: [images/val]", "nc: 3", NAMES)


def led_out(root):
    text(root, "train: ../images/train", "val: ../images/val", NAMES)


def part_first(root):
    for part, name in (("train", "train"), ("val", "valid")):
        for kind in ("images", "labels"):
            (root / name).mkdir(exist_ok=True)
            (root / kind / part).rename(root / name / kind)
    text(root, "train: ../train/images", "val: ../valid/images", NAMES, "roboflow:", "  version: 1")


def beside(root):
    for part in ("train", "val"):
        (root / f"data/{part}").mkdir(parents=True)
        for kind in ("images", "labels"):
            for path in (root / kind / part).iterdir():
                path.rename(root / f"data/{part}" / path.name)
    text(root, f"path: {root}/data", "train: train", "val: val", NAMES)


def another_path(root):
    text(root, "path: ../datasets/mine", "train: images/train", "val: images/val", NAMES)


@pytest.mark.parametrize("layout", [a_list, led_out, part_first, beside, another_path])
def test_layouts(tmp_path, layout):
    root = picture_sets.yolo(tmp_path)
    layout(root)
    for given in (root, root / "data.yaml"):
        data = read(given)
        assert (len(data.source_train), len(data.source_test)) == (6, 3)
        assert data.source_train.counts.sum() == 6


def test_folders_without_yaml_need_names(tmp_path):
    root = picture_sets.yolo(tmp_path)
    (root / "data.yaml").unlink()
    with pytest.raises(
        DataError, match=r"has no data\.yaml, which names the classes; write one, or give data\.classes"
    ):
        read(root)
    data = read(root, classes=["red", "green", "blue"])
    assert (len(data.source_train), len(data.source_test)) == (6, 3)


def test_which_part_is_scored(tmp_path):
    root = picture_sets.yolo(tmp_path)
    text(root, "train: images/train", "val: images/val", "test: images/test", NAMES)
    picture_sets.save(root / "images/test/9.png", picture_sets.picture(9)[0])
    assert len(read(root).source_test) == 3  # test has no labels
    picture_sets.write(root / "labels/test/9.txt", "0 0.5 0.5 0.2 0.2\n")
    data = read(root)
    assert len(data.source_test) == 1
    assert data.ignored == {"pictures of other parts, which are not read": 3}


def test_a_picture_without_labels_shows_nothing(tmp_path):
    root = picture_sets.yolo(tmp_path)
    (root / "labels/train/0.txt").unlink()
    (root / "labels/train/1.txt").write_text("\n")
    data = read(root)
    assert data.ignored == {"pictures without a box": 2}
    assert data.source_train.counts.sum(1).tolist().count(0) == 2


DAMAGE = {
    "no yaml": (("train: [",), r"data\.yaml:\d: the YAML can't be read"),
    "no mapping": (("- a",), "is no mapping"),
    "no names": (("train: images/train",), "names: it should be a list"),
    "gap": (("train: images/train", "names: {0: a, 2: b}"), "without a gap"),
    "count": (("train: images/train", "nc: 2", NAMES), "it has 3 names, and nc is 2"),
    "twice": (("train: images/train", "names: [a, a]"), "a name appears twice"),
    "no folder": (("train: images/none", NAMES), "names images/none, and there is no"),
    "no train": (("val: images/none", NAMES), "names images/none"),
    "a picture": (("train: images/train/0.png", NAMES), "can't be read as a list of pictures|is a picture"),
    "points": (("train: images/train", NAMES, "kpt_shape: 3"), "kpt_shape should be"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_an_error_whatever_is_skipped(tmp_path, kind):
    root = picture_sets.yolo(tmp_path)
    text(root, *DAMAGE[kind][0])
    for broken in ("fail", "skip"):
        with pytest.raises(DataError, match=DAMAGE[kind][1]):
            read(root, broken=broken)


BROKEN = {
    "boxes outside of their picture": ("0 1.5 0.5 0.1 0.1", r"the box \[139\.2, 28\.8, 148\.8, 35\.2\] lies outside"),
    "boxes of no area": ("0 0.5 0.5 0 0.1", "has no area"),
    "boxes with numbers that are not finite": ("0 nan 0.5 0.1 0.1", "not finite"),
    "boxes of an unknown class": ("3 0.5 0.5 0.1 0.1", "there is no class 3, only 0 to 2"),
    "damaged annotations": ("0 0.5 0.5 0.1", "it has 3 numbers after the class"),
}
LINES = {
    "-1 0.5 0.5 0.1 0.1": "there is no class -1",
    "0.5 0.5 0.5 0.1 0.1": r"there is no class 0\.5",
    "nan 0.5 0.5 0.1 0.1": "there is no class nan",
    "red 0.5 0.5 0.1 0.1": "'red 0.5 0.5 0.1 0.1' is no line of numbers",
    "0 0.5 0.5 0.1 x": "is no line of numbers",
    "0": "it has 0 numbers after the class",
    "0 0.5 0.5 0.1 0.1 0.9": "it has 5 numbers after the class",
    "0 0.5 0.5 -0.1 0.1": "has no area",
    "0 inf 0.5 0.1 0.1": "not finite",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_fails_or_is_left_out_and_named(tmp_path, kind):
    root = picture_sets.yolo(tmp_path)
    path = root / "labels/train/0.txt"
    path.write_text(path.read_text() + BROKEN[kind][0])
    with pytest.raises(DataError, match=rf"data\.broken: 1 {kind} .*labels/train/0\.txt, line 2.*{BROKEN[kind][1]}"):
        read(root)
    data = read(root, broken="skip")
    assert data.ignored == {kind: 1}
    assert data.source_train.counts.sum() == 6


@pytest.mark.parametrize("line", LINES)
def test_odd_lines_are_named(tmp_path, line):
    root = picture_sets.yolo(tmp_path)
    (root / "labels/train/0.txt").write_text(line)
    with pytest.raises(DataError, match=rf"data\.broken: 1 .*labels/train/0\.txt, line 1.*{LINES[line]}"):
        read(root)
    data = read(root, broken="skip")
    assert data.source_train.counts.sum() == 5
    assert data.ignored["pictures left out, for all their boxes are broken"] == 1


def test_labels_that_are_no_text_and_pictures_that_arent_there_are_broken(tmp_path):
    root = picture_sets.yolo(tmp_path)
    (root / "labels/train/0.txt").write_bytes(b"\xff\xfe\x00\x01")
    (root / "train.txt").write_text("images/train/0.png\nimages/train/1.png\nimages/train/gone.png\n")
    text(root, "train: train.txt", "val: images/val", NAMES)
    with pytest.raises(
        DataError, match=r"1 damaged annotations, 1 missing pictures .*no picture images/train/gone\.png"
    ):
        read(root)
    assert len(read(root, broken="skip").source_train) == 1


def test_files_are_named_from_the_root_on_however_that_is_written(tmp_path, monkeypatch):
    root = picture_sets.yolo(tmp_path / "set")
    path = root / "labels/train/0.txt"
    path.write_text(path.read_text() + "9 0.5 0.5 0.1 0.1")
    odd = os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9.txt")
    path.rename(odd)
    os.rename(root / "images/train/0.png", odd.replace("labels", "images").replace(".txt", ".png"))  # noqa: PTH104
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("set", "./set", "~/set", str(root)):
        assert read(given, broken="skip").skipped == (
            "labels/train/caf\\xe9.txt, line 2: there is no class 9, only 0 to 2",
        )
    monkeypatch.setenv("DEPLOY_PRUNE_DATA", "~/set")
    assert read("", broken="skip").skipped[0].startswith("labels/train/caf")


@pytest.mark.parametrize("source", ["coco", "voc", "yolo"])
def test_what_is_no_data_set_is_an_error(tmp_path, monkeypatch, source):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for root in ("none", "a.txt", "empty"):
        with pytest.raises(DataError, match=r"data\.root: "):
            load(tmp_path / root, source)
    monkeypatch.delenv("DEPLOY_PRUNE_DATA", raising=False)
    with pytest.raises(DataError, match=rf"data\.root: {source} needs the folder of its files"):
        load("", source)


def test_outlines_are_boxes_or_masks(tmp_path):
    root = picture_sets.yolo(tmp_path)
    boxes = read(root).source_train[0][1]["boxes"]
    for path in root.glob("labels/*/*.txt"):
        label, x, y, wide, high = path.read_text().split()
        x, y, wide, high = map(float, (x, y, wide, high))
        left, right, top, bottom = x - wide / 2, x + wide / 2, y - high / 2, y + high / 2
        path.write_text(f"{label} {left} {top} {right} {top} {right} {bottom} {left} {bottom}\n")
    assert torch.allclose(read(root).source_train[0][1]["boxes"], boxes, atol=1e-3)
    examples = read(root, objects="masks").source_train
    for x, target in (examples[i] for i in range(len(examples))):
        colour = picture_sets.is_coloured(x, int(target["labels"]))
        assert (colour ^ (target["masks"][0] > 0)).sum() <= 0.05 * colour.sum()
    with pytest.raises(DataError, match="9 objects without a whole mask"):
        read(picture_sets.yolo(tmp_path / "plain"), objects="masks")


@pytest.mark.parametrize("size", [2, 3])
def test_key_points(tmp_path, size):
    root = picture_sets.yolo(tmp_path)
    for path in root.glob("labels/*/*.txt"):
        path.write_text(path.read_text().strip() + (" 0.25 0.5 2 0 0 0\n" if size == 3 else " 0.25 0.5 0 0\n"))
    text(root, "train: images/train", "val: images/val", NAMES, f"kpt_shape: [2, {size}]", "flip_idx: [1, 0]")
    examples = read(root, objects="keypoints").source_train
    assert examples[0][1]["keypoints"].tolist() == [[[24, 32, 2], [0, 0, 0]]]
    assert examples.mirror == (1, 0)
    varied = read(root, objects="keypoints", augment="flip").source_train.varied(
        torch.zeros(20, dtype=torch.int64), seeded()
    )
    found = {tuple(t["keypoints"][0, t["keypoints"][0, :, 2] > 0].flatten().tolist()) for t in varied.targets}
    assert found == {(24, 32, 2), (72, 32, 2)}
