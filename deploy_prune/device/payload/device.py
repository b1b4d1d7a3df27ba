"""Run and time artifacts in their own runtimes. Needs numpy and those runtimes only; runs as a script of its own.

    python -I device.py < spec.json > answer.json

A model is {"runtime": "onnxruntime", "path": ..., "layout": "NCHW", "input_shape": [B, C, H, W]}, and if it takes
anything but one float32 input, "inputs": [{"shape": [B, ...], "type": "int64"}, ...]; every spec has
{"models": [model, ...], "threads": 1}, and:

    {"mode": "run", "inputs": "x.npy", "outputs": folder}       every model's outputs for inputs [N, ...]; of
                                                                several inputs an .npz file
    {"mode": "bench", "warmup": 30, "runs": 300, "min_s": 1.0, "max_runs": 3000}
    {"mode": "profile", "warmup": 30, "runs": 150}

"run" feeds B inputs at a time (all N, if the file's batch is open), writes each output [N, ...] as an .npy file and
answers {"outputs": [[path, ...], ...]}. In "bench", every round runs each model twice and times the second run, in an
order drawn anew: {"samples_ms": [[...], ...]}. So a disturbance meets all models alike, each has its own weights in the
caches, as where it runs alone, and none always comes after the same one. (In turns there and back, the middle one of
three never follows itself: that alone made 3% of its latency.) In "profile", the same rounds run with the runtime's
profiler on: {"nodes": [{name: ms of one run}, ...]}. Every answer has "device" and "versions", too, and that of "bench"
the "conditions" {"before": ..., "after": ...} that about.py tells of.

A runtime is the file of its name beside this one. It is loaded by its path, as the module ``runtime_NAME``, and this
folder is never on the path where modules are looked for: so ``onnxruntime.py`` here doesn't hide the package. It has

    class Model:
        def __init__(self, path: str, threads: int, layout: str) -> None
        def feed(self, *inputs: numpy.ndarray) -> None    # [B, ...] each, brought to the file's layout and type
        def run(self) -> list[numpy.ndarray]        # one inference on that: the outputs in order, float32
        open_batch: bool                            # may be left out: True if any batch size can be fed
    def versions() -> dict[str, str]

and, if it can tell the time of every node, ``class Profile(Model)`` with ``nodes(warmup) -> {name: ms of one run}``.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy

HERE = Path(__file__).resolve().parent
Run = Callable[[], float]
"""Run once; the time in ms."""


def main() -> None:
    """Do what the spec on standard input asks. What runtimes print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != HERE]
    spec = json.load(sys.stdin)
    try:
        answer = {"run": run, "bench": bench, "profile": profile}[spec["mode"]](spec)
        answer["versions"] = {k: v for m in spec["models"] for k, v in beside(m["runtime"]).versions().items()}
        answer["device"] = beside("about").cpu_name()
    except Exception as error:  # runtimes' exceptions have no common base but Exception
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
    with answers:
        json.dump(answer, answers)


@cache
def beside(name: str) -> Any:
    """A file beside this one, loaded.

    Raises:
        ValueError: there is no such file.
    """
    path = HERE / f"{name}.py"
    if not path.is_file():
        message = f"there is no runtime {name!r}: no file {path.name} beside {Path(__file__).name}"
        raise ValueError(message)
    spec = importlib.util.spec_from_file_location(f"runtime_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(model: Mapping[str, Any], threads: int, kind: str = "Model") -> Any:
    """The model in its runtime; ``kind`` may be "Profile".

    Raises:
        ValueError: the runtime has no profiler.
    """
    made = getattr(beside(model["runtime"]), kind, None)
    if made is None:
        message = f"the runtime {model['runtime']!r} can't tell the time of its nodes"
        raise ValueError(message)
    return made(model["path"], threads, model["layout"])


def run(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Each model's outputs for all inputs, as .npy files: the paths, in order."""
    loaded, folder = numpy.load(spec["inputs"]), Path(spec["outputs"])
    inputs = [loaded] if isinstance(loaded, numpy.ndarray) else [loaded[name] for name in loaded.files]
    paths = []
    for number, model in enumerate(spec["models"]):
        parts = outputs(load(model, spec["threads"]), model["input_shape"][0], *inputs)
        paths.append([str(folder / f"{number}.{i}.npy") for i in range(len(parts))])
        for path, part in zip(paths[-1], parts, strict=True):
            numpy.save(path, part)
    return {"outputs": paths}


def outputs(model: Any, batch: int, *inputs: numpy.ndarray) -> list[numpy.ndarray]:
    """All outputs of one model for inputs [N, ...], each [N, ...], computed in its batches.

    Raises:
        ValueError: N doesn't divide into batches.
    """
    rows = len(inputs[0])
    size = rows if getattr(model, "open_batch", False) else batch
    if rows == 0 or rows % size:
        message = f"the file takes {size} inputs at a time; {rows} can't be divided so"
        raise ValueError(message)
    columns: list[list[numpy.ndarray]] = []
    for number in range(rows // size):
        steps = [size * len(x) // rows for x in inputs]
        model.feed(*(x[number * step : (number + 1) * step] for x, step in zip(inputs, steps, strict=True)))
        columns.append([numpy.atleast_1d(numpy.array(y)) for y in model.run()])
    return [numpy.concatenate(column) for column in zip(*columns, strict=True)]


def bench(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Raw samples in ms, one list per model, all of one length; and the conditions before and after them."""
    runs = [runner(load(model, spec["threads"]), model) for model in spec["models"]]
    warm = rounds(runs, max(spec["warmup"], 3))
    fastest_s = max(min(min(samples) for samples in warm) / 1e3, 1e-6)
    wanted = min(int(spec["min_s"] / (2 * fastest_s)), spec["max_runs"])
    conditions = beside("about").conditions
    before, samples, after = conditions(), rounds(runs, max(spec["runs"], wanted)), conditions()
    return {"samples_ms": samples, "conditions": {"before": before, "after": after}}


def profile(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Per model, the ms of one run that each node of the runtime's graph takes."""
    models = [load(model, spec["threads"], "Profile") for model in spec["models"]]
    runs = [runner(model, told) for model, told in zip(models, spec["models"], strict=True)]
    rounds(runs, spec["warmup"] + spec["runs"])
    return {"nodes": [model.nodes(spec["warmup"]) for model in models]}


def runner(model: Any, told: Mapping[str, Any]) -> Run:
    """A function that runs the model once, on fixed inputs: random ones, and ones where they are whole numbers."""
    random = numpy.random.default_rng(0)
    wanted = told.get("inputs") or [{"shape": told["input_shape"], "type": "float32"}]
    model.feed(*(
        random.random(x["shape"], dtype="float32") if x["type"] == "float32" else numpy.ones(x["shape"], x["type"])
        for x in wanted
    ))  # fmt: skip

    def once() -> float:
        start = time.perf_counter_ns()
        model.run()
        return (time.perf_counter_ns() - start) / 1e6

    return once


def rounds(runs: Sequence[Run], count: int) -> list[list[float]]:
    """Time each ``count`` times, once a round, in a random order; an untimed run of the same goes before each."""
    samples: list[list[float]] = [[] for _ in runs]
    order = numpy.random.default_rng(0)
    gc.disable()
    for _ in range(count):
        for index in order.permutation(len(runs)):
            runs[index]()
            samples[index].append(runs[index]())
    gc.enable()
    return samples


if __name__ == "__main__":
    main()
