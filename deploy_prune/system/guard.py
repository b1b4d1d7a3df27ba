"""Clean up if this process is killed: end its child processes, and remove its scratch folders.

A process that gets SIGKILL, or runs out of memory, can't clean up. So one small process stands by. It is told over a
pipe of every child and folder, when it comes and when it goes. When the pipe ends, this process has ended, however
that was, and what is still on the list is ended and removed. At a normal end that is nothing.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_STAND_BY: Final = """
import json, os, shutil, signal, sys, time
left = []
for line in sys.stdin:
    comes, what = json.loads(line)
    left.append(what) if comes else left.remove(what)
for group in [what for what in left if isinstance(what, int)]:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
folders = [what for what in left if isinstance(what, str)]
for _ in range(100):  # what was killed may still be writing
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    folders = [folder for folder in folders if os.path.lexists(folder)]
    if not folders:
        break
    time.sleep(0.05)
"""
Entry = int | str
"""A process group, or a folder."""

_lock = threading.RLock()
_process: subprocess.Popen[bytes] | None = None
_list: list[Entry] = []


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a new folder for temporary files, of this user alone; it is removed in the end, even if we are killed."""
    folder = Path(tempfile.gettempdir()) / f"deploy-prune-{uuid.uuid4().hex}"
    with guarded(str(folder)):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def guarded(entry: Entry) -> Iterator[None]:
    """Inside, this process group is ended, or this folder (an absolute path) removed, if this process is killed."""
    add(entry)
    try:
        yield
    finally:
        discard(entry)


def add(entry: Entry) -> None:
    """From now on it is undone if this process is killed."""
    with _lock:
        _list.append(entry)
        _tell(True, entry)


def discard(entry: Entry) -> None:
    """It is gone already."""
    with _lock, suppress(ValueError):  # a fork of the process that had it
        _list.remove(entry)
        _tell(False, entry)


def end_all() -> None:
    """End all processes that this one started and guards; whoever waits for one of them sees it end."""
    with _lock:
        for group in [entry for entry in _list if isinstance(entry, int)]:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def _tell(comes: bool, entry: Entry) -> None:
    global _process  # noqa: PLW0603
    if _process is not None:
        with suppress(BrokenPipeError):  # it was killed
            return _write(_process, comes, entry)
        _process.wait()
    _process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", "-S", "-c", _STAND_BY],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, bufsize=0, cwd="/",
        start_new_session=True,
    )  # fmt: skip
    for each in _list:
        _write(_process, True, each)
    return None


def _write(process: subprocess.Popen[bytes], comes: bool, entry: Entry) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps([comes, entry]).encode() + b"\n")


@atexit.register
def _dismiss() -> None:
    """Let the process that stands by do what is left, and end."""
    global _process  # noqa: PLW0603
    if _process is not None:
        assert _process.stdin is not None
        _process.stdin.close()
        _process.wait()
    _process = None


def _forget() -> None:
    """In a fork: what is on the list is the parent's."""
    global _process, _lock  # noqa: PLW0603
    _lock = threading.RLock()
    _list.clear()
    if _process is not None:
        assert _process.stdin is not None
        _process.stdin.close()
        _process.returncode = 0  # not our child
    _process = None


os.register_at_fork(after_in_child=_forget)
