"""ONNX models as files: one file, or, where the weights don't fit into one, a folder.

In the folder, ``model.onnx`` is the graph. It names the weights, in ``model.onnx.data``, by their places: ONNX calls
that external data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Final

import onnx

from deploy_prune.errors import ExportError
from deploy_prune.export.artifact import first_line
from deploy_prune.system.guard import scratch

MAX_BYTES: Final = 2**31 - 1
"""A protobuf message can't be longer (protobuf.dev, "Proto Limits")."""
GRAPH: Final = "model.onnx"
WEIGHTS: Final = "model.onnx.data"
MOST_OF_THE_GRAPH: Final = 2**24
"""Left for what isn't weights: nodes, names and shapes."""


def is_large(model: onnx.ModelProto) -> bool:
    """Whether the model is too large for one file."""
    return sum(map(_bytes, model.graph.initializer)) > MAX_BYTES - MOST_OF_THE_GRAPH


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model to a file, or a large one into a new folder of that name.

    Raises:
        ExportError: as ``save_in``.
    """
    if is_large(model):
        path.mkdir()
        save_in(model, path)
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))


def save_in(model: onnx.ModelProto, folder: Path) -> None:
    """Write a model into a folder that is there. A large one's weights are taken out of ``model``.

    Raises:
        ExportError: the large model isn't valid; smaller ones are checked before.
    """
    if is_large(model):
        check(_save_apart(model, folder))
    else:
        save(model, folder / GRAPH)


@contextmanager
def apart(model: onnx.ModelProto) -> Iterator[Path]:
    """The file of a large model, for tools that take large ones from files alone. ``model`` loses its weights."""
    with scratch() as folder:
        yield _save_apart(model, folder)


def check(model: onnx.ModelProto | Path) -> None:
    """Check a model, or the file of a large one, against ONNX's definitions, shapes and types included.

    Raises:
        ExportError: it isn't valid.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        message = f"The exported ONNX file is not valid: {first_line(error)}"
        raise ExportError(message) from error


def _save_apart(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save_model(model, folder / GRAPH, save_as_external_data=True, location=WEIGHTS)
    return folder / GRAPH


def _bytes(entry: onnx.TensorProto) -> int:
    size: int = prod(entry.dims) * onnx.helper.tensor_dtype_to_np_dtype(entry.data_type).itemsize
    return size
