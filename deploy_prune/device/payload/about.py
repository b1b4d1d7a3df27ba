"""What a device is, and the conditions that it is in. Needs Python only; device.py asks it, and it is a script, too.

    python -I about.py < /dev/null > about.json

What a device doesn't tell is left out. Clocks and temperatures are read from Linux's /sys (kernel documentation,
admin-guide/pm/cpufreq, driver-api/thermal/sysfs-api), a Jetson's power mode from `nvpmodel -q`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path("/")
PACKAGES = (
    "onnxruntime", "onnxruntime-gpu", "ai-edge-litert", "executorch", "ncnn", "openvino", "MNN", "tensorrt", "numpy",
)  # fmt: skip
CPUFREQ = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/"
GPU = "gpu|gp10b|gv11b|ga10b|mali"
"""In the names of devices with clocks (devfreq): Jetsons' and phones' GPUs."""
TIMEOUT_S = 10.0


def main() -> None:
    """Write everything to standard output."""
    json.dump({"device": cpu_name(), "about": about(), "conditions": conditions()}, sys.stdout)
    sys.stdout.write("\n")


def about(root: Path = ROOT) -> dict[str, Any]:
    """What stays: board, cores, memory, GPU, runtimes with versions, and the settings of clocks and power."""
    found = {
        "board": text(root / "proc/device-tree/model"),
        "cpu": sorted(set(lines(root, "model name", "Features", "flags", "CPU part"))),
        "cores": os.cpu_count(),
        "clock_max_mhz": mhz(root, "scaling_max_freq"),
        "clock_min_mhz": mhz(root, "scaling_min_freq"),
        "governors": sorted({text(p) or "" for p in root.glob(CPUFREQ + "scaling_governor")}),
        "memory_mib": memory_mib(root),
        "gpu": first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "power_mode": power_mode(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": packages(),
    }
    return {key: value for key, value in found.items() if value}


def conditions(root: Path = ROOT) -> dict[str, Any]:
    """What moves: the fastest core's clock and the GPU's in MHz, and every thermal zone in degrees Celsius."""
    devices = [p for p in root.glob("sys/class/devfreq/*/cur_freq") if re.search(GPU, p.parent.name)]
    gpu = [int(told) / 1e6 for p in devices if (told := text(p)) and told.isdigit()]
    found = {
        "clock_mhz": mhz(root, "scaling_cur_freq"),
        "gpu_clock_mhz": max(gpu, default=None),
        "temperatures_c": temperatures(root),
    }
    return {key: value for key, value in found.items() if value}


def mhz(root: Path, name: str) -> float | None:
    """The largest of the cores' values of a cpufreq file, which has kHz."""
    values = [int(found) for p in root.glob(CPUFREQ + name) if (found := text(p)) and found.isdigit()]
    return max(values) / 1e3 if values else None


def temperatures(root: Path) -> dict[str, float]:
    """Degrees Celsius by zone and its type; files have thousandths. Zones without a sensor say absurd things."""
    found = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        told = text(zone / "temp")
        if told and re.fullmatch(r"-?[0-9]+", told) and -50 < int(told) / 1e3 < 150:
            found[f"{zone.name} {text(zone / 'type') or ''}".strip()] = int(told) / 1e3
    return found


def memory_mib(root: Path) -> int | None:
    """All memory that the system has."""
    told = re.search(r"^MemTotal:\s+(\d+) kB", text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(told[1]) // 1024 if told else None


def power_mode() -> str | None:
    """A Jetson's, as in "NV Power Mode: 15W"."""
    told = first_line("nvpmodel", "-q")
    return told.partition(":")[2].strip() or None if told else None


def packages() -> dict[str, str]:
    """Installed runtimes with their versions."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def first_line(*command: str) -> str | None:
    """The first line that a command prints; None if it isn't there or fails."""
    path = shutil.which(command[0]) or shutil.which(command[0], path="/usr/sbin:/usr/bin")
    if path is None:
        return None
    try:
        done = subprocess.run([path, *command[1:]], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0] or None


def cpu_name(root: Path = ROOT) -> str:
    """The processor's name, as /proc/cpuinfo or the platform gives it, else the board's."""
    names = [line.partition(":")[2].strip() for line in lines(root, "model name")]
    return names[0] if names else text(root / "proc/device-tree/model") or platform.processor() or platform.machine()


def lines(root: Path, *keys: str) -> list[str]:
    """The lines of /proc/cpuinfo with these keys."""
    return [line for line in (text(root / "proc/cpuinfo") or "").splitlines() if line.startswith(keys)]


def text(path: Path) -> str | None:
    """A file's text, or None; the device tree's end with a NUL."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return None


if __name__ == "__main__":
    main()
