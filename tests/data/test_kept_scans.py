"""What is found in files of pictures with boxes and masks is kept, for as long as they stay the same."""

import os

import numpy as np
import picture_sets
import pytest
import torch
from picture_sets import everything
from PIL import Image

from deploy_prune.data import mask_files, pictures
from deploy_prune.data.masks import load_masks
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import MasksPart
from deploy_prune.system.cache import clear

KEYS = {"mean": [0.0] * 3, "std": [1.0] * 3, "augment": "none"}


def load_all(root, **keys):
    return load_masks(MasksPart(**{"source": "folders", "root": str(root)} | KEYS | keys), 0)


def masks(root, **keys):
    return load_all(root if root.exists() else picture_sets.masks(root), **keys)


def written(make, root):
    return root if root.exists() else make(root)


SETS = {
    source: lambda root, make=make, source=source, **keys: picture_sets.load(written(make, root), source, **keys)
    for source, make in (("voc", picture_sets.voc), ("coco", picture_sets.coco), ("yolo", picture_sets.yolo))
} | {"masks": masks}
IMAGE = {
    "voc": "JPEGImages/p1.png", "coco": "train2017/1.png", "yolo": "images/train/1.png",
    "masks": "train/images/1.png",
}  # fmt: skip


@pytest.fixture
def decoded(monkeypatch):
    """The files that this process decodes, from here on; nothing is kept of those before."""
    found, plain, plain_mask = [], pictures.picture.decoded, mask_files.read_mask
    pictures._KEPT.arrays.clear()
    clear("pictures")
    monkeypatch.setattr(pictures.picture, "decoded", lambda path, channels: found.append(path) or plain(path, channels))
    monkeypatch.setattr(mask_files, "read_mask", lambda path, how=1: found.append(path) or plain_mask(path, how))
    return found


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("broken", ["fail", "skip"])
@pytest.mark.parametrize("kind", SETS)
def test_a_second_command_decodes_nothing(tmp_path, decoded, kind, broken, workers):
    root = tmp_path / kind
    keys = {"broken": broken, "mean": None, "std": None}
    first = SETS[kind](root, workers=workers, **keys)
    if not workers:
        looked = 9 * (kind == "masks") + 9 * (broken == "skip")
        assert len(decoded) == looked + 6  # 6 to train on are measured
    decoded.clear()
    again = SETS[kind](root, **keys)
    assert decoded == []
    assert again.source_train.digest == first.source_train.digest
    assert torch.equal(again.source_train.mean, first.source_train.mean)
    x, target = (data.source_train.take(everything(data.source_train)) for data in (first, again))
    assert torch.equal(x.inputs[0], target.inputs[0])


def with_another_pixel(path):
    """The same file with the same time, and one other value."""
    about, values = path.stat(), np.asarray(Image.open(path)).copy()
    values.flat[0] ^= 1
    picture_sets.save(path, values)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize("kind", SETS)
def test_a_picture_that_is_changed_is_another_one(tmp_path, kind):
    root = tmp_path / kind
    first = SETS[kind](root)
    path = root / IMAGE[kind]
    os.utime(path, (1, 1))
    assert SETS[kind](root).source_train.digest == first.source_train.digest
    with_another_pixel(path)
    changed = SETS[kind](root)
    assert changed.source_train.digest != first.source_train.digest
    assert changed.source_test.digest == first.source_test.digest
    pictures._KEPT.arrays.clear()
    with pytest.raises(DataError, match=rf"{path.name} is another one than when it was first read"):
        first.source_train.take(everything(first.source_train))
    changed.source_train.take(everything(changed.source_train))


def test_a_mask_that_is_changed_is_another_one(tmp_path):
    root = tmp_path / "masks"
    first, path = masks(root), root / "train/masks/1.png"
    os.utime(path, (1, 1))
    assert masks(root).source_train.digest == first.source_train.digest
    with_another_pixel(path)
    assert masks(root).source_train.digest != first.source_train.digest
    with pytest.raises(DataError, match=r"masks/1\.png is another one than when it was first read"):
        first.source_train.take(everything(first.source_train))


def test_what_is_kept_of_a_mask_is_of_its_values_and_its_picture(tmp_path):
    root = tmp_path / "masks"
    masks(root)
    for keys in ({"void": 1}, {"values": [3, 2, 1, 0]}):
        kept, fresh = (one.source_train.take(torch.arange(6)).targets for one in (masks(root, **keys), masks(root)))
        assert not torch.equal(kept, fresh)
    picture_sets.save(root / "train/images/1.png", picture_sets.picture(1, (96, 65))[0])
    with pytest.raises(DataError, match=r"it has 96x64 pixels, and its picture has 96x65"):
        masks(root)


@pytest.mark.parametrize("kind", SETS)
def test_what_is_broken_is_named_each_time(tmp_path, kind):
    root = tmp_path / kind
    SETS[kind](root)
    path = root / IMAGE[kind]
    path.write_bytes(path.read_bytes()[:200])
    skipped = [SETS[kind](root, broken="skip").skipped for _ in range(2)]
    assert "can't be read as an image" in skipped[0][0]
    assert skipped[0] == skipped[1]
    for _ in range(2):
        with pytest.raises(DataError, match=r"data\.broken: 1 unreadable pictures"):
            SETS[kind](root)
