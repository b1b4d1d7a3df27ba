"""Touching the machine: run a command with a timeout, write a file so that it is never seen half-written."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

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
        for written in _files(temporary):
            with written.open("rb") as file:
                os.fsync(file.fileno())
        if path.is_dir() or (temporary.is_dir() and path.exists()):
            before = folder / "before"
            before.mkdir()
            path.rename(before / path.name)
        temporary.replace(path)
    finally:
        shutil.rmtree(folder)


def _files(path: Path) -> list[Path]:
    """The file itself (even if it isn't there), or all files of a folder, by their names in it."""
    if not path.is_dir():
        return [path]
    return sorted((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.relative_to(path).as_posix())


def digest(path: Path) -> str:
    """A file's sha256, hexadecimal; a folder's: that of the lines "sha256  name" of its files, sorted by name."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    lines = (f"{digest(file)}  {file.relative_to(path).as_posix()}\n" for file in _files(path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def size_bytes(path: Path) -> int:
    """A file's size, or that of all files in a folder."""
    return sum(file.stat().st_size for file in _files(path))


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


def run_command(
    args: Sequence[str], timeout_s: float, stdin: str | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a command and return its standard output.

    Raises:
        CommandError: it is not there, exits non-zero, or outlasts ``timeout_s``; with the end of its standard error.
    """
    try:
        code, output, errors = _communicate(args, timeout_s, stdin, env)
    except (FileNotFoundError, PermissionError) as error:
        reason = "is not on this machine" if isinstance(error, FileNotFoundError) else "can't be started"
        message = f"The command {args[0]!r} {reason}."
        raise CommandError(message) from error
    except subprocess.TimeoutExpired as error:
        message = f"The command {args[0]!r} was stopped after {timeout_s:g} s without an end."
        raise CommandError(message) from error
    if code:
        message = f"The command {args[0]!r} failed with exit code {code}: {_tail(errors)}"
        raise CommandError(message)
    return output


def _communicate(
    args: Sequence[str], timeout_s: float, stdin: str | None, env: Mapping[str, str] | None
) -> tuple[int, str, str]:
    """Run to the end; if that does not come, stop the command and everything that it started."""
    with subprocess.Popen(  # noqa: S603
        list(args),
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(stdin, timeout=timeout_s)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output, errors


def _tail(text: str, lines: int = 5) -> str:
    return " | ".join(text.strip().splitlines()[-lines:]) or "no message"
