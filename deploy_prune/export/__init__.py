"""Artifacts: the file each target's runtime loads, and the proof that it computes what the network does."""

from __future__ import annotations

from typing import Final

from deploy_prune.export import coreml, executorch, litert, mnn, ncnn, onnx, openvino, ort, tensorrt
from deploy_prune.export.artifact import Format

FORMATS: Final[dict[str, Format]] = {
    "onnx": onnx,
    "ort": ort,
    "tensorrt": tensorrt,
    "litert": litert,
    "executorch": executorch,
    "ncnn": ncnn,
    "coreml": coreml,
    "openvino": openvino,
    "mnn": mnn,
}
"""Every format that can be written: its name in edge_targets/*.yaml, and its module."""
