"""Write artifacts in a separate process: a converter that crashes, hangs or uses up memory ends only that.

One worker per process, started at first use and again after it was ended, or after it kept too much memory: some
converters give back little of what they took. What goes there is the network's torch.export program, so that a
converter sees the same whether the network's own code can be imported there or not.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

import psutil
import torch
from torch import fx, nn
from torch.export import ExportedProgram

from deploy_prune import errors
from deploy_prune.errors import DeployPruneError, ExportError
from deploy_prune.export import FORMATS
from deploy_prune.export.artifact import eval_mode, export_program, first_line, quiet, require
from deploy_prune.export.denormals import without_denormals
from deploy_prune.export.inputs import Given, as_given, described, float32
from deploy_prune.networks.copies import copied
from deploy_prune.networks.tensors import moved
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.system import plugins
from deploy_prune.system.guard import guarded, scratch
from deploy_prune.system.shell import TOLD, atomic, clean_environment
from deploy_prune.types import Artifact

START: Final = """
import importlib.util, json, sys
places, package = json.loads(sys.argv[1])
sys.path[:] = [*places, *(place for place in sys.path if place not in places)]
spec = importlib.util.spec_from_file_location(
    "deploy_prune", package + "/__init__.py", submodule_search_locations=[package]
)
sys.modules["deploy_prune"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["deploy_prune"])
from deploy_prune.export import worker
worker.main()
"""
"""Python is started isolated (-I): nothing is imported from the current folder, in which anything may lie."""
PACKAGE: Final = Path(__file__).resolve().parent.parent
KEPT: Final = 0.5
"""A worker that keeps more of the memory that a write may take isn't asked again."""
POLL_S: Final = 0.05
"""How often the worker's memory is looked at."""
END_S: Final = 1.0
"""When this process ends, a thread that is still writing is waited for so long."""
LINES: Final = 5
"""So many of the last lines on its standard error are told."""
MOST_LOG_BYTES: Final = 256 * 2**20
"""Converters print much, but one that prints more than this is caught in a loop."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a write may take."""

    seconds: float
    gigabytes: float


class Worker:
    """The process that writes. ``ask`` sends it one request; after an ExportError it has ended."""

    def __init__(self) -> None:
        self._kept = ExitStack()
        folder = self._kept.enter_context(scratch())
        self._log: IO[bytes] = (folder / "stderr").open("w+b")
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-c", START, json.dumps([_places(), str(PACKAGE)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=folder,
            env=clean_environment(folder),
            start_new_session=True,
        )
        self._kept.enter_context(guarded(self._process.pid))
        self.owner = os.getpid()

    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], limits: Limits) -> dict[str, Any]:
        """Its answer to a request.

        Raises:
            ExportError: it crashed, or went over a limit; with the last lines of its standard error.
        """
        self._log.seek(0)
        self._log.truncate()
        try:
            return self._exchange(request, limits)
        except BaseException:
            self.end()
            raise

    def _exchange(self, request: dict[str, Any], limits: Limits) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        until = time.monotonic() + limits.seconds
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        while not select.select([self._process.stdout], [], [], POLL_S)[0]:
            if time.monotonic() > until:
                message = f"Writing took longer than {limits.seconds:g} s (export.timeout_s) and was stopped. "
                raise ExportError(message + self._told())
            if (used := self.gigabytes()) > limits.gigabytes:
                message = f"Writing took {used:.2g} GB of memory, over {limits.gigabytes:g} GB (export.max_memory_gb). "
                raise ExportError(message + self._told())
            if os.fstat(self._log.fileno()).st_size > MOST_LOG_BYTES:
                message = f"Writing printed more than {MOST_LOG_BYTES >> 20} MiB and was stopped. "
                raise ExportError(message + self._told())
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def gigabytes(self) -> float:
        """Resident memory of the worker and what it has started."""
        try:
            worker = psutil.Process(self._process.pid)
            members = [worker, *worker.children(recursive=True)]
            return float(sum(member.memory_info().rss for member in members)) / 1e9
        except psutil.Error:  # one of them has just ended
            return 0.0

    def _ended(self) -> ExportError:
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return ExportError(f"The process that writes artifacts {how}. {self._told()}")

    def _told(self) -> str:
        self._log.seek(max(0, os.fstat(self._log.fileno()).st_size - TOLD))
        lines = [line for line in self._log.read(TOLD).decode(errors="replace").splitlines() if line.strip()]
        return f"It told: {' | '.join(lines[-LINES:])}" if lines else "It told nothing."

    def end(self) -> None:
        """Stop it and everything that it started; nothing of it is left."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with suppress(BrokenPipeError):
                stream.close()
        self._kept.close()


def _places() -> list[str]:
    """Where the worker imports from: as here, but not from the current folder, a script's, or the user's own code's."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    own = [Path.cwd(), *map(Path, plugins.ADDED), *([Path(script).parent] if script else [])]
    left_out = {str(place.resolve()) for place in own}
    return [place for place in (str(Path(entry).resolve()) for entry in sys.path) if place not in left_out]


_worker: Worker | None = None
_lock = threading.RLock()
"""Held for a whole write: torch.export, which makes the program, isn't for several threads either."""


def write(
    name: str,
    network: nn.Module,
    example: Given,
    path: Path,
    precision: str,
    part: ExportPart,
    calibration: Given | None = None,
) -> Artifact:
    """Write a network's artifact in the format ``name``, in the worker; arguments as for ``Format.write``.

    Raises:
        MissingDependencyError: the format's packages aren't there.
        ExportError: it can't be written in this precision or under this name, the network can't be traced, or the
            format fails, crashes or takes longer than ``part.timeout_s`` or more memory than ``part.max_memory_gb``.
    """
    kind = FORMATS[name]
    require(name, kind, precision)
    if not path.name.endswith(kind.suffix):
        message = f"A file of the format {name} ends in {kind.suffix}; {path} doesn't, and runtimes need that ending."
        raise ExportError(message)
    with _lock, scratch() as folder, atomic(path) as temporary:
        request = {
            "module": kind.__name__,  # type: ignore[attr-defined]
            "path": str(temporary.resolve()), "precision": precision, "part": part.model_dump(),
            **_pack(folder, network, example, calibration, part),
        }  # fmt: skip
        answer = _ask(request, Limits(seconds=part.timeout_s, gigabytes=part.max_memory_gb))
        if "error" in answer:
            kind_of_error: type[DeployPruneError] = getattr(errors, answer["error"], ExportError)
            raise kind_of_error(answer["message"].replace(str(temporary.resolve()), str(path)))
        told = answer["artifact"]
        shape = tuple(told["input_shape"])
        artifact = Artifact(**{**told, "path": temporary, "input_shape": shape, "inputs": described(example)})
    return replace(artifact, path=path)


def _ask(request: dict[str, Any], limits: Limits) -> dict[str, Any]:
    global _worker  # noqa: PLW0603
    with _lock:
        if _worker is not None and _worker.owner == os.getpid() and not _worker.alive():
            _worker.end()
            _worker = None
        if _worker is None or _worker.owner != os.getpid():
            _worker = Worker()
        answer = _worker.ask(request, limits)
        if _worker.gigabytes() > KEPT * limits.gigabytes:
            _worker.end()
            _worker = None
        return answer


@atexit.register
def stop() -> None:
    """End the worker, if there is one; the next write starts another."""
    global _worker  # noqa: PLW0603
    alone = _lock.acquire(timeout=END_S)
    try:
        if _worker is not None and _worker.owner == os.getpid():
            _worker.end()
        _worker = None
    finally:
        if alone:
            _lock.release()


def _pack(
    folder: Path, network: nn.Module, example: Given, calibration: Given | None, part: ExportPart
) -> dict[str, Any]:
    """The program and its inputs as files, and whether it has operators of torchvision's."""
    inputs = tuple(x.detach().cpu() for x in float32(example))
    if any(t.device.type != "cpu" for t in (*network.parameters(), *network.buffers())):
        network = moved(copied(network), torch.device("cpu"))
    with eval_mode(network), quiet():
        program = without_denormals(export_program(network, as_given(inputs), part))
        _save(program, folder / "network.pt2")
    real = None if calibration is None else as_given([x.detach().cpu() for x in float32(calibration)])
    torch.save({"example": as_given(inputs), "calibration": real}, folder / "tensors.pt")
    return {
        "program": str(folder / "network.pt2"),
        "tensors": str(folder / "tensors.pt"),
        "torchvision": _has_torchvision(program),
    }


def _has_torchvision(program: ExportedProgram) -> bool:
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, fx.GraphModule)]
    return any(getattr(node.target, "namespace", "") == "torchvision" for graph in graphs for node in graph.nodes)


def _save(program: ExportedProgram, path: Path) -> None:
    try:
        torch.export.save(program, path)
    except Exception as error:  # torch raises many kinds
        message = f"torch.export can't save the network's program: {first_line(error)}"
        raise ExportError(message) from error
