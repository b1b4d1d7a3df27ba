"""Build a TensorRT engine from an ONNX file on this machine's GPU. Runs as a script in a process of its own.

TensorRT can't be tried in the calling process: without a GPU, its Builder raises TypeError and its Runtime crashes.

Reads one JSON object from standard input:

    {"onnx": path, "engine": path, "precision": "fp16", "input": "x", "shape": [1, 3, 32, 32], "max_batch": null,
     "workspace_bytes": 1073741824, "timing_caches": folder or null}

and writes one to standard output: {"built": true, "tensorrt": "10.3.0", "gpu": "..."}, or {"built": false} if there
is no GPU here. ``max_batch`` is a number if the file's batch size is open. If the build fails, the exit code is 1
and the reason is on standard error.

Each choice depends on what the installed version has: 8.6 wants EXPLICIT_BATCH, 11 takes all types from the file and
has neither BuilderFlag.FP16 nor INT8 (docs.nvidia.com, TensorRT, "Migrating Python Code").
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

SET_PARENT_DEATH_SIGNAL: Final = 1
"""PR_SET_PDEATHSIG of prctl(2)."""
PRECISION_FLAGS: Final = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}
"""Kernels that a weakly typed build may use besides fp32. With int8, layers that are not quantised may run in fp16."""
LIBRARIES: Final = ("CUBLAS", "CUBLAS_LT", "CUDNN")
"""Sources of kernels outside of TensorRT, gone since 11: an engine that needs none of them needs TensorRT alone."""


class BuildError(Exception):
    """TensorRT refuses the network or can't build it."""


def main() -> None:
    """Do what the spec on standard input asks."""
    spec = json.load(sys.stdin)
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with the answer
    _die_with_the_parent()
    _lift_memory_limit()
    gpu = gpu_name()
    if gpu is None:
        json.dump({"built": False}, answer_to)
    else:
        import tensorrt

        try:
            build(tensorrt, spec, gpu)
        except BuildError as error:
            sys.exit(str(error))
        json.dump({"built": True, "tensorrt": tensorrt.__version__, "gpu": gpu}, answer_to)
    answer_to.close()


def gpu_name() -> str | None:
    """The name of the GPU that CUDA calls 0, asked of libcuda itself; None if there is no driver or no GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetName(name, len(name), device):
        return None
    return name.value.decode()


def build(trt: Any, spec: Mapping[str, Any], gpu: str) -> None:
    """Build the engine with the module ``trt`` and write it to ``spec["engine"]``.

    Raises:
        BuildError: TensorRT can't read the file or can't build it; with TensorRT's own errors.
    """
    log = make_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(network_flags(trt))
    parse(trt, network, log, spec["onnx"])
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec["workspace_bytes"])
    set_precision(trt, config, spec["precision"])
    drop_libraries(trt, config)
    if spec["max_batch"]:
        add_profile(builder, config, spec)
    cache = timing_cache(trt, config, spec["timing_caches"], gpu)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        message = f"TensorRT {trt.__version__} can't build the engine: {' | '.join(log.lines[-5:]) or 'no message'}"
        raise BuildError(message)
    write(Path(spec["engine"]), plan)
    if cache is not None:
        write(cache, config.get_timing_cache().serialize())


def network_flags(trt: Any) -> int:
    """EXPLICIT_BATCH below 10; STRONGLY_TYPED where nothing but the file's types can choose the precision."""
    known = trt.NetworkDefinitionCreationFlag
    if int(trt.__version__.split(".")[0]) < 10:
        return int(1 << int(known.EXPLICIT_BATCH))
    if not hasattr(trt.BuilderFlag, "FP16") and hasattr(known, "STRONGLY_TYPED"):
        return int(1 << int(known.STRONGLY_TYPED))
    return 0


def parse(trt: Any, network: Any, log: Any, path: str) -> None:
    """Read the ONNX file into the network."""
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(path):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)] or log.lines[-5:]
        message = f"TensorRT {trt.__version__} can't read the ONNX file: {' | '.join(errors) or 'no message'}"
        raise BuildError(message)


def set_precision(trt: Any, config: Any, precision: str) -> None:
    """Allow the kernels that the file's precision needs. For fp32, TF32 is off: it rounds factors to 10 bits."""
    for name in PRECISION_FLAGS[precision]:
        if hasattr(trt.BuilderFlag, name):
            config.set_flag(getattr(trt.BuilderFlag, name))
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)


def drop_libraries(trt: Any, config: Any) -> None:
    """Take LIBRARIES out of the sources of kernels, where this version has them."""
    outside = sum(1 << int(getattr(trt.TacticSource, name)) for name in LIBRARIES if hasattr(trt.TacticSource, name))
    if outside:
        config.set_tactic_sources(config.get_tactic_sources() & ~outside)


def add_profile(builder: Any, config: Any, spec: Mapping[str, Any]) -> None:
    """Open the batch size from 1 to ``max_batch``, tuned for the example's."""
    batch, *rest = spec["shape"]
    profile = builder.create_optimization_profile()
    profile.set_shape(spec["input"], (1, *rest), (batch, *rest), (spec["max_batch"], *rest))
    config.add_optimization_profile(profile)


def timing_cache(trt: Any, config: Any, folder: str | None, gpu: str) -> Path | None:
    """Let the build use the timings that earlier ones left for this version and GPU; the path to keep them at."""
    if folder is None:
        return None
    path = Path(folder) / (re.sub(r"[^A-Za-z0-9.]+", "-", f"{trt.__version__}-{gpu}") + ".timing")
    kept = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(kept), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return path


def write(path: Path, data: Any) -> None:
    """Write bytes so that the file is never seen half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(bytes(data))
    temporary.replace(path)


def make_log(trt: Any) -> Any:
    """A TensorRT logger that keeps errors in its ``lines`` and prints nothing."""
    kept = (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in kept:
                self.lines.append(" ".join(msg.split()))

    return Log()


def _die_with_the_parent() -> None:
    """Whoever stops the export stops the build (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _lift_memory_limit() -> None:
    """CUDA reserves far more addresses than it uses memory, so an inherited limit on them would stop it at once."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


if __name__ == "__main__":
    main()
