"""Touching the machine: run a command with a timeout, write a file so that it is never seen half-written."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp
from typing import IO

from deploy_prune.errors import CommandError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success the file or folder there takes the final name.

    A file takes it in one step. What is in a folder's way is moved aside first. The temporary path keeps the final
    suffix, so that a writer that looks at it does the right thing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix=".writing-", dir=path.parent))
    temporary = folder / path.name
    try:
        yield temporary
        for written in files_of(temporary):
            with written.open("rb") as file:
                os.fsync(file.fileno())
        if path.is_dir() or (temporary.is_dir() and path.exists()):
            before = folder / "before"
            before.mkdir()
            path.rename(before / path.name)
        temporary.replace(path)
    finally:
        shutil.rmtree(folder)


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
) -> Finished:
    """Run a command, whatever its exit code; standard input is a text, an open file, or empty.

    Raises:
        CommandError: it is not there, or outlasts ``timeout_s``: then it and everything that it started is stopped.
    """
    try:
        return _communicate(args, timeout_s, stdin, stdout, env)
    except (FileNotFoundError, PermissionError) as error:
        reason = "is not on this machine" if isinstance(error, FileNotFoundError) else "can't be started"
        message = f"The command {args[0]!r} {reason}."
        raise CommandError(message) from error
    except subprocess.TimeoutExpired as error:
        message = f"The command {args[0]!r} was stopped after {timeout_s:g} s without an end."
        raise CommandError(message) from error


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
    """The last lines of what a command printed, as one."""
    return " | ".join(text.strip().splitlines()[-lines:]) or "no message"


def _communicate(
    args: Sequence[str],
    timeout_s: float,
    stdin: str | IO[bytes] | None,
    stdout: IO[bytes] | None,
    env: Mapping[str, str] | None,
) -> Finished:
    """Standard error goes to a file: a pipe would be waited for as long as anything left in the background has it."""
    text = stdin if isinstance(stdin, str) else None
    given = subprocess.DEVNULL if stdin is None else subprocess.PIPE if isinstance(stdin, str) else stdin
    with (
        TemporaryFile() as errors,
        subprocess.Popen(  # noqa: S603
            list(args),
            stdin=given,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=errors,
            env=env,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        ) as process,
    ):
        try:
            output, _ = process.communicate(text, timeout=timeout_s)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        errors.seek(0)
        told = errors.read().decode("utf-8", errors="replace")
    return Finished(code=process.returncode, output=output or "", errors=told)
