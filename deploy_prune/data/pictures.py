"""Pictures of any size, read when they are taken, and what a network's input is made of them.

H W height and width, C channels. A picture's size is (width, height) in pixels, upright.
"""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from deploy_prune.data.folders import shown
from deploy_prune.data.images import read_image
from deploy_prune.data.in_workers import each
from deploy_prune.device.payload import picture
from deploy_prune.errors import DataError
from deploy_prune.system.cache import cached_json

Array = np.ndarray[Any, Any]
Size = tuple[int, int]
KEPT_BYTES: Final = 2**28
"""Decoded pictures that a process keeps: reading a JPEG again takes as long as all else that is done with it."""
KIND: Final = "pictures"
"""What is found in pictures is kept in the cache as this kind."""
_TURNED: Final = frozenset({5, 6, 7, 8})  # EXIF orientations that exchange height and width
_PLAIN_CHUNKS: Final = frozenset(b"IHDR PLTE tRNS IDAT IEND gAMA cHRM sRGB iCCP sBIT bKGD pHYs tIME".split())
MEASURED: Final = 256
"""Pictures that mean and standard deviation are taken from, where a recipe doesn't give them."""


class Picture(Protocol):
    """One picture."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def size(self) -> Size:
        """Width and height in pixels, upright."""

    @property
    def digest(self) -> bytes:
        """SHA-256 of its content."""

    def pixels(self, channels: int) -> Array:
        """uint8 [H, W, C], upright."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilePicture:
    """A picture in a file, which is read each time it is taken."""

    path: Path
    size: Size
    digest: bytes

    @property
    def name(self) -> str:
        """Its path."""
        return shown(self.path)

    def pixels(self, channels: int) -> Array:
        """uint8 [H, W, C], upright.

        Raises:
            DataError: the file can no longer be read, or is another one.
        """
        return kept_last((self.path, self.digest, channels), lambda: self._read(channels))

    def cut(self, size: tuple[int, int], channels: int, keep: bool = True) -> Array:
        """uint8 [H, W, C] of this height and width, as `images.read_image`.

        ``keep``: for the next time; as a rule that takes less memory than the whole picture.

        Raises:
            DataError: the file can no longer be read, or is another one.
        """
        return kept_last((self.path, self.digest, channels, size), lambda: self._cut(size, channels), keep)

    def _cut(self, size: tuple[int, int], channels: int) -> Array:
        try:
            found = read_image(self.path, size, channels)
        except DataError as error:
            message = f"{error} (data.unreadable: skip leaves such files out)."
            raise DataError(message) from error
        return self._same(found)

    def _read(self, channels: int) -> Array:
        try:
            found = picture.load(self.path, channels)
        except ValueError as error:
            message = f"data.root: {error}"
            raise DataError(message) from error
        return self._same(found)

    def _same(self, found: Array) -> Array:
        """What was read, of the same file."""
        if file_digest(self.path) != self.digest:
            message = f"data.root: {self.name} is another one than when it was first read; leave the files as they are "
            message += "while they are used."
            raise DataError(message)
        return found


class _Kept:
    """The arrays that were used last, up to so many bytes."""

    def __init__(self, num_bytes: int) -> None:
        self.free, self.arrays = num_bytes, OrderedDict[Any, Array]()

    def get(self, key: Any) -> Array | None:
        """The array, if it is kept."""
        if key in self.arrays:
            self.arrays.move_to_end(key)
        return self.arrays.get(key)

    def put(self, key: Any, array: Array) -> Array:
        """Keep the array, and let go of others for it."""
        self.arrays[key] = array
        self.free -= array.nbytes
        while self.free < 0:
            self.free += self.arrays.popitem(last=False)[1].nbytes
        return array


_KEPT: Final = _Kept(KEPT_BYTES)


def kept_last(key: Any, read: Callable[[], Array], keep: bool = True) -> Array:
    """What is read of this key, unless this process has it from before. ``keep``: for the next time."""
    found = _KEPT.get(key)
    if found is None:
        found = _KEPT.put(key, read()) if keep else read()
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredPicture:
    """A picture in memory. ``stored``: uint8 [H, W, C] with C 1 or 3."""

    name: str
    stored: Array

    @property
    def size(self) -> Size:
        """Width and height."""
        return self.stored.shape[1], self.stored.shape[0]

    @property
    def digest(self) -> bytes:
        """SHA-256 of shape and bytes."""
        return array_digest(self.stored)

    def pixels(self, channels: int) -> Array:
        """uint8 [H, W, C]."""
        return with_channels(self.stored, channels)


class Scan(NamedTuple):
    """What reading a file says: the picture, its size as stored, and its EXIF orientation (1 where it has none)."""

    picture: FilePicture
    stored: Size
    orientation: int


def scan(path: Path) -> Scan:
    """Read a file whole, so that a damaged one is known before the run begins.

    Raises:
        ValueError: as `device.payload.picture.load`.
    """
    pixels = picture.load(path, 3)
    with Image.open(path, formats=[name for name in picture.FORMATS if name in Image.OPEN]) as image:
        stored, orientation = image.size, picture.orientation(image)
    size = (pixels.shape[1], pixels.shape[0])
    return Scan(FilePicture(path=path, size=size, digest=file_digest(path)), stored, orientation)


def look(path: Path) -> Scan:
    """As `scan`, but what is whole by its structure isn't decoded: a JPEG up to its end mark, a PNG by its checksums.

    Raises:
        ValueError: as `device.payload.picture.load`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["JPEG", "PNG"]) as image:
                kind, stored = image.format, image.size
                orientation = picture.orientation(image) if kind == "JPEG" else 1
    except Exception:  # decoders' exceptions have no common base; reading the picture says what is wrong with it
        return scan(path)
    if min(stored) < picture.MIN_SIDE_PX or not (_is_whole_jpeg if kind == "JPEG" else _is_whole_png)(path):
        return scan(path)
    size = stored[::-1] if orientation in _TURNED else stored
    return Scan(FilePicture(path=path, size=size, digest=file_digest(path)), stored, orientation)


def _is_whole_jpeg(path: Path) -> bool:
    """Whether the file ends as a JPEG does."""
    with path.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"


def _is_whole_png(path: Path) -> bool:
    """Whether all chunks are there, with right checksums, and none says how the picture is turned."""
    content = path.read_bytes()
    place, kind = 8, b""
    while place + 12 <= len(content):
        (length,), kind = struct.unpack_from(">I", content, place), content[place + 4 : place + 8]
        end = place + 8 + length
        checksum = zlib.crc32(content[place + 4 : end]).to_bytes(4, "big")
        if kind not in _PLAIN_CHUNKS or checksum != content[end : end + 4]:
            return False
        place = end + 4
    return kind == b"IEND" and place == len(content)


def scans(paths: Sequence[Path], workers: int, decode: bool = True) -> Iterator[Scan | ValueError | None]:
    """What `scan` says of each file, in their order: an error where it raises one, None where there is no file.

    ``workers``: processes that read them; 0: this one does. ``decode``: False: what `look` says.
    """
    return each(partial(_scanned, decode=decode), paths, workers)


def _scanned(path: Path, decode: bool) -> Scan | ValueError | None:
    try:
        return (scan if decode else look)(path) if path.is_file() else None
    except ValueError as error:
        return error


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """How a picture becomes an input. ``size``: (H, W); ``mean``, ``std``: float32 [C], of values in 0..1."""

    size: tuple[int, int]
    fit: str
    channels: int
    mean: Tensor
    std: Tensor

    @property
    def digest(self) -> bytes:
        """SHA-256 of all of it."""
        told = (self.size, self.fit, self.channels, self.mean.tolist(), self.std.tolist(), picture.PAD)
        return hashlib.sha256(repr(told).encode()).digest()

    def fitted(self, pixels: Array) -> Tensor:
        """uint8 [C, H, W] of the input's size, of uint8 [H, W, C] of any."""
        found = picture.fitted(pixels, self.size[1], self.size[0], self.fit)
        return torch.tensor(found).permute(2, 0, 1)

    def inner(self, size: Size) -> tuple[slice, slice]:
        """Rows and columns of the input where a picture of this size lies."""
        left, top, right, bottom = picture.placement(size, self.size[1], self.size[0], self.fit).at
        return slice(top, bottom), slice(left, right)

    def to_input(self, places: Array, size: Size) -> Array:
        """Boxes [N, 4] or points [..., 2] of a picture of this size, in pixels of the input."""
        return picture.to_input(places, size, self.size[1], self.size[0], self.fit)

    def normalised(self, x: Tensor) -> Tensor:
        """Float32 (x / 255 - mean) / std per channel, of bytes [..., C, H, W]."""
        return (x.float() / 255 - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)


class Framed:
    """What examples that are pictures have in common."""

    frame: Frame

    @property
    def mean(self) -> Tensor:
        """Float32 [C], of values in 0..1."""
        return self.frame.mean

    @property
    def std(self) -> Tensor:
        """Float32 [C], of values in 0..1."""
        return self.frame.std

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is taken."""
        return self.frame.size

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / std per channel, of values in 0..1 [B, C, H, W]."""
        return (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)


NO_FRAME: Final = Frame(size=(0, 0), fit="cut", channels=3, mean=torch.empty(0), std=torch.empty(0))
"""Of examples that nothing is taken of yet."""


def measured(pictures: list[Picture], channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel (float32 [C], of values in 0..1) of at most MEASURED of the pictures.

    They are drawn, always in the same way, and weigh alike, however large they are. What comes of them is kept in the
    cache under their content.
    """
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[:MEASURED]
    sample = [pictures[i] for i in order.tolist()]
    told = hashlib.sha256(b"".join(one.digest for one in sample)).hexdigest()
    key = {"shares": told, "channels": channels, "pillow": PIL.__version__}
    mean, std = cached_json(KIND, key, lambda: [x.tolist() for x in _measured(sample, channels)])
    return torch.tensor(mean), torch.tensor(std)


def _measured(sample: list[Picture], channels: int) -> tuple[Tensor, Tensor]:
    total = squares = np.zeros(channels)
    values = np.arange(256) / 255
    for one in sample:
        x = one.pixels(channels).reshape(-1, channels)
        shares = np.stack([np.bincount(x[:, c], minlength=256) for c in range(channels)]) / len(x)
        total, squares = total + shares @ values, squares + shares @ np.square(values)
    mean = total / max(1, len(sample))
    std = np.sqrt(np.clip(squares / max(1, len(sample)) - np.square(mean), 0, None))
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)


def with_channels(pixels: Array, channels: int) -> Array:
    """Bytes [H, W, 1 or 3] with so many channels: grey is repeated, colour weighted to grey as Pillow does."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, 2)
    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def array_digest(array: Array) -> bytes:
    """SHA-256 of an array's type, shape and content."""
    found = hashlib.sha256(repr((array.dtype.str, array.shape)).encode())
    found.update(np.ascontiguousarray(array).tobytes())
    return found.digest()
