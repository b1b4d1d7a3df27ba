"""An accelerator beside others: accelerate keeps one state per process, which may be the user's own program's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

STATES: Final = (PartialState, AcceleratorState, GradientState)
"""Each keeps what all its instances share in ``_shared_state`` of the class."""


class OwnAccelerator(Accelerator):  # type: ignore[misc]  # (accelerate isn't typed)
    """An accelerator with a state of its own, for one process and without scaled gradients.

    Its instances keep the dictionaries that they were made with; what looks at the classes again while it works finds
    those for as long as it does.
    """

    def __init__(self, **settings: Any) -> None:
        self._shared: tuple[dict[str, Any], ...] = tuple({} for _ in STATES)
        with self._in_force():
            super().__init__(**settings)

    def autocast(self, autocast_handler: Any = None) -> AbstractContextManager[Any]:
        """Mixed precision as it was asked for; the parent's looks at the state of the process."""
        mixed = self.mixed_precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed)

    def init_trackers(self, *args: Any, **kwargs: Any) -> None:
        """As the parent's."""
        with self._in_force():
            super().init_trackers(*args, **kwargs)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """As the parent's."""
        with self._in_force():
            super().log(*args, **kwargs)

    def end_training(self) -> None:
        """As the parent's."""
        with self._in_force():
            super().end_training()

    @contextmanager
    def _in_force(self) -> Iterator[None]:
        """The state of the process is ours."""
        before = [vars(kind)["_shared_state"] for kind in STATES]
        try:
            for kind, shared in zip(STATES, self._shared, strict=True):
                kind._shared_state = shared
            yield
        finally:
            for kind, shared in zip(STATES, before, strict=True):
                kind._shared_state = shared
