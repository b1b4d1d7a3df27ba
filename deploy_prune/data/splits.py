"""Examples of the source and the target task, and batches of them.

B batch, N examples, C channels, S the side of the (square) input image, K shots.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from deploy_prune.data.collected import Labelled, own_size
from deploy_prune.data.examples import ClassExamples, Examples
from deploy_prune.data.files import Files, Images, chosen, joined, measured
from deploy_prune.data.folders import listed
from deploy_prune.data.sources import read
from deploy_prune.data.transforms import LUMA
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import DataPart

_TEST_SHARE = 0.2  # of each class, where a data set has no test set of its own
_SPLIT_SEED = 0
_DIGITS = 16
_MOST_NAMED = 10  # files in a warning
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferData:
    """The source task's examples, K shots of each target class, and what the target task is scored on.

    Of a task without classes, ``source_classes`` and ``target_classes`` are (), and the target's examples may be the
    source's. Labels are renumbered 0..n-1 in their order. ``target_names``: what the data set calls the target classes;
    None where it only numbers them. ``shots``: which examples of the data set's training part (of the 80% that trains,
    where it has no test set) were drawn for ``target_train``, class by class in the order of ``target_classes``,
    ascending; () where all are taken. ``shots_a_class``: K; None where all are taken. ``num_available``: the target
    classes' training examples, drawn or not. ``skipped``: files that were left out for they can't be read
    (``data.unreadable: skip``), from the data set's root. ``ignored``: how many other files of the data set's folder
    are not read, by what they are.
    """

    source_train: Examples
    source_test: Examples
    target_train: Examples
    target_test: Examples
    source_classes: tuple[int, ...] = ()
    target_classes: tuple[int, ...] = ()
    target_names: tuple[str, ...] | None = None
    shots: tuple[int, ...] = ()
    shots_a_class: int | None = None
    num_available: int = 0
    skipped: tuple[str, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_source(self) -> int:
        """Number of source classes."""
        return len(self.source_classes)

    @property
    def num_target(self) -> int:
        """Number of target classes."""
        return len(self.target_classes)

    @property
    def same_task(self) -> bool:
        """Source and target have the same classes (or none), so that class layers are kept."""
        return self.source_classes == self.target_classes

    @property
    def digest(self) -> str:
        """16 hex digits that tell one draw of the target task's training examples from another: classes and places."""
        told = repr((self.target_classes, self.shots, self.target_train.strata.tolist()))
        return hashlib.sha256(told.encode()).hexdigest()[:_DIGITS]


def load(part: DataPart, seed: int) -> TransferData:
    """Read the data set and split it; ``seed`` draws the target classes (N ways) and the shots, and nothing else does.

    A data set without a test set of its own is split 80/20 within each class, always in the same way; its target task
    is scored on that test set and on every other example of the classes that the source task does not have. No
    example is ever both trained on and scored on.

    Raises:
        DataError: missing, damaged or empty data; a class that does not exist or has too few examples; more ways than
            classes.
    """
    collection = read(part)
    part = _sized(part, collection.train.images)
    _warn_of(collection.skipped, collection.ignored)
    train, test = (collection.train, collection.test) if collection.test else _split(collection.train)
    known = set(train.labels.tolist())
    source = _classes(part.source_classes, known, "data.source_classes")
    target = _draw_ways(_classes(part.target_classes, known, "data.target_classes"), part.ways, seed)
    source_train, pool, target_test = _select(train, source), _select(train, target), _select(test, target)
    is_shot = _draw_shots(pool, [_title(c, collection.names) for c in target], part, seed)
    if collection.test is None:
        is_new = torch.tensor([c not in source for c in target])[pool.labels]
        target_test = _join(target_test, _pick(pool, is_new & ~is_shot))
    mean, std = _statistics(part, source_train.images)
    examples = partial(_examples, part=part, mean=mean, std=std)
    return TransferData(
        source_train=examples(source_train, "source training"),
        source_test=examples(_select(test, source), "source test"),
        target_train=examples(_pick(pool, is_shot), "target training"),
        target_test=examples(target_test, "target test"),
        source_classes=source,
        target_classes=target,
        target_names=_names(collection.names, target),
        shots=() if part.shots is None else _places(train, target, is_shot),
        shots_a_class=part.shots,
        num_available=len(pool),
        skipped=collection.skipped,
        ignored=collection.ignored,
    )


def _split(everything: Labelled) -> tuple[Labelled, Labelled]:
    """Within each class, a fixed draw of 20% (of two examples or more, at least one) for the test set."""
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    is_test = torch.zeros(len(everything), dtype=torch.bool)
    for label in sorted(set(everything.labels.tolist())):
        members = (everything.labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        is_test[members[: max(round(_TEST_SHARE * len(members)), int(len(members) > 1))]] = True
    return _pick(everything, ~is_test), _pick(everything, is_test)


def _draw_ways(classes: tuple[int, ...], ways: int | None, seed: int) -> tuple[int, ...]:
    """N of the classes, in their order, or all."""
    if ways is None:
        return classes
    if not 2 <= ways <= len(classes):
        message = f"data.ways: {ways} classes are to be drawn of the target task's {len(classes)}; "
        message += f"write 2 to {len(classes)}."
        raise DataError(message)
    drawn = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))[:ways]
    return tuple(classes[i] for i in sorted(drawn.tolist()))


def _draw_shots(pool: Labelled, titles: Sequence[str], part: DataPart, seed: int) -> Tensor:
    """bool[N]: K examples of each class (of a class with fewer, all, if it may be so), or all."""
    shots = part.shots
    if shots is None:
        return torch.ones(len(pool), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    is_shot = torch.zeros(len(pool), dtype=torch.bool)
    for number, title in enumerate(titles):
        members = (pool.labels == number).nonzero().flatten()
        if len(members) < shots and part.short_classes == "fail":
            message = f"data.shots: {shots} are asked for, but class {title} has {len(members)} training examples "
            message += "(data.short_classes: use_all takes what a class has)."
            raise DataError(message)
        is_shot[members[torch.randperm(len(members), generator=generator)[:shots]]] = True
    return is_shot


def _places(train: Labelled, classes: Sequence[int], is_shot: Tensor) -> tuple[int, ...]:
    """Where in ``train`` the shots are, class by class; ``is_shot``: bool, one for each example of these classes."""
    places = torch.isin(train.labels, torch.tensor(classes)).nonzero().flatten()[is_shot]
    labels = train.labels[places]
    return tuple(place for name in classes for place in places[labels == name].tolist())


def _classes(asked: list[int] | None, known: set[int], key: str) -> tuple[int, ...]:
    classes = tuple(sorted(known)) if asked is None else tuple(asked)
    problem = None
    if not known:
        problem = "the data set is empty"
    elif unknown := [c for c in classes if c not in known]:
        problem = f"the data set has no class {unknown[0]}, only {_ranges(known)}"
    elif len(set(classes)) < len(classes):
        problem = "a class is listed twice"
    elif len(classes) < 2:
        problem = f"a task needs at least 2 classes, and this is {len(classes)}"
    if problem:
        message = f"{key}: {problem}."
        raise DataError(message)
    return classes


def _names(names: Sequence[str] | None, classes: Sequence[int]) -> tuple[str, ...] | None:
    """What the classes are called; None unless all of them have names."""
    return None if names is None or max(classes) >= len(names) else tuple(names[c] for c in classes)


def _title(number: int, names: Sequence[str] | None) -> str:
    """A class's number, and its name if that is another."""
    name = str(number) if names is None or number >= len(names) else names[number]
    return str(number) if name == str(number) else f"{number} ({name})"


def _warn_of(skipped: Sequence[str], ignored: Mapping[str, int]) -> None:
    """One line of the files that were left out, and one of those that were never tried."""
    if skipped:
        more = f" and {len(skipped) - _MOST_NAMED} more" if len(skipped) > _MOST_NAMED else ""
        named = ", ".join(skipped[:_MOST_NAMED])
        _LOG.warning("data.unreadable: left out, for they can't be read as images: %s%s", named, more)
    if ignored:
        _LOG.warning("data.root: files that are not read: %s", listed(ignored))


def _ranges(known: set[int]) -> str:
    low, high = min(known), max(known)
    return f"{low} to {high}" if len(known) == high - low + 1 else ", ".join(map(str, sorted(known)[:20]))


def _select(data: Labelled, classes: Sequence[int]) -> Labelled:
    """The examples of these classes, with labels 0..n-1 in their order."""
    number_of = {name: number for number, name in enumerate(classes)}
    numbers = torch.tensor([number_of.get(label, -1) for label in data.labels.tolist()], dtype=torch.int64)
    return _pick(Labelled(images=data.images, labels=numbers), numbers >= 0)


def _pick(data: Labelled, mask: Tensor) -> Labelled:
    return Labelled(images=chosen(data.images, mask), labels=data.labels[mask])


def _join(first: Labelled, second: Labelled) -> Labelled:
    labels = torch.cat([first.labels, second.labels])
    return Labelled(images=joined(first.images, second.images), labels=labels)


def _examples(data: Labelled, name: str, *, part: DataPart, mean: Tensor, std: Tensor) -> ClassExamples:
    if not len(data):
        message = f"data: nothing is left for the {name} examples; change the classes or data.shots."
        raise DataError(message)
    return ClassExamples(
        images=_with_channels(data.images, part.channels), labels=data.labels, mean=mean, std=std, size=part.size,
        augment=part.augment, workers=part.workers,
    )  # fmt: skip


def _with_channels(images: Images, channels: int) -> Images:
    """Grey is repeated (without copies); colour is weighted to grey, rounded where it is stored as uint8.

    Files are read with so many channels.
    """
    if isinstance(images, Files) or images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    grey = torch.einsum("nchw,c->nhw", images.float(), torch.tensor(LUMA))[:, None]
    return grey.round().to(torch.uint8) if images.dtype == torch.uint8 else grey


def _sized(part: DataPart, images: Images) -> DataPart:
    """With the images' own size, if no other is given; those of a folder are scaled to it."""
    if part.image_size is not None or not len(images):
        return part
    high, wide = images.size if isinstance(images, Files) else images.shape[2:]
    return part.model_copy(update={"image_size": own_size({(wide, high)})})


def _statistics(part: DataPart, images: Images) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel (float32 [C]) as the recipe gives them, or of these images."""
    own_mean, own_std = torch.empty(0), torch.empty(0)
    if part.mean is None or part.std is None:
        own_mean, own_std = measured(_with_channels(images, part.channels), part.workers)
    mean = own_mean if part.mean is None else torch.tensor(part.mean)
    std = own_std if part.std is None else torch.tensor(part.std)
    for key, values in (("mean", mean), ("std", std)):
        if len(values) != part.channels:
            message = f"data.{key}: {len(values)} values are given for {part.channels} channels."
            raise DataError(message)
    if not bool((std > 0).all()):
        message = "data.std: must be above 0 (all images of the source task have the same value in a channel)."
        raise DataError(message)
    return mean, std
