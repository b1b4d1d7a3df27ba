"""ncnn models, converted by pnnx: a folder with model.param (the graph, as text) and model.bin (the weights).

The network is exported with torch.export, what pnnx can't say in ncnn's operators is said in others (``ncnn_graph``),
and the result is traced for pnnx. ncnn's tensors have no batch axis, so the folder takes one input at a time. There is
no int8: it takes ncnn's own tools ncnn2table and ncnn2int8, which neither Python package contains.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.errors import CommandError, ExportError
from deploy_prune.export.artifact import Extra, describe, eval_mode, first_line, flatten, quiet
from deploy_prune.export.inputs import Given, several
from deploy_prune.export.ncnn_graph import ANCHORED, anchor, rewrite
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.system.guard import scratch
from deploy_prune.system.shell import atomic, run_command
from deploy_prune.types import Artifact

suffix: Final = ".ncnn"
precisions: Final = ("fp32", "fp16")
runtime: Final = "ncnn"
extra: Final = Extra(name="ncnn", modules=("ncnn", "pnnx"))
packages: Final = ("torch", "pnnx", "ncnn")
PARAM: Final = "model.param"
BIN: Final = "model.bin"
_FOREIGN = re.compile(r"^\S*(?:\.|::)\S*$")
"""Layers that pnnx leaves as they were in PyTorch ("F.grid_sample", "aten::roll"): ncnn's own have no dot or colon."""
_INPUT = re.compile(r'ex\.input\("in(\d+)".*batch_index=(\d+)\)')
"""In the Python program that pnnx writes: an input, and which axis it takes for the batch."""
_BYTES = " 21=3"
"""In a line of a constant: it is stored in bytes, as booleans are. The runtime reads four for each."""


def write(
    network: nn.Module,
    example: Given,
    path: Path,
    precision: str,
    part: ExportPart,
    calibration: Given | None = None,
) -> Artifact:
    """Convert the network, in eval mode, to a folder with model.param and model.bin.

    Args:
        network: a module, or a GraphModule of torch.export; each module's train or eval mode is put back afterwards.
        example: one input [1, C, H, W].
        path: the folder; it appears under this name only when complete.
        precision: "fp32", or "fp16": weights of convolutions and matrix products in half precision, and the runtime
            may compute in it too.
        part: how long pnnx may take.
        calibration: not needed.

    Raises:
        ExportError: another precision, more than one input, torch can't export it, ncnn lacks an operator or a type, or
            an output is one number.
        MissingDependencyError: ncnn or pnnx is not installed.
    """
    if precision not in precisions:
        message = f"An ncnn model can't be written in {precision}: the target's 'precision' must be fp32 or fp16."
        raise ExportError(message)
    if any(len(x) != 1 for x in several(example)):
        found = len(several(example)[0])
        message = f"An ncnn model takes one input at a time, not {found}: ncnn's tensors have no batch axis."
        raise ExportError(message)
    extra.require()
    with atomic(path) as temporary, scratch() as work:
        temporary.mkdir()
        shapes = _convert(work, network, example, precision, part.timeout_s, temporary, [])
        if unsure := _unsure(work, example):
            _convert(work, network, example, precision, part.timeout_s, temporary, unsure)
            _drop_anchors(temporary, unsure)
        _refuse_foreign(temporary)
        _fix_shapes(temporary, shapes)
    versions = {"torch": torch.__version__, "pnnx": version("pnnx"), "ncnn": version("ncnn")}
    return describe(path, format="ncnn", precision=precision, input_shape=several(example)[0].shape, versions=versions)


class _Outputs(nn.Module):
    """The network with its outputs as a tuple. Also keeps names like "0" off the top level, which pnnx mistakes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return flatten(self.network(*inputs))


def _trace(network: nn.Module, example: Given, anchored: Sequence[int]) -> tuple[Any, list[list[int]]]:
    """The traced network, and the shapes of its outputs."""
    inputs = several(example)
    try:
        with eval_mode(network), torch.no_grad(), quiet():
            program = torch.export.export(_Outputs(network), inputs)
            graph = rewrite(program.module(check_guards=False))
            anchor(graph, anchored)
            shapes = [list(y.shape) for y in flatten(graph(*inputs))]
            return torch.jit.trace(_Outputs(graph), inputs, check_trace=False), shapes
    except Exception as error:  # whatever the network's own code raises
        message = f"torch can't export the network for ncnn: {first_line(error)}"
        raise ExportError(message) from error


def _convert(
    work: Path, network: nn.Module, example: Given, precision: str, timeout_s: float, folder: Path,
    anchored: Sequence[int],
) -> list[list[int]]:  # fmt: skip
    """Run pnnx; what it writes besides the two files stays in ``work``. Returns the shapes of the outputs."""
    import pnnx

    traced, outputs = _trace(network, example, anchored)
    if flat := [i for i, shape in enumerate(outputs) if len(shape) < 2]:
        message = (
            f"Output {flat[0]} is one number per input, and ncnn's tensors have at least one axis: return it with "
        )
        message += "an axis of length 1 (unsqueeze(-1))."
        raise ExportError(message)
    traced.save(str(work / "traced.pt"))
    shapes = ",".join(f"[{','.join(map(str, x.shape))}]f32" for x in several(example))
    args = [pnnx.EXEC_PATH, str(work / "traced.pt"), f"inputshape={shapes}", f"fp16={int(precision == 'fp16')}"]
    args += [f"ncnnparam={folder / PARAM}", f"ncnnbin={folder / BIN}"]
    try:
        run_command(args, timeout_s)
    except CommandError as error:
        message = f"pnnx can't convert the network. {error}"
        raise ExportError(message) from error
    if not ((folder / PARAM).is_file() and (folder / BIN).is_file()):
        message = "pnnx ended without writing an ncnn model."
        raise ExportError(message)
    return outputs


def _unsure(work: Path, example: Given) -> list[int]:
    """Inputs of which pnnx hasn't found out which axis is the batch: it takes them for one with none, and is wrong."""
    told = _INPUT.findall((work / "traced_ncnn.py").read_text(encoding="utf-8"))
    dims = [x.dim() for x in several(example)]
    return [int(number) for number, axis in told if axis != "0" and dims[int(number)] in ANCHORED]


def _drop_anchors(folder: Path, inputs: Sequence[int]) -> None:
    """Take out the pooling of these inputs, which has done its work; nothing else reads them."""
    magic, counts, *layers = (folder / PARAM).read_text(encoding="utf-8").splitlines()
    names, kept = {}, []
    for line in layers:
        kind, name, ins, outs, first, *rest = line.split()
        if kind.startswith("Pooling") and first in {f"in{i}" for i in inputs} and not rest[0].startswith("out"):
            names[rest[0]] = first
            continue
        blobs = int(ins) + int(outs)
        words = [names.get(word, word) if i < blobs else word for i, word in enumerate([first, *rest])]
        kept.append(" ".join([f"{kind:24} {name:24} {ins} {outs}", *words]))
    num_blobs = int(counts.split()[1]) - len(names)
    text = "\n".join([magic, f"{len(kept)} {num_blobs}", *kept])
    (folder / PARAM).write_text(text + "\n", encoding="utf-8")


def _refuse_foreign(folder: Path) -> None:
    """Every layer must be one of ncnn's, and every constant of numbers."""
    lines = (folder / PARAM).read_text(encoding="utf-8").splitlines()[2:]
    kinds = sorted({line.split()[0] for line in lines if line.strip()})
    foreign = [kind for kind in kinds if _FOREIGN.match(kind)]
    if foreign:
        message = f"ncnn has no operator for {', '.join(foreign)}, which the network uses."
        raise ExportError(message)
    if any(line.startswith("MemoryData") and line.endswith(_BYTES) for line in lines):
        message = "ncnn has no booleans, and the network computes with a constant of them: make it float (x.float())."
        raise ExportError(message)


def _fix_shapes(folder: Path, shapes: Sequence[Sequence[int]]) -> None:
    """Give every output a last layer that brings it to the network's shape without the batch.

    pnnx guesses which axis is the batch, and leaves an axis of length 1 where it can't tell. A line of the file:
    kind, name, number of inputs and of outputs, their names, parameters (of Reshape: 0 w, 1 h, 11 d, 2 c).
    """
    magic, _, *layers = (folder / PARAM).read_text(encoding="utf-8").splitlines()
    keys = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}
    fixed = {f"out{i}": shape[1:] for i, shape in enumerate(shapes) if len(shape) - 1 in keys}
    lines = []
    for line in layers:
        kind, name, inputs, outputs, *rest = line.split()
        blobs = int(inputs) + int(outputs)
        rest[:blobs] = [f"{blob}_any" if blob in fixed else blob for blob in rest[:blobs]]
        lines.append(" ".join([f"{kind:24} {name:24} {inputs} {outputs}", *rest]))
    for blob, shape in fixed.items():
        sizes = " ".join(f"{key}={size}" for key, size in zip(keys[len(shape)], shape, strict=True))
        lines.append(f"{'Reshape':24} {f'shape_{blob}':24} 1 1 {blob}_any {blob} {sizes}")
    num_blobs = sum(int(line.split()[3]) for line in lines)
    text = "\n".join([magic, f"{len(lines)} {num_blobs}", *lines])
    (folder / PARAM).write_text(text + "\n", encoding="utf-8")
