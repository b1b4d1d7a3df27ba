"""Labelled examples, resized and normalised when they are taken.

B batch, N examples, C channels, S the side of the (square) input image.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

Batch = tuple[Tensor, Tensor]
_SPREAD_SEED = 0
_HASHED = 1024  # images at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Labelled images, resized and normalised when they are taken.

    ``images``: uint8 (0..255) or float (0..1) [N, C, H, W]. ``labels``: int64 [N]. ``mean`` and ``std``: float [C], of
    values in 0..1. ``size``: the side S of what is taken; None = as stored.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    size: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of all that a stage can see of them: images as decoded, labels, normalisation, size.

        Of the content in memory and not of files' names and times: a file that was only touched is the same, one that
        was changed within its time stamp isn't. It costs 0.6 s per GB, a hundredth of what decoding photos takes.
        """
        told = [tuple(self.images.shape), str(self.images.dtype), self.labels.tolist(), self.size]
        found = hashlib.sha256(repr([*told, self.mean.tolist(), self.std.tolist()]).encode())
        for images in self.images.split(_HASHED):
            found.update(images.contiguous().numpy())
        return found.hexdigest()

    def take(self, indices: Tensor) -> Batch:
        """These examples: float32 [B, C, S, S] with (x - mean) / std per channel, and int64 [B]."""
        return self.normalise(self.pixels(indices)), self.labels[indices]

    def spread(self, num: int) -> Tensor:
        """Which ``num`` examples (or all) stand for these: as ``spread`` draws them by their labels."""
        return spread(self.labels, num)

    def all(self) -> Batch:
        """All examples, as `take` gives them."""
        return self.take(torch.arange(len(self)))

    def pixels(self, indices: Tensor) -> Tensor:
        """These images, resized (bilinear), not normalised: float32 [B, C, S, S] in 0..1."""
        x = self.images[indices]
        x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        if self.size is None or tuple(x.shape[2:]) == (self.size, self.size):
            return x
        return F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / std per channel, [B, C, S, S]."""
        return (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)


def spread(labels: Tensor, num: int) -> Tensor:
    """int64[num] (or all there are), ascending: a fixed draw with every class (labels [N]) as often as it can be.

    Files lie class by class, so the first examples would all be of one class. With fewer draws than classes, each is of
    another class.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPREAD_SEED))
    drawn: dict[int, int] = {}
    rounds = []  # for each example in this order, how many of its class come before it
    for label in labels[order].tolist():
        rounds.append(drawn.get(label, 0))
        drawn[label] = rounds[-1] + 1
    chosen = order[torch.tensor(rounds, dtype=torch.int64).argsort(stable=True)[:num]]
    return chosen.sort().values


def measured(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel (float32 [C]) of images as stored, in 0..1."""
    scale = 255 if images.dtype == torch.uint8 else 1
    total, squares = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for start in range(0, len(images), 2048):
        x = images[start : start + 2048].double() / scale
        total, squares = total + x.sum((0, 2, 3)), squares + x.square().sum((0, 2, 3))
    count = max(1, images[:, 0].numel())
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float()
