"""Endless batches of examples, the same for the same seed, whoever reads them."""

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
        self.made: Iterator[tuple[Batch, _Place]] | None = None
        self.place = self.drawn.place()

    def __next__(self) -> Batch:
        """The next batch."""
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


class _Drawn(Iterator[Tensor]):
    """Indices of batch after batch. ``generator`` is for what is drawn to vary these examples, too."""

    def __init__(self, num: int, size: int, generator: torch.Generator) -> None:
        self.num, self.size, self.generator = num, size, generator
        self.queue = torch.empty(0, dtype=torch.int64)

    def __next__(self) -> Tensor:
        if len(self.queue) < self.size:
            self.queue = torch.cat([self.queue, torch.randperm(self.num, generator=self.generator)])
        indices, self.queue = self.queue[: self.size], self.queue[self.size :]
        return indices

    def place(self) -> _Place:
        return self.generator.get_state(), self.queue

    def go_to(self, place: _Place) -> None:
        self.generator.set_state(place[0])
        self.queue = place[1]


def _maker(examples: Examples) -> Callable[[Any, _Drawn], Iterator[tuple[Batch, _Place]]]:
    """Who reads them."""
    if not getattr(examples, "workers", 0):
        return _here
    if isinstance(examples, ClassExamples):
        return _read_ahead if isinstance(examples.images, Files) else _here
    return _ahead


def _here(examples: Examples, drawn: _Drawn) -> Iterator[tuple[Batch, _Place]]:
    """Each batch, and where the next one begins."""
    for indices in drawn:
        yield examples.varied(indices, drawn.generator), drawn.place()


def _read_ahead(examples: ClassExamples, drawn: _Drawn) -> Iterator[tuple[Batch, _Place]]:
    """What `_here` would give, of files that are read by processes as far as the present epoch's order goes.

    What varies them is drawn here between the orders of two epochs, by the same generator.

    Raises:
        DataError: a file can't be read.
    """
    queues = deque[Tensor]()

    def epochs() -> Iterator[list[Tensor]]:
        while True:
            whole: list[Tensor] = []
            while not whole or len(drawn.queue) >= drawn.size:
                whole.append(next(drawn))
                queues.append(drawn.queue)
            yield whole

    assert isinstance(examples.images, Files)
    for indices, stored in ahead(examples.images, epochs(), examples.workers):
        batch = examples.varied_of(stored, indices, drawn.generator)
        yield batch, (drawn.generator.get_state(), queues.popleft())


def _ahead(examples: Examples, drawn: _Drawn) -> Iterator[tuple[Batch, _Place]]:
    """What `_here` would give, read by processes while others are trained on.

    Raises:
        DataError: an example can't be read.
    """
    each, places = cast(OneByOne, examples), deque[_Place]()

    def asked() -> Iterator[list[tuple[int, int]]]:
        for i in drawn:
            ones = list(zip(i.tolist(), seeds(len(i), drawn.generator), strict=True))
            places.append(drawn.place())
            yield ones

    loader = DataLoader(
        _Varied(each), batch_sampler=cast(Any, asked()), num_workers=each.workers, collate_fn=list,
        generator=torch.Generator(),
    )  # fmt: skip
    for ones in loader:
        for one in ones:
            if isinstance(one, DataError):
                raise one
        yield each.batch(ones), places.popleft()


class _Varied(Dataset[Any]):
    """What a process does: it varies an example, or gives the error that says why it can't."""

    def __init__(self, examples: OneByOne) -> None:
        self.examples = examples

    def __getitem__(self, asked: tuple[int, int]) -> Any:
        try:
            return self.examples.varied_one(*asked)
        except DataError as error:
            return error
