"""ONNX Runtime on the CPU: runs .onnx and .ort files, and tells the time of every node.

A network over 2 GB is a folder with model.onnx in it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import onnxruntime

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
GRAPH = "model.onnx"
SUFFIX = "_kernel_time"


class Model:
    """A sequential CPU session."""

    def __init__(self, path: str, threads: int, layout: str) -> None:
        file = str(Path(path) / GRAPH) if Path(path).is_dir() else path
        self._session = onnxruntime.InferenceSession(file, self._options(threads), providers=["CPUExecutionProvider"])
        self._inputs = self._session.get_inputs()
        self.open_batch = not isinstance(self._inputs[0].shape[0], int)
        self._to_last = layout == "NHWC"
        self._feed: dict[str, numpy.ndarray] = {}

    def _options(self, threads: int) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        options.add_session_config_entry("session.set_denormal_as_zero", "1")  # else they take many times as long
        return options

    def feed(self, *inputs: numpy.ndarray) -> None:
        """Keep inputs [B, ...], images [B, C, H, W], for the next runs."""
        turned = [x.transpose(0, 2, 3, 1) if self._to_last else x for x in inputs]
        self._feed = {
            told.name: numpy.ascontiguousarray(x.astype(DTYPES[told.type], copy=False))
            for told, x in zip(self._inputs, turned, strict=True)
        }

    def run(self) -> list[numpy.ndarray]:
        """One inference: the outputs, in the file's order."""
        made: list[numpy.ndarray] = self._session.run(None, self._feed)
        return made


class Profile(Model):
    """A session with ONNX Runtime's profiler on: whole microseconds a node and run."""

    def _options(self, threads: int) -> Any:
        options = super()._options(threads)
        self._folder = tempfile.TemporaryDirectory()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / "p")
        return options

    def nodes(self, warmup: int) -> dict[str, float]:
        """Each node's ms of one run; ends the profile."""
        with self._folder:
            return nodes(Path(self._session.end_profiling()), warmup)


def nodes(path: Path, warmup: int) -> dict[str, float]:
    """Each node's ms from a profile file; its first ``warmup`` runs are left out."""
    durations: dict[str, list[int]] = {}
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(SUFFIX):
            durations.setdefault(event["name"][: -len(SUFFIX)], []).append(event["dur"])
    return {name: trimmed_mean(found[warmup:]) / 1e3 for name, found in durations.items()}


def trimmed_mean(values: Sequence[float]) -> float:
    """The mean without the slowest tenth: disturbances only ever add."""
    kept = sorted(values)[: max(1, len(values) * 9 // 10)]
    return sum(kept) / len(kept)


def versions() -> dict[str, str]:
    """The package's version."""
    return {"onnxruntime": onnxruntime.__version__}
