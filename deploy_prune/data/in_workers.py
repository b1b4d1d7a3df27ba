"""Do the same for many things, in other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

_A_TIME: Final = 16  # things that a process does before it says what it found
Given = TypeVar("Given")
Found = TypeVar("Found")


def each(function: Callable[[Given], Found], given: Sequence[Given], workers: int) -> Iterator[Found]:
    """What the function finds for each, in their order. ``workers``: processes that do it; 0: this one does.

    An error of the function ends it; from another process, torch adds its traceback to the message.
    """
    if not workers:
        yield from map(function, given)
        return
    loader = DataLoader(
        _Done(function, given), batch_size=_A_TIME, num_workers=workers, collate_fn=list, generator=torch.Generator()
    )
    for found in loader:
        yield from found


class _Done(Dataset[Any]):
    """Things, and what the function finds for them."""

    def __init__(self, function: Callable[[Any], Any], given: Sequence[Any]) -> None:
        self.function, self.given = function, given

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: int) -> Any:
        return self.function(self.given[index])
