"""Images with a class each from Datasets of the user's own."""

import importlib
import os
import sys
import threading
import types
from itertools import islice
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, random_split

from deploy_prune.data import item_images, own_sets
from deploy_prune.data.files import taken
from deploy_prune.data.identity import identity
from deploy_prune.data.loaders import batches
from deploy_prune.data.pictures import _KEPT
from deploy_prune.data.splits import load
from deploy_prune.errors import DataError
from deploy_prune.networks.libraries import import_torchvision
from deploy_prune.recipe.parts import Augment, DataPart

import_torchvision()
datasets, v2 = (importlib.import_module(f"torchvision.{name}") for name in ("datasets", "transforms.v2"))
NORM = {"mean": [0.5] * 3, "std": [0.25] * 3}
NAMES = ("ant", "bee", "cat")
KINDS = {
    "bytes": lambda x: torch.tensor(x).permute(2, 0, 1),
    "numbers": lambda x: torch.tensor(x).permute(2, 0, 1) / 255,
    "array": lambda x: x,
    "picture": Image.fromarray,
}


class Noise(Dataset):
    """Items as torchvision's sets have them: of three classes, 20 to 26 pixels high. It counts what is read."""

    def __init__(self, numbers, kind="picture", change=None):
        self.numbers, self.kind, self.change = list(numbers), kind, change

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        READ.append(self.numbers[index])
        image, label = noise(self.numbers[index]), self.numbers[index] % 3
        return self.change(index, image, label) if self.change else (KINDS[self.kind](image), label)


class Told(Noise):
    """It has the labels."""

    classes = list(NAMES)

    @property
    def targets(self):
        return [number % 3 for number in self.numbers]


READ = []


def noise(number):
    return np.random.default_rng(number).integers(0, 256, (20 + number % 7, 24, 3), dtype=np.uint8)


@pytest.fixture
def own(monkeypatch):
    """Makes a function that a recipe can name; nothing is kept in memory, and nothing was read."""
    _KEPT.arrays.clear()
    READ.clear()

    def named(returned):
        module = types.ModuleType("own_classes_of_a_test")
        module.make = lambda: returned
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return f"{module.__name__}:make"

    return named


def read(source, seed=0, **keys):
    return load(DataPart(**{"source": source, "image_size": 16, "augment": "none"} | NORM | keys), seed)


def folder(root, numbers=range(21), test=range(21, 30)):
    """The same images in folders."""
    for part, chosen in (("train", numbers), ("test", test)):
        for number in chosen:
            path = root / part / NAMES[number % 3] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(number)).save(path)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_items_are_taken_as_files_are(tmp_path, own, kind):
    order = sorted(range(21), key=lambda n: n % 3)  # as folders have them: class by class
    mine = read(own((Noise(order, kind), Noise(range(21, 30), kind), NAMES)))
    files = read("folder", root=str(folder(tmp_path)))
    assert mine.target_names == files.target_names == NAMES
    found, expected = (data.source_train.take(torch.arange(21)) for data in (mine, files))
    assert torch.equal(found.inputs[0], expected.inputs[0])
    assert torch.equal(found.targets, expected.targets)
    grey = read(own((Noise(order, kind),)[0]), channels=1, mean=[0.5], std=[0.25]).source_train
    assert grey.take(torch.arange(3)).inputs[0].shape == (3, 1, 16, 16)


@pytest.mark.parametrize("augment", get_args(Augment))
def test_batches_are_the_same_whoever_reads_them(own, augment):
    source = own((Noise(range(21)), Noise(range(21, 30))))
    expected = list(islice(batches(read(source, augment=augment).source_train, 5, seed=3), 100))
    for workers in (1, 2):
        stream = batches(read(source, augment=augment, workers=workers).source_train, 5, seed=3)
        for a, b in zip(expected, stream, strict=False):
            assert torch.equal(a.inputs[0], b.inputs[0])
            assert torch.equal(a.targets, b.targets)
        del stream


def test_processes_read_them(own):
    source = own((Told(range(21)), Told(range(21, 30))))
    examples = read(source, workers=1).source_train
    READ.clear()
    stream = batches(examples, 5, seed=0)
    next(stream)
    del stream
    assert READ == []


def test_labels_that_are_stated_are_not_looked_for(own):
    data = read(own((Told(range(90)), Told(range(90, 120)))))
    assert len(READ) == 2 * 2 * item_images.TRIED
    assert data.source_train.labels.tolist() == [n % 3 for n in range(90)]
    assert data.target_names == NAMES
    assert data.source_train.digest
    assert len(READ) == 2 * 2 * item_images.TRIED
    data.source_train.take(torch.tensor([4, 6]))
    assert READ[-2:] == [4, 6]


@pytest.mark.parametrize("keys", [{}, {"image_size": None}, {"unreadable": "skip"}])
@pytest.mark.parametrize("workers", [0, 1])
def test_else_all_are_read_once_and_that_is_kept(own, keys, workers, monkeypatch, tmp_path):
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "cache"))
    kind = Told if keys else Noise
    train, test = list(range(0, 91, 7)), list(range(700, 770, 7))  # of one size
    source = own((kind(train), kind(test)))
    first = read(source, workers=workers, **keys)
    tried = 2 * 2 * item_images.TRIED
    assert len(READ) == tried + (0 if workers else len(train) + len(test))
    READ.clear()
    again = read(source, **keys)
    assert len(READ) == tried
    assert again.source_train.digest == first.source_train.digest
    assert again.source_train.labels.tolist() == [n % 3 for n in train]


def test_wrapped_data_sets_have_the_labels_too(own):
    first, second = random_split(Told(range(60)), [40, 20], generator=torch.Generator().manual_seed(0))
    both = ConcatDataset([first, Subset(Told(range(60, 90)), range(5, 30))])
    data = read(own((both, second)))
    assert len(READ) == 2 * 2 * item_images.TRIED
    assert data.target_names == NAMES
    assert data.source_train.labels.tolist() == [both[i][1] for i in range(len(both))]


def test_shots_classes_and_one_set_that_is_split(own):
    data = read(own(Told(range(60))), seed=3, source_classes=[0, 1], target_classes=[2, 1], shots=None)
    assert len(data.source_train) == 32
    assert len(data.source_test) == 8
    few = read(own((Told(range(60)), None)), seed=3, source_classes=[0, 1], target_classes=[2, 0], shots=None)
    assert few.target_names == ("cat", "ant")
    shots = read(own((Told(range(60)), Told(range(60, 90)))), seed=3, shots=4)
    assert shots.target_train.labels.bincount().tolist() == [4, 4, 4]
    again = read(own((Told(range(60)), Told(range(60, 90)))), seed=3, shots=4)
    assert shots.shots == again.shots
    assert shots.shots != read(own((Told(range(60)), Told(range(60, 90)))), seed=4, shots=4).shots


def test_mean_and_deviation_are_of_the_images(own, monkeypatch):
    data = read(own((Told(range(21)), Told(range(21, 30)))), mean=None, std=None).source_train
    images = taken(data.images, torch.arange(21)).double() / 255
    assert torch.allclose(data.mean, images.mean((0, 2, 3)).float())
    assert torch.allclose(data.std, images.std((0, 2, 3), correction=0).float())


# --- what a Dataset is ---


def test_image_folders_of_torchvision(tmp_path, own):
    def made():
        return tuple(datasets.ImageFolder(tmp_path / part) for part in ("train", "test"))

    folder(tmp_path)
    data, files = read(own(made())), read("folder", root=str(tmp_path))
    assert data.target_names == NAMES
    for a, b in ((data.source_train, files.source_train), (data.source_test, files.source_test)):
        everything = torch.arange(len(a))
        assert torch.equal(a.take(everything).inputs[0], b.take(everything).inputs[0])
        assert torch.equal(a.labels, b.labels)
    assert read(own(made())).source_train.digest == data.source_train.digest
    path = tmp_path / "train" / "bee" / "001.png"
    Image.fromarray(noise(99)).save(path)
    changed = read(own(made()))
    assert changed.source_train.digest != data.source_train.digest
    assert changed.source_test.digest == data.source_test.digest
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "dog")
    with pytest.raises(DataError, match=r"train on are ant, bee, cat, and of the one to score on ant, bee, dog"):
        read(own(made()))


def test_arrays_in_a_data_set_are_its_content(own):
    def made(value):
        fake = datasets.FakeData(40, (3, 16, 16), 3)
        fake.data, fake.targets = np.full((40, 16, 16, 3), value, np.uint8), [int(fake[i][1]) for i in range(40)]
        return fake

    one = read(own(made(1))).source_train.digest
    assert read(own(made(1))).source_train.digest == one
    assert read(own(made(2))).source_train.digest != one


def transformed(*parts):
    return v2.Compose([*parts])


IDENTITIES = {
    "numbers": lambda: Told(range(1, 22)),
    "order": lambda: Told(reversed(range(21))),
    "kind": lambda: Told(range(21), "bytes"),
    "code": lambda: Told(range(21), change=lambda index, image, label: (image, label)),
    "closure": lambda: with_offset(1),
    "another closure": lambda: with_offset(2),
    "said": lambda: named(Told(range(21)), "b"),
    "said to be another": lambda: named(Told(range(21)), "c"),
    "tensor": lambda: held(Told(range(21)), torch.tensor([1.0])),
    "another tensor": lambda: held(Told(range(21)), torch.tensor([1.0 + 1e-7])),
    "set": lambda: held(Told(range(21)), {"a", "b", "c", "d"}),
    "transform": lambda: held(Told(range(21)), transformed(v2.Resize(8))),
    "another transform": lambda: held(Told(range(21)), transformed(v2.Resize(9))),
}


def with_offset(offset):
    return Told(range(21), change=lambda index, image, label: (image // offset, label))


def named(items, digest):
    items.digest = digest
    return items


def held(items, what):
    items.what = what
    return items


def test_each_is_another_one():
    found = [item_images.identity(make(), "train") for make in [lambda: Told(range(21)), *IDENTITIES.values()]]
    again = [item_images.identity(make(), "train") for make in [lambda: Told(range(21)), *IDENTITIES.values()]]
    assert found == again
    assert len(set(found)) == len(found)


def test_files_that_it_names_with_their_folder_or_without(tmp_path):
    class Listed(Told):
        def __init__(self, root, names):
            super().__init__(range(21))
            self.root, self.names = root, names

    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(b"1")
    for root, names in ((tmp_path, ["a.bin"]), (None, [str(tmp_path / "a.bin")]), (str(tmp_path), {0: ("a.bin",)})):
        one = item_images.identity(Listed(root, names), "train")
        assert item_images.identity(Listed(root, names), "train") == one
        os.utime(tmp_path / "b.bin", ns=(1, 1))
        assert item_images.identity(Listed(root, names), "train") == one
        (tmp_path / "a.bin").write_bytes((tmp_path / "a.bin").read_bytes() + b"2")
        assert item_images.identity(Listed(root, names), "train") != one


def test_its_module_is_part_of_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "class Mine:\n    def __len__(self): return 1\n    def __getitem__(self, i): return {}\n"
    found = set()
    for value in (1, 2):
        (tmp_path / "module_of_a_test.py").write_text(text.format(value))
        sys.modules.pop("module_of_a_test", None)
        found.add(item_images.identity(__import__("module_of_a_test").Mine(), "train"))
    assert len(found) == 2


def test_one_that_cannot_be_told_says_how_it_can(own):
    items = held(Told(range(21)), threading.Lock())
    with pytest.raises(DataError, match=r"train can't be told from another Dataset .* give it an attribute digest"):
        read(own((items, Told(range(5)))))
    read(own((named(items, "the first"), Told(range(21, 30)))))


# --- what is broken ---


class Endless(IterableDataset):
    def __iter__(self):
        yield 1


def broken(value):
    return Noise(range(21), change=lambda index, image, label: value(index, image, label))


BROKEN = {
    "endless": (Endless(), "gives its items from the first to the last only"),
    "nothing": (None, r"must return \(x_train, .* or torch Datasets with a length"),
    "an iterator": (iter([1]), "must return"),
    "array": (np.zeros((4, 8, 8)), "must return"),
    "empty": (Noise([]), "the Dataset train of .* is empty"),
    "no pair": (broken(lambda i, x, y: x), r"train\[0\] can't be read .* it is no pair"),
    "no class": (broken(lambda i, x, y: (x, "cat")), r"train\[0\] can't be read .*TypeError"),
    "fractions": (broken(lambda i, x, y: (x, 0.5)), r"train\[0\] can't be read .*TypeError"),
    "below 0": (broken(lambda i, x, y: (x, y - 1)), "has a label below 0, -1"),
    "standardised": (broken(lambda i, x, y: (torch.randn(3, 8, 8), y)), "numbers from 0 to 1"),
    "fails": (broken(lambda i, x, y: 1 / 0), r"ZeroDivisionError.*data\.unreadable: skip"),
    "columns": (broken(lambda i, x, y: {"photo": x, "label": y}), "it has the columns photo, label"),
    "draws": (broken(lambda i, x, y: (np.roll(x, int(torch.randint(20, ())), 0), y)), "leave it to data.augment"),
    "other labels": (held(Told(range(21), change=lambda i, x, y: (x, (y + 1) % 3)), 0), "the item itself"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_told(own, kind):
    value, says = BROKEN[kind]
    with pytest.raises(DataError, match=says):
        read(own(value))


def test_what_cannot_be_read_is_left_out(own):
    items = Told(range(21), change=lambda index, image, label: (None if index == 7 else image, label))
    with pytest.raises(DataError, match=r"train\[7\] can't be read"):
        read(own((items, Told(range(21, 30))))).source_train.take(torch.arange(21))
    data = read(own((items, Told(range(21, 30)))), unreadable="skip")
    assert len(data.source_train) == 20
    assert "train[7] can't be read" in data.skipped[0]


def test_an_item_that_changes_is_an_error(own):
    items = Noise(range(21))
    data = read(own((items, Noise(range(21, 30)))))
    items.numbers[3] = 400
    with pytest.raises(DataError, match=r"train\[3\] is another one than when it was first read"):
        data.source_train.take(torch.arange(21))


# --- the library `datasets` ---


class Table:
    """What is used of `datasets.Dataset`."""

    def __init__(self, numbers, fingerprint="a"):
        self.numbers, self._fingerprint = numbers, fingerprint
        self.column_names = ["img", "label", "place"]
        self.features = {"img": None, "label": types.SimpleNamespace(names=list(NAMES)), "place": None}

    def __len__(self):
        return len(self.numbers)

    def with_format(self, kind):
        return self

    def __getitem__(self, asked):
        if asked == "label":
            return [number % 3 for number in self.numbers]
        READ.append(asked)
        return {"img": Image.fromarray(noise(self.numbers[asked])), "label": self.numbers[asked] % 3, "place": 0}


def test_tables_with_columns_are_data_sets(own, monkeypatch):
    monkeypatch.setattr(Table, "__module__", "datasets.arrow_dataset")
    data = read(own((Table(range(40)), Table(range(40, 60)))))
    assert len(READ) == 2 * 2 * item_images.TRIED
    assert data.target_names == NAMES
    plain = read(own((Told(range(40)), Told(range(40, 60)))))
    assert torch.equal(
        data.source_train.take(torch.arange(40)).inputs[0], plain.source_train.take(torch.arange(40)).inputs[0]
    )
    other = read(own((Table(range(40), "b"), Table(range(40, 60)))))
    assert other.source_train.digest != data.source_train.digest
    assert other.source_test.digest == data.source_test.digest


# --- pictures of every kind ---


def test_pictures_of_every_kind_are_what_their_files_are(tmp_path):
    image, exif = Image.fromarray(noise(1)), Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(noise(1)[..., 0].astype(np.uint16) * 257)
    kinds = {
        "turned.jpg": image, "grey.png": image.convert("L"), "palette.png": image.quantize(8), "deep.png": deep,
        "cmyk.jpg": image.convert("CMYK"), "clear.png": image.copy(),
    }  # fmt: skip
    kinds["clear.png"].putalpha(image.convert("L"))
    for name, one in kinds.items():
        one.save(tmp_path / name, **({"exif": exif} if name == "turned.jpg" else {}))
        expected = own_sets.picture.load(tmp_path / name, 3)
        found = own_sets.with_channels(own_sets.image_bytes(Image.open(tmp_path / name), turn=True), 3)
        assert np.array_equal(found, expected), name
    turned = own_sets.image_bytes(Image.open(tmp_path / "turned.jpg"))
    assert np.array_equal(np.rot90(turned, -1), own_sets.picture.load(tmp_path / "turned.jpg", 3))


def test_a_change_in_code_that_its_class_imports_makes_another_data_set(tmp_path, monkeypatch):
    (tmp_path / "own_helper.py").write_text("def label(n):\n    return n % 3\n")
    (tmp_path / "own_items.py").write_text(
        "from own_helper import label\nclass Items:\n    def __getitem__(self, n):\n        return None, label(n)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    items = importlib.import_module("own_items").Items()
    before = identity(items, "train")
    assert identity(items, "train") == before
    (tmp_path / "own_helper.py").write_text("def label(n):\n    return n % 2\n")
    assert identity(items, "train") != before
