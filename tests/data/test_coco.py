"""COCO's JSON: where it and its pictures lie, and what is broken in it."""

import json

import numpy as np
import picture_sets
import pytest
import torch
from picture_sets import coloured_box, everything, load, seeded

from deploy_prune.errors import DataError

TRAIN, VAL = "annotations/instances_train2017.json", "annotations/instances_val2017.json"


def read(root, **keys):
    return load(root, "coco", **keys)


def changed(root, change, name=TRAIN):
    told = json.loads((root / name).read_text())
    change(told)
    (root / name).write_text(json.dumps(told))


def test_boxes_lie_on_their_objects(tmp_path):
    data = read(picture_sets.coco(tmp_path), image_size=[48, 80])
    assert data.target_names == picture_sets.NAMES
    assert (len(data.source_train), len(data.source_test)) == (6, 3)
    inputs, targets = data.source_test.take(everything(data.source_test))
    for x, target in zip(inputs[0], targets, strict=True):
        assert (target["boxes"][0] - coloured_box(x, int(target["labels"]))).abs().max() <= 1


def moved(root, old, new):
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    (root / old).rename(root / new)


def beside(root):
    for part, name in (("train2017", "train"), ("val2017", "valid")):
        moved(root, part, name)
        moved(root, f"annotations/instances_{part}.json", f"{name}/_annotations.coco.json")


def below_images(root):
    for part in ("train2017", "val2017"):
        moved(root, part, f"images/{part}")


def plain_names(root):
    for part, name in (("train2017", "train"), ("val2017", "test")):
        moved(root, part, f"images/{name}")
        moved(root, f"annotations/instances_{part}.json", f"annotations/{name}.json")


def others_too(root):
    for name in ("captions_train2017", "person_keypoints_val2017", "image_info_test2017"):
        picture_sets.write(root / f"annotations/{name}.json", "{}")


def in_parts(root):
    for part, name in (("train2017", "train"), ("val2017", "val")):
        moved(root, part, f"{name}/images")
        moved(root, f"annotations/instances_{part}.json", f"{name}/labels.json")


@pytest.mark.parametrize("layout", [beside, below_images, plain_names, others_too, in_parts])
def test_layouts(tmp_path, layout):
    root = picture_sets.coco(tmp_path)
    layout(root)
    data = read(root)
    assert (len(data.source_train), len(data.source_test)) == (6, 3)
    assert data.skipped == ()


def test_a_file_alone_is_one_set(tmp_path):
    root = picture_sets.coco(tmp_path, train=15)
    data = read(root / TRAIN)
    assert (len(data.source_train), len(data.source_test)) == (12, 3)


def test_which_part_is_scored(tmp_path):
    root = picture_sets.coco(tmp_path)
    told = json.loads((root / VAL).read_text())
    (root / "annotations/instances_test2017.json").write_text(json.dumps(told | {"annotations": []}))
    assert len(read(root).source_test) == 3  # a test part without boxes can't be scored
    changed(root, lambda told: told["images"].pop())
    picture_sets.coco(tmp_path / "more", train=20, test=2)
    moved(root, "more/val2017", "test2017")
    moved(root, f"more/{VAL}", "annotations/instances_test2017.json")
    data = read(root, broken="skip")
    assert len(data.source_test) == 2
    assert data.ignored["pictures of other parts, which are not read"] == 3


def test_two_files_for_a_part_are_an_error(tmp_path):
    root = picture_sets.coco(tmp_path)
    (root / "annotations/instances_train2014.json").write_text((root / TRAIN).read_text())
    with pytest.raises(DataError, match=r"instances_train2014\.json and .*instances_train2017\.json for the same part"):
        read(root)


def test_a_heading_is_no_class_and_crowds_are_left_out(tmp_path):
    root = picture_sets.coco(tmp_path)

    def change(told):
        told["categories"] = [c | {"supercategory": "colours"} for c in told["categories"]]
        told["categories"].append({"id": 0, "name": "colours", "supercategory": "none"})
        told["annotations"].append(told["annotations"][0] | {"id": 99, "iscrowd": 1})
        told["annotations"][1]["iscrowd"] = 1

    changed(root, change)
    data = read(root)
    assert data.target_names == picture_sets.NAMES
    assert data.ignored == {"crowds, which are left out": 2, "pictures left out, for they show crowds only": 1}
    assert data.source_train.counts.sum(0).tolist() == [2, 1, 2]


DAMAGE = {
    "no JSON": (lambda root: (root / TRAIN).write_text("{"), r"can't be read as COCO's JSON: Expecting"),
    "cut off": (
        lambda root: (root / TRAIN).write_text((root / TRAIN).read_text()[:-40]), r"can't be read as COCO's JSON"),
    "no text": (lambda root: (root / TRAIN).write_bytes(b"\xff\xfe\x00"), r"can't be read as COCO's JSON: 'utf-8'"),
    "deep": (lambda root: (root / TRAIN).write_text("[" * 100_000), r"can't be read as COCO's JSON: maximum recursion"),
    "no images": (lambda root: changed(root, lambda t: t.pop("images")), r"the key 'images' is missing"),
    "no list": (lambda root: changed(root, lambda t: t.update(images={})), r"must be lists"),
    "categories": (lambda root: changed(root, lambda t: t.update(categories=[1])), r"can't be read as COCO's JSON"),
    "same id": (lambda root: changed(root, lambda t: t["categories"].append(t["categories"][0])), r"appears twice"),
    "nothing": (lambda root: (root / TRAIN).rename(root / "a.txt") and (root / VAL).unlink(), r"has no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_an_error_whatever_is_skipped(tmp_path, kind):
    root = picture_sets.coco(tmp_path)
    DAMAGE[kind][0](root)
    for broken in ("fail", "skip"):
        with pytest.raises(DataError, match=DAMAGE[kind][1]):
            read(root, broken=broken)


def first(key, value):
    return lambda told: told["annotations"][0].update({key: value})


BROKEN = {
    "boxes outside of their picture": (first("bbox", [200, 3, 4, 5]), r"annotations\[0\]: the box \[200, 3, 204, 8\]"),
    "boxes of no area": (first("bbox", [20, 3, 0, 5]), r"annotations\[0\]: the box \[20, 3, 20, 8\] has no area"),
    "boxes with numbers that are not finite": (first("bbox", [float("nan"), 3, 4, 5]), r"annotations\[0\]: the box"),
    "boxes of an unknown class": (first("category_id", 77), r"annotations\[0\]: there is no class with the id 77"),
    "boxes of an unknown picture": (first("image_id", 77), r"annotations\[0\]: there is no picture with the id 77"),
    "damaged annotations": (first("bbox", "left"), r"annotations\[0\]: it has no bbox of four numbers"),
}
ODD_IDS = {"id": [], "image_id": {}, "category_id": [], "bbox": [1, 1, 1, 1]}
HUGE = {"id": 50, "bbox": [10**400, 1, 1, 1]}


def more(key, change):
    """Another entry of a list, made of its first one."""
    return lambda told: told[key].append(change(told[key][0]))


ODD = {
    "same id": (more("annotations", lambda a: a), r"annotations\[6\]: it has the id 0 that another"),
    "same picture": (more("images", lambda a: a), r"images\[6\]: it has the id 0 that another one has"),
    "same file": (more("images", lambda a: a | {"id": 50}), r"images\[6\]: it has the file_name '0\.png'"),
    "no picture": (more("images", lambda a: None), r"images\[6\]: it has no id"),
    "no dict": (more("annotations", lambda a: None), r"annotations\[6\]: it has no bbox of four numbers"),
    "odd ids": (more("annotations", lambda a: ODD_IDS), r"annotations\[6\]: there is no picture"),
    "huge": (more("annotations", lambda a: a | HUGE), r"annotations\[6\]: the box"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_fails_or_is_left_out_and_named(tmp_path, kind):
    root = picture_sets.coco(tmp_path)
    changed(root, BROKEN[kind][0])
    with pytest.raises(DataError, match=rf"data\.broken: 1 {kind} .*{TRAIN}, {BROKEN[kind][1]}"):
        read(root)
    data = read(root, broken="skip")
    assert len(data.skipped) == 1
    assert data.ignored[kind] == 1
    assert data.source_train.counts.sum() == 5


@pytest.mark.parametrize("kind", ODD)
def test_what_is_there_twice_or_odd_is_named_and_the_rest_read(tmp_path, kind):
    root = picture_sets.coco(tmp_path)
    changed(root, ODD[kind][0])
    with pytest.raises(DataError, match=rf"data\.broken: 1 .*{ODD[kind][1]}"):
        read(root)
    data = read(root, broken="skip")
    assert data.source_train.counts.sum() == 6
    assert len(data.skipped) == 1


def test_other_classes_to_score_on_are_broken(tmp_path):
    root = picture_sets.coco(tmp_path)
    changed(root, lambda told: told["categories"][0].update(name="pink"), VAL)
    with pytest.raises(
        DataError, match=r"data\.broken: 1 boxes of an unknown class .*there is no class 'pink' to train"
    ):
        read(root)


def test_missing_pictures_are_named(tmp_path):
    root = picture_sets.coco(tmp_path)
    (root / "train2017/2.png").unlink()
    with pytest.raises(DataError, match=r"data\.broken: 1 missing pictures .*there is no picture train2017/2\.png"):
        read(root)
    assert len(read(root, broken="skip").source_train) == 5


# --- masks and key points of objects ---

OUTLINE = [[10, 10, 40, 10, 40, 30, 25, 45, 10, 30]]


def drawn(outline):
    """Pixels whose middle is within an outline that is convex and goes round clockwise."""
    y, x = np.mgrid[:64, :96] + 0.5
    corners = np.array(outline).reshape(-1, 2)
    sides = zip(corners, np.roll(corners, -1, 0), strict=True)
    return np.all([(b[0] - a[0]) * (y - a[1]) >= (b[1] - a[1]) * (x - a[0]) for a, b in sides], 0).astype(np.uint8)


def with_shapes(root, shape=OUTLINE):
    def change(told):
        for one in told["annotations"]:
            one["segmentation"] = shape
            one["bbox"] = [10, 10, 30, 35]

    changed(root, change)
    changed(root, change, VAL)
    for path in root.glob("*/*.png"):
        image = np.full((64, 96, 3), 90, np.uint8)
        image[drawn(OUTLINE[0]) > 0] = picture_sets.COLOURS[int(path.stem) % 3]
        picture_sets.save(path, image)
    return root


def run_lengths():
    runs, value = [0], 0
    for pixel in drawn(OUTLINE[0]).T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return {"size": [64, 96], "counts": runs}


@pytest.mark.parametrize("shape", [OUTLINE, run_lengths()], ids=["outline", "run lengths"])
@pytest.mark.parametrize("augment", ["none", "flip_crop_colour", "mosaic"])
def test_masks_of_objects_lie_on_them(tmp_path, shape, augment):
    root = with_shapes(picture_sets.coco(tmp_path, train=3, test=1), shape)
    examples = read(root, objects="masks", image_size=[56, 72], augment=augment).source_train
    inputs, targets = examples.varied(everything(examples).repeat(4), seeded())
    seen = 0
    for x, target in zip(inputs[0], targets, strict=True):
        assert target["masks"].shape == (len(target["labels"]), 56, 72)
        assert target["masks"].dtype == torch.uint8
        for mask, label, box in zip(target["masks"], target["labels"], target["boxes"], strict=True):
            colour = picture_sets.is_coloured(x, int(label))
            others = torch.stack(
                [m for m, other in zip(target["masks"], target["labels"], strict=True) if other == label]
            )
            assert (colour & (mask > 0)).sum() >= 0.8 * (mask > 0).sum() - 10
            assert (colour & ~others.bool().any(0)).sum() <= 0.1 * colour.sum() + 60
            rows, columns = mask.nonzero(as_tuple=True)
            around = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (around - box).abs().max() <= 2
            seen += 1
    assert seen >= 10


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (None, "has no outline"), ([], "has no outline"), ([[1, 2, 3, 4]], "has an outline that is not 3 or more"),
        ([[1, 2, 3, 4, 5, 1e9]], "has an outline"), ([[1, 2, 3, 4, 5, float("nan")]], "has an outline"),
        ({"size": [64, 95], "counts": [1]}, r"has run lengths of another size than \[64, 96\]"),
        ({"size": [64, 96], "counts": [1, 9999]}, "has run lengths that don't add up"),
        ({"size": [64, 96], "counts": "!!!!"}, "has damaged run lengths"),
    ],
)  # fmt: skip
def test_objects_without_a_whole_mask_are_broken(tmp_path, shape, says):
    root = with_shapes(picture_sets.coco(tmp_path))
    changed(root, first("segmentation", shape))
    with pytest.raises(DataError, match=rf"1 objects without a whole mask .*{says}"):
        read(root, objects="masks")
    assert read(root, objects="masks", broken="skip").source_train.counts.sum() == 5
    assert read(root).source_train.counts.sum() == 6  # as boxes they are whole


def with_points(root):
    """The left and right ear at the upper corners, the mouth in the middle below, which isn't seen in every second."""
    for part in ("train2017", "val2017"):
        path = root / f"annotations/instances_{part}.json"
        told = json.loads(path.read_text())
        for one in told["annotations"]:
            left, top, wide, high = one["bbox"]
            one["keypoints"] = [left, top, 2, left + wide, top, 2, left + wide / 2, top + high, one["id"] % 2]
        for category in told["categories"]:
            category["keypoints"] = ["left_ear", "right_ear", "mouth"]
        (root / f"annotations/person_keypoints_{part}.json").write_text(json.dumps(told))
    return root


@pytest.mark.parametrize("augment", ["none", "flip", "flip_crop", "mosaic"])
def test_key_points_lie_on_their_objects(tmp_path, augment):
    examples = read(with_points(picture_sets.coco(tmp_path)), objects="keypoints", augment=augment).source_train
    assert examples.mirror == (1, 0, 2)
    turned = 0
    _, targets = examples.varied(everything(examples).repeat(4), seeded())
    for target in targets:
        assert target["keypoints"].shape == (len(target["labels"]), 3, 3)
        for (left, top, right, bottom), points in zip(target["boxes"], target["keypoints"], strict=True):
            expected = [[left, top], [right, top], [(left + right) / 2, bottom]]
            for (x, y), point, is_seen in zip(expected, points[:, :2], points[:, 2] > 0, strict=True):
                if is_seen and augment in {"none", "flip"}:
                    assert (point - torch.stack([x, y])).abs().max() < 1e-3
            inside = (points[:, 0] >= 0) & (points[:, 0] <= 96) & (points[:, 1] >= 0) & (points[:, 1] <= 64)
            assert (inside | (points[:, 2] == 0)).all()
            turned += int(
                points[0, 0] > points[1, 0]
            )  # a left ear stays left: in the mirror it is the right one's place
    assert turned == 0


def test_points_without_sides_are_never_mirrored(tmp_path):
    root = with_points(picture_sets.coco(tmp_path))
    for path in root.glob("annotations/person*"):
        path.write_text(path.read_text().replace("left_ear", "a").replace("right_ear", "b"))
    examples = read(root, objects="keypoints", augment="flip").source_train
    assert examples.mirror is None
    for target, index in zip(
        examples.varied(torch.zeros(20, dtype=torch.int64), seeded()).targets, [0] * 20, strict=True
    ):
        assert torch.equal(target["boxes"], examples[index][1]["boxes"])


def test_objects_without_points_are_broken(tmp_path):
    root = with_points(picture_sets.coco(tmp_path))
    changed(root, first("keypoints", [1, 2]), "annotations/person_keypoints_train2017.json")
    with pytest.raises(DataError, match=r"1 objects without whole key points"):
        read(root, objects="keypoints")
