"""Pictures with boxes: what is taken, how it is varied and split, and what is broken."""

from typing import get_args

import numpy as np
import picture_sets
import pytest
import torch
from picture_sets import coloured_box, everything, load, seeded
from PIL import Image

from deploy_prune.data import pictures, scenes, varying
from deploy_prune.data.boxes import load_boxes
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import BoxAugment, BoxesPart, Fit

FITS = get_args(Fit)
AUGMENTS = get_args(BoxAugment)


def union(boxes, size):
    found = torch.zeros(size, dtype=torch.bool)
    for left, top, right, bottom in boxes.round().int().tolist():
        found[top:bottom, left:right] = True
    return found


# --- taking ---


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("image_size", [[64, 96], [48, 48], 80])
def test_boxes_lie_on_their_objects(tmp_path, fit, image_size):
    data = load(picture_sets.voc(tmp_path), image_size=image_size, fit=fit)
    assert data.target_names == ("blue", "green", "red")  # VOC has no order of classes but the alphabet's
    inputs, targets = data.source_test.take(everything(data.source_test))
    assert inputs[0].shape[2:] == (*([image_size] * 2 if isinstance(image_size, int) else image_size),)
    for x, target in zip(inputs[0], targets, strict=True):
        label = int(target["labels"].item())
        assert target["boxes"].dtype == torch.float32
        assert target["labels"].dtype == torch.int64
        colour = picture_sets.NAMES.index(data.target_names[label])
        assert (target["boxes"][0] - coloured_box(x, colour)).abs().max() <= 1


def test_inputs_are_normalised_and_of_the_channels_asked_for(tmp_path):
    root = picture_sets.voc(tmp_path)
    plain = load(root).source_train
    given = load(root, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4]).source_train
    x, y = (e.take(everything(e)).inputs[0] for e in (plain, given))
    assert torch.allclose(
        y, (x - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    )
    assert torch.equal(plain.pixels(everything(plain)), x)
    grey = load(root, channels=1, mean=[0.0], std=[1.0]).source_train.take(torch.tensor([0])).inputs[0]
    assert grey.shape == (1, 1, 64, 96)


def test_statistics_are_the_training_pictures_own(tmp_path):
    root = picture_sets.voc(tmp_path)
    frame = load(root, mean=None, std=None).source_train.frame
    stored = np.stack([picture_sets.picture(i)[0] for i in range(6)]) / 255
    assert frame.mean.tolist() == pytest.approx(stored.mean((0, 1, 2)).tolist(), abs=1e-5)
    assert frame.std.tolist() == pytest.approx(stored.std((0, 1, 2)).tolist(), abs=1e-5)


def test_the_pictures_own_size_is_taken_if_there_is_but_one(tmp_path):
    root = picture_sets.voc(tmp_path)
    assert load(root, image_size=None).source_train.frame.size == (64, 96)
    picture_sets.save(root / "JPEGImages/p0.png", np.zeros((40, 50, 3), np.uint8))
    (root / "Annotations/p0.xml").write_text("<annotation/>")
    with pytest.raises(
        DataError, match=r"data\.image_size: it isn't given, .*\(50x40, 96x64\).*write \[height, width\]"
    ):
        load(root, image_size=None)


def test_a_picture_is_upright_and_so_are_its_boxes(tmp_path):
    """The annotation may be of the picture as stored or as shown: its size says which."""
    image, box, label = picture_sets.picture(0)
    expected = load(picture_sets.voc(tmp_path / "plain", train=3, test=1)).source_train.take(torch.tensor([0]))
    for orientation, stored in (
        (6, np.rot90(image)), (8, np.rot90(image, -1)), (5, image.transpose(1, 0, 2)),
        (7, image[::-1, ::-1].transpose(1, 0, 2)),
    ):  # fmt: skip
        root = picture_sets.voc(tmp_path / str(orientation), train=3, test=1)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(stored)).save(root / "JPEGImages/p0.png", exif=exif)
        as_shown = load(root).source_train.take(torch.tensor([0]))
        rows, columns = (np.abs(stored.astype(int) - picture_sets.COLOURS[label]).max(2) == 0).nonzero()
        turned = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        (root / "Annotations/p0.xml").write_text(picture_sets.xml((64, 96), [("red", turned)]))
        as_stored = load(root).source_train.take(torch.tensor([0]))
        for found in (as_shown, as_stored):
            assert torch.equal(found.inputs[0], expected.inputs[0])
            assert torch.equal(found.targets[0]["boxes"], expected.targets[0]["boxes"])
    assert expected.targets[0]["boxes"][0].tolist() == list(box)


# --- varying ---


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("fit", FITS)
def test_boxes_stay_on_their_objects_however_pictures_are_varied(tmp_path, augment, fit):
    data = load(picture_sets.voc(tmp_path), image_size=[56, 72], fit=fit, augment=augment)
    examples, names, generator = data.source_train, data.target_names, seeded(1)
    seen = 0
    for _ in range(4):
        inputs, targets = examples.varied(everything(examples), generator)
        for x, target in zip(inputs[0], targets, strict=True):
            for label in range(3):
                colour = picture_sets.is_coloured(x, picture_sets.NAMES.index(names[label]))
                covered = union(target["boxes"][target["labels"] == label], x.shape[1:])
                edge = 3 * (covered.float().sum() ** 0.5) + 20  # a pixel or two around, where pixels are mixed
                assert (colour ^ covered).sum() <= 4 * edge
                assert (colour & covered).sum() >= 0.8 * covered.sum() - edge
                seen += int(covered.any())
            boxes = target["boxes"]
            assert (boxes >= 0).all()
            assert (boxes <= torch.tensor([72.0, 56, 72, 56])).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert seen > 10


def same(first, second):
    return torch.equal(first.inputs[0], second.inputs[0]) and all(
        torch.equal(a[key], b[key]) for a, b in zip(first.targets, second.targets, strict=True) for key in a
    )


@pytest.mark.parametrize("augment", [a for a in AUGMENTS if a != "none"])
def test_all_that_is_random_comes_from_the_generator(tmp_path, augment):
    examples, state = load(picture_sets.voc(tmp_path), augment=augment).source_train, torch.get_rng_state()
    indices = everything(examples).repeat(2)
    first, again, other = (examples.varied(indices, seeded(seed)) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_example_is_varied_alike_whoever_takes_it(tmp_path):
    examples = load(picture_sets.voc(tmp_path), augment="mosaic").source_train
    seeds = torch.randint(2**62, (4,), generator=seeded(5)).tolist()
    batch = examples.varied(torch.tensor([3, 1, 0, 2]), seeded(5))
    torch.manual_seed(123)  # whatever was drawn before
    for place, (index, seed) in enumerate(zip([3, 1, 0, 2], seeds, strict=True)):
        x, target = examples.varied_one(index, seed)
        assert torch.equal(x, batch.inputs[0][place])
        assert torch.equal(target["boxes"], batch.targets[place]["boxes"])


def test_without_augment_varied_is_taken(tmp_path):
    examples = load(picture_sets.voc(tmp_path)).source_train
    assert same(examples.varied(everything(examples), seeded()), examples.take(everything(examples)))


def test_what_is_around_a_picture_keeps_its_grey(tmp_path):
    examples = load(picture_sets.voc(tmp_path), image_size=[200, 40], augment="flip_crop_colour").source_train
    inputs, _ = examples.varied(everything(examples).repeat(2), seeded())
    assert (inputs[0][:, :, [0, -1]] * 255 - 114).abs().max() < 1e-3
    assert inputs[0][:, :, 100].std() > 0.05


def test_flip_mirrors_about_half_and_nothing_else(tmp_path):
    examples = load(picture_sets.voc(tmp_path), augment="flip").source_train
    x, _ = examples[0]
    inputs, targets = examples.varied(torch.zeros(40, dtype=torch.int64), seeded())
    as_it_is, mirrored = ((inputs[0] == y).flatten(1).all(1) for y in (x, x.flip(2)))
    assert (as_it_is ^ mirrored).all()
    assert 10 < mirrored.sum() < 30
    left, top, right, bottom = examples[0][1]["boxes"][0].tolist()
    for target, is_mirrored in zip(targets, mirrored.tolist(), strict=True):
        expected = [96 - right, top, 96 - left, bottom] if is_mirrored else [left, top, right, bottom]
        assert target["boxes"][0].tolist() == expected


def test_crops_overlap_an_object_as_torchvisions_do(tmp_path, monkeypatch):
    """Crops are drawn by other code than torchvision's, and from the same distribution."""
    size, boxes = (64, 96), torch.tensor([[10.0, 8, 60, 50], [70, 30, 90, 60]])
    wrapped = varying._wrapped({"boxes": boxes, "labels": torch.zeros(2)}, size)
    shares = []
    for crop in (varying._iou_crop(), varying.v2().RandomIoUCrop()):
        with varying.seeded(1):
            found = [crop.make_params([wrapped["boxes"]]) for _ in range(200)]
        drawn = [one for one in found if one]
        for one in drawn:
            assert 0.5 <= one["width"] / one["height"] <= 2
            assert 0 <= one["left"] <= one["left"] + one["width"] <= 96
            assert 0 <= one["top"] <= one["top"] + one["height"] <= 64
            x, y = (boxes[:, :2] + boxes[:, 2:]).T / 2
            inside = (one["left"] < x) & (x < one["left"] + one["width"])
            inside &= (one["top"] < y) & (y < one["top"] + one["height"])
            assert torch.equal(one["is_within_crop_area"], inside)
            assert inside.any()
        both = sum(bool(one["is_within_crop_area"].all()) for one in drawn) / len(drawn)
        area = sum(one["width"] * one["height"] for one in drawn) / len(drawn) / (64 * 96)
        shares.append((len(drawn) / len(found), both, area))
    assert shares[0] == pytest.approx(shares[1], abs=0.1)


def test_half_of_the_pictures_become_mosaics(tmp_path):
    examples = load(picture_sets.voc(tmp_path), augment="mosaic").source_train
    counts = [len(t["labels"]) for t in examples.varied(torch.zeros(60, dtype=torch.int64), seeded()).targets]
    assert set(counts) == {1, 4} or set(counts) == {1, 2, 3, 4}  # a crop may lose no box, as each picture has but one
    assert 15 < sum(count > 1 for count in counts) < 45
    assert max(counts) == 4


# --- digests, strata, subsets ---


def test_the_digest_is_of_the_content(tmp_path):
    root = picture_sets.voc(tmp_path)
    first = load(root).source_train
    (root / "JPEGImages/p0.png").touch()
    assert load(root).source_train.digest == first.digest
    others = [load(root, **{key: value}).source_train.digest for key, value in (
        ("augment", "flip"), ("fit", "cut"), ("image_size", 64), ("mean", [0.1] * 3), ("source_classes", [1, 0, 2]),
    )]  # fmt: skip
    image, _, _ = picture_sets.picture(0)
    image[0, 0] += 1
    picture_sets.save(root / "JPEGImages/p0.png", image)
    others.append(load(root).source_train.digest)
    (root / "Annotations/p1.xml").write_text(picture_sets.xml((96, 64), [("green", (3, 3, 9, 9))]))
    others.append(load(root).source_train.digest)
    others.append(first.subset(torch.tensor([0, 1])).digest)
    assert len({first.digest, *others}) == 1 + len(others)


def test_strata_are_the_rarest_class_of_each_picture(tmp_path):
    root = picture_sets.voc(tmp_path)
    objects = [("red", (3, 3, 9, 9)), ("green", (20, 3, 30, 9))]
    for i, chosen in enumerate([objects, objects[:1], objects[:1], [], objects[:1], objects[1:]]):
        (root / f"Annotations/p{i}.xml").write_text(picture_sets.xml((96, 64), chosen))
    data = load(root, broken="skip")
    assert data.target_names == ("green", "red")
    assert data.source_train.strata.tolist() == [1, 2, 2, 0, 2, 1]
    assert data.source_train.subset(torch.tensor([3, 0])).counts.tolist() == [[0, 0], [1, 1]]
    assert data.ignored["pictures without a box"] == 1
    empty = data.source_train.take(torch.tensor([3])).targets[0]
    assert empty["boxes"].shape == (0, 4)
    assert empty["labels"].shape == (0,)
    for augment in AUGMENTS:
        varied = data.source_train.framed(data.source_train.frame, augment).varied(torch.tensor([3] * 8), seeded())
        assert all(t["boxes"].shape[1:] == (4,) for t in varied.targets)


# --- splits, classes, shots ---


def test_classes_are_renumbered_and_others_boxes_left_out(tmp_path):
    data = load(picture_sets.voc(tmp_path), source_classes=[0, 2], target_classes=[1])
    assert (data.source_classes, data.target_classes, data.target_names) == ((0, 2), (1,), ("green",))
    assert len(data.source_train) == 4
    assert len(data.target_train) == 2
    assert len(data.target_test) == 1
    assert data.source_train.counts.sum(0).tolist() == [2, 2]
    assert {int(t["labels"].item()) for t in data.target_train.take(torch.tensor([0, 1])).targets} == {0}
    with pytest.raises(DataError, match=r"data\.source_classes: the data set has no class 3, only 0 to 2\."):
        load(tmp_path, source_classes=[0, 3])


def test_shots_are_drawn_by_the_seed_until_each_class_has_enough(tmp_path):
    root = picture_sets.voc(tmp_path, train=30, test=3)
    draws = [load(root, shots=4, seed=seed) for seed in (0, 0, 1)]
    assert draws[0].shots == draws[1].shots != draws[2].shots
    for data in draws:
        assert data.target_train.counts.sum(0).tolist() == [4, 4, 4]
        assert data.shots_a_class == 4
        assert data.num_available == len(data.source_train) == 30
        assert torch.equal(data.source_train.counts[list(data.shots)], data.target_train.counts)
    assert load(root).shots == ()
    with pytest.raises(DataError, match=r"data\.shots: 11 are asked for, but class 0 \(blue\) has 10 in the training"):
        load(root, shots=11)
    assert len(load(root, shots=11, short_classes="use_all").target_train) == 30


def test_what_is_drawn_for_one_class_counts_for_others(tmp_path):
    root = picture_sets.voc(tmp_path, train=6, test=1)
    both = [("red", (3, 3, 9, 9)), ("green", (20, 3, 30, 9)), ("green", (40, 3, 50, 9))]
    for i in range(6):
        (root / f"Annotations/p{i}.xml").write_text(picture_sets.xml((96, 64), both))
    (root / "Annotations/p6.xml").write_text(picture_sets.xml((96, 64), both))
    assert load(root, shots=2).target_train.counts.tolist() == [[2, 1], [2, 1]]


def test_one_set_is_split_always_alike(tmp_path):
    root = picture_sets.voc(tmp_path, train=30, test=0)
    (root / "ImageSets/Main/train.txt").unlink()
    first, other = load(root, seed=0), load(root, seed=1)
    assert first.source_train.digest == other.source_train.digest
    assert first.source_test.counts.sum(0).tolist() == [2, 2, 2]
    names = [{item.picture.name for item in e.items} for e in (first.source_train, first.source_test)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 30


def test_a_picture_to_train_and_to_score_on_is_an_error(tmp_path):
    root = picture_sets.voc(tmp_path)
    (root / "ImageSets/Main/test.txt").write_text("p6\np0\n")
    with pytest.raises(DataError, match=r"p0\.png is among the pictures to train on and among those to score on"):
        load(root)


def beside(root):
    (root / "ImageSets/Main/train.txt").unlink()
    for number in range(9):
        folder = root / ("train" if number < 6 else "valid")
        folder.mkdir(exist_ok=True)
        for path in (root / f"Annotations/p{number}.xml", root / f"JPEGImages/p{number}.png"):
            path.rename(folder / path.name)


def devkit(root):
    (root / "VOCdevkit/VOC2012").mkdir(parents=True)
    for name in ("Annotations", "JPEGImages", "ImageSets"):
        (root / name).rename(root / "VOCdevkit/VOC2012" / name)


def with_suffixes(root):
    path = root / "ImageSets/Main/train.txt"
    path.write_text("".join(f"{name}.png 1\n" for name in path.read_text().split()))


def trainval(root):
    lists = root / "ImageSets/Main"
    (lists / "train.txt").rename(lists / "trainval.txt")
    (lists / "test.txt").rename(lists / "val.txt")
    (lists / "trainval.txt").write_text((lists / "trainval.txt").read_text() + "\n" + (lists / "val.txt").read_text())


def unpublished(root):
    (root / "ImageSets/Main/test.txt").rename(root / "ImageSets/Main/val.txt")
    (root / "ImageSets/Main/test.txt").write_text("q1\nq2\n")


@pytest.mark.parametrize("layout", [beside, devkit, with_suffixes, trainval, unpublished])
def test_layouts_of_voc(tmp_path, layout):
    root = picture_sets.voc(tmp_path)
    layout(root)
    data = load(root)
    assert (len(data.source_train), len(data.source_test)) == (6, 3)


def test_a_picture_without_annotation_in_one_set_is_broken(tmp_path):
    root = picture_sets.voc(tmp_path, train=30, test=0)
    (root / "ImageSets/Main/train.txt").unlink()
    (root / "Annotations/p3.xml").unlink()
    with pytest.raises(DataError, match=r"data\.broken: 1 missing annotations .*p3\.xml"):
        load(root)


def test_a_copy_to_score_on_is_counted(tmp_path):
    root = picture_sets.voc(tmp_path)
    (root / "JPEGImages/p7.png").write_bytes((root / "JPEGImages/p1.png").read_bytes())
    assert load(root).ignored == {"pictures to score on that are also among those to train on": 1}


def test_pictures_are_decoded_once_as_long_as_there_is_room(tmp_path, monkeypatch):
    examples, read = load(picture_sets.voc(tmp_path)).source_train, []
    plain = pictures.picture.decoded
    monkeypatch.setattr(pictures.picture, "decoded", lambda path, channels: read.append(path) or plain(path, channels))
    one = 64 * 96 * 3
    for room, expected in ((3 * one, 3), (2 * one, 6), (0, 6)):
        monkeypatch.setattr(pictures, "_KEPT", pictures._Kept(room))
        read.clear()
        for _ in range(2):
            batch = examples.take(torch.tensor([0, 1, 2]))
        assert len(read) == expected
        assert torch.equal(batch.inputs[0][1], examples[1][0])


# --- broken ---

OUTSIDE, FLAT = ("red", (100, 3, 110, 9)), ("red", (3, 3, 4, 9))  # xmin = xmax, as VOC writes it
WHOLE = ("red", (3, 3, 9, 9))


def broken_xml(text):
    def change(root):
        (root / "Annotations/p0.xml").write_text(text)

    return change


def unlinked(name):
    return lambda root: (root / name).unlink()


def cut_off(root):
    path = root / "JPEGImages/p0.png"
    path.write_bytes(path.read_bytes()[:200])


BROKEN = {
    "boxes outside of their picture": (
        broken_xml(picture_sets.xml((96, 64), [WHOLE, OUTSIDE])),
        r"Annotations/p0\.xml, object 2: the box \[100, 3, 110, 9\] lies outside of its picture of 96x64 pixels",
    ),
    "boxes of no area": (
        broken_xml(picture_sets.xml((96, 64), [WHOLE, FLAT])),
        r"Annotations/p0\.xml, object 2: the box \[4, 4, 4, 9\] has no area",
    ),
    "boxes with numbers that are not finite": (
        broken_xml(picture_sets.xml((96, 64), [WHOLE, WHOLE]).replace("<xmax>9", "<xmax>nan", 1)),
        r"Annotations/p0\.xml, object 1: the box \[3, 3, nan, 9\] has a number that is not finite",
    ),
    "missing pictures": (unlinked("JPEGImages/p0.png"), r"Annotations/p0\.xml: there is no picture JPEGImages/p0\.jpg"),
    "unreadable pictures": (cut_off, r"Annotations/p0\.xml: JPEGImages/p0\.png can't be read as an image"),
    "missing annotations": (unlinked("Annotations/p0.xml"), r"Annotations/p0\.xml: there is no annotation"),
    "damaged annotations": (broken_xml("<annotation><object>"), r"Annotations/p0\.xml: it can't be read: no element"),
    "pictures of another size than is said": (
        broken_xml(picture_sets.xml((640, 480), [WHOLE])),
        r"Annotations/p0\.xml: p0\.png is said to have 640x480 pixels and has 96x64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_fails_or_is_left_out_and_named(tmp_path, kind):
    change, says = BROKEN[kind]
    root = picture_sets.voc(tmp_path)
    change(root)
    with pytest.raises(DataError, match=rf"data\.broken: 1 {kind} \(data\.broken: skip leaves them out\)\. {says}"):
        load(root)
    data = load(root, broken="skip")
    assert len(data.skipped) == 1
    assert data.ignored == {kind: 1}
    whole_boxes = kind.startswith("boxes")
    assert data.source_train.counts.sum().item() == (6 if whole_boxes else 5)
    assert len(data.source_train) == (6 if whole_boxes else 5)


def test_an_unknown_class_is_broken(tmp_path):
    root = picture_sets.voc(tmp_path)
    (root / "Annotations/p6.xml").write_text(picture_sets.xml((96, 64), [WHOLE, ("pink", (3, 3, 9, 9))]))
    with pytest.raises(DataError, match=r"Annotations/p6\.xml, object 2: there is no class 'pink' to train on"):
        load(root)
    data = load(root, broken="skip")
    assert data.ignored == {"boxes of an unknown class": 1}
    assert data.source_test.counts.sum().item() == 3


def test_a_box_that_reaches_out_is_cut_off_and_counted(tmp_path):
    root = picture_sets.voc(tmp_path)
    (root / "Annotations/p0.xml").write_text(
        picture_sets.xml((96, 64), [("red", (-5, 3, 9, 70)), ("red", (90, 3, 97, 9))])
    )
    data = load(root)
    assert data.source_train[0][1]["boxes"].tolist() == [[0, 3, 9, 64], [90, 3, 96, 9]]
    assert data.ignored == {"boxes cut off at their picture's edge": 1}  # the other one is only rounded


def test_a_picture_whose_boxes_are_all_broken_is_no_empty_one(tmp_path):
    root = picture_sets.voc(tmp_path)
    (root / "Annotations/p0.xml").write_text(picture_sets.xml((96, 64), [OUTSIDE]))
    data = load(root, broken="skip")
    assert len(data.source_train) == 5
    assert data.ignored["pictures left out, for all their boxes are broken"] == 1


def test_an_object_without_name_or_corners_is_broken_and_the_others_read(tmp_path):
    root = picture_sets.voc(tmp_path)
    text = picture_sets.xml((96, 64), [WHOLE]).replace("</annotation>", "")
    (root / "Annotations/p0.xml").write_text(f"{text}<object><name>red</name></object><object/></annotation>")
    data = load(root, broken="skip")
    assert data.ignored == {"boxes of an unknown class": 1, "boxes with numbers that are not finite": 1}
    assert data.source_train.counts.sum().item() == 6


def test_ten_faults_are_named_and_all_counted(tmp_path):
    root = picture_sets.voc(tmp_path, train=15)
    for i in range(12):
        (root / f"Annotations/p{i}.xml").write_text(picture_sets.xml((96, 64), [WHOLE, OUTSIDE]))
    with pytest.raises(
        DataError, match=r"data\.broken: 12 boxes outside of their picture .*p9\.xml.* \(and 2 more\)\."
    ):
        load(root)
    assert len(load(root, broken="skip").skipped) == 12


# --- scenes ---


def test_scenes_boxes_are_exactly_around_the_digits():
    train, test = scenes.draw()
    assert (len(train), len(test)) == (scenes.NUM_TRAIN, scenes.NUM_TEST)
    assert {len(scene.digits) for scene in train} == {2, 3, 4, 5}
    for scene in train[:100]:
        assert scene.image.shape == (64, 96, 1)
        for number, box in enumerate(scene.boxes.astype(int)):
            rows, columns = (scene.owners == number + 1).nonzero()
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert set(np.unique(scene.classes)) == {0, *(scene.digits + 1)}
        on, off = scene.image[..., 0][scene.owners > 0], scene.image[..., 0][scene.owners == 0]
        assert on.mean() > off.mean() + 40
    again = scenes.draw()[0]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(train, again, strict=True))
    assert not np.array_equal(scenes.draw(1)[0][0].image, train[0].image)


def test_scenes_are_the_default_and_need_nothing():
    data = load_boxes(BoxesPart(), 0)
    assert data.source_train.frame.size == (64, 96)
    assert data.target_names == tuple("0123456789")
    assert (data.source_train.counts.sum(0) > 100).all()
    few = load_boxes(BoxesPart(source_classes=[0, 1, 2, 3, 4], target_classes=[5, 6, 7, 8, 9], shots=10), 0)
    assert (few.target_train.counts.sum(0) >= 10).all()
    assert len(few.target_train) <= 50
