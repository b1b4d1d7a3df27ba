"""Touching the machine: run a command with a timeout, write a file so that it is never seen half-written."""

from __future__ import annotations

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
    """Yield a temporary path in the same folder, for a file or a folder; on success it takes the final name at once.

    The temporary file keeps the final suffix, so that a writer that looks at it does the right thing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix=".writing-", dir=path.parent))
    temporary = folder / path.name
    try:
        yield temporary
        for file in (temporary, *temporary.rglob("*")):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        if path.is_dir():
            path.replace(folder / "former")
        temporary.replace(path)
    finally:
        shutil.rmtree(folder)


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
