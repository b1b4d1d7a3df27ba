"""Export a network to its ATen graph, within a time limit, leaving the network as it was."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from deploy_prune.errors import SurgeryError


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's own mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def time_limit(seconds: float, doing: str) -> Iterator[None]:
    """Stop the work inside after this long (main thread of a POSIX system; elsewhere there is no limit).

    Raises:
        SurgeryError: the time is up.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        message = f"{doing} took longer than {seconds:g} s; raise prune.trace_timeout_s or skip modules (prune.skip)."
        raise SurgeryError(message)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def trace(network: nn.Module, inputs: Sequence[Tensor], timeout_s: float) -> ExportedProgram:
    """The network's ATen graph in eval mode, for inputs of these shapes.

    Raises:
        SurgeryError: torch.export can't trace it (with its own first line), or not within ``timeout_s``.
    """
    with evaluating(network), warnings.catch_warnings(), time_limit(timeout_s, "Tracing the network"):
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(network, tuple(inputs), strict=False)
        except SurgeryError:
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            message = f"The network can't be traced by torch.export: {type(error).__name__}: {first[:300]}"
            raise SurgeryError(message) from error
