"""Endless batches of examples, the same for the same seed, whoever reads them.

Several processes that train together take turns: each reads its own batches, and draws what is drawn for the others'.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deploy_prune.data.examples import Batch, ClassExamples, Examples
from deploy_prune.data.files import Files, ahead
from deploy_prune.data.varying import seeds
from deploy_prune.errors import DataError

_Place = tuple[Tensor, Tensor]
"""The state of the generator, and the indices that are left of the epoch."""


class OneByOne(Protocol):
    """Examples that other processes can vary, each from a seed of its own. ``workers``: how many processes."""

    workers: int

    def varied_one(self, index: int, seed: int) -> Any:
        """One example."""

    def batch(self, ones: Sequence[Any]) -> Batch:
        """Some of them together."""


class InTurns(Protocol):
    """Batches that several processes share out."""

    def take_turns(self, turn: int, turns: int) -> None:
        """From the next batch on, only every ``turns``-th is ours, the first of them that of number ``turn``."""

    def skip(self) -> None:
        """Go past the next batch, which is another process's."""


def batches(examples: Examples, batch_size: int, seed: int) -> Batches:
    """Endless batches to train on, the same for the same seed; every example once per epoch, in a new order.

    Epochs follow each other without a gap, so every batch is full; a ``batch_size`` above the number of examples is
    taken as that number. Examples that have ``workers`` are read ahead by so many processes: pictures with boxes or
    masks are varied there, each from its seed; images with a class are varied here, a batch at a time.
    """
    return Batches(examples, batch_size, seed)


class Batches(Iterator[Batch]):
    """What `batches` gives. Others with the same state go on where these are, and read nothing that lies before."""

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        self.examples = examples
        self.drawn = _Drawn(len(examples), min(batch_size, len(examples)), torch.Generator().manual_seed(seed))
        self.made: Iterator[tuple[Batch | None, _Place]] | None = None
        self.place = self.drawn.place()

    def __next__(self) -> Batch:
        """The next batch. Where turns are taken, it has to be one of ours."""
        batch = self._go_on()
        assert batch is not None, "this batch is another process's"
        return batch

    def skip(self) -> None:
        """As `InTurns`."""
        batch = self._go_on()
        assert batch is None, "this batch is ours"

    def take_turns(self, turn: int, turns: int) -> None:
        """As `InTurns`."""
        self.made = None
        self.drawn.go_to(self.place)
        self.drawn.turn, self.drawn.turns, self.drawn.number = turn, turns, 0

    def _go_on(self) -> Batch | None:
        if self.made is None:
            self.made = _maker(self.examples)(self.examples, self.drawn)
        batch, self.place = next(self.made)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Which batch is next."""
        generator, queue = self.place
        return {"generator": generator, "queue": queue.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with that batch."""
        self.made, self.place = None, (state["generator"], state["queue"])
        self.drawn.go_to(self.place)


class _Drawn(Iterator[tuple[Tensor, bool]]):
    """Indices of batch after batch. ``generator`` is for what is drawn to vary these examples, too."""

    def __init__(self, num: int, size: int, generator: torch.Generator) -> None:
        self.num, self.size, self.generator = num, size, generator
        self.queue = torch.empty(0, dtype=torch.int64)
        self.turn, self.turns, self.number = 0, 1, 0

    def __next__(self) -> tuple[Tensor, bool]:
        """Indices, and whether they are ours to read."""
        if len(self.queue) < self.size:
            self.queue = torch.cat([self.queue, torch.randperm(self.num, generator=self.generator)])
        indices, self.queue = self.queue[: self.size], self.queue[self.size :]
        self.number += 1
        return indices, (self.number - 1) % self.turns == self.turn

    def place(self) -> _Place:
        return self.generator.get_state(), self.queue

    def go_to(self, place: _Place) -> None:
        self.generator.set_state(place[0])
        self.queue = place[1]


def _maker(examples: Examples) -> Callable[[Any, _Drawn], Iterator[tuple[Batch | None, _Place]]]:
    """Who reads them. What it gives has no batch where that is another process's."""
    if not getattr(examples, "workers", 0):
        return _here
    if isinstance(examples, ClassExamples):
        return _read_ahead if isinstance(examples.images, Files) else _here
    return _ahead


def _skip(examples: Examples, indices: Tensor, generator: torch.Generator) -> None:
    """Draw what `Examples.varied` would draw, and read nothing, if they know how to."""
    if hasattr(examples, "varied_one"):
        seeds(len(indices), generator)
    else:
        getattr(examples, "skip", examples.varied)(indices, generator)


def _here(examples: Examples, drawn: _Drawn) -> Iterator[tuple[Batch | None, _Place]]:
    """Each batch, and where the next one begins."""
    for indices, is_ours in drawn:
        batch = None
        if is_ours:
            batch = examples.varied(indices, drawn.generator)
        else:
            _skip(examples, indices, drawn.generator)
        yield batch, drawn.place()


def _read_ahead(examples: ClassExamples, drawn: _Drawn) -> Iterator[tuple[Batch | None, _Place]]:
    """What `_here` would give, of files that are read by processes as far as the present epoch's order goes.

    What varies them is drawn here between the orders of two epochs, by the same generator.

    Raises:
        DataError: a file can't be read.
    """
    epoch = deque[tuple[Tensor, bool, Tensor]]()

    def ours() -> Iterator[list[Tensor]]:
        while True:
            yield [indices for indices, is_ours, _ in epoch if is_ours]

    assert isinstance(examples.images, Files)
    read = ahead(examples.images, ours(), examples.workers)
    while True:
        while not epoch or len(drawn.queue) >= drawn.size:
            epoch.append((*next(drawn), drawn.queue))
        while epoch:
            indices, is_ours, queue = epoch[0]  # which `ours` may still be asked for
            stored = next(read)[1] if is_ours else None
            epoch.popleft()
            batch = None
            if stored is None:
                examples.skip(indices, drawn.generator)
            else:
                batch = examples.varied_of(stored, indices, drawn.generator)
            yield batch, (drawn.generator.get_state(), queue)


def _ahead(examples: Examples, drawn: _Drawn) -> Iterator[tuple[Batch | None, _Place]]:
    """What `_here` would give, read by processes while others are trained on.

    Raises:
        DataError: an example can't be read.
    """
    each, places = cast(OneByOne, examples), deque[tuple[bool, _Place]]()

    def asked() -> Iterator[list[tuple[int, int]]]:
        for i, is_ours in drawn:
            ones = list(zip(i.tolist(), seeds(len(i), drawn.generator), strict=True))
            places.append((is_ours, drawn.place()))
            if is_ours:
                yield ones

    loader = DataLoader(
        _Varied(each), batch_sampler=cast(Any, asked()), num_workers=each.workers, collate_fn=list,
        generator=torch.Generator(),
    )  # fmt: skip
    for ones in loader:
        for one in ones:
            if isinstance(one, DataError):
                raise one
        while not places[0][0]:
            yield None, places.popleft()[1]
        yield each.batch(ones), places.popleft()[1]


class _Varied(Dataset[Any]):
    """What a process does: it varies an example, or gives the error that says why it can't."""

    def __init__(self, examples: OneByOne) -> None:
        self.examples = examples

    def __getitem__(self, asked: tuple[int, int]) -> Any:
        try:
            return self.examples.varied_one(*asked)
        except DataError as error:
            return error
