"""ONNX files, written by torch's exporter and run by ONNX Runtime on the CPU.

The same weights give the same bytes: what the exporter notes beside the graph (stack traces with this machine's
paths, module classes) is removed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from torch import Tensor, nn

from deploy_prune.errors import ExportError
from deploy_prune.export.artifact import describe, eval_mode
from deploy_prune.recipe import ExportPart
from deploy_prune.shell import atomic
from deploy_prune.types import Artifact

suffix = ".onnx"
precisions = ("fp32",)
MAX_BYTES: Final = 2**31 - 1
"""A protobuf message can't be longer (protobuf.dev, "Proto Limits")."""
_REMOVED: Final = ("doc_string", "metadata_props")


def write(
    network: nn.Module, example: Tensor, path: Path, precision: str, part: ExportPart, calibration: Tensor | None = None
) -> Artifact:
    """Export the network, in eval mode, to one ONNX file with its weights inside.

    Args:
        network: exported as it is; each module's train or eval mode is put back afterwards.
        example: an input [B, C, H, W] on the network's device; fixes the file's input shape (its batch, unless
            ``part.dynamic_batch``).
        path: the file; it appears under this name only when complete.
        precision: "fp32" is the only one that this format writes.
        part: the opset, and whether the batch size stays open.
        calibration: not used for fp32.

    Raises:
        ExportError: another precision, over 2 GB, torch can't export it, or the exporter left another opset.
    """
    if precision != "fp32":
        message = f"An ONNX file can't be written in {precision}: set 'precision: fp32' in the target's file."
        raise ExportError(message)
    _refuse_large(network)
    with eval_mode(network), _quiet():
        model = _clean(_export(network, example, part))
    _check(model, part.opset)
    with atomic(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
    versions = {"torch": torch.__version__, "onnx": onnx.__version__, "opset": str(part.opset)}
    return describe(path, format="onnx", precision=precision, input_shape=example.shape, versions=versions)


def run(artifact: Artifact, x: Tensor) -> tuple[Tensor, ...]:
    """All outputs of the file for inputs [N, C, H, W], by ONNX Runtime on one CPU thread; each output is [N, ...].

    A file with a fixed batch of B is given B inputs at a time, so N must be a multiple of B.

    Raises:
        ExportError: ONNX Runtime can't load or run the file, or N doesn't divide into the file's batches.
    """
    session = _session(artifact.path)
    first = session.get_inputs()[0]
    batch = first.shape[0] if isinstance(first.shape[0], int) else len(x)
    if len(x) == 0 or len(x) % batch:
        message = f"{artifact.path} takes {batch} inputs at a time; {len(x)} can't be divided so."
        raise ExportError(message)
    chunks = [x[start : start + batch] for start in range(0, len(x), batch)]
    try:
        parts = [session.run(None, {first.name: chunk.detach().cpu().numpy()}) for chunk in chunks]
    except Exception as error:  # onnxruntime's exceptions have no common base but Exception
        message = f"ONNX Runtime can't run {artifact.path}: {_first_line(error)}"
        raise ExportError(message) from error
    return tuple(torch.cat([torch.from_numpy(y) for y in column]) for column in zip(*parts, strict=True))


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        message = f"ONNX Runtime can't load {path}: {_first_line(error)}"
        raise ExportError(message) from error


def _export(network: nn.Module, example: Tensor, part: ExportPart) -> onnx.ModelProto:
    """Run the exporter. A batch of 1 would be taken for a constant, so an open batch is traced with 2."""
    if part.dynamic_batch:
        example = torch.cat([example[:1]] * 2)
        shapes: Any = ({0: torch.export.Dim("batch")},)
    else:
        shapes = None
    try:
        with torch.no_grad():  # else attention with a learned bias is traced the way that has gradients
            program = torch.onnx.export(
                network, (example,), dynamo=True, opset_version=part.opset, dynamic_shapes=shapes, verbose=False
            )
        assert program is not None
        return program.model_proto
    except Exception as error:  # the exporter wraps whatever the network's own code raises
        message = f"torch.onnx can't export the network with opset {part.opset}: {_first_line(_root(error))}"
        raise ExportError(message) from error


def _clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove, in place, notes that hold paths of this machine or change from run to run."""
    graphs = [model.graph]
    for message in (model, model.graph, *model.functions):
        _strip(message)
    while graphs:
        graph = graphs.pop()
        for message in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            _strip(message)
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return model


def _strip(message: Any) -> None:
    for field in _REMOVED:
        if field in message.DESCRIPTOR.fields_by_name:
            message.ClearField(field)


def _check(model: onnx.ModelProto, opset: int) -> None:
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found.get("") != opset:
        message = f"The exporter left opset {found.get('')} where export.opset asks for {opset}; choose another one."
        raise ExportError(message)
    if model.ByteSize() > MAX_BYTES:
        message = "The ONNX file would be over 2 GB, which the format can't hold in one file."
        raise ExportError(message)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        message = f"The exported ONNX file is not valid: {_first_line(error)}"
        raise ExportError(message) from error


def _refuse_large(network: nn.Module) -> None:
    size = sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
    if size > MAX_BYTES:
        message = f"The network's weights are {size / 1e9:.1f} GB; an ONNX file can hold at most 2 GB."
        raise ExportError(message)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own warnings, which no user can act on, off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
