"""Examples, which are read when they are taken: what every task's data is, and images that have a class each.

B batch, N examples, C channels, H W height and width of the input.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from deploy_prune.data.files import Files, Images, chosen, taken
from deploy_prune.data.transforms import AUGMENTS, drawn
from deploy_prune.recipe.data import Augment

_SPREAD_SEED = 0
_HASHED = 1024  # images at a time
_AT_ONCE = 2**20  # numbers of images that are varied at a time, so that they stay in the processor's cache


class Batch(NamedTuple):
    """Some examples. ``inputs``: the network's, each [B, ...]. ``targets``: what the task's loss and score take."""

    inputs: tuple[Tensor, ...]
    targets: Any


class Examples(Protocol):
    """Examples of a task, which are read when they are taken."""

    def __len__(self) -> int:
        """How many there are."""

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of all that a stage can see of them: contents, targets, how inputs are made."""

    @property
    def strata(self) -> Tensor:
        """int64 [N], 0 or more: what draws are spread over, such as classes; all 0 where there is no such thing."""

    def take(self, indices: Tensor) -> Batch:
        """These examples, as the network is to be used."""

    def varied(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """These examples for a training step: augmented, as the recipe says. All that is random is the generator's."""

    def subset(self, indices: Tensor) -> Self:
        """These examples alone, in this order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassExamples:
    """Images with a class each, resized and normalised when they are taken: `Examples` whose targets are int64 [B].

    ``images``: uint8 (0..255) or float (0..1) [N, C, H, W], or files that are read when they are taken. ``labels``:
    int64 [N]. ``mean`` and ``std``: float [C], of values in 0..1. ``size``: height and width of what is taken;
    None = as stored. ``augment``: what `varied` does. ``workers``: how many processes read files ahead.
    """

    images: Images
    labels: Tensor
    mean: Tensor
    std: Tensor
    size: tuple[int, int] | None = None
    augment: Augment = "none"
    workers: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal): images or the content of their files, labels, normalisation, size, augmentation.

        Not of files' names and times: a file that was only touched is the same. In memory it costs 0.6 s per GB.
        """
        if isinstance(self.images, Files):
            files = [self.images.digest, self.labels.tolist(), self.size, self.augment]
            return hashlib.sha256(repr([*files, self.mean.tolist(), self.std.tolist()]).encode()).hexdigest()
        told = [tuple(self.images.shape), str(self.images.dtype), self.labels.tolist(), self.size, self.augment]
        found = hashlib.sha256(repr([*told, self.mean.tolist(), self.std.tolist()]).encode())
        for images in self.images.split(_HASHED):
            found.update(images.contiguous().numpy())
        return found.hexdigest()

    @property
    def strata(self) -> Tensor:
        """The labels."""
        return self.labels

    def take(self, indices: Tensor) -> Batch:
        """These examples: float32 [B, C, H, W] with (x - mean) / std per channel, and int64 [B]."""
        x = self.pixels(indices)
        return Batch((self._normalise(x, out=x),), self.labels[indices])

    def varied(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """As `take`, augmented before they are normalised."""
        return self.varied_of(taken(self.images, indices), indices, generator)

    def varied_of(self, stored: Tensor, indices: Tensor, generator: torch.Generator) -> Batch:
        """As `varied`, of these examples' images, which were read before."""
        height, width = self.size or stored.shape[2:]
        shape = (*stored.shape[:2], height, width)
        numbers, made = drawn(shape, self.augment, generator), torch.empty(shape)
        at_once = max(1, _AT_ONCE // prod(shape[1:]))
        for few in (slice(start, start + at_once) for start in range(0, len(stored), at_once)):
            x = AUGMENTS[self.augment].vary(self._scaled(stored[few]), *(n[few] for n in numbers))
            self._normalise(x, out=made[few])
        return Batch((made,), self.labels[indices])

    def skip(self, indices: Tensor, generator: torch.Generator) -> None:
        """Draw what `varied` would draw for these examples, and read none."""
        stored = self.images.size if isinstance(self.images, Files) else self.images.shape[2:]
        height, width = self.size or stored
        drawn((len(indices), len(self.mean), height, width), self.augment, generator)

    def subset(self, indices: Tensor) -> ClassExamples:
        """These examples alone, in this order."""
        return replace(self, images=chosen(self.images, indices), labels=self.labels[indices])

    def pixels(self, indices: Tensor) -> Tensor:
        """These images, resized (bilinear), not normalised: float32 [B, C, H, W] in 0..1."""
        return self._scaled(taken(self.images, indices))

    def _scaled(self, x: Tensor) -> Tensor:
        """Of images as stored."""
        x = x.float().div_(255) if x.dtype == torch.uint8 else x.float()
        if self.size is None or tuple(x.shape[2:]) == self.size:
            return x
        return F.interpolate(x, self.size, mode="bilinear", antialias=True)

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / std per channel, [B, C, H, W]."""
        return self._normalise(x, out=torch.empty_like(x))

    def _normalise(self, x: Tensor, out: Tensor) -> Tensor:
        """The same, into a tensor that is there: getting memory takes as long as the arithmetic."""
        return torch.sub(x, self.mean.view(-1, 1, 1), out=out).div_(self.std.view(-1, 1, 1))


def all_of(examples: Examples) -> Batch:
    """All examples, as `Examples.take` gives them."""
    return examples.take(torch.arange(len(examples)))


def spread(strata: Tensor, num: int) -> Tensor:
    """int64[num] (or all there are), ascending: a fixed draw with every stratum as often as it can be.

    ``strata``: `Examples.strata` [N]. Files lie class by class, so the first examples would all be of one class. With
    fewer draws than classes, each is of another class.
    """
    order = torch.randperm(len(strata), generator=torch.Generator().manual_seed(_SPREAD_SEED))
    drawn: dict[int, int] = {}
    rounds = []  # for each example in this order, how many of its class come before it
    for label in strata[order].tolist():
        rounds.append(drawn.get(label, 0))
        drawn[label] = rounds[-1] + 1
    chosen = order[torch.tensor(rounds, dtype=torch.int64).argsort(stable=True)[:num]]
    return chosen.sort().values
