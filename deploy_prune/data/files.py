"""Images in files or a Dataset, which stand for a tensor that memory may not hold: they are read when they are taken.

N images, B batch, C channels, H W height and width of what is taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, cast

import numpy as np
import PIL
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deploy_prune.data.pictures import KIND, Array
from deploy_prune.errors import DataError
from deploy_prune.system.cache import cached_json

SAMPLED: Final = 2048
"""Images in files that mean and standard deviation are taken of: enough for three digits of both."""
_A_TIME: Final = 64  # images in memory, as numbers of 8 bytes, while they are measured
_FEW: Final = 4  # the same of files, which may be large


class Unread(Protocol):
    """An image that is read when it is taken."""

    @property
    def digest(self) -> bytes:
        """What tells it from others."""

    def cut(self, size: tuple[int, int], channels: int, keep: bool = True) -> Array:
        """uint8 [H, W, C] of this height and width, scaled so that it covers them and cut in the middle.

        ``keep``: in memory, for the next time.

        Raises:
            DataError: it can no longer be read, or is another one.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class Files:
    """N images, each of which is scaled and cut to ``size`` (H, W) when it is read."""

    pictures: tuple[Unread, ...]
    size: tuple[int, int]
    channels: int

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal): the images' content, in their order, and what is made of them."""
        found = hashlib.sha256(repr((len(self), self.size, self.channels)).encode())
        for picture in self.pictures:
            found.update(picture.digest)
        return found.hexdigest()

    def subset(self, indices: Tensor) -> Files:
        """These alone, in this order."""
        return replace(self, pictures=tuple(self.pictures[i] for i in indices.tolist()))

    def read(self, indices: Sequence[int], keep: bool = True) -> Tensor:
        """Uint8 [B, C, H, W]. ``keep``: in memory for the next time, up to ``pictures.KEPT_BYTES``.

        Raises:
            DataError: one can no longer be read, or is another one.
        """
        found = [self.pictures[i].cut(self.size, self.channels, keep) for i in indices]
        height, width = self.size
        stacked = np.stack(found) if found else np.empty((0, height, width, self.channels), np.uint8)
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


Images = Tensor | Files
"""Uint8 (0..255) or float (0..1) [N, C, H, W] in memory; or files."""


def chosen(images: Images, which: Tensor) -> Images:
    """Some of them, still to be read where they are files. ``which``: int64 [B], or bool [N]."""
    if isinstance(images, Files):
        return images.subset(which.nonzero().flatten() if which.dtype == torch.bool else which)
    return images[which]


def taken(images: Images, indices: Tensor) -> Tensor:
    """These [B, C, H, W], as they are stored or scaled to."""
    return images.read(indices.tolist()) if isinstance(images, Files) else images[indices]


def joined(first: Images, second: Images) -> Images:
    """One after the other. Both are of one kind."""
    if isinstance(first, Files):
        return replace(first, pictures=first.pictures + cast(Files, second).pictures)
    return torch.cat([first, cast(Tensor, second)])


def measured(images: Images, workers: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel (float32 [C]) of images as stored, in 0..1.

    Of files, at most SAMPLED are read, drawn always in the same way, by so many processes; what comes of them is kept
    in the cache under their content.
    """
    if not isinstance(images, Files):
        return _moments(images.split(_A_TIME), images.shape[1])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:SAMPLED]
    sample = images.subset(order.sort().values)
    key = {"measured": sample.digest, "pillow": PIL.__version__}
    mean, std = cached_json(KIND, key, lambda: [x.tolist() for x in _measured(sample, workers)])
    return torch.tensor(mean), torch.tensor(std)


def _measured(sample: Files, workers: int) -> tuple[Tensor, Tensor]:
    asked = torch.arange(len(sample)).split(_FEW)
    read = (x for _, x in ahead(sample, iter([asked]), workers)) if workers else (
        sample.read(indices.tolist(), keep=False) for indices in asked
    )  # fmt: skip
    return _moments(read, sample.channels)


def _moments(parts: Iterable[Tensor], channels: int) -> tuple[Tensor, Tensor]:
    total, squares = torch.zeros(2, channels, dtype=torch.float64)
    count = 0
    for part in parts:
        x = part.double() / (255 if part.dtype == torch.uint8 else 1)
        total, squares, count = total + x.sum((0, 2, 3)), squares + x.square().sum((0, 2, 3)), count + x[:, 0].numel()
    mean = total / max(1, count)
    return mean.float(), (squares / max(1, count) - mean.square()).clamp(min=0).sqrt().float()


def ahead(images: Files, epochs: Iterator[Sequence[Tensor]], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices [B] and images uint8 [B, C, H, W] of batch after batch, read by processes.

    ``epochs``: batches that may be read ahead of each other. The next ones are asked for when all of these are taken,
    so that whoever draws them may draw other things meanwhile.

    Raises:
        DataError: a file can no longer be read, or is another one.
    """
    asked = _Asked(epochs)
    loader = DataLoader(
        _Batches(images), batch_sampler=cast(Any, asked), num_workers=workers, collate_fn=_as_it_is,
        generator=torch.Generator(), persistent_workers=True,
    )  # fmt: skip
    while True:
        found = 0
        for indices, read in loader:
            if isinstance(read, DataError):
                raise read
            yield indices, read
            found += 1
        if not found:
            return


class _Asked:
    """The batches of an epoch, each time they are asked for; none after the last."""

    def __init__(self, epochs: Iterator[Sequence[Tensor]]) -> None:
        self.epochs = epochs

    def __iter__(self) -> Iterator[list[int]]:
        for indices in next(self.epochs, ()):  # not before the first one is taken: a loader begins more than once
            yield indices.tolist()


class _Batches(Dataset[Any]):
    """What a process does: it reads a batch, or gives the error that says why it can't."""

    def __init__(self, images: Files) -> None:
        self.images = images

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor | DataError]:
        try:
            return torch.tensor(indices), self.images.read(indices)
        except DataError as error:
            return torch.tensor(indices), error


def _as_it_is(batch: Any) -> Any:
    return batch
