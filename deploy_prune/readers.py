"""Where examples come from: one function a source, all listed in READERS. Files are read, never fetched or unpickled.

N examples, H W height and width, C channels. Every reader returns images as [N, C, H, W] and labels as int64 [N].
"""

from __future__ import annotations

import codecs
import gzip
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import torch
from torch import Tensor

from deploy_prune.errors import DataError
from deploy_prune.plugins import import_callable
from deploy_prune.recipe import DataPart

ROOT_VARIABLE = "DEPLOY_PRUNE_DATA"
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Images uint8 (0..255) or float (0..1) [N, C, H, W], and their classes int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Collection:
    """A data set as it is stored. ``test`` is None where it has no test set of its own.

    ``names``: the classes' names by their numbers; None where the data set has only the numbers.
    """

    train: Labelled
    test: Labelled | None
    names: tuple[str, ...] | None = None


Reader = Callable[[DataPart], Collection]


def read(part: DataPart) -> Collection:
    """The whole data set.

    Raises:
        DataError: unknown source, or its files are missing or damaged.
    """
    if ":" in part.source:
        return _read_callable(part)
    if part.source not in READERS:
        message = f"data.source: there is no {part.source!r}; choose one of {', '.join(READERS)} or module:callable."
        raise DataError(message)
    return READERS[part.source](part)


def _read_digits(part: DataPart) -> Collection:
    """scikit-learn's copy of the UCI optical digits: 1797 images of 8x8 pixels, 0..16."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    names = tuple(map(str, digits.target_names))
    return Collection(train=_labelled(images[:, None], digits.target, "digits"), test=None, names=names)


def _read_cifar10(part: DataPart) -> Collection:
    root = _root(part)
    if (root / "cifar10.npz").is_file():
        found = _read_npz(root / "cifar10.npz")
        return replace(found, names=found.names or _CIFAR10)
    folder = root / "cifar-10-batches-py"
    names = [folder / f"data_batch_{i}" for i in range(1, 6)]
    if not folder.is_dir():
        message = f"data.root: {root} has neither cifar10.npz nor the folder cifar-10-batches-py."
        raise DataError(message)
    train, test = (_read_batches(paths, "labels") for paths in (names, [folder / "test_batch"]))
    return Collection(train=train, test=test, names=_CIFAR10)


def _read_cifar100(part: DataPart) -> Collection:
    root = _root(part)
    found = sorted(root.glob("cifar100*.npz"))
    if found:
        return _read_npz(found[0])
    folder = root / "cifar-100-python"
    if not folder.is_dir():
        message = f"data.root: {root} has neither cifar100*.npz nor the folder cifar-100-python."
        raise DataError(message)
    train, test = (_read_batches([folder / name], "fine_labels") for name in ("train", "test"))
    return Collection(train=train, test=test, names=_read_names(folder / "meta"))


def _read_arrays(part: DataPart) -> Collection:
    path = Path(part.root or "").expanduser()
    if not path.is_file():
        message = "data.root: npz needs a file with x_train, y_train, x_test and y_test; "
        message += f"there is no file {path}." if part.root else "set data.root to it."
        raise DataError(message)
    return _read_npz(path)


def _read_npz(path: Path) -> Collection:
    """An .npz with x_train uint8 [N, H, W, C], y_train, x_test, y_test; "classes" has their names, if it is there."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = _collection([arrays[key] for key in ("x_train", "y_train", "x_test", "y_test")], path)
            return replace(found, names=tuple(map(str, arrays["classes"])) if "classes" in arrays else None)
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        message = f"data.root: {path} is not a whole .npz with x_train, y_train, x_test and y_test: {error}"
        raise DataError(message) from error


class _ArraysOnly(pickle.Unpickler):
    """Admits numpy arrays and plain containers, nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module in {"numpy.core.multiarray", "numpy._core.multiarray"} and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in {"ndarray", "dtype"}:
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return codecs.encode
        message = f"it holds {module}.{name}, which is no array"
        raise pickle.UnpicklingError(message)


def _read_names(path: Path) -> tuple[str, ...] | None:
    """CIFAR-100's file "meta": a pickled dict with the classes' names; None if it isn't there."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            found: Mapping[bytes, Any] = _ArraysOnly(file, encoding="bytes").load()
        return tuple(name.decode() for name in found[b"fine_label_names"])
    except Exception as error:
        message = f"data.root: {path} can't be read as CIFAR-100's names of classes: {error}"
        raise DataError(message) from error


def _read_batches(paths: list[Path], labels_key: str) -> Labelled:
    """CIFAR's python batches: a pickled dict of b"data" uint8 [N, 3072] (channel, row, column) and a list of labels."""
    images, labels = [], []
    for path in paths:
        try:
            with path.open("rb") as file:
                batch: Mapping[bytes, Any] = _ArraysOnly(file, encoding="bytes").load()
            images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch[labels_key.encode()], np.int64))
        except Exception as error:
            message = f"data.root: {path} can't be read as a CIFAR batch: {error}"
            raise DataError(message) from error
    return _labelled(np.concatenate(images), np.concatenate(labels), str(paths[0].parent))


def _read_idx(part: DataPart) -> Collection:
    """MNIST's format, by Y. LeCun: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., each also as .gz."""
    root = _root(part)
    train, test = (
        _labelled(_idx(root, f"{which}-images", 3)[:, None], _idx(root, f"{which}-labels", 1), f"{root}/{which}")
        for which in ("train", "t10k")
    )
    return Collection(train=train, test=test)


def _idx(root: Path, stem: str, dims: int) -> np.ndarray[Any, Any]:
    found = sorted(root.glob(f"*{stem}[-.]idx{dims}-ubyte")) or sorted(root.glob(f"*{stem}[-.]idx{dims}-ubyte.gz"))
    if len(found) != 1:
        message = f"data.root: {root} must have one file *{stem}-idx{dims}-ubyte (or .gz) and has {len(found)}."
        raise DataError(message)
    try:
        with _opened(found[0]) as file:
            content = file.read()
    except (OSError, EOFError) as error:
        message = f"data.root: {found[0]} can't be read: {error}"
        raise DataError(message) from error
    shape = np.frombuffer(content[4 : 4 + 4 * dims], ">u4")
    if content[:4] != bytes((0, 0, 8, dims)) or len(content) != 4 + 4 * dims + int(shape.prod()):
        message = f"data.root: {found[0]} is not a whole idx{dims}-ubyte file."
        raise DataError(message)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(*shape).copy()


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _read_folder(part: DataPart) -> Collection:
    """root/train/CLASS/*.png and root/test (or val)/CLASS/*.png; classes are numbered in alphabetical order."""
    root = _root(part)
    if not (root / "train").is_dir():
        message = f"data.root: {root} has no folder train with a folder of images per class."
        raise DataError(message)
    classes = sorted(folder.name for folder in (root / "train").iterdir() if folder.is_dir())
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    test = _read_images(tests[0], classes, part) if tests else None
    return Collection(train=_read_images(root / "train", classes, part), test=test, names=tuple(classes))


_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


def _read_images(folder: Path, classes: list[str], part: DataPart) -> Labelled:
    unknown = sorted({sub.name for sub in folder.iterdir() if sub.is_dir()} - set(classes))
    if unknown:
        message = f"data.root: {folder} has a class {unknown[0]!r} that the folder train has not."
        raise DataError(message)
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((folder / name).glob("*"))
        if file.suffix.lower() in _IMAGE_SUFFIXES
    ]
    if not files:
        message = f"data.root: {folder} has no images ({', '.join(sorted(_IMAGE_SUFFIXES))}) in folders of classes."
        raise DataError(message)
    images = np.stack([_read_image(file, part) for file, _ in files])
    return _labelled(images.transpose(0, 3, 1, 2), np.array([label for _, label in files]), str(folder))


def _read_image(path: Path, part: DataPart) -> np.ndarray[Any, Any]:
    """uint8 [S, S, C]: scaled so that the shorter side is S, cut in the middle."""
    from PIL import Image, ImageOps

    size = (part.image_size, part.image_size)
    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(image.convert("L" if part.channels == 1 else "RGB"), size, Image.Resampling.BILINEAR)
    except OSError as error:
        message = f"data.root: {path} can't be read as an image: {error}"
        raise DataError(message) from error
    return np.asarray(fitted).reshape(*size, part.channels)


def _read_callable(part: DataPart) -> Collection:
    found = import_callable(part.source, "data.source", DataError)()
    if not isinstance(found, tuple) or len(found) != 4:
        message = f"data.source: {part.source!r} must return (x_train, y_train, x_test, y_test)."
        raise DataError(message)
    return _collection(list(found), part.source)


def _collection(arrays: list[Any], where: Path | str) -> Collection:
    x_train, y_train, x_test, y_test = (np.asarray(array) for array in arrays)
    return Collection(
        train=_labelled(_channels_first(x_train, where), y_train, where),
        test=_labelled(_channels_first(x_test, where), y_test, where),
    )


def _channels_first(images: np.ndarray[Any, Any], where: Path | str) -> np.ndarray[Any, Any]:
    """[N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3 -> [N, C, H, W]."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    message = f"data: {where} has images of shape {list(images.shape)}, not [N, H, W], [N, H, W, C] or [N, C, H, W]."
    raise DataError(message)


def _labelled(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], where: Path | str) -> Labelled:
    problem = None
    if labels.ndim != 1 or len(labels) != len(images):
        problem = f"{len(images)} images and labels of shape {list(labels.shape)}"
    elif labels.size and not np.issubdtype(labels.dtype, np.integer):
        problem = f"labels of type {labels.dtype}, not integers"
    elif labels.size and labels.min() < 0:
        problem = f"a label below 0, {labels.min()}"
    elif np.issubdtype(images.dtype, np.floating):
        images = images.astype(np.float32)
        if images.size and not (images.min() >= 0 and images.max() <= 1):
            problem = f"float images from {images.min():g} to {images.max():g}, not from 0 to 1"
    elif images.dtype != np.uint8:
        problem = f"images of type {images.dtype}, not uint8 or float"
    if problem:
        message = f"data: {where} has {problem}."
        raise DataError(message)
    return Labelled(images=torch.tensor(images), labels=torch.tensor(labels, dtype=torch.int64))


def _root(part: DataPart) -> Path:
    text = part.root or os.environ.get(ROOT_VARIABLE)
    if not text:
        message = (
            f"data.root: {part.source} needs the folder of its files; set data.root or the variable {ROOT_VARIABLE}."
        )
        raise DataError(message)
    root = Path(text).expanduser()
    if not root.is_dir():
        message = f"data.root: there is no folder {root} (set data.root or the variable {ROOT_VARIABLE})."
        raise DataError(message)
    return root


READERS: Final[dict[str, Reader]] = {
    "digits": _read_digits,
    "cifar10": _read_cifar10,
    "cifar100": _read_cifar100,
    "npz": _read_arrays,
    "idx": _read_idx,
    "folder": _read_folder,
}
