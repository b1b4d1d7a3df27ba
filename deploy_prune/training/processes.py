"""Start processes that train together, follow them, and end them: of one that fails, the error comes back as it is.

Not by torchrun, which gives every process a session of its own: if torchrun is killed, they are left running. These are
children of this process, which ends them, and whose guard does so if it is killed itself. They meet in a file.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import joblib
import psutil
import torch

from deploy_prune.errors import TrainingError
from deploy_prune.recipe.parts import Recipe
from deploy_prune.system.guard import guarded, scratch
from deploy_prune.system.shell import tail

START: Final = """
import json, sys
told = json.loads(sys.argv[1])
sys.path[:] = told["path"]
from deploy_prune.training import rank
rank.main(told)
"""
"""Python is started isolated (-I), and imports from where this process does."""
LAUNCHERS: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What launchers tell their processes; ours are told by an argument."""
LEFT: Final = 75
"""The exit code of a process that ended because another one had."""
GRACE_S: Final = 5.0
"""So long it is waited for the error of the one that ended first, and for all to end by themselves in the end."""
POLL_S: Final = 0.05
Hear = Callable[..., None]


def how_many(recipe: Recipe) -> int:
    """Processes that a recipe asks for. ``auto``: one for each CUDA device, one where there is none."""
    if recipe.processes != "auto":
        return recipe.processes
    return max(1, torch.cuda.device_count()) if recipe.device in {"auto", "cuda"} else 1


def batches_a_step(recipe: Recipe) -> int:
    """Of all processes together: what a result depends on."""
    return recipe.accumulate * how_many(recipe)


def require_processes(recipe: Recipe) -> int:
    """How many processes train together.

    Raises:
        TrainingError: there are fewer CUDA devices, or ``device`` is a single one.
    """
    num, device = how_many(recipe), recipe.device
    devices = 0 if device == "cpu" else torch.cuda.device_count()
    if num > 1 and ":" in device:
        message = f"processes: {num} train on CUDA devices 0 to {num - 1}, and device is {device}; write device: cuda."
        raise TrainingError(message)
    if num > max(devices, 1) and (devices or device == "cuda"):
        message = (
            f"processes: {num} are asked for, one for each CUDA device, and torch finds {devices}; ask for at most "
            f"{max(1, devices)}, or write device: cpu."
        )
        raise TrainingError(message)
    return num


def device_of_rank(rank: int, device: str) -> str:
    """Where a process of several trains: on the CUDA device of its number, or on the CPU."""
    return f"cuda:{rank}" if device != "cpu" and torch.cuda.is_available() else "cpu"


def threads_of_rank(size: int, threads: int | None) -> int:
    """The threads of each of so many processes on a CPU; ``threads``: as the recipe has it."""
    return threads or max(1, min(torch.get_num_threads(), int(joblib.cpu_count()) // size))


def run_together(size: int, work: Callable[..., None], given: Sequence[Any], hear: Hear, device: str = "auto") -> None:
    """Do ``work(ranks, tell, *given)`` in so many processes, which train together, and wait for it.

    Args:
        size: how many.
        work: a function that its module's name leads to. It must take steps (`loop.fit`); what comes after these is
            done by the first process alone.
        given: what it is given; sent by pickle.
        hear: called with what the first process tells: ``tell("progress", ...)`` there is ``hear("progress", ...)``
            here, with arguments that JSON can hold.
        device: as `make_accelerator` takes it; each gets its own by `device_of_rank`.

    Raises:
        TrainingError: one of them was killed, or crashed.
        Exception: whatever one of them raises.
    """
    with scratch() as folder, ExitStack() as stack:
        (folder / "work").write_bytes(pickle.dumps((work, tuple(given))))
        reading, writing = os.pipe()
        stack.callback(os.close, reading)
        os.set_blocking(reading, False)
        try:
            started = [
                stack.enter_context(_started(rank, size, folder, device, writing)) for rank in range(size)
            ]  # fmt: skip
        finally:
            os.close(writing)
        _follow(reading, started, hear)
        _let_end(started)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rank:
    """One of the processes; ``error``: the file in which it leaves its error, ``log``: what it prints."""

    number: int
    size: int
    process: subprocess.Popen[bytes]
    error: Path
    log: Path

    def ended(self) -> bool:
        return self.process.poll() is not None

    def is_cause(self) -> bool:
        """It has ended, and not because another one had."""
        return self.ended() and self.process.returncode != LEFT

    def failure(self) -> BaseException:
        """Why it ended: its own error, or what is known of its end."""
        with suppress(OSError, EOFError, pickle.UnpicklingError, AttributeError, ImportError, TypeError):
            error, traceback = pickle.loads(self.error.read_bytes())  # noqa: S301
            assert isinstance(error, BaseException)
            error.__cause__ = _ThereError(traceback)
            return error
        code = self.process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        told = self.log.read_text(encoding="utf-8", errors="replace")
        message = f"Process {self.number + 1} of the {self.size} that train together {how}"
        if code == -signal.SIGKILL:
            message += "; if memory ran out, ask for fewer processes or a smaller batch"
        return TrainingError(f"{message}. It told: {tail(told)}" if told.strip() else f"{message}.")


class _ThereError(Exception):
    """The traceback of an error in another process."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@contextmanager
def _started(rank: int, size: int, folder: Path, device: str, writing: int) -> Iterator[_Rank]:
    """One of the processes; in the end it and all that it has started is killed."""
    told = {"path": sys.path, "folder": str(folder), "rank": rank, "size": size, "device": device, "pipe": writing}
    log = folder / f"log-{rank}"
    with log.open("wb") as printed:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-c", START, json.dumps(told)],
            stdin=subprocess.PIPE, stdout=printed, stderr=printed, env=_environment(size),
            pass_fds=[writing] if rank == 0 else [], start_new_session=True,
        )  # fmt: skip
    with guarded(process.pid):
        try:
            yield _Rank(number=rank, size=size, process=process, error=folder / f"error-{rank}", log=log)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environment(size: int) -> dict[str, str]:
    """They talk over the loopback interface, unless the user has named another, and share the cores."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
    loopback = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(a.family == socket.AF_INET and a.address == "127.0.0.1" for a in addresses)
    ]
    interface = {"GLOO_SOCKET_IFNAME": loopback[0]} if loopback else {}
    return {"OMP_NUM_THREADS": str(threads_of_rank(size, None)), **interface, **kept}


def _follow(reading: int, started: Sequence[_Rank], hear: Hear) -> None:
    """Hear what the first process tells, until it is done.

    Raises:
        Exception: one of them has ended before.
    """
    left = b""
    while True:
        ended = any(rank.ended() for rank in started)  # before reading: what was told before its end is there
        told = b""
        with suppress(BlockingIOError):
            told = os.read(reading, 2**20)
        *lines, left = (left + told).split(b"\n")
        for line in lines:
            kind, *what = json.loads(line)
            if kind == "done":
                return
            hear(kind, *what)
        if not told and ended:
            raise _cause(started)
        if not told:
            time.sleep(POLL_S)


def _cause(started: Sequence[_Rank]) -> BaseException:
    """The error of the one that ended first; the others end because it has."""
    until = time.monotonic() + GRACE_S
    while not any(rank.is_cause() for rank in started) and time.monotonic() < until:
        time.sleep(POLL_S)
    causes = [rank for rank in started if rank.is_cause()] or [rank for rank in started if rank.ended()]
    return causes[0].failure()


def _let_end(started: Sequence[_Rank]) -> None:
    """They end by themselves when nobody writes to them any more."""
    for rank in started:
        assert rank.process.stdin is not None
        rank.process.stdin.close()
    until = time.monotonic() + GRACE_S
    for rank in started:
        with suppress(subprocess.TimeoutExpired):
            rank.process.wait(max(0.0, until - time.monotonic()))
