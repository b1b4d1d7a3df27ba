"""Data sets of the user's own: what a function returns."""

import sys
import types

import numpy as np
import picture_sets
import pytest
import torch
from picture_sets import everything, seeded
from PIL import Image
from torch.utils.data import Dataset, Subset

from deploy_prune.data.boxes import load_boxes
from deploy_prune.data.masks import VOID, load_masks
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import BoxesPart, MasksPart


class Squares(Dataset):
    """Items as torchvision's detection sets have them."""

    def __init__(self, numbers, as_image=lambda x: torch.tensor(x).permute(2, 0, 1), change=None):
        self.numbers, self.as_image, self.change, self.taken = numbers, as_image, change, 0

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        self.taken += 1
        image, (left, top, right, bottom), label = picture_sets.picture(self.numbers[index])
        mask = torch.zeros(1, 64, 96, dtype=torch.uint8)
        mask[0, top:bottom, left:right] = 1
        target = {
            "boxes": torch.tensor([[left, top, right, bottom]]), "labels": torch.tensor([label]), "masks": mask,
            "keypoints": torch.tensor([[[left, top, 1]]]),
        }  # fmt: skip
        if self.change and index == 0:
            target = self.change(target)
        return self.as_image(image), target


class Painted(Dataset):
    """Items as torchvision's segmentation sets have them."""

    def __init__(self, numbers, change=None):
        self.numbers, self.change = numbers, change

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        image, (left, top, right, bottom), label = picture_sets.picture(self.numbers[index])
        mask = np.zeros((64, 96), np.uint8)
        mask[top:bottom, left:right] = label + 1
        mask[0, 0] = 255
        if self.change and index == 0:
            mask = self.change(mask)
        return Image.fromarray(image), Image.fromarray(mask) if mask.ndim == 2 else mask


@pytest.fixture
def own(monkeypatch):
    """Makes a function that a recipe can name."""

    def named(returned):
        module = types.ModuleType("own_sets_of_a_test")
        module.make = lambda: returned
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return f"{module.__name__}:make"

    return named


def boxes(source, **keys):
    return load_boxes(BoxesPart(**{"source": source, "mean": [0.0] * 3, "std": [1.0] * 3, "augment": "none"} | keys), 0)


def masks(source, **keys):
    return load_masks(MasksPart(**{"source": source, "mean": [0.0] * 3, "std": [1.0] * 3, "augment": "none"} | keys), 0)


IMAGES = {
    "bytes": lambda x: torch.tensor(x).permute(2, 0, 1),
    "numbers": lambda x: torch.tensor(x).permute(2, 0, 1) / 255,
    "array": lambda x: x,
    "picture": Image.fromarray,
}


@pytest.mark.parametrize("kind", IMAGES)
def test_items_are_taken_as_files_are(tmp_path, own, kind):
    source = own((Squares(range(6), IMAGES[kind]), Subset(Squares(range(9), IMAGES[kind]), [6, 7, 8])))
    data = boxes(source, classes=list(picture_sets.NAMES))
    files = picture_sets.load(picture_sets.coco(tmp_path), "coco")
    assert data.target_names == files.target_names
    for mine, theirs in ((data.source_train, files.source_train), (data.source_test, files.source_test)):
        found, expected = mine.take(everything(mine)), theirs.take(everything(theirs))
        assert torch.equal(found.inputs[0], expected.inputs[0])
        for a, b in zip(found.targets, expected.targets, strict=True):
            assert torch.equal(a["boxes"], b["boxes"])
            assert torch.equal(a["labels"], b["labels"])


def test_masks_and_key_points_come_along(own):
    source = own((Squares(range(6)), Squares(range(6, 9)), picture_sets.NAMES))
    x, target = boxes(source, objects="masks").source_train[1]
    assert torch.equal(target["masks"][0] > 0, picture_sets.is_coloured(x, 1))
    few = boxes(source, objects="masks", source_classes=[1]).source_train
    assert few[0][1]["masks"].shape == (1, 64, 96)
    assert boxes(source, objects="keypoints").source_train[1][1]["keypoints"].shape == (1, 1, 3)
    varied = boxes(source, objects="masks", augment="flip_crop").source_train
    varied.varied(everything(varied), seeded())


def test_pictures_are_read_when_they_are_taken(own):
    items = Squares(range(6))
    data = boxes(own((items, Squares(range(6, 9)))))
    before = items.taken
    data.source_train.take(torch.tensor([0, 1]))
    assert items.taken == before + 2
    assert data.target_names is None
    assert data.target_classes == (0, 1, 2)


def test_items_that_change_are_an_error(own):
    items = Squares(range(6))
    data = boxes(own((items, Squares(range(6, 9)))))
    digest = data.source_train.digest
    items.numbers = range(1, 7)
    with pytest.raises(DataError, match=r"train\[0\] is another one than when it was first read"):
        data.source_train.take(torch.tensor([0]))
    assert boxes(own((items, Squares(range(7, 9))))).source_train.digest != digest


def with_value(key, value):
    return lambda target: target | {key: torch.tensor(value)}


def without(key):
    return lambda target: {k: v for k, v in target.items() if k != key}


BROKEN = {
    "outside": (with_value("boxes", [[200, 1, 210, 5]]), r"train\[0\], box 0: the box \[200, 1, 210, 5\] lies outside"),
    "flat": (with_value("boxes", [[20, 1, 20, 5]]), "has no area"),
    "not finite": (with_value("boxes", [[20, 1, float("nan"), 5]]), "not finite"),
    "unknown class": (with_value("labels", [3]), "has the label 3, and there are 3 classes, from 0"),
    "below 0": (with_value("labels", [-1]), "has the label -1"),
    "too many": (with_value("labels", [0, 1]), "it has 1 boxes .* and 2 labels"),
    "fractions": (with_value("labels", [0.5]), "a whole number for each"),
    "no labels": (without("labels"), "it has no 'labels'"),
    "no dict": (lambda target: None, r"train\[0\]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_fails_or_is_left_out_and_named(own, kind):
    change, says = BROKEN[kind]
    source = own((Squares(range(6), change=change), Squares(range(6, 9)), picture_sets.NAMES))
    with pytest.raises(DataError, match=rf"data\.broken: 1 .*{says}"):
        boxes(source)
    data = boxes(source, broken="skip")
    assert len(data.source_train) == 5
    assert len(data.skipped) == 1


def test_images_that_are_none_are_broken(own):
    for wrong in (lambda x: torch.rand(2, 5, 5), lambda x: x.astype(np.int64), lambda x: x[None], lambda x: x / 1.0):
        with pytest.raises(DataError, match=r"data\.broken: 9 unreadable pictures"):
            boxes(own((Squares(range(6), wrong), Squares(range(6, 9), wrong))))


def test_masks_of_pixels(tmp_path, own):
    data = masks(own((Painted(range(6)), Painted(range(6, 9)), ["around", *picture_sets.NAMES])))
    files = picture_sets.masks(tmp_path)
    expected = load_masks(
        MasksPart(source="folders", root=str(files), mean=[0.0] * 3, std=[1.0] * 3, augment="none"), 0
    )
    x, mask = data.source_train[1]
    assert torch.equal(x, expected.source_train[1][0])
    assert mask[0, 0] == VOID
    mask[0, 0] = 0
    assert torch.equal(mask, expected.source_train[1][1])
    assert data.target_names == ("around", *picture_sets.NAMES)
    unnamed = own((Painted(range(6)), Painted(range(6, 9))))
    assert masks(unnamed).source_train.num_classes == 4
    assert masks(unnamed, values=[1, 0, 2, 3]).source_train.digest != masks(unnamed).source_train.digest


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: np.full_like(m, 9), r"train\[0\]: it has the values \[9\]"),
        (lambda m: m[:5], "it has 96x5 pixels, and its picture has 96x64"),
        (lambda m: np.stack([m] * 3, 2), r"a mask must be whole numbers \[H, W\]"),
        (lambda m: torch.rand(1, 64, 96), "a mask must be whole numbers"),
    ],
)
def test_broken_masks(own, change, says):
    source = own((Painted(range(6), change), Painted(range(6, 9)), ["around", *picture_sets.NAMES]))
    with pytest.raises(DataError, match=rf"data\.broken: 1 broken masks .*{says}"):
        masks(source)
    assert len(masks(source, broken="skip").source_train) == 5


@pytest.mark.parametrize("returned", [None, (1, 2), (Squares([1]),), (iter([1]), Squares([1]))])
def test_something_else_than_data_sets_is_an_error(own, returned):
    with pytest.raises(DataError, match="must return two torch Datasets that have a length"):
        boxes(own(returned))


def test_a_function_that_fails_is_an_error(monkeypatch):
    module = types.ModuleType("own_sets_of_a_test")
    module.make = lambda: 1 / 0
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(DataError, match=r"'own_sets_of_a_test:make' failed: ZeroDivisionError"):
        boxes("own_sets_of_a_test:make")
