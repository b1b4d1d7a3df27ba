"""Pictures with masks: what is taken, how it is varied and split, and what is broken."""

from typing import get_args

import numpy as np
import picture_sets
import pytest
import torch
from PIL import Image

from deploy_prune.data import scenes
from deploy_prune.data.masks import VOID, load_masks
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import Fit, MaskAugment, MasksPart

FITS, AUGMENTS = get_args(Fit), get_args(MaskAugment)


def load(root, source="folders", seed=0, **keys):
    given = {"image_size": [64, 96], "mean": [0.0] * 3, "std": [1.0] * 3, "augment": "none"} | keys
    return load_masks(MasksPart(source=source, root=str(root), **given), seed)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def everything(examples):
    return torch.arange(len(examples))


def off(x, mask):
    """How many pixels of an input have a class's colour and not the class, or the other way round."""
    wrong = 0
    for label in range(3):
        wrong += int((picture_sets.is_coloured(x, label) ^ (mask == label + 1)).sum())
    return wrong


# --- taking ---


@pytest.mark.parametrize("fit", FITS)
def test_masks_lie_on_their_objects(tmp_path, fit):
    data = load(picture_sets.masks(tmp_path), image_size=[64, 64], fit=fit)
    batch = data.source_test.take(everything(data.source_test))
    assert batch.inputs[0].shape == (3, 3, 64, 64)
    assert batch.targets.shape == (3, 64, 64)
    assert batch.targets.dtype == torch.int64
    for x, mask in zip(batch.inputs[0], batch.targets, strict=True):
        assert off(x, mask) <= (mask > 0).sum() ** 0.5 * 6
        around = (x * 255 - 114).abs().amax(0) < 0.01
        assert (mask[:8] == VOID).all() == (fit == "letterbox")
        assert not (mask == VOID).any() or around[mask == VOID].all()


def test_at_its_own_size_nothing_is_changed(tmp_path):
    data = load(picture_sets.masks(tmp_path))
    x, mask = data.source_train[1]
    image, (left, top, right, bottom), label = picture_sets.picture(1)
    assert torch.equal((x * 255).round().to(torch.uint8), torch.tensor(image).permute(2, 0, 1))
    expected = torch.zeros(64, 96, dtype=torch.int64)
    expected[top:bottom, left:right] = label + 1
    assert torch.equal(mask, expected)


def test_a_palette_keeps_its_numbers_and_voc_is_read(tmp_path):
    root = tmp_path
    for number in range(4):
        image, (left, top, right, bottom), label = picture_sets.picture(number)
        picture_sets.save(root / f"JPEGImages/a{number}.png", image)
        values = np.zeros((64, 96), np.uint8)
        values[top:bottom, left:right] = label + 1
        values[top, left:right] = 255
        mask = Image.fromarray(values).convert("P")
        mask.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tolist())
        (root / "SegmentationClass").mkdir(exist_ok=True)
        mask.save(root / f"SegmentationClass/a{number}.png")
    picture_sets.write(root / "ImageSets/Segmentation/train.txt", "a0\na1\na2\n")
    picture_sets.write(root / "ImageSets/Segmentation/val.txt", "a3\n")
    data = load(root, "voc", classes=["around", *picture_sets.NAMES])
    assert (len(data.source_train), len(data.source_test)) == (3, 1)
    _, mask = data.source_test[0]
    assert mask.unique().tolist() == [0, 1, VOID]
    assert data.target_names == ("around", "red", "green", "blue")


def test_values_and_void_say_what_a_mask_means(tmp_path):
    root = picture_sets.masks(tmp_path)
    for path in root.glob("*/masks/*.png"):
        values = np.asarray(Image.open(path))
        Image.fromarray(np.where(values > 0, 255, 0).astype(np.uint8)).save(path)
    data = load(root, values=[0, 255], void=None)
    assert data.source_train.num_classes == 2
    assert data.source_train[0][1].unique().tolist() == [0, 1]
    with pytest.raises(DataError, match=r"one class only, .* as in data\.values: \[0, 255\] with data\.void: null"):
        load(root)  # 255 is void
    other = load(root, values=[255, 7], void=0)
    assert other.source_train[0][1].unique().tolist() == [0, VOID]


def test_masks_turn_with_their_pictures(tmp_path):
    root = picture_sets.masks(tmp_path)
    expected = load(root).source_train[0]
    image, mask = (np.asarray(Image.open(root / f"train/{kind}/0.png")) for kind in ("images", "masks"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(image))).save(root / "train/images/0.png", exif=exif)
    for stored in (mask, np.ascontiguousarray(np.rot90(mask))):
        Image.fromarray(stored).save(root / "train/masks/0.png")
        x, found = load(root).source_train[0]
        assert torch.equal(x, expected[0])
        assert torch.equal(found, expected[1])


# --- folders ---


@pytest.mark.parametrize("layout", ["parts first", "kinds first", "annotations", "endings", "one set"])
def test_layouts_of_folders(tmp_path, layout):
    made = picture_sets.masks(tmp_path / "made")
    root = tmp_path / "root"
    for path in sorted(made.glob("*/*/*.png")):
        part, kind, name = path.relative_to(made).parts
        place = {
            "parts first": f"{part.upper()}/{kind}/city/{name}",
            "kinds first": f"{kind}/{part}/{name}",
            "annotations": f"{kind.replace('masks', 'annotations')}/{part.replace('train', 'training')}/{name}",
            "endings": f"{part}/{kind}/{name.replace('.png', '_mask.png') if kind == 'masks' else name}",
            "one set": f"{kind}/{name}",
        }[layout]
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        path.rename(root / place)
    data = load(root)
    assert len(data.source_train) + len(data.source_test) == 9
    if layout != "one set":
        assert (len(data.source_train), len(data.source_test)) == (6, 3)
    assert off(*data.source_train[0]) == 0


def test_test_is_scored_and_validation_counted(tmp_path):
    root = picture_sets.masks(tmp_path)
    (root / "val").rename(root / "test")
    picture_sets.masks(tmp_path / "more", train=2, test=0)
    (tmp_path / "more/train").rename(root / "val")
    data = load(root)
    assert len(data.source_test) == 3
    assert data.ignored == {"pictures of other parts, which are not read": 2}


def test_a_file_is_no_folder(tmp_path):
    path = picture_sets.write(tmp_path / "a.txt", "x")
    with pytest.raises(DataError, match=r"data\.root: .*a\.txt can't be read: Not a directory"):
        load(path)


def test_no_folders_and_two_of_a_name_are_errors(tmp_path):
    with pytest.raises(DataError, match="has no folders of pictures"):
        load(tmp_path)
    root = picture_sets.masks(tmp_path / "a")
    (root / "train/Labels").mkdir()
    with pytest.raises(DataError, match="two folders for the same, Labels and masks"):
        load(root)


# --- varying ---


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("fit", FITS)
def test_masks_stay_on_their_objects_however_pictures_are_varied(tmp_path, augment, fit):
    examples = load(picture_sets.masks(tmp_path), image_size=[56, 72], fit=fit, augment=augment).source_train
    for seed in range(3):
        batch = examples.varied(everything(examples), seeded(seed))
        for x, mask in zip(batch.inputs[0], batch.targets, strict=True):
            known = mask != VOID
            assert off(x * known, mask * known) <= 60 + (mask * known > 0).sum() ** 0.5 * 4
            assert ((x * 255 - 114).abs().amax(0) < 0.01)[~known].all()


@pytest.mark.parametrize("augment", [a for a in AUGMENTS if a != "none"])
def test_all_that_is_random_comes_from_the_generator(tmp_path, augment):
    examples, state = load(picture_sets.masks(tmp_path), augment=augment).source_train, torch.get_rng_state()
    indices = everything(examples).repeat(2)
    first, again, other = (examples.varied(indices, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.inputs[0], again.inputs[0])
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.inputs[0], other.inputs[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_crops_are_a_third_of_the_area_at_least(tmp_path):
    examples = load(picture_sets.masks(tmp_path), augment="flip_crop", fit="stretch").source_train
    plain = (examples[0][1] > 0).sum()
    grown = [(m > 0).sum() / plain for m in examples.varied(torch.zeros(60, dtype=torch.int64), seeded()).targets]
    assert max(grown) > 1.5
    assert max(grown) < 1 / 0.3 * 1.2


# --- splits and digests ---


def test_other_classes_become_void(tmp_path):
    data = load(picture_sets.masks(tmp_path), source_classes=[0, 2], target_classes=[3, 0])
    assert data.source_train.num_classes == 2
    assert data.source_train.counts.sum(0).tolist() == [6, 2]
    found = [mask.unique().tolist() for mask in data.source_train.take(everything(data.source_train)).targets]
    assert found == [[0, VOID], [0, 1], [0, VOID]] * 2
    assert data.target_train[2][1].unique().tolist() == [0, 1]
    assert data.target_train[0][1].unique().tolist() == [1, VOID]


def test_shots_are_pictures_that_show_the_class(tmp_path):
    data = load(picture_sets.masks(tmp_path, train=12), shots=2)
    assert data.target_train.counts.sum(0).tolist() == [6, 2, 2, 2]
    with pytest.raises(DataError, match=r"data\.shots: 5 are asked for, but class 1 has 4"):
        load(tmp_path, shots=5)


def test_the_digest_is_of_the_content(tmp_path):
    root = picture_sets.masks(tmp_path)
    first = load(root).source_train
    (root / "train/masks/0.png").touch()
    assert load(root).source_train.digest == first.digest
    others = [load(root, **{key: value}).source_train.digest for key, value in (
        ("augment", "flip"), ("fit", "cut"), ("image_size", 64), ("source_classes", [1, 0, 2]), ("void", 1),
    )]  # fmt: skip
    values = np.asarray(Image.open(root / "train/masks/0.png")).copy()
    values[0, 0] = 1
    picture_sets.save(root / "train/masks/0.png", values)
    others.append(load(root).source_train.digest)
    assert len({first.digest, *others}) == 1 + len(others)


# --- broken ---


def unlinked(name):
    return lambda root: (root / name).unlink()


def changed(make, name="train/masks/0.png"):
    def change(root):
        values = np.asarray(Image.open(root / name)).copy()
        picture_sets.save(root / name, make(values))

    return change


def with_value(value):
    def make(values):
        values[3, 3] = value
        return values

    return changed(make)


def colourful(values):
    return np.stack([values, 2 * values, values], 2)


def as_jpeg(root):
    path = root / "train/masks/0.png"
    image = Image.open(path).copy()
    image.save(path, format="JPEG")


def cut_off(root):
    path = root / "train/masks/0.png"
    path.write_bytes(path.read_bytes()[:60])


BROKEN = {
    "missing masks": (unlinked("train/masks/0.png"), "broken", r"train/images/0\.png: there is no mask of it"),
    "another size": (changed(lambda v: v[1:]), "broken masks", r"it has 96x63 pixels, and its picture has 96x64"),
    "unknown values": (with_value(9), "broken masks", r"it has the values \[9\], which are no classes'"),
    "colours": (changed(colourful), "broken masks", r"has colours or fractions"),
    "losses": (as_jpeg, "broken masks", r"is a JPEG, which changes"),
    "cut off": (cut_off, "broken masks", r"train/masks/0\.png can't be read as a mask"),
    "unreadable picture": (lambda r: (r / "train/images/0.png").write_text("x"), "unreadable", r"can't be read as an"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_fails_or_is_left_out_and_named(tmp_path, kind):
    change, counted, says = BROKEN[kind]
    root = picture_sets.masks(tmp_path)
    change(root)
    classes = ["around", *picture_sets.NAMES]
    with pytest.raises(DataError, match=rf"data\.broken: 1 .*{counted if counted != 'broken' else kind}.*{says}"):
        load(root, classes=classes)
    data = load(root, classes=classes, broken="skip")
    assert len(data.source_train) == 5
    assert len(data.skipped) == 1
    assert sum(count for kind_, count in data.ignored.items() if "without a picture" not in kind_) == 1


def test_a_class_that_isnt_trained_is_broken(tmp_path):
    root = picture_sets.masks(tmp_path)
    changed(lambda v: v + 4, "val/masks/6.png")(root)
    with pytest.raises(DataError, match=r"its mask has the class 5, and the training masks have 0 to 3"):
        load(root)
    assert len(load(root, broken="skip").source_test) == 2


def test_a_mask_without_a_class_is_left_out_and_one_without_a_picture_counted(tmp_path):
    root = picture_sets.masks(tmp_path)
    changed(lambda v: np.full_like(v, 255))(root)
    (root / "train/images/1.png").unlink()
    data = load(root)
    assert data.ignored == {
        "pictures left out, for no pixel of theirs has a class": 1, "masks without a picture": 1,
    }  # fmt: skip
    assert len(data.source_train) == 4


def test_sixteen_bits_and_grey_as_colour_are_values(tmp_path):
    root = picture_sets.masks(tmp_path)
    expected = load(root).source_train.take(torch.arange(2)).targets
    changed(lambda v: v.astype(np.uint16) * 300, "train/masks/0.png")(root)
    changed(lambda v: np.repeat(v.astype(np.uint8)[..., None], 3, 2), "train/masks/1.png")(root)
    data = load(root, broken="skip", classes=["around", *picture_sets.NAMES])
    assert torch.equal(data.source_train[0][1], expected[1])  # the first one's 300 is no class
    wide = load(root, values=[0, 300, 1, 2, 3])
    assert torch.equal(wide.source_train[0][1], expected[0])


# --- scenes ---


def test_scenes_are_the_default():
    data = load_masks(MasksPart(augment="none"), 0)
    assert data.target_names == ("field", *scenes.NAMES)
    assert data.source_train.frame.size == (64, 96)
    x, mask = data.source_test[0]
    scene = scenes.draw()[1][0]
    assert np.array_equal(mask, scene.classes)
    assert (data.source_train.counts[:, 0] == 1).all()
