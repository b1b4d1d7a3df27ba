"""Split pictures with boxes or masks into the source's and the target's examples, and draw shots.

What is said here of objects are boxes where there are boxes; with masks, a class counts once in each picture.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, Protocol, Self, TypeVar, cast

import torch
from torch import Tensor

from deploy_prune.data.annotated import NAMED
from deploy_prune.data.folders import listed, shown
from deploy_prune.data.pictures import Frame, Picture, Size, measured
from deploy_prune.data.splits import TransferData
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import MAX_SIZE, MIN_SIZE, PicturesPart

_LOG: Final = logging.getLogger(__name__)
ROOT_VARIABLE: Final = "DEPLOY_PRUNE_DATA"
TEST_SHARE: Final = 0.2
"""Of the pictures, where a data set has no part to score on."""
_SPLIT_SEED: Final = 0


class Splittable(Protocol):
    """Examples that are pictures, N of them."""

    def __len__(self) -> int: ...

    @property
    def counts(self) -> Tensor:
        """int64 [N, C]: how many objects of each class each picture has."""

    @property
    def strata(self) -> Tensor:
        """int64 [N]: what a draw is spread over."""

    @property
    def pictures(self) -> list[Picture]:
        """The pictures alone."""

    def subset(self, indices: Tensor) -> Self:
        """These alone."""

    def of_classes(self, classes: Sequence[int]) -> Self:
        """With these classes alone, renumbered."""

    def framed(self, frame: Frame, augment: Any, workers: int) -> Self:
        """The same, made inputs and varied in this way, by so many processes."""


E = TypeVar("E", bound=Splittable)


@dataclass(frozen=True, kw_only=True, eq=False)
class WholeSet(Generic[E]):
    """A data set as it is read. ``test`` is None where it has no part to score on; the rest as in `TransferData`."""

    train: E
    test: E | None
    names: tuple[str, ...] | None
    skipped: tuple[str, ...] = ()
    counted: Mapping[str, int] = field(default_factory=dict)


def transfer(whole: WholeSet[E], part: PicturesPart, augment: Any, seed: int) -> TransferData:
    """The source's and the target's examples; ``seed`` draws the shots, and nothing else does.

    A data set without a part to score on is split 80/20, always in the same way. Pictures that show none of some
    classes are left out where only some are asked for, and the others' boxes or masks don't count. The target is
    scored on the pictures of its classes, whatever was drawn.

    Raises:
        DataError: a class that does not exist or has too few objects; nothing is left; pictures of several sizes where
            the recipe has none; all pixels are alike.
    """
    train, test = (whole.train, whole.test) if whole.test is not None else _split(whole.train)
    source = _classes(part.source_classes, whole, "data.source_classes")
    target = _classes(part.target_classes, whole, "data.target_classes")
    frame = _frame(part, train, test, _places(train, source))
    source_train, target_pool = (_chosen(train, classes) for classes in (source, target))
    drawn = _draw(target_pool.counts, part, [title(c, whole.names) for c in target], seed)
    found = {
        "source training": source_train, "source test": _chosen(test, source),
        "target training": target_pool if drawn is None else target_pool.subset(drawn),
        "target test": _chosen(test, target),
    }  # fmt: skip
    for name, examples in found.items():
        if not len(examples):
            message = f"data: nothing is left for the {name} examples; change the classes or data.shots."
            raise DataError(message)
    known = {one.digest for one in train.pictures}
    again = sum(one.digest in known for one in test.pictures)
    counted = Counter(whole.counted) + Counter({"pictures to score on that are also among those to train on": again})
    _warn_of(whole.skipped, counted)
    made = [cast(Any, examples.framed(frame, augment, part.workers)) for examples in found.values()]
    names = None if whole.names is None else tuple(whole.names[c] for c in target)
    return TransferData(
        source_train=made[0], source_test=made[1], target_train=made[2], target_test=made[3], source_classes=source,
        target_classes=target, target_names=names,
        shots=() if drawn is None else tuple(_places(train, target)[drawn].tolist()), shots_a_class=part.shots,
        num_available=len(target_pool), skipped=whole.skipped, ignored=counted,
    )  # fmt: skip


def _warn_of(skipped: Sequence[str], counted: Mapping[str, int]) -> None:
    """One line of what is left out, and one of what was counted."""
    if skipped:
        more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
        _LOG.warning("data.broken: left out: %s%s", "; ".join(skipped[:NAMED]), more)
    if counted:
        _LOG.warning("data: %s", listed(counted))


def own_size(sizes: Iterable[Size]) -> tuple[int, int]:
    """Height and width of pictures of one size; ``sizes``: their widths and heights.

    Raises:
        DataError: they aren't of one size, or it is none for an input.
    """
    all_sizes = sorted(set(sizes))
    if len(all_sizes) == 1 and all(MIN_SIZE <= side <= MAX_SIZE for side in all_sizes[0]):
        return all_sizes[0][1], all_sizes[0][0]
    listed = ", ".join(f"{wide}x{high}" for wide, high in all_sizes[:3])
    more = f" and {len(all_sizes) - 3} other sizes" if len(all_sizes) > 3 else ""
    message = "data.image_size: it isn't given, the network's own configuration doesn't say it, and the pictures "
    message += f"({listed}{more}) aren't of one size from {MIN_SIZE} to {MAX_SIZE}; write [height, width] of the "
    message += "input in pixels. Pictures are fitted into it as data.fit says."
    raise DataError(message)


def root_of(part: PicturesPart) -> Path:
    """The folder or file that the recipe or the variable names.

    Raises:
        DataError: neither does, or there is nothing there.
    """
    root = base_of(part)
    if root is None:
        message = f"data.root: {part.source} needs the folder of its files; set data.root or the variable "
        message += f"{ROOT_VARIABLE}."
        raise DataError(message)
    if not root.exists():
        message = f"data.root: there is no folder {root} (set data.root or the variable {ROOT_VARIABLE})."
        raise DataError(message)
    return root


def base_of(part: PicturesPart) -> Path | None:
    """The absolute path that the recipe or the variable names, if one does."""
    text = part.root or os.environ.get(ROOT_VARIABLE)
    return Path(text).expanduser().absolute() if text else None


@contextmanager
def readable(root: Path) -> Iterator[None]:
    """A folder or list that can't be read.

    Raises:
        DataError: it says so, instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        message = f"data.root: {shown(error.filename or root)} can't be read: {error.strerror or error}."
        raise DataError(message) from error


def title(number: int, names: Sequence[str] | None) -> str:
    """A class's number, and its name if that is another."""
    name = str(number) if names is None or number >= len(names) else names[number]
    return str(number) if name == str(number) else f"{number} ({name})"


def _split(everything: E) -> tuple[E, E]:
    """A fixed draw of 20% of each stratum (of two pictures or more, at least one) to score on."""
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    is_test = torch.zeros(len(everything), dtype=torch.bool)
    for stratum in everything.strata.unique().tolist():
        members = (everything.strata == stratum).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        is_test[members[: max(round(TEST_SHARE * len(members)), int(len(members) > 1))]] = True
    return everything.subset((~is_test).nonzero().flatten()), everything.subset(is_test.nonzero().flatten())


def _classes(asked: list[int] | None, whole: WholeSet[E], key: str) -> tuple[int, ...]:
    num = whole.train.counts.shape[1]
    classes = tuple(range(num)) if asked is None else tuple(asked)
    unknown = [c for c in classes if c >= num]
    if unknown:
        message = f"{key}: the data set has no class {unknown[0]}, only 0 to {num - 1}."
        raise DataError(message)
    return classes


def _places(examples: E, classes: Sequence[int]) -> Tensor:
    """Where the pictures are that show some of these classes; all pictures, if these are all classes."""
    if len(classes) == examples.counts.shape[1]:
        return torch.arange(len(examples))
    return (examples.counts[:, list(classes)] > 0).any(1).nonzero().flatten()


def _chosen(examples: E, classes: Sequence[int]) -> E:
    return examples.subset(_places(examples, classes)).of_classes(classes)


def _draw(counts: Tensor, part: PicturesPart, titles: Sequence[str], seed: int) -> Tensor | None:
    """Ascending indices of pictures, drawn until each class has K objects; None for all.

    Class by class, from the one with the fewest objects: pictures that show it are drawn until it has K, where what
    was drawn for others before counts, too.
    """
    shots = part.shots
    if shots is None:
        return None
    there = counts.sum(0)
    short = [i for i, count in enumerate(there.tolist()) if count < shots]
    if short and part.short_classes == "fail":
        message = f"data.shots: {shots} are asked for, but class {titles[short[0]]} has {int(there[short[0]])} in the "
        message += "training pictures (data.short_classes: use_all takes what a class has)."
        raise DataError(message)
    order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed))
    drawn, have = set[int](), torch.zeros(counts.shape[1], dtype=torch.int64)
    for number in there.argsort(stable=True).tolist():
        for i in order[counts[order, number] > 0].tolist():
            if have[number] >= shots:
                break
            if i not in drawn:
                drawn.add(i)
                have += counts[i]
    return torch.tensor(sorted(drawn), dtype=torch.int64)


def _frame(part: PicturesPart, train: E, test: E, source: Tensor) -> Frame:
    """How pictures become inputs: as the recipe says, else of their own size and with the source's statistics."""
    size = part.size or own_size(one.size for one in (*train.pictures, *test.pictures))
    own_mean, own_std = torch.empty(0), torch.empty(0)
    if part.mean is None or part.std is None:
        own_mean, own_std = measured([train.pictures[i] for i in source.tolist()], part.channels)
    mean = own_mean if part.mean is None else torch.tensor(part.mean)
    std = own_std if part.std is None else torch.tensor(part.std)
    if not bool((std > 0).all()):
        message = "data.std: must be above 0 (all pictures of the source task have the same value in a channel)."
        raise DataError(message)
    return Frame(size=size, fit=part.fit, channels=part.channels, mean=mean, std=std)
