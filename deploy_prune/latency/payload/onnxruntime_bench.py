"""Time ONNX files with ONNX Runtime. Needs numpy and onnxruntime only; runs as a script in a process of its own.

Reads one JSON object from standard input:

    {"mode": "bench", "models": [path, ...], "threads": 1, "warmup": 30, "runs": 300, "min_s": 1.0, "max_runs": 3000}
    {"mode": "profile", "models": [path, ...], "threads": 1, "warmup": 30, "runs": 150}

and writes one to standard output. In "bench", every round runs each model twice and times the second run, and every
other round goes backwards (aA bB, bB aA, ...): a disturbance meets all models alike, and each is timed with its own
weights in the caches, as where it runs alone: {"samples_ms": [[...], ...], "device": "..."}.
In "profile", the same rounds run with ONNX Runtime's profiler on: {"nodes": [{name: ms of one run}, ...]}.
"""

from __future__ import annotations

import gc
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import onnxruntime

Run = Callable[[], float]
"""Run once; the time in ms."""
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
SUFFIX = "_kernel_time"


def main() -> None:
    """Do what the spec on standard input asks."""
    spec = json.load(sys.stdin)
    try:
        answer = {"bench": bench, "profile": profile}[spec["mode"]](spec)
    except Exception as error:  # onnxruntime's exceptions have no common base but Exception
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
    answer["device"] = cpu_name()
    json.dump(answer, sys.stdout)


def bench(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Raw samples in ms, one list per model, all of one length."""
    runs = [runner(session(path, spec["threads"])) for path in spec["models"]]
    warm = rounds(runs, max(spec["warmup"], 3))
    fastest_s = max(min(min(samples) for samples in warm) / 1e3, 1e-6)
    wanted = min(int(spec["min_s"] / (2 * fastest_s)), spec["max_runs"])
    return {"samples_ms": rounds(runs, max(spec["runs"], wanted))}


def profile(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Per model, the ms of one run that each node of the optimised graph takes."""
    with tempfile.TemporaryDirectory() as folder:
        sessions = [session(path, spec["threads"], str(Path(folder) / "p")) for path in spec["models"]]
        rounds([runner(one) for one in sessions], spec["warmup"] + spec["runs"])
        return {"nodes": [nodes(Path(one.end_profiling()), spec["warmup"]) for one in sessions]}


def nodes(path: Path, warmup: int) -> dict[str, float]:
    """Each node's ms from a profile; its first ``warmup`` runs are left out. It has whole microseconds a run."""
    durations: dict[str, list[int]] = {}
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(SUFFIX):
            durations.setdefault(event["name"][: -len(SUFFIX)], []).append(event["dur"])
    return {name: trimmed_mean(found[warmup:]) / 1e3 for name, found in durations.items()}


def trimmed_mean(values: Sequence[float]) -> float:
    """The mean without the slowest tenth: disturbances only ever add."""
    kept = sorted(values)[: max(1, len(values) * 9 // 10)]
    return sum(kept) / len(kept)


def session(path: str, threads: int, profile_prefix: str | None = None) -> Any:
    """A CPU session, sequential."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    if profile_prefix:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def runner(one: Any) -> Run:
    """A function that runs the session once, on a fixed random input, open dimensions taken as 1."""
    random = numpy.random.default_rng(0)
    feed = {}
    for entry in one.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in entry.shape]
        feed[entry.name] = random.random(shape).astype(DTYPES[entry.type])

    def run() -> float:
        start = time.perf_counter_ns()
        one.run(None, feed)
        return (time.perf_counter_ns() - start) / 1e6

    return run


def rounds(runs: Sequence[Run], count: int) -> list[list[float]]:
    """Time each ``count`` times, in turn, every other round backwards; an untimed run of the same goes before each."""
    samples: list[list[float]] = [[] for _ in runs]
    forwards = list(range(len(runs)))
    gc.disable()
    for number in range(count):
        for index in forwards if number % 2 == 0 else reversed(forwards):
            runs[index]()
            samples[index].append(runs[index]())
    gc.enable()
    return samples


def cpu_name() -> str:
    """The processor's name, as /proc/cpuinfo or the platform gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
