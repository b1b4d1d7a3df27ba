"""Run commands with a timeout, and write files so that they are never seen half-written."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp
from typing import IO, Final

from deploy_prune.errors import CommandError, RunFolderError
from deploy_prune.system import guard

WRITING: Final = ".writing-"
"""How the folders begin in which files are written before they get their names."""
MOST_PRINTED_BYTES: Final = 64 * 2**20
"""A command may print so much, on each of its two outputs: the longest answers, of profiles, have a few MiB."""
TOLD: Final = 1000
"""Characters of what a command printed that a message has, at most."""
POLL_S: Final = 0.05
"""How often it is looked at how much a command has written to a file."""
_FULL: Final = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR,
        errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
    }
)  # fmt: skip
"""Errors of the place that is written to, not of what writes."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success the file or folder there takes the final name.

    A file takes it in one step. What is in a folder's way is moved aside first. The temporary path keeps the final
    suffix, so that a writer that looks at it does the right thing.

    Raises:
        RunFolderError: the place can't be written to: full, read-only, not a folder.
    """
    try:
        with _moved_in(path) as temporary:
            yield temporary
    except OSError as error:
        if error.errno not in _FULL or not str(error.filename or path.parent).startswith(str(path.parent)):
            raise
        reason = "a file is in the way" if error.errno == errno.EEXIST else error.strerror
        message = f"{shown(path)} can't be written ({reason}); free some space there, or choose another place."
        raise RunFolderError(message) from error


@contextmanager
def _moved_in(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _writing(path.parent) as folder:
        temporary = folder / path.name
        yield temporary
        for written in files_of(temporary):
            with written.open("rb") as file:
                os.fsync(file.fileno())
        if path.is_dir() or (temporary.is_dir() and path.exists()):
            before = folder / "before"
            before.mkdir()
            path.rename(before / path.name)
        temporary.replace(path)


@contextmanager
def _writing(parent: Path) -> Iterator[Path]:
    """Yield a folder in ``parent`` that is ours for as long as this context lasts; see ``sweep``."""
    folder, descriptor = _claimed(parent)
    try:
        with guard.guarded(str(folder.absolute())):
            yield folder
    finally:
        shutil.rmtree(folder)
        os.close(descriptor)


def _claimed(parent: Path) -> tuple[Path, int]:
    """A new folder, and an open descriptor of it with its lock."""
    while True:
        folder = Path(mkdtemp(prefix=WRITING, dir=parent))
        descriptor = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks: nobody can sweep there either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder, descriptor
        os.close(descriptor)  # somebody swept before it was locked


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left half-written below a folder; what is being written stays."""
    for left in folder.rglob(f"{WRITING}*"):
        try:
            descriptor = os.open(left, os.O_RDONLY)
        except FileNotFoundError:  # it was finished just now
            continue
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)
        os.close(descriptor)


def shown(path: Path | str | bytes) -> str:
    """A path as text that can be printed and stored: bytes that are no UTF-8 are spelled out."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def files_of(path: Path) -> list[Path]:
    """The file itself (even if it isn't there), or all files of a folder, by their names in it."""
    if not path.is_dir():
        return [path]
    return sorted((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.relative_to(path).as_posix())


def digest(path: Path) -> str:
    """A file's sha256, hexadecimal; a folder's: that of the lines "sha256  name" of its files, sorted by name."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    lines = (f"{digest(file)}  {file.relative_to(path).as_posix()}\n" for file in files_of(path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def linked(source: Path, path: Path) -> None:
    """Give a file, or all files of a folder, a second name by hard links; copies, where there can be none."""
    if source.is_dir():
        shutil.copytree(source, path, copy_function=_link)
    else:
        _link(source, path)


def _link(source: Path | str, path: Path | str) -> None:
    try:
        os.link(source, path)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, path)


def size_bytes(path: Path) -> int:
    """A file's size, or that of all files in a folder."""
    return sum(file.stat().st_size for file in files_of(path))


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Most:
    """A file (or a descriptor of one), and the bytes that it may have."""

    path: Path | int
    size_bytes: int

    def exceeded(self) -> bool:
        """Whether it has more."""
        try:
            return os.stat(self.path).st_size > self.size_bytes  # noqa: PTH116  (a descriptor is no Path)
        except FileNotFoundError:
            return False


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that came to its end: exit code, standard output (empty if it went to a file), standard error."""

    code: int
    output: str
    errors: str


def run_command(
    args: Sequence[str], timeout_s: float, stdin: str | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a command and return its standard output.

    Raises:
        CommandError: it is not there, exits non-zero, or outlasts ``timeout_s``; with the end of its standard error.
    """
    done = run_to_end(args, timeout_s, stdin=stdin, env=env)
    if done.code:
        message = f"The command {args[0]!r} failed with exit code {done.code}: {tail(done.errors)}"
        raise CommandError(message)
    return done.output


def run_to_end(
    args: Sequence[str],
    timeout_s: float,
    *,
    stdin: str | IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    most: Most | None = None,
) -> Finished:
    """Run a command, whatever its exit code; standard input is a text, an open file, or empty.

    ``most``: how large a file may become that it writes; by default, nobody looks.

    Raises:
        CommandError: it is not there, outlasts ``timeout_s``, or prints or writes too much: then it and everything
            that it started is stopped.
    """
    try:
        with TemporaryFile() as text, TemporaryFile() as errors:
            if isinstance(stdin, str):
                text.write(stdin.encode())
                text.seek(0)
            given = subprocess.DEVNULL if stdin is None else text if isinstance(stdin, str) else stdin
            with subprocess.Popen(  # noqa: S603
                list(args), stdin=given, stdout=subprocess.PIPE if stdout is None else stdout, stderr=errors, env=env,
                start_new_session=True,
            ) as process:  # fmt: skip
                output = _until_its_end(process, errors, timeout_s, most)
            errors.seek(0)
            told = errors.read().decode("utf-8", errors="replace")
        return Finished(code=process.returncode, output=output.decode("utf-8", errors="replace"), errors=told)
    except (FileNotFoundError, PermissionError) as error:
        reason = "is not on this machine" if isinstance(error, FileNotFoundError) else "can't be started"
        message = f"The command {args[0]!r} {reason}."
        raise CommandError(message) from error
    except subprocess.TimeoutExpired as error:
        message = f"The command {args[0]!r} was stopped after {timeout_s:g} s."
        raise CommandError(message) from error


def clean_environment(folder: Path) -> dict[str, str]:
    """The environment of a Python that we start: what it imports is not told by it, its temporary files go there."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return {**kept, "PYTHONSAFEPATH": "1", "TMPDIR": str(folder)}


@contextmanager
def held_open() -> Iterator[IO[bytes]]:
    """Yield a file that gives nothing, and ends only when this context does: it tells a reader that we still live."""
    reading, writing = os.pipe()
    try:
        with os.fdopen(reading, "rb") as file:
            yield file
    finally:
        os.close(writing)


def tail(text: str, lines: int = 5) -> str:
    """The last lines of what a command printed, as one; a long one's middle is left out."""
    told = " | ".join(text.strip().splitlines()[-lines:]) or "no message"
    return told if len(told) <= TOLD else f"{told[: TOLD // 2]} [...] {told[-TOLD // 2 :]}"


def _until_its_end(process: subprocess.Popen[bytes], errors: IO[bytes], timeout_s: float, most: Most | None) -> bytes:
    """What the command prints. If it goes over a limit, or we are interrupted, it and all that it started is stopped.

    Standard error goes to a file: a pipe would be waited for as long as anything left in the background has it.
    """
    limits = [Most(path=errors.fileno(), size_bytes=MOST_PRINTED_BYTES), *([most] if most else [])]
    until = time.monotonic() + timeout_s
    with guard.guarded(process.pid), selectors.DefaultSelector() as ready:
        try:
            if process.stdout is not None:
                ready.register(process.stdout, selectors.EVENT_READ)
            printed = bytearray()
            while ready.get_map() or process.poll() is None:
                if time.monotonic() > until:
                    raise subprocess.TimeoutExpired(process.args, timeout_s)
                _require_less(process, printed, limits)
                _read_on(process, ready, printed)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return bytes(printed)


def _read_on(process: subprocess.Popen[bytes], ready: selectors.BaseSelector, printed: bytearray) -> None:
    """What has come meanwhile; wait a little if nothing has."""
    if not ready.get_map():
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL_S)
    for key, _ in ready.select(POLL_S) if ready.get_map() else ():
        chunk = os.read(key.fd, 2**16)
        printed += chunk
        if not chunk:
            ready.unregister(key.fileobj)


def _require_less(process: subprocess.Popen[bytes], printed: bytearray, limits: Sequence[Most]) -> None:
    over = [one.size_bytes for one in limits if one.exceeded()]
    if len(printed) > MOST_PRINTED_BYTES or over:
        name = process.args[0] if isinstance(process.args, list) else process.args
        most = [*over, MOST_PRINTED_BYTES][0]
        message = f"The command {name!r} was stopped: it wrote more than the {most} bytes that it may."
        raise CommandError(message)
