"""Write a target file for a device, from what the device reports about itself."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from deploy_prune.device import ABOUT, reach
from deploy_prune.device.programs import runtime_of
from deploy_prune.device.targets import load_target
from deploy_prune.errors import CommandError, TargetError, printable
from deploy_prune.system.shell import write_text
from deploy_prune.system.strict_json import shown

TIMEOUT_S: Final = 60.0
_RUNTIMES: Final = {
    "onnxruntime": ("onnxruntime", "onnx"),
    "onnxruntime-gpu": ("onnxruntime", "onnx"),
    "ncnn": ("ncnn", "ncnn"),
    "ai-edge-litert": ("litert", "litert"),
    "executorch": ("executorch", "executorch"),
    "openvino": ("openvino", "openvino"),
    "MNN": ("mnn", "mnn"),
    "tensorrt": ("tensorrt", "tensorrt"),
}
"""Package -> (runtime, format): the first that is installed there is taken."""
_BLOCK: Final = 8
"""Channels in a step where it can't be measured: what most runtimes' kernels compute at a time."""
_FACTS: Final = (
    "board", "system", "cores", "clock_max_mhz", "clock_min_mhz", "governors", "memory_mib", "gpu", "power_mode",
    "python",
)  # fmt: skip


def new_target(name: str, device: str, path: Path, program: Path | None = None) -> Path:
    """Ask a device what it is, and write its target file, which is read back before it is left there.

    Args:
        name: of the target.
        device: ``local``, ``ssh://...`` or ``adb://...``.
        path: of the file, which must not be there yet.
        program: a benchmark program on this machine, for a device without Python.

    Raises:
        TargetError: the file is there, the name can't be one, the device can't be asked, or it has no runtime.
    """
    if path.exists():
        message = f"There is a file {path} already; give another name, or --out."
        raise TargetError(message)
    try:
        told = reach(device, None if program is None else str(program))(ABOUT, {}, TIMEOUT_S)
    except CommandError as error:
        raise TargetError(str(error)) from error
    text = StringIO()
    YAML().dump(described(name, device, told, program), text)
    write_text(path, text.getvalue())
    try:
        load_target(str(path.resolve()))
    except TargetError:
        path.unlink()
        raise
    return path


def described(name: str, device: str, told: Mapping[str, Any], program: Path | None = None) -> dict[str, Any]:
    """A target's file as data, from what payload/about.py told; every number has its source.

    Raises:
        TargetError: no runtime that we can start is installed there.
    """
    about = told.get("about", {})
    packages = about.get("packages", {}) if isinstance(about, dict) else None
    if not isinstance(about, dict) or not isinstance(packages, dict):
        message = f"{device} did not answer with a description of itself: {shown(told)}."
        raise TargetError(message)
    found = [_RUNTIMES[package] for package in _RUNTIMES if package in packages]
    if program is not None:
        found = [kind for kind in _RUNTIMES.values() if kind[0] == runtime_of(program)]
    if not found:
        message = f"{device} has none of the Python packages {', '.join(_RUNTIMES)}; install one there with pip."
        raise TargetError(message)
    runtime, kind = found[0]
    source = f"probed {datetime.now(UTC):%Y-%m-%d}"
    step = {"value": "measure", "source": "found by a measurement of a few seconds, once"}
    facts = {key: about[key] for key in _FACTS if about.get(key)} | {
        f"package {printable(k, 100)}": v for k, v in packages.items()
    }
    return {
        "name": name,
        "title": printable(f"{about.get('board') or told.get('device') or device}, {runtime}", 200),
        "format": kind,
        "precision": "fp32",
        "runtime": runtime,
        "granularity": step if kind == "onnx" else {"value": _BLOCK, "source": "unverified: usual for CPU kernels"},
        "runner": device,
        "threads": 1,
        **({} if program is None else {"program": str(program.resolve())}),
        "hardware": {key: {"value": _plain(value), "source": source} for key, value in facts.items()},
        "notes": f"Latencies are measured there, one inference at a time; {source}.",
    }


def _plain(value: Any) -> float | int | str:
    if isinstance(value, int | float):
        return value
    return printable(value if isinstance(value, str) else ", ".join(map(str, value or ())), 500)
