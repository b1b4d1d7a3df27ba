import gzip
import io
import pickle
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from deploy_prune.data.cifar import read_batch
from deploy_prune.data.files import taken
from deploy_prune.data.sources import READERS, read
from deploy_prune.errors import DataError
from deploy_prune.recipe.parts import DATA_SETS, DataPart

RNG = np.random.default_rng(0)


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def part(source, root, **changes):
    fields = {
        **DataPart(image_size=32).model_dump(),
        "source": source,
        "root": None if root is None else str(root),
        **changes,
    }
    return DataPart.model_construct(**fields)


def test_every_source_of_the_recipe_has_a_reader():
    assert set(READERS) == set(DATA_SETS)


# --- npz and CIFAR's batches ---


@pytest.mark.parametrize(("source", "name"), [("cifar10", "cifar10.npz"), ("cifar100", "cifar100_30classes.npz")])
def test_npz(tmp_path, source, name):
    x, y = pixels(6, 32, 32, 3), np.arange(6)
    np.savez(tmp_path / name, x_train=x[:4], y_train=y[:4], x_test=x[4:], y_test=y[4:], classes=np.array(["a"]))
    found = read(part(source, tmp_path))
    assert np.array_equal(found.train.images.permute(0, 2, 3, 1), x[:4])
    assert found.test.labels.tolist() == [4, 5]
    assert found.names == ("a",)


def test_names_of_classes(tmp_path):
    folder = tmp_path / "cifar-100-python"
    for name in ("train", "test"):
        write_batch(folder / name, pixels(2, 3072), [0, 1], b"fine_labels")
    assert read(part("cifar100", tmp_path)).names is None
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"apple", b"bee"]}, protocol=2))
    assert read(part("cifar100", tmp_path)).names == ("apple", "bee")
    (folder / "meta").write_bytes(b"no pickle")
    with pytest.raises(DataError, match="names of classes"):
        read(part("cifar100", tmp_path))
    assert read(part("digits", None)).names == tuple("0123456789")


def write_batch(path, data, labels, key, protocol=2):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps({b"data": data, key: labels, b"batch_label": b"x"}, protocol=protocol))


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar10_batches(tmp_path, protocol):
    data = pixels(12, 3072)
    for i in range(5):
        name = tmp_path / "cifar-10-batches-py" / f"data_batch_{i + 1}"
        write_batch(name, data[2 * i : 2 * i + 2], [i, i], b"labels", protocol)
    write_batch(tmp_path / "cifar-10-batches-py" / "test_batch", data[10:], [3, 4], b"labels", protocol)
    found = read(part("cifar10", tmp_path))
    assert found.train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert np.array_equal(found.train.images[3, 1].flatten(), data[3, 1024:2048])  # channel, row, column


def test_cifar100_batches_have_fine_labels(tmp_path):
    for name, num in (("train", 3), ("test", 2)):
        write_batch(tmp_path / "cifar-100-python" / name, pixels(num, 3072), list(range(num)), b"fine_labels")
    assert read(part("cifar100", tmp_path)).test.labels.tolist() == [0, 1]


class Planted:
    def __reduce__(self):
        return Path.touch, (Path("planted"),)


def test_code_in_a_batch_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "test"):
        write_batch(tmp_path / "cifar-100-python" / name, Planted(), [0], b"fine_labels")
    with pytest.raises(DataError, match="which is no array"):
        read(part("cifar100", tmp_path))
    assert not Path("planted").exists()


def reduced(callable_, *arguments):
    """A pickle that calls this with these."""

    class Reduced:
        def __reduce__(self):
            return callable_, arguments

    return pickle.dumps({b"data": Reduced(), b"fine_labels": [0]}, protocol=2)


def test_an_array_of_raw_pointers_does_not_crash(tmp_path):
    """numpy's own names are enough for that: a dtype of objects that is told that it has none."""
    whole = pickle.dumps(np.array([1], dtype=object), protocol=2)
    state = whole.replace(b"K?", b"K\0").replace(b"K\x3f", b"K\0")  # the dtype's flags
    evil = b"\x80\x02cnumpy\nndarray\n" + state[2:-1] + b"\x85R."
    for name in ("train", "test"):
        (tmp_path / "cifar-100-python").mkdir(exist_ok=True)
        (tmp_path / "cifar-100-python" / name).write_bytes(evil)
    with pytest.raises(DataError, match="can't be read as a CIFAR batch"):
        read(part("cifar100", tmp_path))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (reduced(print, "x"), "it holds __builtin__.print, which is no array"),
        (reduced(np.dtype, "O"), "it has no array data"),
        (pickle.dumps({b"data": np.array([print], object), b"fine_labels": [0]}, 2), "has no numbers, or not as many"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8)}, 2), "it has no list of labels"),
        (pickle.dumps({b"data": np.zeros((2, 3), np.uint8), b"fine_labels": [0, 0]}, 2), "no array data of [N, 3072]"),
        (pickle.dumps([1]), "it is no dict"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0f", "it is no whole pickle"),  # bytes of 2**60
        (b"\x80\x02]r\xff\xff\xff\x7f.", "it is no dict"),  # a memo of 2**31
        (b"(" * 100_000 + b"t" * 100_000 + b".", "it is no dict"),
        (b"}" + b"(" * 100_000 + b"t" * 100_000 + b"Ns.", "it has no list of labels"),  # a deep key
        (b"", "it is no whole pickle"),
        (b"l.", "it is no whole pickle"),
    ],
)
def test_hostile_batches_are_refused_with_little_memory(tmp_path, content, says):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / name).write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DataError) as caught:
        read(part("cifar100", tmp_path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert says in str(caught.value)
    assert peak < 1 << 26


WHOLE = pickle.dumps({b"data": pixels(2, 3072), b"fine_labels": [0, 1], b"filenames": [b"a", b"b"]}, protocol=2)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 40), st.binary(max_size=12)), max_size=4),
    end=st.integers(0, len(WHOLE)) | st.none(),
)
def test_no_damaged_batch_ends_in_anything_but_an_error(tmp_path, cuts, end):
    content = WHOLE
    for start, length, new in cuts:
        content = content[:start] + new + content[start + length :]
    (tmp_path / "batch").write_bytes(content[:end])
    try:
        images, labels = read_batch(tmp_path / "batch", "fine_labels")
    except DataError:
        return
    assert images.shape[1:] == (3, 32, 32)
    assert labels.ndim <= 32


def test_a_batch_of_python_2(tmp_path):
    """As the originals are: text is bytes (BINSTRING)."""
    data, labels = pixels(2, 3072), [1, 0]
    text = lambda content: b"T" + struct.pack("<I", len(content)) + content  # noqa: E731
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\1btR(K\1(K\2M\0\x0ct"
    array += b"cnumpy\ndtype\n(U\2u1K\0K\1tR(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tbI00\n"
    array += text(data.tobytes()) + b"tb"
    whole = b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"](" + b"K\1K\0" + b"eu."
    (tmp_path / "batch").write_bytes(whole)
    images, found = read_batch(tmp_path / "batch", "labels")
    assert np.array_equal(images.reshape(2, -1), data)
    assert found.tolist() == labels


@pytest.mark.parametrize(("method", "says"), [("deflated", "would unpack to"), ("bzip2", "numpy doesn't write")])
def test_an_npz_that_unpacks_to_far_more_is_refused(tmp_path, method, says):
    content = io.BytesIO()
    np.lib.format.write_array(content, np.zeros(1 << 20, np.uint8))
    kind = zipfile.ZIP_DEFLATED if method == "deflated" else zipfile.ZIP_BZIP2
    with zipfile.ZipFile(tmp_path / "cifar10.npz", "w", kind) as packed:
        for i in range(300 if method == "deflated" else 1):
            packed.writestr(f"x{i}.npy", content.getvalue())
    with pytest.raises(DataError, match=says):
        read(part("cifar10", tmp_path))


def test_an_npz_that_says_it_is_larger_than_it_is(tmp_path):
    content = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 32, 32, 3)}
    np.lib.format.write_array_header_1_0(content, header)
    with zipfile.ZipFile(tmp_path / "cifar10.npz", "w") as packed:
        packed.writestr("x_train.npy", content.getvalue())
    with pytest.raises(DataError, match=r"x_train\.npy says that it has the shape .*, and is smaller"):
        read(part("cifar10", tmp_path))


def test_code_in_an_npz_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hidden = np.array([Planted()], dtype=object)
    np.savez(tmp_path / "cifar10.npz", x_train=hidden, y_train=[0], x_test=pixels(1, 4, 4, 3), y_test=[0])
    with pytest.raises(DataError, match=r"is not a whole \.npz"):
        read(part("cifar10", tmp_path))
    assert not Path("planted").exists()


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0, -1], "a label below 0, -1"),
        ([0.0, 0.5], "labels of type float64, not integers"),
        ([0], "2 images and labels of shape [1]"),
        ([0, 10**9], "a label above 1000000, 1000000000"),
    ],
)
def test_labels_are_checked_in_every_file(tmp_path, labels, says):
    x = pixels(2, 32, 32, 3)
    np.savez(tmp_path / "cifar10.npz", x_train=x, y_train=labels, x_test=x, y_test=[0, 1])
    for name, found in (("train", [0, 1]), ("test", labels)):
        write_batch(tmp_path / "cifar-100-python" / name, pixels(2, 3072), found, b"fine_labels")
    for source, file in (("cifar10", "cifar10.npz"), ("cifar100", "test")):
        with pytest.raises(DataError) as caught:
            read(part(source, tmp_path))
        assert f"{file} has {says}" in str(caught.value)


def test_counts_that_are_wrong_in_two_batches_do_not_make_up_for_each_other(tmp_path):
    for i in range(1, 6):
        labels = [0] * {1: 1, 2: 3}.get(i, 2)
        write_batch(tmp_path / "cifar-10-batches-py" / f"data_batch_{i}", pixels(2, 3072), labels, b"labels")
    with pytest.raises(DataError, match=r"data_batch_1 has 2 images and labels of shape \[1\]"):
        read(part("cifar10", tmp_path))


@pytest.mark.parametrize("cut", [0, 10, 200, 1000])
def test_a_cut_npz(tmp_path, cut):
    x = pixels(4, 32, 32, 3)
    np.savez_compressed(tmp_path / "cifar10.npz", x_train=x, y_train=[0, 1, 0, 1], x_test=x, y_test=[0, 1, 0, 1])
    whole = (tmp_path / "cifar10.npz").read_bytes()
    (tmp_path / "cifar10.npz").write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"cifar10\.npz is not a whole \.npz"):
        read(part("cifar10", tmp_path))
    (tmp_path / "cifar10.npz").write_bytes(whole[:300] + bytes(50) + whole[350:])
    with pytest.raises(DataError, match=r"cifar10\.npz is not a whole \.npz"):
        read(part("cifar10", tmp_path))


# --- idx ---


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(root, separator="-", compress=False):
    images, labels = pixels(5, 6, 6), np.arange(5, dtype=np.uint8)
    for which, chosen in (("train", slice(3)), ("t10k", slice(3, 5))):
        for kind, array in (("images", images[chosen]), ("labels", labels[chosen])):
            name = f"{which}-{kind}{separator}idx{array.ndim}-ubyte"
            (root / (name + ".gz" * compress)).write_bytes(gzip.compress(idx(array)) if compress else idx(array))
    return images


@pytest.mark.parametrize(("separator", "compress"), [("-", False), (".", False), ("-", True)])
def test_idx(tmp_path, separator, compress):
    images = write_mnist(tmp_path, separator, compress)
    found = read(part("idx", tmp_path))
    assert np.array_equal(found.train.images[:, 0], images[:3])
    assert found.test.labels.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train-images-idx3-ubyte", b"", "is not a whole idx3-ubyte file"),
        ("train-images-idx3-ubyte", idx(pixels(3, 6, 6))[:6], "is not a whole idx3-ubyte file"),
        ("train-images-idx3-ubyte", idx(pixels(3, 0, 6)), "images of 0x6 pixels"),
        ("train-images-idx3-ubyte", idx(pixels(3, 6, 6)).replace(b"\0\0\0\6", b"\xff" * 4), "is not a whole"),
        ("train-images-idx3-ubyte", idx(pixels(3, 6, 6))[:-1], "is not a whole idx3-ubyte file"),
        ("train-labels-idx1-ubyte", idx(pixels(4)), "3 images and labels of shape [4]"),
        ("t10k-labels-idx1-ubyte", None, "must have one file *t10k-labels-idx1-ubyte"),
        ("other-train-images-idx3-ubyte", idx(pixels(3, 6, 6)), "and has 2"),
    ],
)
def test_damaged_idx(tmp_path, name, content, says):
    write_mnist(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(part("idx", tmp_path))
    assert says in str(caught.value)


def test_damaged_gz(tmp_path):
    write_mnist(tmp_path, compress=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for damaged in (whole[:-12], whole[:40] + bytes(20) + whole[60:], b"no gzip"):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz can't be read"):
            read(part("idx", tmp_path))


def test_gz_that_unpacks_to_more_than_it_says(tmp_path):
    write_mnist(tmp_path, compress=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels(3, 6, 6)) + bytes(1 << 26), 1))
    tracemalloc.start()
    with pytest.raises(DataError, match="is not a whole idx3-ubyte file"):
        read(part("idx", tmp_path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 23


# --- folders ---


def write_images(folder, classes, size=(6, 4), mode="RGB", num=2):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(num):
            Image.new(mode, size, color=10 * i + 100).save(folder / name / f"{i}.png")


def all_images(labelled):
    return taken(labelled.images, torch.arange(len(labelled)))


@pytest.mark.parametrize("test_name", ["test", "val", None])
def test_folder(tmp_path, test_name):
    write_images(tmp_path / "train", ["cat", "ant"])
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    if test_name:
        write_images(tmp_path / test_name, ["cat"], mode="L", num=1)
    found = read(part("folder", tmp_path, image_size=8))
    assert all_images(found.train).shape == (4, 3, 8, 8)
    assert found.train.labels.tolist() == [0, 0, 1, 1]  # ant, cat
    assert (found.test is None) == (test_name is None)
    if test_name:
        assert found.test.labels.tolist() == [1]
        assert all_images(found.test).unique().tolist() == [100]


def test_images_are_cut_in_the_middle_not_squeezed(tmp_path):
    write_images(tmp_path / "train", ["a"], num=0)
    write_images(tmp_path / "train", ["b"])
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 200
    Image.fromarray(wide).save(tmp_path / "train" / "a" / "wide.png")
    found = read(part("folder", tmp_path, image_size=8, channels=1))
    assert all_images(found.train)[0].unique().tolist() == [200]


def test_damaged_folders(tmp_path):
    with pytest.raises(DataError, match=r"has no images .* in folders of classes; put a folder for each class into it"):
        read(part("folder", tmp_path))
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="has no images"):
        read(part("folder", tmp_path))
    write_images(tmp_path / "train", ["cat", "dog"])
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"0\.png can't be read as an image"):
        read(part("folder", tmp_path))
    write_images(tmp_path / "test", ["cow"])
    with pytest.raises(DataError, match="has a class 'cow' that the training folder has not"):
        read(part("folder", tmp_path))


def test_a_folder_needs_two_classes_with_images(tmp_path):
    write_images(tmp_path / "train", ["cat"])
    with pytest.raises(DataError, match=r"train has one class only, 'cat'; a task needs at least 2\."):
        read(part("folder", tmp_path))
    (tmp_path / "train" / "dog").mkdir()
    (tmp_path / "train" / "dog" / "0.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"train has no images \(.*\) of the class 'dog', only 1 \.heic files; add"):
        read(part("folder", tmp_path))


def test_images_of_every_kind_and_size_go_into_one_folder(tmp_path):
    (tmp_path / "train" / "b").mkdir(parents=True)
    write_images(tmp_path / "train", ["a"])
    kinds = {"grey": "L", "rgb": "RGB", "rgba": "RGBA", "grey_alpha": "LA", "palette": "P", "bit": "1", "cmyk": "CMYK"}
    for size, (name, mode) in enumerate(kinds.items(), 5):
        image = Image.new("RGB", (3 * size, 2 * size), (200, 200, 200)).convert(mode)
        image.save(tmp_path / "train" / "b" / f"{name}.{'jpg' if mode == 'CMYK' else 'png'}")
    for channels in (1, 3):
        found = read(part("folder", tmp_path, image_size=8, channels=channels)).train
        assert all_images(found).shape == (9, channels, 8, 8)
        means = all_images(found)[found.labels == 1].float().mean((1, 2, 3))
        assert ((means - 200).abs() < 3).all()


@pytest.mark.parametrize("damage", ["fail", "skip"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "can't be read as an image"),
        (b"no image at all", "can't be read as an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "can't be read as an image"),
        (None, "can't be read as an image: image file is truncated"),
        ((1, 1), "is an image of 1x1 pixels; each side must have 4 or more"),
        ((40, 2), "is an image of 40x2 pixels"),
        ("a folder", "can't be read as an image"),
    ],
)
def test_unreadable_files_are_named_or_skipped(tmp_path, content, says, damage):
    write_images(tmp_path / "train", ["ant", "bee"], size=(60, 60))
    path = tmp_path / "train" / "bee" / "0.png"
    if content is None:
        Image.fromarray(pixels(60, 60, 3)).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    elif isinstance(content, tuple):
        Image.new("L", content).save(path)
    elif isinstance(content, str):
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content)
    if damage == "skip":
        found = read(part("folder", tmp_path, unreadable="skip"))
        assert found.train.labels.tolist() == [0, 0, 1]
        assert found.skipped == ("train/bee/0.png",)
        return
    with pytest.raises(DataError) as caught:
        read(part("folder", tmp_path))
    assert f"{path} {says}" in str(caught.value)
    assert str(caught.value).endswith("(data.unreadable: skip leaves such files out).")


@pytest.mark.parametrize("folder", ["train", "val"])
def test_a_class_that_skipping_empties_is_a_fault(tmp_path, folder):
    for name in ("train", "val"):
        write_images(tmp_path / name, ["ant", "bee"])
    for i in range(2):
        (tmp_path / folder / "bee" / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        read(part("folder", tmp_path, unreadable="skip"))
    assert "data.unreadable: no image of the class 'bee' is left" in str(caught.value)
    assert f"{tmp_path / folder / 'bee' / '0.png'} can't be read" in str(caught.value)


# --- the user's own ---

MINE = """
import numpy as np
def good(): return np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 0, 1, 1]), np.ones((2, 3, 8, 8)), np.array([0, 1])
def one(): return np.zeros((4, 8, 8))
def standardised(): return -np.ones((2, 8, 8)), np.array([0, 1]), np.ones((2, 8, 8)), np.array([0, 1])
def labels(): return np.ones((2, 8, 8)), np.array([0.0, 1.0]), np.ones((2, 8, 8)), np.array([0, 1])
def negative(): return np.ones((2, 8, 8)), np.array([0, -1]), np.ones((2, 8, 8)), np.array([0, 1])
def integers(): return np.ones((2, 8, 8), int), np.array([0, 1]), np.ones((2, 8, 8)), np.array([0, 1])
def large(): return np.ones((2, 8, 8)), np.array([0, 2**40]), np.ones((2, 8, 8)), np.array([0, 1])
def pairs(): return np.ones((2, 8, 8)), np.eye(2, dtype=int), np.ones((2, 8, 8)), np.array([0, 1])
def fewer(): return np.ones((2, 8, 8)), np.array([0, 1]), np.ones((2, 8, 8)), np.array([0])
def words(): return np.ones((2, 8, 8)), np.array(["cat", "dog"]), np.ones((2, 8, 8)), np.array([0, 1])
def ragged(): return [np.ones((8, 8)), np.ones((9, 9))], np.array([0, 1]), np.ones((2, 8, 8)), np.array([0, 1])
def nan(): return np.ones((1, 8, 8)), np.array([0]), np.stack([np.ones((8, 8)), np.eye(8) * np.nan]), np.array([0, 1])
def infinite(): return np.full((2, 8, 8), np.inf), np.array([0, 1]), np.ones((2, 8, 8)), np.array([0, 1])
def huge(): return np.full((2, 8, 8), 1e300), np.array([0, 1]), np.ones((2, 8, 8)), np.array([0, 1])
def bytes_as_floats(): return np.full((2, 8, 8), 255.0), np.array([0, 1]), np.ones((2, 8, 8)), np.array([0, 1])
def sizeless(): return np.ones((2, 0, 8)), np.array([0, 1]), np.ones((2, 8, 8)), np.array([0, 1])
def failing(): return {}["key"]
def flat(): return np.ones((2, 64)), np.array([0, 1]), np.ones((2, 64)), np.array([0, 1])
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_data.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine_data", raising=False)


def test_users_own_data(mine):
    found = read(part("mine_data:good", None))
    assert found.train.images.shape == (4, 3, 8, 8)
    assert found.test.images.shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("one", "must return (x_train, y_train, x_test, y_test)"),
        ("standardised", "float images from -1 to -1, not from 0 to 1"),
        ("labels", "labels of type float64, not integers"),
        ("negative", "a label below 0, -1"),
        ("integers", "images of type int64, not uint8 or float"),
        ("flat", "images of shape [2, 64]"),
        ("large", f"a label above 1000000, {2**40}"),
        ("pairs", "2 images and labels of shape [2, 2]"),
        ("fewer", "2 images and labels of shape [1]"),
        ("words", "labels of type <U3, not integers"),
        ("ragged", "can't be read as a numpy array"),
        ("nan", "pixels that are NaN or infinite, first in image 1"),
        ("infinite", "pixels that are NaN or infinite, first in image 0"),
        ("huge", "float images from 1e+300 to 1e+300, not from 0 to 1"),
        ("bytes_as_floats", "float images from 255 to 255, not from 0 to 1"),
        ("sizeless", "images of 0x8 pixels"),
        ("failing", "'mine_data:failing' failed: KeyError: 'key'"),
        ("missing", "can't be imported"),
    ],
)
def test_users_own_data_is_checked(mine, name, says):
    with pytest.raises(DataError, match="data") as caught:
        read(part(f"mine_data:{name}", None))
    assert says in str(caught.value)


# --- roots ---


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "idx", "folder"])
def test_missing_root_names_both_ways(source, monkeypatch, tmp_path):
    monkeypatch.delenv("DEPLOY_PRUNE_DATA", raising=False)
    with pytest.raises(DataError, match=r"set data\.root or the variable DEPLOY_PRUNE_DATA"):
        read(part(source, None))
    with pytest.raises(DataError, match="there is no folder .*nowhere"):
        read(part(source, tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"data\.root"):
        read(part(source, tmp_path))


def test_root_comes_from_the_variable(monkeypatch, tmp_path):
    write_mnist(tmp_path)
    monkeypatch.setenv("DEPLOY_PRUNE_DATA", str(tmp_path))
    assert len(read(part("idx", None)).train) == 3


def test_unknown_source_lists_the_known():
    with pytest.raises(DataError, match=r"there is no 'digit'.*digits, cifar10"):
        read(part("digit", None))
