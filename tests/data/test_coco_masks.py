"""Masks of pixels that are drawn from the objects in COCO's JSON."""

import json

import numpy as np
import picture_sets
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks

from deploy_prune.data.masks import VOID, load_masks
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import MasksPart

TRAIN, VAL = "annotations/instances_train2017.json", "annotations/instances_val2017.json"
NAMES = ("background", *picture_sets.NAMES)


def load(root, **keys):
    given = {"image_size": [64, 96], "mean": [0.0] * 3, "std": [1.0] * 3, "augment": "none"} | keys
    return load_masks(MasksPart(source="coco", root=str(root), **given), 0)


def changed(root, change, names=(TRAIN,)):
    for name in names:
        told = json.loads((root / name).read_text())
        change(told)
        (root / name).write_text(json.dumps(told))
    return root


def corners(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def runs(left, top, right, bottom):
    """Uncompressed run lengths, column by column."""
    within = np.zeros((64, 96), np.uint8)
    within[top:bottom, left:right] = 1
    edges = np.flatnonzero(np.diff(within.T.ravel(), prepend=0))
    return {"size": [64, 96], "counts": np.diff(edges, prepend=0, append=within.size).tolist()}


def packed(left, top, right, bottom):
    within = np.zeros((64, 96), np.uint8, order="F")
    within[top:bottom, left:right] = 1
    made = coco_masks.encode(within)
    return {"size": [64, 96], "counts": made["counts"].decode()}


def data_set(path, shape=corners):
    """Pictures of one coloured rectangle each, with its mask in this form."""

    def change(told):
        for one in told["annotations"]:
            left, top, wide, high = one["bbox"]
            one["segmentation"] = shape(left, top, left + wide, top + high)

    return changed(picture_sets.coco(path), change, (TRAIN, VAL))


def only(root, *objects):
    """The first training picture with these objects alone: (label, corners, more of an annotation)."""

    def change(told):
        rest = [one for one in told["annotations"] if one["image_id"] != 0]
        made = [
            {"id": 100 + i, "image_id": 0, "category_id": 10 * label + 1, "bbox": [0, 0, 1, 1],
             "segmentation": corners(*box)} | more
            for i, (label, box, more) in enumerate(objects)
        ]  # fmt: skip
        told["annotations"] = made + rest

    return changed(root, change)


def mask_of(root, **keys):
    return load(root, **keys).source_train[0][1]


# --- what a mask is ---


@pytest.mark.parametrize("shape", [corners, runs, packed])
def test_masks_are_their_objects_to_the_pixel(tmp_path, shape):
    data = load(data_set(tmp_path, shape))
    assert data.target_names == NAMES
    assert data.source_train.num_classes == 4
    assert (len(data.source_train), len(data.source_test)) == (6, 3)
    for number in range(6):
        _, (left, top, right, bottom), label = picture_sets.picture(number)
        expected = torch.zeros(64, 96, dtype=torch.int64)
        expected[top:bottom, left:right] = label + 1
        assert torch.equal(data.source_train[number][1], expected)
    assert data.source_train.counts.tolist() == [[1, *(int(i % 3 == k) for k in range(3))] for i in range(6)]


LARGE, SMALL, TOO = (10, 10, 50, 50), (20, 20, 40, 40), (30, 30, 50, 50)


@pytest.mark.parametrize("order", [1, -1])
def test_where_objects_overlap_the_smaller_area_wins(tmp_path, order):
    objects = [(0, LARGE, {"area": 1}), (1, SMALL, {"area": 1e6})]  # the drawn area counts, not the file's
    mask = mask_of(only(data_set(tmp_path), *objects[::order]))
    assert mask[30, 30] == 2
    assert mask[12, 12] == 1
    assert [(mask == label).sum().item() for label in (0, 1, 2)] == [64 * 96 - 1600, 1600 - 400, 400]


def test_of_the_same_area_the_later_one_wins(tmp_path):
    assert mask_of(only(data_set(tmp_path), (0, SMALL, {}), (1, TOO, {})))[35, 35] == 2
    assert mask_of(only(data_set(tmp_path), (1, TOO, {}), (0, SMALL, {})))[35, 35] == 1


@pytest.mark.parametrize("order", [1, -1])
def test_a_crowd_is_void_but_for_the_objects_in_it(tmp_path, order):
    crowd = (0, SMALL, {"iscrowd": 1, "segmentation": runs(*SMALL)})
    root = only(data_set(tmp_path), *[crowd, (1, LARGE, {}), (2, (60, 0, 70, 9), {})][::order])
    assert mask_of(root).unique().tolist() == [0, 2, 3]
    only(root, crowd, (1, TOO, {}))
    mask = mask_of(root)
    assert [(mask == label).sum().item() for label in (VOID, 2)] == [300, 400]
    assert load(root).ignored["crowds, whose pixels don't count"] == 1


def test_several_outlines_are_one_object_and_none_is_background(tmp_path):
    parts = {"segmentation": corners(0, 0, 4, 4) + corners(10, 0, 14, 4)}
    root = only(data_set(tmp_path), (0, (0, 0, 1, 1), parts))
    assert (mask_of(root) == 1).sum() == 32
    assert (mask_of(only(root)) == 0).all()


def test_masks_turn_with_their_pictures(tmp_path):
    root = data_set(tmp_path)
    x, expected = load(root).source_train[0]
    image = np.asarray(Image.open(root / "train2017/0.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(image))).save(root / "train2017/0.png", exif=exif)
    for upright in (True, False):
        if not upright:  # the annotation is of the picture as stored: 64 wide, 96 high
            stored = np.argwhere(np.rot90(expected.numpy() > 0))
            (top, left), (bottom, right) = stored.min(0).tolist(), (stored.max(0) + 1).tolist()
            only(root, (0, (left, top, right, bottom), {}))
            changed(root, lambda told: told["images"][0].update(width=64, height=96))
        again, mask = load(root).source_train[0]
        assert torch.equal(again, x)
        assert torch.equal(mask, expected)


# --- classes ---


def test_classes_are_chosen_and_ordered_by_name(tmp_path):
    root = data_set(tmp_path)
    data = load(root, classes=["blue", "red", "green"])
    assert data.target_names == ("background", "blue", "red", "green")
    assert data.source_train[2][1].unique().tolist() == [0, 1]
    data = load(root, classes=["blue"], broken="skip")
    assert data.source_train[0][1].unique().tolist() == [0, VOID]  # red is no class, nor background
    assert data.ignored["objects of an unknown class"] == 6


def test_a_category_called_background_is_class_0(tmp_path):
    root = data_set(tmp_path)
    changed(root, lambda told: told["categories"].insert(0, {"id": 0, "name": "background"}), (TRAIN, VAL))
    assert load(root).target_names == NAMES
    changed(root, lambda told: told["annotations"][0].update(category_id=0))
    assert (mask_of(root) == 0).all()


def test_more_classes_than_a_mask_can_have_are_an_error(tmp_path):
    root = data_set(tmp_path)
    more = [{"id": 1000 + i, "name": f"c{i}"} for i in range(251)]
    changed(root, lambda told: told["categories"].extend(more), (TRAIN, VAL))
    assert load(root).source_train.num_classes == 255
    changed(root, lambda told: told["categories"].append({"id": 2000, "name": "one more"}))
    with pytest.raises(DataError, match=r"data\.classes: there are 256 with the background; masks can have 255"):
        load(root)


def test_values_of_masks_in_files_have_no_meaning_here(tmp_path):
    with pytest.raises(DataError, match=r"data\.values: it says what masks in files mean"):
        load(data_set(tmp_path), values=[0, 1])


def test_the_digest_is_of_shapes_and_classes(tmp_path):
    digests = set()
    for label, box in ((0, LARGE), (0, SMALL), (1, SMALL)):
        digests.add(load(only(data_set(tmp_path), (label, box, {}))).source_train.digest)
    assert len(digests) == 3


# --- broken ---


def first(key, value):
    return lambda told: told["annotations"][0].update({key: value})


BROKEN = {
    "no outline": (first("segmentation", []), "objects without a whole mask", "the object has no outline"),
    "two points": (first("segmentation", [[1, 2, 3, 4]]), "objects without a whole mask", "has an outline that is not"),
    "run lengths": (
        first("segmentation", {"size": [64, 96], "counts": [1, 9999]}), "objects without a whole mask", "don't add up",
    ),
    "packed": (first("segmentation", {"size": [64, 96], "counts": "!!!!"}), "objects without a whole mask", "damaged"),
    "class": (first("category_id", 77), "objects of an unknown class", "there is no class with the id 77"),
    "picture": (first("image_id", 77), "objects of an unknown picture", "there is no picture with the id 77"),
    "id": (first("id", 1), "damaged annotations", "it has the id 1 that another"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_fails_or_is_left_out_and_named(tmp_path, kind):
    change, counted, says = BROKEN[kind]
    root = changed(data_set(tmp_path), change)
    with pytest.raises(DataError, match=rf"data\.broken: 1 {counted} .*annotations\[[01]\].*{says}"):
        load(root)
    data = load(root, broken="skip")
    assert len(data.source_train) == 6
    assert len(data.skipped) == data.ignored[counted] == 1
    of_objects = [mask.unique().tolist() for mask in data.source_train.take(torch.arange(6)).targets]
    number = 1 if kind == "id" else 0  # whose object is broken; one of an unknown picture is nowhere
    assert of_objects[number] == [0] if kind == "picture" else [0, VOID]
    assert of_objects[2:] == [[0, 3], [0, 1], [0, 2], [0, 3]]


def test_of_a_broken_object_the_box_is_void_and_without_a_box_the_picture(tmp_path):
    broken = {"segmentation": [], "bbox": [20, 20, 30, 1000]}
    root = only(data_set(tmp_path), (0, SMALL, broken), (1, (25, 25, 28, 28), {}))
    mask = mask_of(root, broken="skip")
    assert (mask[20:, 20:50] == VOID).sum() == 44 * 30 - 9
    assert (mask == 2).sum() == 9
    assert (mask == 0).sum() == 64 * 96 - 44 * 30
    for bbox in ("left", None, [0, 0, float("nan"), 5], [20, 20, 0, 5]):
        only(root, (0, SMALL, broken | {"bbox": bbox}), (1, SMALL, {}))
        assert mask_of(root, broken="skip").unique().tolist() == [2, VOID]
    only(root, (0, SMALL, broken | {"bbox": None}))
    data = load(root, broken="skip")
    assert len(data.source_train) == 5
    assert data.ignored["pictures left out, for no pixel of theirs has a class"] == 1
