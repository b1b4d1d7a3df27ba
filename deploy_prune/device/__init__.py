"""Devices: how they are reached, what is started there, and an artifact's outputs from its own runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from deploy_prune.device.adb import Adb
from deploy_prune.device.address import LOCAL, parse
from deploy_prune.device.host import local
from deploy_prune.device.programs import run_program
from deploy_prune.device.remote import Transport, run_there
from deploy_prune.device.ssh import Ssh
from deploy_prune.errors import CommandError, MeasurementError, TargetError
from deploy_prune.system.guard import scratch
from deploy_prune.system.shell import digest
from deploy_prune.types import Artifact

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

PAYLOAD: Final = Path(__file__).parent / "payload"
SCRIPT: Final = PAYLOAD / "device.py"
ABOUT: Final = PAYLOAD / "about.py"
DECODERS: Final = tuple(sorted(p.stem for p in PAYLOAD.glob("decode_*.py")))
"""What makes boxes, masks, keypoints and classes of pixels of a network's raw outputs."""
SCRIPTS: Final = ("about", "answers", "boxes", "build_engine", "device", "picture", "run", "verify")
RUNTIMES: Final = tuple(sorted(p.stem for p in PAYLOAD.glob("*.py") if p.stem not in {*SCRIPTS, *DECODERS, "__init__"}))
"""Every runtime that artifacts can be run in: the payload's files that are none of these."""
TIMEOUT_S: Final = 600.0


class Runner(Protocol):
    """Runs a payload on a device: a JSON object in, a JSON object out."""

    def __call__(self, payload: Path, spec: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Run the payload with this spec; CommandError if it fails or outlasts ``timeout_s``."""


RUNNERS: Final[dict[str, Runner]] = {
    LOCAL: local,
}
"""Devices with a name of their own ..."""
TRANSPORTS: Final[dict[str, Callable[..., Transport]]] = {
    "ssh": Ssh,
    "adb": Adb,
}
"""... and the ways to reach all others, by the scheme of their addresses."""


def reach(device: str, program: str | None = None) -> Runner:
    """The runner of a device: ``local``, ``ssh://...`` or ``adb://...``; connects to nothing yet.

    ``program``: a benchmark program (device/programs.py) to start there, for a device without Python.

    Raises:
        TargetError: it is no device's name, or it is this machine, which has Python.
    """
    address = parse(device)
    if address is None and program is not None:
        message = f"{program} is for devices without Python, which are reached by ssh or adb, not for {device}."
        raise TargetError(message)
    if address is None:
        return RUNNERS[device]
    transport = TRANSPORTS[address.scheme](address=address)
    return partial(run_there, transport) if program is None else partial(run_program, transport, Path(program))


def entry(artifact: Artifact, runtime: str) -> dict[str, Any]:
    """What the payload is told of an artifact, once its content is known to be what was written.

    Raises:
        MeasurementError: there is no such runtime, no such file, or it isn't the one that was described.
    """
    if runtime not in RUNTIMES:
        message = f"{artifact.path} can't be run: its runtime {runtime!r} is none of {', '.join(RUNTIMES)}."
        raise MeasurementError(message)
    if not artifact.path.exists():
        message = f"There is no artifact at {artifact.path}; export it again."
        raise MeasurementError(message)
    if digest(artifact.path) != artifact.sha256:
        message = f"{artifact.path} has changed since it was written (its sha256 is another); export it again."
        raise MeasurementError(message)
    path = str(artifact.path.resolve())
    told = {"runtime": runtime, "path": path, "layout": artifact.layout, "input_shape": list(artifact.input_shape)}
    return told | ({"inputs": [asdict(x) for x in artifact.inputs]} if artifact.inputs else {})


def run(
    artifact: Artifact,
    x: Tensor | tuple[Tensor, ...],
    runtime: str,
    *,
    runner: str = "local",
    threads: int = 1,
    timeout_s: float = TIMEOUT_S,
) -> tuple[Tensor, ...]:
    """All outputs of an artifact, in the network's order, for inputs [N, ...] (a tuple of several).

    In a process of its own: a runtime that crashes or hangs ends only that. A file with a fixed batch of B is given B
    inputs at a time, so N must be a multiple of B.

    Raises:
        MeasurementError: the artifact isn't there or has changed, the device can't be reached, or the runtime can't
            load or run it in ``timeout_s``.
        TargetError: ``runner`` is no device's name.
    """
    import numpy
    import torch

    model, start = entry(artifact, runtime), reach(runner)
    with scratch() as folder:
        given = x if isinstance(x, tuple) else (x,)
        arrays = [(one.float() if one.is_floating_point() else one).detach().cpu().numpy() for one in given]
        inputs = folder / "x.npz"
        numpy.savez(inputs, *arrays)
        spec = {"mode": "run", "models": [model], "threads": threads, "inputs": str(inputs), "outputs": str(folder)}
        try:
            answer = start(SCRIPT, spec, timeout_s)
        except CommandError as error:
            message = f"{artifact.path} can't be run in {runtime}. {error}"
            raise MeasurementError(message) from error
        try:
            return tuple(torch.from_numpy(_array(path)) for path in answer["outputs"][0])
        except (LookupError, OSError, TypeError, ValueError, AttributeError, EOFError) as error:
            message = f"{artifact.path} was run on {runner}, but its outputs can't be read: {error}."
            raise MeasurementError(message) from error


def _array(path: str) -> numpy.ndarray:
    """An .npy file's content. It is mapped first, so that its header can't ask for more memory than it has bytes."""
    import numpy

    return numpy.array(numpy.load(path, mmap_mode="r", allow_pickle=False))
