"""Time ONNX files with ONNX Runtime. Needs numpy and onnxruntime only; runs as a script in a process of its own.

Reads one JSON object from standard input:

    {"mode": "bench", "models": [path, ...], "threads": 1, "warmup": 30, "runs": 300, "min_s": 1.0, "max_runs": 6000}
    {"mode": "profile", "models": [path, ...], "threads": 1, "warmup": 30, "runs": 150}

and writes one to standard output. In "bench", every round times each model once and every other round goes backwards
(A B, B A, A B ...), so that a disturbance meets all models alike: {"samples_ms": [[...], ...], "device": "..."}.
In "profile", the same rounds run with ONNX Runtime's profiler on: {"nodes": [{name: mean ms of one run}, ...]}.
"""

import gc
import json
import os
import platform
import sys
import tempfile
import time

import numpy
import onnxruntime

DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


def main():
    """Do what the spec on standard input asks."""
    spec = json.load(sys.stdin)
    try:
        answer = {"bench": bench, "profile": profile}[spec["mode"]](spec)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
    answer["device"] = cpu_name()
    answer["onnxruntime"] = onnxruntime.__version__
    json.dump(answer, sys.stdout)


def bench(spec):
    """Raw samples in ms, one list per model, all of one length."""
    runners = [runner(session(path, spec["threads"])) for path in spec["models"]]
    warm = rounds(runners, max(spec["warmup"], 3))
    fastest_s = max(min(min(samples) for samples in warm) / 1e3, 1e-6)
    wanted = min(int(spec["min_s"] / fastest_s), spec["max_runs"])
    return {"samples_ms": rounds(runners, max(spec["runs"], wanted))}


def profile(spec):
    """Mean ms of one run per node of the optimised graph, per model. Durations are whole microseconds: average many."""
    with tempfile.TemporaryDirectory() as folder:
        sessions = [session(path, spec["threads"], os.path.join(folder, "p")) for path in spec["models"]]
        runners = [runner(one) for one in sessions]
        rounds(runners, spec["warmup"])
        rounds(runners, spec["runs"])
        return {"nodes": [nodes(one.end_profiling(), spec["warmup"]) for one in sessions]}


def nodes(path, warmup):
    """Each node's ms, the warm-up left out."""
    with open(path, encoding="utf-8") as file:
        events = json.load(file)
    durations = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            durations.setdefault(event["name"][: -len("_kernel_time")], []).append(event["dur"])
    return {name: trimmed_mean(found[warmup:]) / 1e3 for name, found in durations.items()}


def trimmed_mean(values):
    """The mean without the slowest tenth: disturbances only ever add."""
    kept = sorted(values)[: max(1, len(values) * 9 // 10)]
    return sum(kept) / len(kept)


def session(path, threads, profile_prefix=None):
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


def runner(one):
    """A function that runs the session once on a fixed random input and returns the time in ms."""
    random = numpy.random.default_rng(0)
    feed = {}
    for entry in one.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in entry.shape]
        feed[entry.name] = random.random(shape, dtype="float32").astype(DTYPES[entry.type])

    def run():
        start = time.perf_counter_ns()
        one.run(None, feed)
        return (time.perf_counter_ns() - start) / 1e6

    return run


def rounds(runners, count):
    """Time each runner ``count`` times, in turn, every other round backwards."""
    samples = [[] for _ in runners]
    forwards = list(range(len(runners)))
    gc.disable()
    for number in range(count):
        for index in forwards if number % 2 == 0 else reversed(forwards):
            samples[index].append(runners[index]())
    gc.enable()
    return samples


def cpu_name():
    """The processor's name, as /proc/cpuinfo or the platform gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
