"""Locks between processes: one command at a time in a folder, one computation of a key, one measurement on a device.

The system releases them when their process ends, however that is.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from deploy_prune.errors import RunFolderError
from deploy_prune.system.shell import shown

LOCK: Final = ".lock"
HOLDER: Final = ".lock.json"
"""Who has the lock: process, host, since when."""
WAIT_S: Final = 0.2
"""Who waits looks so often."""


@contextmanager
def hold(folder: Path, wait: Callable[[str], object] | None = None, *, keep: bool = True) -> Iterator[None]:
    """Make a folder, if need be, and have it to ourselves; one that is left empty is removed again.

    The thread that has it may take it again.

    Args:
        folder: what a command is going to write.
        wait: until another process that has it is done; this is told which, once.
        keep: leave the lock's empty file there.

    Raises:
        RunFolderError: another process has it, and which; or it can't be written or locked.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    lock = FileLock(folder.absolute() / LOCK, is_singleton=True)
    try:
        _take(lock, folder, wait)
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"The run folder {shown(folder)} can't be written or locked ({reason}); choose another with --out."
        raise RunFolderError(message) from error
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            _leave(folder, new, keep)
        lock.release()


@contextmanager
def one_at_a_time(kind: str, *keys: str, wait: Callable[[], object] | None = None) -> Iterator[str]:
    """Wait until no other process or thread of this user, on this machine, is at this work; ``wait`` is told if so.

    Of several keys, the first that is free; yields which.
    """
    folder = Path(tempfile.gettempdir()) / f"deploy-prune-locks-{os.getuid()}"
    names = {key: hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32] for key in keys}
    locks = {key: FileLock(folder / f"{kind}-{name}.lock", is_singleton=True) for key, name in names.items()}
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
            message = f"{folder} belongs to somebody else; remove it, or set TMPDIR to a folder of your own."
            raise RunFolderError(message)
        key = _first_free(locks, wait)
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"No lock can be made in {folder} ({reason}); set TMPDIR to another folder."
        raise RunFolderError(message) from error
    try:
        yield key
    finally:
        locks[key].release()


def _first_free(locks: Mapping[str, FileLock], wait: Callable[[], object] | None) -> str:
    for attempt in count():
        for key, lock in locks.items():
            with suppress(Timeout):
                lock.acquire(timeout=0)
                return key
        if attempt == 0 and wait is not None:
            wait()
        time.sleep(WAIT_S)
    raise AssertionError


def _take(lock: FileLock, folder: Path, wait: Callable[[str], object] | None) -> None:
    told = False
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            if wait is None:
                hint = "wait for it (recipe has --wait), end it, or choose another --out"
                message = f"{shown(folder)} is being written by {_holder(folder)}: {hint}."
                raise RunFolderError(message) from None
            if not told:
                wait(f"waiting for {_holder(folder)} in {shown(folder)}")
            told = True
            time.sleep(WAIT_S)
        except FileNotFoundError:  # who had it left it empty, and removed it just now
            continue
        else:
            if (folder / LOCK).exists():  # else it was removed while we waited for it
                break
            lock.release()
    if lock.lock_counter == 1:
        by = {"pid": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
        (folder / HOLDER).write_text(json.dumps(by) + "\n", encoding="utf-8")


def _leave(folder: Path, new: list[Path], keep: bool) -> None:
    with suppress(OSError):
        (folder / HOLDER).unlink(missing_ok=True)
        empty = new and [place.name for place in folder.iterdir()] == [LOCK]
        if empty or not keep:
            (folder / LOCK).unlink()
        for place in new if empty else ():
            place.rmdir()


def _holder(folder: Path) -> str:
    try:
        told = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"process {int(told['pid'])} on {str(told['host'])[:80]!r}, since {str(told['since'])[:40]}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"
