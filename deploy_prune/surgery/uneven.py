"""How many channels the trials keep: as irregular as any use.

A network's code may divide what it is given by numbers (``x.chunk(2, 1)``, ``x[:, : x.shape[1] // 3]``). Then parts
that keep the same share, or nearly, are cut where the code divides them, and others are not. So groups that meet on an
axis keep shares far apart, and in the second trial the larger one is the smaller: code that rounds up passes one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import sqrt
from typing import Final

import torch

from deploy_prune.types import ChannelGroup, Keep

LEAST: Final = 0.2
MOST: Final = 0.9
"""Shares lie between: with a single channel left, norms over channels would hide the others."""
_GOLDEN: Final = (sqrt(5) - 1) / 2
"""The multiples of this, modulo 1, lie far apart, however many there are (Weyl, 1916)."""


def uneven(groups: Sequence[ChannelGroup]) -> tuple[Keep, ...]:
    """Two trials' masks, bool[C], random ones of the number that each group keeps.

    In either trial another half of the branches stays. Branches on branches are seen only where those stay: they have
    two trials more.
    """
    places = _places(groups)
    generator = torch.Generator().manual_seed(0)
    levels = _levels([g for g in groups if g.is_branch])
    return tuple(
        {
            g.name: torch.randperm(g.channels, generator=generator) < _count(g.channels, places[g.name], turned)
            for g in groups
            if not g.is_branch
        }
        | {
            name: torch.tensor([level != trial or place % 2 == turned])
            for place, (name, level) in enumerate(levels.items())
        }
        for trial in range(1 + max(levels.values(), default=0))
        for turned in (False, True)
    )


def _levels(branches: Sequence[ChannelGroup]) -> dict[str, int]:
    """The number of other branches that each branch lies on."""
    tensors = {branch.name: set(branch.vanishes) for branch in branches}
    return {name: sum(mine < theirs for theirs in tensors.values()) for name, mine in tensors.items()}


def _count(channels: int, place: float, turned: bool) -> int:
    """From the least to the most, by a group's place in [0, 1]; small groups may keep one, or all."""
    share = LEAST + (MOST - LEAST) * (1 - place if turned else place)
    return max(1, round(channels * share))


def _places(groups: Sequence[ChannelGroup]) -> dict[str, float]:
    """A place in [0, 1] for each group: evenly spread over those that meet on an axis, in an irregular order."""
    axes: dict[tuple[str, int], list[str]] = defaultdict(list)
    for group in groups:
        for axis in group.members:
            axes[axis.tensor, axis.axis].append(group.name)
    places: dict[str, float] = {}
    for met in sorted(axes.values(), key=len, reverse=True):
        taken = [places[name] for name in met if name in places]
        for name in met:
            if name not in places:
                places[name] = _farthest(taken, len(places))
                taken.append(places[name])
    return places


def _farthest(taken: Sequence[float], number: int) -> float:
    """The place that is farthest from those that are taken; of those equally far, one by the number."""
    start = number * _GOLDEN % 1
    candidates = [(start + i / 16) % 1 for i in range(16)] + [0.0, 1.0]
    return max(candidates, key=lambda place: min((abs(place - other) for other in taken), default=1.0))
