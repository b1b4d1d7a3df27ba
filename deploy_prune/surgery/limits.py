"""End what takes too long, and tell errors of the machine from errors of the network."""

from __future__ import annotations

import ctypes
import faulthandler
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import torch

from deploy_prune.errors import SurgeryError

_STANDARD_ERROR: Final = 2
_LEAST_HANG_S: Final = 2.0
"""A call of compiled code may go on for so long past the limit, at least: short ones are everywhere."""
_NO_MEMORY: Final = ("not enough memory", "can't allocate memory", "Cannot allocate memory", "out of memory")
"""How torch and the system say it in a RuntimeError."""


class LimitError(SurgeryError):
    """The time or the memory was not enough: it says nothing of the network, and nothing that came of it is kept."""


def require_enough(error: BaseException, doing: str) -> None:
    """Stop if an error came of this machine or of a limit, not of the network that it was raised by.

    Raises:
        LimitError: it is one itself, or memory ran out, or a file or a process failed.
    """
    told = str(error)
    if isinstance(error, LimitError):
        raise error
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in told for words in _NO_MEMORY):
        message = f"{doing} took more memory than there is: {(told.splitlines() or [''])[0][:200]}"
        raise LimitError(message) from error
    if isinstance(error, OSError):
        message = f"{doing} failed for a reason of this machine: {type(error).__name__}: {told[:200]}"
        raise LimitError(message) from error


@contextmanager
def time_limit(seconds: float, doing: str) -> Iterator[None]:
    """Stop the work inside after this long, in whatever thread it is done.

    Python can't interrupt a call of compiled code, only what comes after it. If such a call goes on for twice the time
    (and two seconds), the process is ended, with the place where it hangs on standard error.

    Raises:
        LimitError: the time is up, also where the code inside has caught the first word of it and gone on.
    """
    message = f"{doing} took longer than {seconds:g} s; raise prune.trace_timeout_s or skip modules (prune.skip)."
    late = threading.Event()
    main = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    interrupted = _by_signal if main else _by_thread
    try:
        with _ended_if_it_hangs(max(2 * seconds, seconds + _LEAST_HANG_S)), interrupted(seconds, late):
            yield
    except Exception as error:
        if late.is_set():
            raise LimitError(message) from error
        raise
    if late.is_set():
        raise LimitError(message)


@contextmanager
def _by_signal(seconds: float, late: threading.Event) -> Iterator[None]:
    """Raise an error inside after this long. A signal also ends a call of the system that waits."""

    def stop(*_: object) -> None:
        late.set()
        raise LimitError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _by_thread(seconds: float, late: threading.Event) -> Iterator[None]:
    """Raise an error inside after this long, where signals don't come: another thread tells the interpreter to."""
    interpreter, here, lock, over = ctypes.pythonapi, ctypes.c_ulong(threading.get_ident()), threading.Lock(), False

    def stop() -> None:
        with lock:
            if not over:
                late.set()
                interpreter.PyThreadState_SetAsyncExc(here, ctypes.py_object(LimitError))

    watch = threading.Timer(seconds, stop)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()
        with lock:
            over = True
            interpreter.PyThreadState_SetAsyncExc(here, None)  # one that has not come yet


_deadlines: Final[list[float]] = []
_of_deadlines: Final = threading.Lock()


@contextmanager
def _ended_if_it_hangs(seconds: float) -> Iterator[None]:
    """End the process if what is inside isn't done by then. The first deadline of all threads counts."""
    deadline = time.monotonic() + seconds
    _change(_deadlines.append, deadline)
    try:
        yield
    finally:
        _change(_deadlines.remove, deadline)


def _change(how: Callable[[float], None], deadline: float) -> None:
    with _of_deadlines:
        how(deadline)
        faulthandler.cancel_dump_traceback_later()
        if _deadlines:
            left = max(0.001, min(_deadlines) - time.monotonic())
            faulthandler.dump_traceback_later(left, exit=True, file=_STANDARD_ERROR)
