"""The channel granularity of a target: the step in which channel counts make a network faster.

Runtimes compute channels in blocks, so 63 channels can cost as much as 64, or more. The granularity is the smallest
step that pays: taking it away from a width of 64 saves at least half of what the arithmetic says.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.device import ABOUT, TIMEOUT_S, reach
from deploy_prune.device.address import LOCAL
from deploy_prune.device.payload.run import PACKAGES
from deploy_prune.errors import CommandError, MeasurementError
from deploy_prune.latency.measure import measure
from deploy_prune.system.cache import cached_json, still_valid
from deploy_prune.system.guard import scratch
from deploy_prune.system.strict_json import shown
from deploy_prune.types import Artifact, Target

STEPS: Final = (1, 2, 4, 8, 16, 32)
WIDTH: Final = 64
PIXELS: Final = 14
PAYS: Final = 0.5
"""A step pays if it saves at least this share of the multiply-accumulates' saving."""
_METHOD: Final = 5
"""Part of the cache's key: raise it when the measurement changes."""
_RUNS: Final = 300
_ALIKE: Final = ("board", "cpu", "cores", "clock_max_mhz", "clock_min_mhz", "governors", "gpu", "power_mode", "system")
"""What devices tell of themselves (payload/about.py) that has to be the same where one stands for another."""

Write = Callable[[nn.Module, Tensor, str, Path], Artifact]
"""Writes a network's artifact, for an example input, under a name in a folder, in the target's format and precision."""


def granularity(target: Target, write: Write, since: float | None = None) -> int:
    """The target's channel granularity: as its file says, or found by measuring for a few seconds, once per machine.

    ``write`` makes the artifacts that are measured: a format or precision can have other blocks than its neighbour.
    ``since``: what was measured before is measured again (seconds since 1970; None: what is older than
    ``cache.MAX_AGE_DAYS``).

    Raises:
        ExportError: it has to be measured, and the test networks can't be written.
        MeasurementError: it has to be measured, and the target can't run the test networks.
    """
    if target.granularity is not None:
        return target.granularity
    return smallest_paying(kept_ratios(target, write, since))


def kept_ratios(target: Target, write: Write, since: float | None = None) -> dict[int, float]:
    """``time_ratios``, measured once per machine. Arguments and errors as ``granularity``."""
    key = {
        **machine(target), "format": target.format, "runtime": target.runtime, "threads": target.threads,
        "precision": target.precision,
    }  # fmt: skip
    kept = cached_json(
        "granularity", key, lambda: time_ratios(target, write), still_valid() if since is None else since
    )
    return {int(step): float(ratio) for step, ratio in kept.items()}


def smallest_paying(ratios: Mapping[int, float]) -> int:
    """The granularity, given step -> time at width 64 - step over time at width 64.

    The smallest step that pays; the largest step measured if none does.
    """
    for step in sorted(ratios):
        if 1 - ratios[step] >= PAYS * (1 - _macs(WIDTH - step) / _macs(WIDTH)):
            return step
    return max(ratios)


def time_ratios(target: Target, write: Write) -> dict[int, float]:
    """Step -> time at width 64 - step over time at width 64, each the median of interleaved pairs."""
    example = torch.zeros(1, 3, PIXELS, PIXELS)
    with scratch() as folder:
        widths = (WIDTH, *(WIDTH - step for step in STEPS))
        artifacts = [write(_network(width), example, str(width), folder) for width in widths]
        dense, *narrower = measure(target, artifacts, runs=_RUNS, warmup=20, min_s=0)
    return {step: latency.p50_ms / dense.p50_ms for step, latency in zip(STEPS, narrower, strict=True)}


def _network(width: int) -> nn.Module:
    """3x3 convolutions 3 -> width -> width, a depthwise one, and a last 3x3, at 14x14."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.Conv2d(width, width, 3, padding=1),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.Conv2d(width, width, 3, padding=1),
        ).eval()


def _macs(width: int) -> int:
    """Multiply-accumulates per pixel of the test network."""
    return 9 * (3 * width + width * width + width + width * width)


def machine(target: Target) -> dict[str, Any]:
    """The identity of a target's machine and runtime: a measured figure holds only there.

    Of the packages that are installed there, the version of the target's runtime.

    Raises:
        MeasurementError: the device can't be asked.
    """
    package = PACKAGES.get(target.runtime, target.runtime)
    if target.devices in {(), (LOCAL,)}:
        return {**_this_machine(), "runtime": installed(package), "method": _METHOD}
    kinds = {device: _kind(device, target.program, package) for device in target.devices}
    _require_alike(target, kinds)
    return {"device": target.runner, **kinds[str(target.runner)], "method": _METHOD}


def _kind(device: str, program: str | None, package: str) -> dict[str, Any]:
    about = _told(device, program)
    told = {key: value for key, value in about.items() if key != "packages"}
    runtime = {name: number for name, number in about.get("packages", {}).items() if name.startswith(package)}
    return {"about": told, "runtime": runtime}


def _require_alike(target: Target, kinds: Mapping[str, Mapping[str, Any]]) -> None:
    """Stop if devices that are to stand for one another differ in what latency depends on."""

    def facts(kind: Mapping[str, Any]) -> dict[str, Any]:
        return {key: kind["about"].get(key) for key in _ALIKE} | {"runtime": kind["runtime"]}

    (first, its), *others = ((device, facts(kind)) for device, kind in kinds.items())
    for device, told in others:
        if differ := [key for key, value in told.items() if value != its[key]]:
            has = "; ".join(f"{key.replace('_', ' ')} {shown(told[key])}, not {shown(its[key])}" for key in differ)
            message = f"{device} can't measure in the place of {first}, as {target.name} has it: its {has}."
            raise MeasurementError(message + " Make them alike, or give each a target of its own.")


def installed(package: str) -> str | None:
    """The version of a package on this machine, by pip's name; None if it isn't there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _told(device: str, program: str | None) -> dict[str, Any]:
    """What a device tells of itself; asked once a process."""
    try:
        return dict(reach(device, program)(ABOUT, {}, TIMEOUT_S)["about"])
    except (CommandError, LookupError, TypeError, ValueError) as error:
        message = f"The device {device} can't be asked what it is. {error}"
        raise MeasurementError(message) from error


def _this_machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    cpu = [platform.machine(), platform.processor(), *told]
    return {"host": socket.gethostname(), "cpu": cpu, "cores": os.cpu_count()}
