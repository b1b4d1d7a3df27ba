"""Artifacts: the file each target's runtime loads, and the proof that it computes what the network does."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Final

from deploy_prune.export import coreml, executorch, litert, ncnn, onnx, openvino, ort, tensorrt
from deploy_prune.export.artifact import Format
from deploy_prune.types import Artifact

FORMATS: Final[dict[str, Format]] = {
    "onnx": onnx,
    "ort": ort,
    "tensorrt": tensorrt,
    "litert": litert,
    "executorch": executorch,
    "ncnn": ncnn,
    "coreml": coreml,
    "openvino": openvino,
}
"""Every format that can be written: its name in edge_targets/*.yaml, and its module."""


class _Callable(ModuleType):
    """A module that can be called, so that ``deploy_prune.export(...)`` is a function, too."""

    def __call__(self, *args: Any, **kwargs: Any) -> Artifact:
        """As ``python.export``."""
        from deploy_prune.export.python import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
