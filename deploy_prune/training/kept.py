"""Going on with a training that was stopped: its whole state, kept in a file every few minutes."""

from __future__ import annotations

import logging
import pickle
import random
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
import torch
from torch import nn

from deploy_prune.system.shell import atomic, shown

KEEP_EVERY_S: Final = 300.0
"""What a stopped training loses at most."""
_LOG = logging.getLogger(__name__)
_UNREADABLE: Final = (
    OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError,
    pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip


class Stateful(Protocol):
    """What changes while a training goes on: networks, optimizers, schedules, batches."""

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors, numbers and text in dicts, lists and tuples."""

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Be as it was then."""


class Kept:
    """The file that a training goes on from; ``key`` says of which training it is, and another one's is ignored.

    ``tell``: gets a sentence when a training goes on.
    """

    def __init__(self, path: Path, key: str, tell: Callable[[str], None], every_s: float = KEEP_EVERY_S) -> None:
        self.path, self.key, self.tell, self.every_s = path, key, tell, every_s
        self.since_s = time.monotonic()

    def keep(self, parts: Sequence[Stateful], losses: Sequence[float]) -> None:
        """After a step: write the file, if it is time to. ``losses``: one a step.

        Raises:
            RunFolderError: it can't be written.
        """
        if time.monotonic() - self.since_s < self.every_s:
            return
        told = {"key": self.key, "losses": list(losses), "parts": [_state(part) for part in (*parts, _Generators())]}
        with atomic(self.path) as temporary, temporary.open("wb") as file:
            torch.save(told, file)
        self.since_s = time.monotonic()

    def restore(self, parts: Sequence[Stateful]) -> list[float]:
        """Give the parts the state that was kept; the losses of the steps that it has, none if nothing was kept.

        A file that can't be read is ignored, with a warning; the parts are then as they were.
        """
        parts = (*parts, _Generators())
        try:
            told = self._read()
            if told is None or told["key"] != self.key:
                return []
            before = deepcopy([_state(part) for part in parts])
            try:
                _load(parts, told["parts"])
            except BaseException:
                _load(parts, before)
                raise
            return [float(loss) for loss in told["losses"]]
        except _UNREADABLE as error:
            reason = str(error).partition("\n")[0]
            _LOG.warning("%s can't be read (%s): this training begins anew.", shown(self.path), reason)
            return []

    def _read(self) -> Any:
        if not self.path.exists():
            return None
        with zipfile.ZipFile(self.path) as archive:  # torch.load doesn't look at checksums
            damaged = archive.testzip()
        if damaged is not None:
            message = f"{damaged} in it is damaged"
            raise ValueError(message)
        return torch.load(self.path, map_location="cpu", weights_only=True)


class _Generators:
    """The global generators of Python, numpy and torch (every device)."""

    def state_dict(self) -> dict[str, Any]:
        kind, words, *rest = np.random.get_state()  # noqa: NPY002
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return {
            "python": random.getstate(), "numpy": (kind, np.asarray(words).tolist(), *rest),
            "torch": torch.get_rng_state(), "cuda": cuda,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        kind, words, *rest = state["numpy"]
        random.setstate(state["python"])
        np.random.set_state((kind, np.array(words, dtype=np.uint32), *rest))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        for device, there in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(there, device)


def _state(part: Stateful) -> dict[str, Any]:
    """With a network's buffers that are in no state dict."""
    state = part.state_dict()
    buffers = dict(part.named_buffers()) if isinstance(part, nn.Module) else {}
    return {"state": state, "beside": {name: buffer for name, buffer in buffers.items() if name not in state}}


@torch.no_grad()
def _load(parts: Sequence[Stateful], states: Sequence[Mapping[str, Any]]) -> None:
    for part, state in zip(parts, states, strict=True):
        part.load_state_dict(state["state"])
        for name, buffer in state["beside"].items():
            cast(nn.Module, part).get_buffer(name).copy_(buffer)
