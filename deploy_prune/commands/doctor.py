"""What there is on this machine to write, run and measure networks with, and what is wrong with it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final

import joblib
import psutil
import torch
from packaging.requirements import Requirement
from torch import nn

from deploy_prune.device.payload import about
from deploy_prune.errors import CommandError, DeployPruneError
from deploy_prune.export import FORMATS, isolated
from deploy_prune.export.artifact import Format
from deploy_prune.export.parity import can_run, check_parity
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.report.doctor import Finding, State
from deploy_prune.system.cache import cache_folder
from deploy_prune.system.guard import scratch
from deploy_prune.system.shell import run_command, run_to_end, shown
from deploy_prune.types import Progress, silent

PACKAGE: Final = "deploy-prune"
ANSWERS_S: Final = 20.0
"""A program of the system has so long to say what it is."""
LIBRARIES: Final = ("timm", "ultralytics")
"""Extras that bring networks, not formats."""
BUSY: Final = 0.5
"""Cores in use by other programs, as a share of all, from which measurements suffer."""
LEAST_FREE_GB: Final = 2.0
_STEADY: Final = frozenset({"performance", "schedutil", ""})
"""Governors that let a processor run at full speed under load."""


def findings(progress: Progress = silent, *, attempt: bool = False) -> Iterator[Finding]:
    """Look at packages, formats, ways to devices, and this machine.

    ``attempt``: also write a small network in each format and run it in its runtime, which takes a minute or two.
    """
    yield from _core()
    for number, (name, kind) in enumerate(FORMATS.items(), 1):
        yield _format(name, kind, attempt)
        if attempt:
            progress("write and run a small network in each format", number, len(FORMATS))
    for name in LIBRARIES:
        yield _extra("Libraries of networks", name, name)
    yield from _ways()
    yield from _gpu()
    yield from _processor()
    yield from _places()


def _core() -> Iterator[Finding]:
    """The packages that everything needs."""
    yield Finding(
        area="Packages", name="python", state="ok", told=f"{platform.python_version()}, {platform.platform()}"
    )
    wanted = [r for text in requires(PACKAGE) or () if (r := Requirement(text)).marker is None]
    for need in wanted:
        found = _version(need.name)
        if found is None:
            state, told = "wrong", "isn't installed"
        elif not need.specifier.contains(found, prereleases=True):
            state, told = "wrong", f"{found}, and {need} is needed"
        elif need.name in {"torch", "torchvision", "torch-pruning", "onnx", "onnxruntime"}:
            state, told = "ok", found
        else:
            continue
        remedy = f"pip install '{need}'" if state == "wrong" else ""
        yield Finding(area="Packages", name=need.name, state=state, told=told, remedy=remedy)  # type: ignore[arg-type]


def _format(name: str, kind: Format, attempt: bool) -> Finding:
    area = "Formats"
    if kind.extra is not None:
        found = _extra(area, name, kind.extra.name)
        if found.state != "ok" or not attempt:
            return found
    elif not attempt:
        package = kind.packages[-1]
        here = _version(package)
        told = f"{package} {here}" if here else f"can be written; without {package}, it is built and run on the device"
        return Finding(area=area, name=name, state="ok", told=told)
    try:
        told = _attempted(name)
    except DeployPruneError as error:
        return Finding(area=area, name=name, state="wrong", told=str(error))
    return Finding(area=area, name=name, state="ok", told=told)


def _attempted(name: str) -> str:
    """Write a small network and compare it with the file in its own runtime; what came of it.

    Raises:
        DeployPruneError: it can't be written or run, or gives something else.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 4)).eval()
        x = torch.randn(4, 3, 16, 16)
    with scratch() as folder:
        artifact = isolated.write(name, network, x[:1], folder / f"model{FORMATS[name].suffix}", "fp32", ExportPart())
        if not can_run(artifact):
            return "writes a small network, which can't be run on this machine"
        difference = check_parity(network, artifact, x).max_abs
        return f"writes and runs a small network (largest difference {difference:.1g})"


def _extra(area: str, name: str, extra: str) -> Finding:
    """Whether an extra's packages are there, in the versions that it asks for."""
    needs = [r for text in requires(PACKAGE) or () if (r := Requirement(text)).marker]
    needs = [need for need in needs if need.marker and need.marker.evaluate({"extra": extra})]
    needs = [need for need in needs if not need.extras and need.name != PACKAGE]
    found = {need.name: _version(need.name) for need in needs}
    remedy = f"pip install '{PACKAGE}[{extra}]'"
    if not any(found.values()):
        return Finding(area=area, name=name, state="absent", told="not installed", remedy=remedy)
    odd = [
        f"{need.name} {found[need.name] or 'is missing'} ({need.specifier} is needed)"
        for need in needs
        if not (told := found[need.name]) or not need.specifier.contains(told, prereleases=True)
    ]
    if odd:
        return Finding(area=area, name=name, state="wrong", told="; ".join(odd), remedy=remedy)
    told = ", ".join(f"{package} {number}" for package, number in found.items())
    return Finding(area=area, name=name, state="ok", told=told)


def _ways() -> Iterator[Finding]:
    """Programs that reach devices."""
    area = "Ways to devices"
    ssh = _answer("ssh", "-V")
    told = Finding(area=area, name="ssh", state="ok", told=ssh or "there")
    yield told if shutil.which("ssh") else _absent(area, "ssh", "install OpenSSH's client to reach devices by ssh")
    if not shutil.which("adb"):
        yield _absent(area, "adb", "install Android's platform tools to reach phones")
        return
    try:
        listed = run_command(["adb", "devices"], ANSWERS_S)
    except CommandError as error:
        yield Finding(area=area, name="adb", state="wrong", told=str(error))
        return
    phones = dict(re.findall(r"^(\S+)\t(\S.*)$", listed, re.MULTILINE))
    ready = [serial for serial, state in phones.items() if state == "device"]
    yield Finding(area=area, name="adb", state="ok", told=f"sees {len(ready)} devices{_listed(ready)}")
    for serial, state in phones.items():
        if state != "device":
            remedy = "look at its screen, and allow this computer" if state == "unauthorized" else "plug it in anew"
            yield Finding(area=area, name=serial, state="wrong", told=f"is {state}", remedy=remedy)


def _gpu() -> Iterator[Finding]:
    area, name = "Training", "GPU"
    card = _answer("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        yield Finding(area=area, name=name, state="ok", told=f"{', '.join(cards)}; CUDA {torch.version.cuda}")
    elif card is None:
        yield _absent(area, name, "")
    elif torch.version.cuda is None:
        remedy = "install a CUDA build of torch: pytorch.org has the command"
        yield Finding(area=area, name=name, state="wrong", told=f"{card}, and torch is a CPU build", remedy=remedy)
    else:
        told = f"{card}, and torch, built for CUDA {torch.version.cuda}, can't use it"
        yield Finding(area=area, name=name, state="wrong", told=told, remedy="update NVIDIA's driver")


def _processor() -> Iterator[Finding]:
    """What measurements on this machine depend on."""
    area, cores = "Measuring here", os.cpu_count() or 1
    yield Finding(area=area, name="processor", state="ok", told=f"{about.cpu_name()}, {cores} cores")
    found: Mapping[str, object] = about.about()
    governors = [str(one) for one in found.get("governors", [])]  # type: ignore[attr-defined]
    slow = [one for one in governors if one not in _STEADY]
    if slow:
        remedy = "sudo cpupower frequency-set -g performance"
        yield _note(area, "governor", f"{', '.join(slow)}: the clock changes while networks are timed", remedy)
    else:
        told = ", ".join(filter(None, governors)) or "this system tells none: something else sets the clock"
        yield Finding(area=area, name="governor", state="ok", told=told)
    if (share := joblib.cpu_count()) < cores:
        yield _note(
            area, "quota", f"this container gets {share} of {cores} cores: timings stop when they are spent", ""
        )
    used = psutil.cpu_percent(interval=0.5) / 100
    if used > BUSY:
        yield _note(
            area, "load", f"{used:.0%} of the cores are in use: timings will be disturbed", "stop other programs"
        )
    else:
        yield Finding(area=area, name="load", state="ok", told=f"{used:.0%} of the cores are in use")


def _places() -> Iterator[Finding]:
    """Where files go."""
    for name, place in (("cache", cache_folder()), ("temporary files", Path(tempfile.gettempdir()))):
        there = next((folder for folder in (place, *place.parents) if folder.is_dir()), Path("/"))
        free, told = shutil.disk_usage(there).free / 1e9, f"{shown(place)}"
        state: State = "ok"
        if not os.access(there, os.W_OK):
            state, told = "wrong", f"{told} can't be written"
        elif free < LEAST_FREE_GB:
            state, told = "note", f"{told}: {free:.1f} GB are free"
        else:
            told = f"{told}: {free:.0f} GB are free"
        variable = "DEPLOY_PRUNE_CACHE" if name == "cache" else "TMPDIR"
        remedy = "" if state == "ok" else f"set {variable} to another folder"
        yield Finding(area="Folders", name=name, state=state, told=told, remedy=remedy)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _answer(*command: str) -> str | None:
    """The first line that a program prints, on either output; None if it isn't there or fails."""
    path = shutil.which(command[0])
    if path is None:
        return None
    try:
        done = run_to_end([path, *command[1:]], ANSWERS_S)
    except CommandError:
        return None
    return None if done.code else (done.output.strip() or done.errors.strip()).partition("\n")[0] or None


def _absent(area: str, name: str, remedy: str) -> Finding:
    return Finding(area=area, name=name, state="absent", told="not there", remedy=remedy)


def _note(area: str, name: str, told: str, remedy: str) -> Finding:
    return Finding(area=area, name=name, state="note", told=told, remedy=remedy)


def _listed(names: list[str]) -> str:
    return f": {', '.join(names)}" if names else ""
