"""Images of classes that stay in their files until they are taken."""

import os
import zlib
from dataclasses import replace
from itertools import islice
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from deploy_prune.data import files as files_module
from deploy_prune.data.examples import ClassExamples
from deploy_prune.data.files import chosen, joined, measured, taken
from deploy_prune.data.folders import find
from deploy_prune.data.images import read_image
from deploy_prune.data.loaders import batches
from deploy_prune.data.pictures import _KEPT, look, scan
from deploy_prune.data.splits import load
from deploy_prune.device.payload import picture
from deploy_prune.errors import DataError
from deploy_prune.recipe.parts import Augment, DataPart

NORM = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
SIZE = 16


def write(root, classes=("ant", "bee", "cat"), num=7, parts=("train", "test")):
    """Noise of several sizes, each picture another one."""
    rng = np.random.default_rng(zlib.crc32(bytes(root)))  # what is kept in the cache of other tests is of others
    for i, folder in enumerate(root / part / name for part in parts for name in classes):
        folder.mkdir(parents=True)
        for j in range(num):
            noise = rng.integers(0, 256, (20 + j, 30 + i, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{j}.{('jpg', 'png')[j % 2]}")
    return root


def read(root, seed=0, **changes):
    return load(DataPart(source="folder", root=str(root), image_size=SIZE, **changes), seed)


@pytest.fixture
def decoded(monkeypatch):
    """The files that this process decodes, from here on; nothing is kept in memory."""
    found, plain = [], picture.decoded
    _KEPT.arrays.clear()

    def counted(path, channels):
        found.append(path)
        return plain(path, channels)

    monkeypatch.setattr(picture, "decoded", counted)
    return found


def in_memory(root, examples):
    """The same training images as a tensor, as they are without files."""
    listed = find(root).train
    images = np.stack([read_image(path, (SIZE, SIZE), 3) for path, _ in listed]).transpose(0, 3, 1, 2)
    labels = torch.tensor([label for _, label in listed])
    return ClassExamples(
        images=torch.tensor(images), labels=labels, mean=examples.mean, std=examples.std, size=(SIZE, SIZE),
        augment=examples.augment,
    )  # fmt: skip


@pytest.mark.parametrize("augment", get_args(Augment))
def test_batches_are_those_of_images_in_memory_whoever_reads_them(tmp_path, augment):
    write(tmp_path)
    own = read(tmp_path, augment=augment).source_train
    expected = list(islice(batches(in_memory(tmp_path, own), 5, seed=3), 100))  # of 21: many reach into the next epoch
    for workers in (0, 1, 2):
        stream = batches(read(tmp_path, augment=augment, workers=workers).source_train, 5, seed=3)
        require_same(expected, list(islice(stream, 100)))
        del stream


def require_same(expected, found):
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a.inputs[0], b.inputs[0])
        assert torch.equal(a.targets, b.targets)


def test_batches_go_on_where_they_were_whoever_reads_them(tmp_path):
    write(tmp_path)
    here, ahead = (read(tmp_path, augment="affine", workers=n).source_train for n in (0, 1))
    expected = list(islice(batches(here, 5, seed=3), 14))
    for before in (1, 4, 6):  # within an epoch, at its end, in the next one
        first = batches(ahead, 5, seed=3)
        list(islice(first, before))
        again = batches(ahead, 5, seed=0)
        again.load_state_dict(first.state_dict())
        require_same(expected[before:], list(islice(again, 14 - before)))


def test_a_batch_of_more_than_there_are_is_of_all(tmp_path):
    own = read(write(tmp_path), workers=1).source_train
    stream = batches(own, 50, seed=3)
    require_same(list(islice(batches(in_memory(tmp_path, own), 50, seed=3), 3)), list(islice(stream, 3)))
    del stream


def test_processes_read_them(tmp_path, decoded):
    examples = read(write(tmp_path), workers=2, **NORM).source_train
    stream = batches(examples, 4, seed=0)
    next(stream)
    del stream
    assert decoded == []


def test_an_error_of_a_process_is_told_as_it_is(tmp_path):
    examples = read(write(tmp_path), workers=1, **NORM).source_train
    for path in (tmp_path / "train" / "ant").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"^data\.root: .* can't be read as an image: its content is empty \(data\.unr"):
        list(islice(batches(examples, 21, seed=0), 2))


def test_nothing_is_decoded_before_it_is_taken(tmp_path, decoded):
    data = read(write(tmp_path), **NORM)
    assert data.source_train.digest
    assert decoded == []
    data.target_test.take(torch.tensor([3, 0, 3]))
    assert sorted(path.name for path in decoded) == ["0.jpg", "3.png"]


@pytest.mark.parametrize("unreadable", ["fail", "skip"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_second_command_decodes_nothing(tmp_path, decoded, unreadable, workers):
    write(tmp_path)
    first = read(tmp_path, unreadable=unreadable, workers=workers)
    if not workers:
        assert len(decoded) == 21 + 42 * (unreadable == "skip")  # 21 to train on are measured
    decoded.clear()
    again = read(tmp_path, unreadable=unreadable)
    assert decoded == []
    assert again.source_train.digest == first.source_train.digest
    assert torch.equal(again.source_train.mean, first.source_train.mean)


def test_mean_and_deviation_are_of_a_sample(tmp_path, decoded, monkeypatch):
    write(tmp_path)
    everything = read(tmp_path).source_train
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            measured(in_memory(tmp_path, everything).images), (everything.mean, everything.std), strict=True
        )
    )
    assert files_module.SAMPLED == 2048
    monkeypatch.setattr(files_module, "SAMPLED", 5)
    decoded.clear()
    sample = read(tmp_path).source_train
    assert len(decoded) == 5
    assert len({path.parent for path in decoded}) > 1
    assert not torch.equal(sample.mean, everything.mean)


def test_what_is_measured_is_of_the_input_that_is_asked_for(tmp_path):
    write(tmp_path)
    assert len(read(tmp_path, channels=1).source_train.mean) == 1
    assert len(read(tmp_path).source_train.mean) == 3


def test_classes_that_are_not_asked_for_are_not_read(tmp_path, decoded):
    write(tmp_path, num=6)
    for part in ("train", "test"):
        (tmp_path / part / "cat" / "0.jpg").write_bytes(b"broken")
    for unreadable in ("fail", "skip"):
        data = read(tmp_path, source_classes=[0, 1], target_classes=[1, 0], unreadable=unreadable)
        assert {path.parent.name for path in decoded} == {"ant", "bee"}
        assert data.skipped == ()
    with pytest.raises(DataError, match=r"cat/0\.jpg can't be read"):
        read(tmp_path, source_classes=[0, 1], target_classes=[1, 2])
    assert read(tmp_path, unreadable="skip").skipped == ("train/cat/0.jpg", "test/cat/0.jpg")


def test_what_is_read_changes_nothing_of_the_split(tmp_path):
    """It is drawn of all that is listed."""
    write(tmp_path, parts=("",))
    every = read(tmp_path).source_test.images.pictures
    few = read(tmp_path, source_classes=[1, 2], target_classes=[1, 2]).source_test.images.pictures
    assert len(few) > 1
    assert [one.path for one in few] == [one.path for one in every if one.path.parent.name != "ant"]


def test_a_picture_that_is_changed_is_another_one(tmp_path):
    write(tmp_path)
    first = read(tmp_path, **NORM)
    path = tmp_path / "train" / "bee" / "1.png"
    os.utime(path, (1, 1))
    touched = read(tmp_path, **NORM)
    assert touched.source_train.digest == first.source_train.digest
    about = path.stat()
    noise = np.asarray(Image.open(path)).copy()
    noise[0, 0, 0] ^= 1
    Image.fromarray(noise).save(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    changed = read(tmp_path, **NORM)
    assert changed.source_train.digest != first.source_train.digest
    assert changed.source_test.digest == first.source_test.digest
    with pytest.raises(DataError, match=r"bee/1\.png is another one than when it was first read"):
        first.source_train.take(torch.arange(21))


def test_a_digest_is_of_all_that_a_stage_can_see(tmp_path):
    write(tmp_path)
    one = read(tmp_path, **NORM).source_train
    others = [
        one.subset(torch.arange(20)), one.subset(torch.arange(20, -1, -1)),
        read(tmp_path, channels=1, mean=[0.5], std=[0.25]).source_train,
        read(tmp_path, augment="affine", **NORM).source_train,
        read(tmp_path, mean=NORM["std"], std=NORM["std"]).source_train,
        load(DataPart(source="folder", root=str(tmp_path), image_size=8, **NORM), 0).source_train,
        replace(one, labels=one.labels.flip(0)),
    ]  # fmt: skip
    assert len({each.digest for each in (one, *others)}) == len(others) + 1
    assert read(tmp_path, workers=2, **NORM).source_train.digest == one.digest


def test_what_only_decoding_shows_is_told_when_it_is_taken_or_skipped(tmp_path):
    """A JPEG that is whole by its marks, and whose table of codes is none."""
    path = write(tmp_path) / "train" / "ant" / "0.jpg"
    content = bytearray(path.read_bytes())
    table = content.index(b"\xff\xc4") + 5
    content[table : table + 16] = b"\xff" * 16
    path.write_bytes(content)
    examples = read(tmp_path, **NORM).source_train
    assert len(examples) == 21
    with pytest.raises(DataError, match=r"ant/0\.jpg can't be read as an image: .* \(data\.unreadable: skip leaves"):
        examples.take(torch.arange(21))
    data = read(tmp_path, unreadable="skip", **NORM)
    assert data.skipped == ("train/ant/0.jpg",)
    assert len(data.source_train.take(torch.arange(20)).targets) == 20


def test_images_in_memory_and_in_files_are_chosen_alike(tmp_path):
    own = read(write(tmp_path)).source_train
    stored = in_memory(tmp_path, own).images
    mask = torch.arange(21) % 4 == 1
    for which in (mask, torch.tensor([5, 2, 2])):
        some = chosen(own.images, which)
        everything = torch.arange(len(some))
        assert torch.equal(taken(some, everything), chosen(stored, which))
        both = joined(some, chosen(own.images, ~mask))
        assert torch.equal(taken(both, torch.arange(len(both))), joined(chosen(stored, which), stored[~mask]))
    assert taken(own.images, torch.empty(0, dtype=torch.int64)).shape == (0, 3, SIZE, SIZE)


def saved(path, image, **how):
    image.save(path, **how)
    return path


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "gif"])
def test_a_look_says_what_reading_says(tmp_path, suffix, orientation):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    how = {} if orientation is None or suffix == "gif" else turned(orientation)
    for mode in ("RGB", "L", "P", "1"):
        if not (mode in "P1" and suffix in ("jpg", "webp")):
            path = saved(tmp_path / f"{mode}.{suffix}", image.convert(mode), **how)
            assert look(path) == scan(path)


def said(read_, path):
    try:
        return read_(path)
    except ValueError as error:
        return str(error)


def test_a_look_decodes_what_may_be_damaged_and_nothing_else(tmp_path, decoded):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    for suffix in ("jpg", "png"):
        path = saved(tmp_path / f"a.{suffix}", image)
        whole = path.read_bytes()
        look(path)
        assert decoded == []
        for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:20], whole + b"\0"):
            path.write_bytes(damaged)
            expected = said(scan, path)
            decoded.clear()
            assert said(look, path) == expected
            assert decoded == [path]
            decoded.clear()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(ValueError, match="can't be read as an image"):
        look(path)
