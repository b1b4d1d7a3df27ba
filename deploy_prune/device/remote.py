"""Running a payload on a device that is not this machine: send what it reads, start it, fetch what it wrote.

Needs sh, sha256sum and setsid there, which every Linux and Android has, and the payload's own needs: Python 3.10 with
numpy and the runtime. What is sent is kept there under its content's sha256 (in ~/.cache/deploy-prune, on Android in
/data/local/tmp/deploy-prune), is sent again only if it isn't there or is damaged, and removed after a week without use.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol

from deploy_prune.device.address import Address
from deploy_prune.device.host import as_object
from deploy_prune.errors import CommandError
from deploy_prune.system.guard import scratch
from deploy_prune.system.shell import Finished, digest, files_of, held_open, tail, write_text

GRACE_S: Final = 5
"""If nobody here stops the payload when its time is over, the device does it so much later."""
KEPT_DAYS: Final = 7
MOST_FETCHED_BYTES: Final = 2**31
"""A file of outputs may be so large: 64 segmentations of 1024 x 1024 with 8 classes in float32."""
_LATE, _OLD_PYTHON, _NOT_FOUND, _KILLED = 124, 126, 127, 137
_PACKAGES: Final = {"ai_edge_litert": "ai-edge-litert"}
"""Packages whose name for pip isn't the one that is imported."""

_OPEN: Final = """\
umask 077
root={root}
mkdir -p "$root" && work=$(mktemp -d "$root/run.XXXXXX") && cd "$root" && pwd && echo "${{work##*/}}" || exit 1
find "$root" -mindepth 1 -maxdepth 1 -mtime +{days} -exec rm -rf {{}} + >/dev/null 2>&1
{check}
"""
_CHECK: Final = """\
cd {folder} 2>/dev/null && touch . && for f in {names}; do sha256sum < "./$f" 2>/dev/null || echo none; done
exit 0
"""
_KEEP: Final = """\
mkdir -p {folder} && sha256sum < {arrived} && chmod {mode} {arrived} && mv -f {arrived} {path}
"""
_RUN: Final = """\
cd {work} || exit 1
exec 3<&0
setsid {command} < {stdin} 3<&- &
started=$!
setsid sh -c '
  (sleep "$0"; : > late; kill -s KILL -- "-$1") &
  (cat <&3; kill -s KILL -- "-$1") &
  wait' {seconds} $started 3<&3 >/dev/null 2>&1 &
guards=$!
exec 3<&-
wait $started
code=$?
kill -s KILL -- -$guards || kill -s KILL $guards
test -e late && code=124
test $code = 255 && code=254
exit $code
"""
"""The payload in a process group of its own, which ends with it, when the time is over, or when we hang up."""


class Transport(Protocol):
    """A way to a device: a shell there, and files to and fro. ``root``: a folder there, as a word of its shell."""

    @property
    def address(self) -> Address:
        """The device."""

    @property
    def root(self) -> str:
        """A folder there that is ours."""

    def shell(
        self, script: str, timeout_s: float, stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None
    ) -> Finished:
        """Run a script, whatever its exit code; CommandError if the device can't be reached or the time is over."""

    def send(self, source: Path, path: str, timeout_s: float) -> Finished:
        """Copy a file there."""

    def fetch(self, path: str, target: Path, timeout_s: float, most_bytes: int) -> Finished:
        """Copy a file from there; CommandError if more comes than it may have."""


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A folder on a device for one run, beside the files that are kept there; all of it within one time limit."""

    transport: Transport
    root: str
    work: str
    timeout_s: float
    deadline: float

    @property
    def left_s(self) -> float:
        """Seconds until the time is over.

        Raises:
            CommandError: it is.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise CommandError(_too_late(self.transport, self.timeout_s))
        return left

    def shell(self, script: str, stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None) -> str:
        """The output of a script that succeeds.

        Raises:
            CommandError: it doesn't, and why.
        """
        left = self.left_s
        try:
            done = self.transport.shell(script, left, stdin, stdout)
        except CommandError:
            self.left_s  # noqa: B018  (says it better if the time is over)
            raise
        return self.succeeded(done)

    def succeeded(self, done: Finished) -> str:
        """The output of what has come to its end.

        Raises:
            CommandError: it failed.
        """
        if done.code:
            raise CommandError(_explain(self, done))
        return done.output

    def push(self, files: Mapping[str, Path], executable: bool = False) -> str:
        """Have files on the device: their names there -> files here. Returns the folder that they lie in.

        Raises:
            CommandError: a file doesn't arrive as it was sent.
        """
        sums = {name: digest(path) for name, path in files.items()}
        told = "".join(f"{digest_}  {name}\n" for name, digest_ in sums.items())
        folder = f"{self.root}/{hashlib.sha256(told.encode()).hexdigest()}"
        there = self.shell(_CHECK.format(folder=shlex.quote(folder), names=shlex.join(files))).splitlines()
        there += ["none"] * (len(files) - len(there))
        for (name, path), found in zip(files.items(), there, strict=False):
            if found.split(" ")[0] != sums[name]:
                self._send(path, f"{folder}/{name}", sums[name], 755 if executable else 644)
        return folder

    def _send(self, source: Path, path: str, sha256: str, mode: int) -> None:
        arrived = f"{self.work}/arriving"
        self.succeeded(self.transport.send(source, arrived, self.left_s))
        script = _KEEP.format(
            folder=shlex.quote(path.rpartition("/")[0]), arrived=shlex.quote(arrived), path=shlex.quote(path), mode=mode
        )
        found = self.shell(script)
        if found.split(" ")[0] != sha256:
            message = f"{source.name} arrived damaged on {self.transport.address}; is the connection sound?"
            raise CommandError(message)

    def run(self, command: Sequence[str], stdin: str) -> str:
        """The output of a command in this folder. Stops it and all that it started when the time is over.

        Raises:
            CommandError: it fails, or its time is over.
        """
        script = _RUN.format(
            work=shlex.quote(self.work), command=shlex.join(command), stdin=shlex.quote(stdin),
            seconds=math.ceil(self.left_s) + GRACE_S,
        )  # fmt: skip
        with held_open() as lifeline:
            return self.shell(script, stdin=lifeline)

    def pull(self, path: str, target: Path) -> None:
        """Copy a file from the device.

        Raises:
            CommandError: it isn't there, or doesn't arrive as it is there.
        """
        name = shlex.quote(path)
        found = self.shell(f"wc -c < {name} && sha256sum < {name}").split()
        size = int(found[0]) if found and found[0].isascii() and found[0].isdigit() else -1
        if not 0 <= size <= MOST_FETCHED_BYTES:
            told = f"{found[0] if found else 'nothing'}"[:40]
            message = f"{self.transport.address} has a result of {told} bytes; up to {MOST_FETCHED_BYTES} are fetched."
            raise CommandError(message)
        self.succeeded(self.transport.fetch(path, target, self.left_s, size))
        if found[1:2] != [digest(target)]:
            message = f"{Path(path).name} arrived damaged from {self.transport.address}; is the connection sound?"
            raise CommandError(message)


@contextmanager
def workspace(transport: Transport, timeout_s: float, check: str = ":") -> Iterator[Workspace]:
    """Yield a folder on a device, which is removed at the end if the device can still be reached.

    ``check``: a command that must succeed there.

    Raises:
        CommandError: the device can't be reached or written to.
    """
    deadline = time.monotonic() + timeout_s
    before = Workspace(transport=transport, root="", work="", timeout_s=timeout_s, deadline=deadline)
    told = before.shell(_OPEN.format(root=transport.root, days=KEPT_DAYS, check=check)).splitlines()
    if len(told) < 2 or not told[-2].startswith("/") or not re.fullmatch(r"run\.\w+", told[-1]):
        message = f"{transport.address} did not answer with a folder: {tail(' '.join(told))[:80]!r}."
        raise CommandError(message)
    root, work = told[-2], f"{told[-2]}/{told[-1]}"
    try:
        yield Workspace(transport=transport, root=root, work=work, timeout_s=timeout_s, deadline=deadline)
    finally:
        with suppress(CommandError):
            transport.shell(f"rm -rf {shlex.quote(work)}", GRACE_S)


def run_there(transport: Transport, payload: Path, spec: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """Run a payload on a device, as ``host.local`` does on this machine; paths in the answer are of this machine.

    Raises:
        CommandError: the device can't be reached, lacks something, or the payload fails or outlasts ``timeout_s``.
    """
    python = transport.address.python
    check = f"{shlex.quote(python)} -c 'import sys; sys.exit(sys.version_info < (3, 10) and {_OLD_PYTHON})'"
    with workspace(transport, timeout_s, check) as there, scratch() as folder:
        script = f"{there.push({path.name: path for path in sorted(payload.parent.glob('*.py'))})}/{payload.name}"
        asked = folder / "spec.json"
        write_text(asked, json.dumps(_translated(there, spec)))
        there.succeeded(transport.send(asked, f"{there.work}/spec.json", there.left_s))
        answer = as_object(there.run([python, "-I", "-B", script], "spec.json"), payload.name)
        if "outputs" in spec:
            answer["outputs"] = _fetched(there, answer.get("outputs"), Path(spec["outputs"]))
        return answer


def push_path(there: Workspace, path: Path) -> str:
    """Have a file or a folder on the device; its path there."""
    folder = there.push({file.relative_to(path.parent).as_posix(): file for file in files_of(path)})
    return f"{folder}/{path.name}"


def _translated(there: Workspace, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with the device's paths."""
    changed = dict(spec)
    if "models" in spec:
        changed["models"] = [{**model, "path": push_path(there, Path(model["path"]))} for model in spec["models"]]
    if "inputs" in spec:
        changed["inputs"] = push_path(there, Path(spec["inputs"]))
    if "outputs" in spec:
        changed["outputs"] = there.work
    return changed


def _fetched(there: Workspace, outputs: Any, folder: Path) -> list[list[str]]:
    """The files that the payload wrote, copied here: paths per model, in order."""
    if not isinstance(outputs, list) or not all(isinstance(paths, list) for paths in outputs):
        message = f"{there.transport.address} answered without the outputs."
        raise CommandError(message)
    fetched = []
    for number, paths in enumerate(outputs):
        fetched.append([str(folder / f"{number}.{i}.npy") for i in range(len(paths))])
        for path, target in zip(paths, fetched[-1], strict=True):
            there.pull(str(path), Path(target))
    return fetched


def _too_late(transport: Transport, timeout_s: float) -> str:
    return f"The work on {transport.address} was stopped after {timeout_s:g} s."


def _explain(there: Workspace, done: Finished) -> str:
    """Why a script failed, in one sentence that says what to change."""
    address, python = there.transport.address, there.transport.address.python
    if "No space left on device" in done.errors or "Disk quota exceeded" in done.errors:
        return f"The disk of {address} is full; free some space ({there.transport.root} there may be removed)."
    if missing := re.search(r"No module named '(\w+)", done.errors):
        package = _PACKAGES.get(missing[1], missing[1])
        return f"{address} has no Python package {missing[1]}; run there: {python} -m pip install {package}"
    if done.code == _LATE:
        return _too_late(there.transport, there.timeout_s)
    if done.code == _OLD_PYTHON:
        return f"{python} on {address} is older than 3.10; name a newer one, as in {address}/usr/bin/python3.11"
    if done.code == _NOT_FOUND and python in done.errors:
        return f"There is no {python} on {address}; install Python, or name it, as in {address}/opt/bin/python3"
    if done.code == _KILLED:
        return f"The process on {address} was killed from outside; is there too little memory?"
    return f"The command on {address} failed with exit code {done.code}: {tail(done.errors)}"
