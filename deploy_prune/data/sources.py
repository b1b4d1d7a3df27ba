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
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np
import torch
from torch import Tensor

from deploy_prune.data import cifar, own_classes
from deploy_prune.data.collected import Collection, Labelled, labelled, of_arrays, own_size
from deploy_prune.data.files import Files
from deploy_prune.data.folders import Images as Listed
from deploy_prune.data.folders import Listing, find, shown
from deploy_prune.data.kept_scans import kept_scans
from deploy_prune.data.pictures import FilePicture, Scan
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import DataPart, as_size

ROOT_VARIABLE = "DEPLOY_PRUNE_DATA"
MODEST_BYTES = 1 << 28
"""What any archive of arrays may unpack to."""
MAX_RATIO = 100
"""A larger one may unpack to so many times its size: drawings compress by some ten, photographs by less than two."""
CHUNK = 1 << 20
"""Bytes that are read at a time."""
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


Reader = Callable[[DataPart], Collection]


def read(part: DataPart) -> Collection:
    """The whole data set.

    Raises:
        DataError: unknown source, or its files are missing or damaged.
    """
    if ":" in part.source:
        return own_classes.read(part)
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
    return Collection(train=labelled(images[:, None], digits.target, "digits"), test=None, names=names)


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
    return replace(of_arrays(arrays, path), names=names)


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
    found = [labelled(*cifar.read_batch(path, labels_key), path) for path in paths]
    images = torch.cat([cast(Tensor, f.images) for f in found])
    return Labelled(images=images, labels=torch.cat([f.labels for f in found]))


def _read_idx(part: DataPart) -> Collection:
    """MNIST's format, by Y. LeCun: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., each also as .gz."""
    root = _root(part)
    train, test = (
        labelled(_idx(root, f"{which}-images", 3)[:, None], _idx(root, f"{which}-labels", 1), f"{root}/{which}")
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
    faults = {path: found or _no_file(path) for path, found in scans.items() if not isinstance(found, Scan)}
    if faults and part.unreadable == "fail":
        message = f"data.root: {next(iter(faults.values()))} (data.unreadable: skip leaves such files out)."
        raise DataError(message)
    for files in (listing.train, listing.test or ()):
        _require_left(files, listing, faults)
    seen = {path: found for path, found in scans.items() if isinstance(found, Scan)}
    size = part.size or as_size(own_size({found.stored for found in seen.values()}))
    assert size is not None
    unread = {path: FilePicture(path=path, size=(0, 0), digest=b"") for path, _ in everything if path not in scans}
    pictures = unread | {path: found.picture for path, found in seen.items()}

    def left(files: Listed) -> Labelled:
        whole = [(path, label) for path, label in files if path in pictures]
        images = Files(pictures=tuple(pictures[path] for path, _ in whole), size=size, channels=part.channels)
        return Labelled(images=images, labels=torch.tensor([label for _, label in whole], dtype=torch.int64))

    return Collection(
        train=left(listing.train),
        test=None if listing.test is None else left(listing.test),
        names=listing.classes,
        skipped=tuple(shown(path.relative_to(root).as_posix()) for path in faults),
        ignored=listing.ignored,
    )


def _no_file(path: Path) -> ValueError:
    return ValueError(f"{shown(path)} can't be read as an image: it is no regular file")


def _is_asked(label: int, part: DataPart) -> bool:
    """Whether the class is one of the source's or the target's."""
    return any(classes is None or label in classes for classes in (part.source_classes, part.target_classes))


def _require_left(files: Listed, listing: Listing, faults: Mapping[Path, ValueError]) -> None:
    """No class is emptied by what can't be read."""
    emptied = {label for _, label in files} - {label for path, label in files if path not in faults}
    if emptied:
        first = next(faults[path] for path, label in files if label == min(emptied))
        message = f"data.unreadable: no image of the class {listing.classes[min(emptied)]!r} is left when those that "
        message += f"can't be read are skipped; {first}."
        raise DataError(message)


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
