"""Read data sets: one function for each source, listed in READERS. Nothing is downloaded or unpickled.

N examples, H W height and width, C channels. Every reader returns images as [N, C, H, W], a folder's as files, and
labels as int64 [N].
"""

from __future__ import annotations

import gzip
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np
import torch
from torch import Tensor

from deploy_prune.data import cifar
from deploy_prune.data.files import Files, Images
from deploy_prune.data.folders import Images as Listed
from deploy_prune.data.folders import Listing, find, shown
from deploy_prune.data.kept_scans import kept_scans
from deploy_prune.data.pictures import FilePicture, Scan
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import MAX_SIZE, MIN_SIZE, DataPart, as_size
from deploy_prune.system.plugins import import_callable

ROOT_VARIABLE = "DEPLOY_PRUNE_DATA"
MAX_LABEL = 1_000_000
"""No data set has as many classes: what is above is no class's number."""
MODEST_BYTES = 1 << 28
"""What any archive of arrays may unpack to."""
MAX_RATIO = 100
"""A larger one may unpack to so many times its size: drawings compress by some ten, photographs by less than two."""
CHUNK = 1 << 20
"""Bytes that are read at a time."""
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Images uint8 (0..255) or float (0..1) [N, C, H, W], or files of them, and their classes int64 [N]."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Collection:
    """A data set as it is stored. ``test`` is None where it has no test set of its own.

    ``names``: the classes' names by their numbers; None where the data set has only the numbers. ``skipped``: files
    that were left out for they can't be read (``data.unreadable: skip``), from the data set's root. ``ignored``: how
    many other files are not read, by what they are.
    """

    train: Labelled
    test: Labelled | None
    names: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)


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
    return Collection(train=train, test=test, names=cifar.read_names(folder / "meta"))


def _read_arrays(part: DataPart) -> Collection:
    path = Path(part.root or "").expanduser()
    if not path.is_file():
        message = "data.root: npz needs a file with x_train, y_train, x_test and y_test; "
        message += f"there is no file {path}." if part.root else "set data.root to it."
        raise DataError(message)
    return _read_npz(path)


def _read_npz(path: Path) -> Collection:
    """An .npz with x_train uint8 [N, H, W, C], y_train, x_test, y_test; "classes" has their names, if it is there."""
    keys = ("x_train", "y_train", "x_test", "y_test")
    try:
        _require_modest(path)
        with path.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
            arrays = [file[key] for key in keys]
            names = tuple(map(str, file["classes"])) if "classes" in file else None
    except Exception as error:
        message = f"data.root: {path} is not a whole .npz with {', '.join(keys)}: {error}"
        raise DataError(message) from error
    return replace(_collection(arrays, path), names=names)


def _require_modest(path: Path) -> None:
    """Nothing in the archive unpacks to far more than it holds, nor says that it is larger than it is."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if total > max(MODEST_BYTES, MAX_RATIO * size):
            message = f"its {size} bytes would unpack to {total}"
            raise ValueError(message)
        for member in members:
            if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                message = f"{member.filename} is compressed in a way that numpy doesn't write"
                raise ValueError(message)
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = header(file)
            if math.prod(shape) * dtype.itemsize > member.file_size:
                message = f"{member.filename} says that it has the shape {list(shape)}, and is smaller"
                raise ValueError(message)


def _read_batches(paths: list[Path], labels_key: str) -> Labelled:
    found = [_labelled(*cifar.read_batch(path, labels_key), path) for path in paths]
    images = torch.cat([cast(Tensor, f.images) for f in found])
    return Labelled(images=images, labels=torch.cat([f.labels for f in found]))


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
        with _opened(found[0]) as file:  # No more of it than it says there is: a small .gz can unpack to gigabytes.
            header = file.read(4 + 4 * dims)
            shape = [int.from_bytes(header[i : i + 4], "big") for i in range(4, len(header), 4)]
            content = _at_most(math.prod(shape) + 1, file)
    except (OSError, EOFError, zlib.error) as error:
        message = f"data.root: {found[0]} can't be read: {error}"
        raise DataError(message) from error
    whole = (len(header), len(content)) == (4 + 4 * dims, math.prod(shape))
    if header[:4] != bytes((0, 0, 8, dims)) or not whole:
        message = f"data.root: {found[0]} is not a whole idx{dims}-ubyte file."
        raise DataError(message)
    return np.frombuffer(content, np.uint8).reshape(shape)


def _at_most(size: int, file: BinaryIO) -> bytearray:
    """The file's next bytes, without memory for those that aren't there."""
    content = bytearray()
    while len(content) < size and (chunk := file.read(min(size - len(content), CHUNK))):
        content += chunk
    return content


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _read_folder(part: DataPart) -> Collection:
    """A folder of images per class, below train and test or directly; classes are numbered in alphabetical order.

    Images are read when they are taken. Files of classes that aren't asked for are only listed.
    """
    root = _root(part)
    listing = find(root)
    everything = (*listing.train, *(listing.test or ()))
    asked = [path for path, label in everything if _is_asked(label, part)]
    scans = dict(zip(asked, kept_scans(asked, part.workers, decode=part.unreadable == "skip"), strict=True))
    faults = {path: found for path, found in scans.items() if isinstance(found, ValueError)}
    if faults and part.unreadable == "fail":
        message = f"data.root: {next(iter(faults.values()))} (data.unreadable: skip leaves such files out)."
        raise DataError(message)
    for files in (listing.train, listing.test or ()):
        _require_left(files, listing, faults)
    whole = {path: found for path, found in scans.items() if isinstance(found, Scan)}
    size = part.size or as_size(own_size({found.stored for found in whole.values()}))
    assert size is not None
    unread = {path: FilePicture(path=path, size=(0, 0), digest=b"") for path, _ in everything if path not in scans}
    pictures = unread | {path: found.picture for path, found in whole.items()}

    def labelled(files: Listed) -> Labelled:
        left = [(path, label) for path, label in files if path in pictures]
        images = Files(pictures=tuple(pictures[path] for path, _ in left), size=size, channels=part.channels)
        return Labelled(images=images, labels=torch.tensor([label for _, label in left], dtype=torch.int64))

    return Collection(
        train=labelled(listing.train),
        test=None if listing.test is None else labelled(listing.test),
        names=listing.classes,
        skipped=tuple(shown(path.relative_to(root).as_posix()) for path in faults),
        ignored=listing.ignored,
    )


def _is_asked(label: int, part: DataPart) -> bool:
    """Whether the class is one of the source's or the target's."""
    return any(classes is None or label in classes for classes in (part.source_classes, part.target_classes))


def own_size(sizes: Set[tuple[int, int]]) -> int | list[int]:
    """`DataPart.image_size` of images that all have one size; ``sizes``: their widths and heights in pixels.

    Raises:
        DataError: they haven't, or it is no size for an input. The message has the sizes.
    """
    sides = {side for size in sizes for side in size}
    if len(sizes) == 1 and MIN_SIZE <= min(sides) <= max(sides) <= MAX_SIZE:
        ((wide, high),) = sizes
        return high if wide == high else [high, wide]
    listed = ", ".join(f"{wide}x{high}" for wide, high in sorted(sizes)[:3])
    more = f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
    message = "data.image_size: it isn't given, the network's own configuration doesn't say it, and the images "
    message += f"({listed}{more}) aren't of one size; write the side in pixels, {MIN_SIZE} to {MAX_SIZE}, of the input "
    message += "that the network was made for, or [height, width]. Images are scaled to it."
    raise DataError(message)


def _require_left(files: Listed, listing: Listing, faults: Mapping[Path, ValueError]) -> None:
    """No class is emptied by what can't be read."""
    emptied = {label for _, label in files} - {label for path, label in files if path not in faults}
    if emptied:
        first = next(faults[path] for path, label in files if label == min(emptied))
        message = f"data.unreadable: no image of the class {listing.classes[min(emptied)]!r} is left when those that "
        message += f"can't be read are skipped; {first}."
        raise DataError(message)


def _read_callable(part: DataPart) -> Collection:
    make = import_callable(part.source, "data.source", DataError)
    try:
        found = make()
    except Exception as error:
        message = f"data.source: {part.source!r} failed: {type(error).__name__}: {error}"
        raise DataError(message) from error
    if not isinstance(found, tuple) or len(found) != 4:
        message = f"data.source: {part.source!r} must return (x_train, y_train, x_test, y_test)."
        raise DataError(message)
    return _collection(list(found), part.source)


def _collection(arrays: list[Any], where: Path | str) -> Collection:
    try:
        x_train, y_train, x_test, y_test = (np.asarray(array) for array in arrays)
    except Exception as error:
        message = f"data: {where} has what can't be read as a numpy array: {error}"
        raise DataError(message) from error
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
    problem = _fault_of_labels(labels, len(images)) or _fault_of_images(images)
    if problem:
        message = f"data: {where} has {problem}."
        raise DataError(message)
    pixels = images if images.dtype == np.uint8 else images.astype(np.float32)
    return Labelled(images=torch.tensor(pixels), labels=torch.tensor(labels.astype(np.int64)))


def _fault_of_labels(labels: np.ndarray[Any, Any], num_images: int) -> str | None:
    if labels.ndim != 1 or len(labels) != num_images:
        return f"{num_images} images and labels of shape {list(labels.shape)}"
    if not labels.size:
        return None
    if not np.issubdtype(labels.dtype, np.integer):
        return f"labels of type {labels.dtype}, not integers"
    if labels.min() < 0:
        return f"a label below 0, {labels.min()}"
    return f"a label above {MAX_LABEL}, {labels.max()}" if labels.max() > MAX_LABEL else None


def _fault_of_images(images: np.ndarray[Any, Any]) -> str | None:
    """Of [N, C, H, W]."""
    is_float = np.issubdtype(images.dtype, np.floating)
    if images.dtype != np.uint8 and not is_float:
        return f"images of type {images.dtype}, not uint8 or float"
    if not images.size:
        return "images of {2}x{3} pixels".format(*images.shape) if len(images) else None
    if not is_float:
        return None
    if not np.isfinite(images).all():
        return f"pixels that are NaN or infinite, first in image {_first_not_finite(images)}"
    low, high = images.min(), images.max()
    return None if low >= 0 and high <= 1 else f"float images from {low:g} to {high:g}, not from 0 to 1"


def _first_not_finite(images: np.ndarray[Any, Any]) -> int:
    return int(np.argmin(np.isfinite(images).all((1, 2, 3))))


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
