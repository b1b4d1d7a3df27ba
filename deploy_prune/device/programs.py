"""Runtimes' own benchmark programs, for devices without Python: each timed from outside, by what it prints.

A program tells no single inferences, so a sample is the figure of one start of it, over several inferences. Starts go
in turns and back (A B, B A, ...), as in payload/device.py. Outputs and nodes can't be had this way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Final

from deploy_prune.device.remote import Transport, Workspace, push_path, workspace
from deploy_prune.errors import CommandError, TargetError, perhaps

STARTS: Final = 10
"""Each model's program is started so many times."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a program is asked: a model's path on the device, inputs' shapes [B, ...], threads, inferences, warm-up."""

    path: str
    shapes: Sequence[Sequence[int]]
    threads: int
    runs: int
    warmup: int


@dataclass(frozen=True, kw_only=True)
class Program:
    """A benchmark program: its usual name, its arguments, where its figure is in what it prints, and that in ms."""

    name: str
    arguments: Callable[[Asked], list[str]]
    figure: str
    to_ms: Callable[[float, Asked], float]


PROGRAMS: Final[dict[str, Program]] = {
    # tensorflow/lite/tools/benchmark/benchmark_model.cc: "Inference timings in us: Init: ..., Inference (avg): 345.6"
    "litert": Program(
        name="benchmark_model",
        arguments=lambda a: [
            f"--graph={a.path}", f"--num_threads={a.threads}", f"--num_runs={a.runs}", f"--warmup_runs={a.warmup}",
            "--min_secs=0", "--warmup_min_secs=0",
        ],
        figure=r"Inference \(avg\): ([0-9.e+]+)",
        to_ms=lambda us, a: us / 1e3,
    ),
    # ncnn/benchmark/benchncnn.cpp: "model.param  min =    1.00  max =    1.20  avg =    1.10", with weights of its own
    "ncnn": Program(
        name="benchncnn",
        arguments=lambda a: [
            f"{a.runs}", f"{a.threads}", "0", "-1", "0", f"param={a.path}/model.param",
            "shape=" + ",".join(f"[{','.join(map(str, reversed(shape[1:])))}]" for shape in a.shapes),
        ],
        figure=r"avg =\s*([0-9.]+)",
        to_ms=lambda ms, a: ms,
    ),
    # executorch/examples/portable/executor_runner: "Model executed successfully 20 time(s) in 12.345000 ms."
    "executorch": Program(
        name="executor_runner",
        arguments=lambda a: [f"--model_path={a.path}", f"--num_executions={a.runs}", f"--cpu_threads={a.threads}"],
        figure=r"executed successfully [0-9]+ time\(s\) in ([0-9.]+) ms",
        to_ms=lambda ms, a: ms / a.runs,
    ),
    # onnxruntime/test/perftest/performance_runner.cc: "P50 Latency: 0.00185674 s"
    "onnxruntime": Program(
        name="onnxruntime_perf_test",
        arguments=lambda a: [
            "-I", "-m", "times", "-r", f"{a.runs}", "-x", f"{a.threads}", "-y", "1", "-e", "cpu", "-s", a.path,
        ],
        figure=r"P50 Latency: ([0-9.e+-]+) s",
        to_ms=lambda s, a: s * 1e3,
    ),
}  # fmt: skip
"""Runtime -> its program. Beside each: the source file that prints the line, and the line."""

_ABOUT: Final = """\
echo "board=$(getprop ro.product.manufacturer 2>/dev/null) $(getprop ro.product.model 2>/dev/null)"
echo "build=$(getprop ro.build.fingerprint 2>/dev/null)"
echo "system=$(uname -s) $(uname -m) $(uname -r)"
echo "cores=$(grep -c ^processor /proc/cpuinfo)"
echo "memory_kib=$(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)"
echo "clock_max_khz=$(cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_max_freq | sort -n | tail -n 1)"
"""
_NUMBERS: Final = {"cores": ("cores", 1), "memory_kib": ("memory_mib", 1024), "clock_max_khz": ("clock_max_mhz", 1000)}
_CONDITIONS: Final = """\
for f in /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq; do echo "clock $(cat "$f" 2>/dev/null)"; done
for f in /sys/class/thermal/thermal_zone*; do echo "${f##*/} $(cat "$f/temp" 2>/dev/null)"; done
"""


def runtime_of(program: Path) -> str:
    """The runtime that a program is of, by its file's name.

    Raises:
        TargetError: it is none that is known.
    """
    for runtime, known in PROGRAMS.items():
        if known.name in program.name:
            return runtime
    names = [known.name for known in PROGRAMS.values()]
    message = f"{program.name!r} is none of {', '.join(names)}.{perhaps(program.name, names)}"
    raise TargetError(message)


def run_program(
    transport: Transport, program: Path, payload: Path, spec: Mapping[str, Any], timeout_s: float
) -> dict[str, Any]:
    """A runner without Python on the device: what payload/about.py and device.py's "bench" answer, as far as it goes.

    Raises:
        CommandError: it isn't a program that is known, something else than times is asked, or as ``run_there``.
    """
    with workspace(transport, timeout_s) as there:
        if payload.stem == "about":
            return _about(there, program)
        if spec["mode"] != "bench":
            message = f"{program.name} on {transport.address} reports only times, no outputs and no layers."
            raise CommandError(message)
        return _bench(there, program, spec)


def _bench(there: Workspace, program: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    if not program.is_file():
        message = f"There is no program {program}."
        raise CommandError(message)
    path = f"{there.push({program.name: program}, executable=True)}/{program.name}"
    runs = ceil(spec["runs"] / STARTS)
    asked = [
        Asked(
            path=push_path(there, Path(model["path"])),
            shapes=[x["shape"] for x in model.get("inputs", [])] or [model["input_shape"]],
            threads=spec["threads"], runs=runs, warmup=spec["warmup"],
        )
        for model in spec["models"]
    ]  # fmt: skip
    kinds = [PROGRAMS[model["runtime"]] for model in spec["models"]]
    samples: list[list[float]] = [[] for _ in asked]
    before = _conditions(there)
    for start in range(STARTS):
        order = range(len(asked))
        for i in order if start % 2 == 0 else reversed(order):
            samples[i].append(_start(there, path, kinds[i], asked[i]))
    conditions = {"before": before, "after": _conditions(there)}
    about = _about(there, program)
    return {"samples_ms": samples, "runs_per_sample": runs, "conditions": conditions, "device": about["device"]}


def _start(there: Workspace, path: str, kind: Program, asked: Asked) -> float:
    """One start of the program: its figure in ms."""
    printed = there.run(["sh", "-c", 'exec "$@" 2>&1', "sh", path, *kind.arguments(asked)], "/dev/null")
    found = re.findall(kind.figure, printed)
    try:
        return kind.to_ms(float(found[-1]), asked)
    except (IndexError, ValueError) as error:
        end = " ".join(printed.split())[-80:]
        message = f"{kind.name} on {there.transport.address} printed no time that can be read: {end!r}."
        raise CommandError(message) from error


def _about(there: Workspace, program: Path) -> dict[str, Any]:
    lines = (line.partition("=") for line in there.shell(f"({_ABOUT}) 2>/dev/null; exit 0").splitlines())
    told: dict[str, Any] = {key: value.strip() for key, _, value in lines if value.strip()}
    for raw, (key, size) in _NUMBERS.items():
        if re.fullmatch("[0-9]{1,18}", number := told.pop(raw, "")):
            told[key] = int(number) // size
    device = told.get("board") or told.get("system") or str(there.transport.address)
    return {"device": device, "about": told | {"program": program.name}}


def _conditions(there: Workspace) -> dict[str, Any]:
    """As payload/about.py has them."""
    words = [line.split() for line in there.shell(_CONDITIONS).splitlines()]
    numbers = [
        (found[0], int(found[1])) for found in words if len(found) == 2 and re.fullmatch("-?[0-9]{1,18}", found[1])
    ]
    clocks = [khz / 1e3 for name, khz in numbers if name == "clock"]
    zones = {name: value / 1e3 for name, value in numbers if name != "clock" and -50e3 < value < 150e3}
    return ({"clock_mhz": max(clocks)} if clocks else {}) | ({"temperatures_c": zones} if zones else {})
