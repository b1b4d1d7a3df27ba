"""ncnn models, converted by pnnx: a folder with model.param (the graph, as text) and model.bin (the weights).

The network is exported with torch.export, what pnnx can't say in ncnn's operators is said in others (``rewrite``), and
the result is traced for pnnx. ncnn's tensors have no batch axis, so the folder takes one input at a time. There is no
int8: it takes ncnn's own tools ncnn2table and ncnn2int8, which neither Python package contains.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from deploy_prune.errors import CommandError, ExportError
from deploy_prune.export.artifact import Extra, describe, eval_mode, first_line, flatten, quiet
from deploy_prune.export.inputs import Given, several
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
_aten = torch.ops.aten


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
        ExportError: another precision, more than one input, torch can't export it, or ncnn lacks an operator.
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
        traced, shapes = _trace(network, example)
        traced.save(str(work / "traced.pt"))
        _convert(work, example, precision, part.timeout_s, temporary)
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


def _trace(network: nn.Module, example: Given) -> tuple[Any, list[list[int]]]:
    """The traced network, and the shapes of its outputs."""
    inputs = several(example)
    try:
        with eval_mode(network), torch.no_grad(), quiet():
            program = torch.export.export(_Outputs(network), inputs)
            graph = rewrite(program.module(check_guards=False))
            shapes = [list(y.shape) for y in flatten(graph(*inputs))]
            return torch.jit.trace(_Outputs(graph), inputs, check_trace=False), shapes
    except Exception as error:  # whatever the network's own code raises
        message = f"torch can't export the network for ncnn: {first_line(error)}"
        raise ExportError(message) from error


def _convert(work: Path, example: Given, precision: str, timeout_s: float, folder: Path) -> None:
    """Run pnnx; what it writes besides the two files stays in ``work``."""
    import pnnx

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


def _refuse_foreign(folder: Path) -> None:
    """Every layer must be one of ncnn's."""
    lines = (folder / PARAM).read_text(encoding="utf-8").splitlines()[2:]
    kinds = sorted({line.split()[0] for line in lines if line.strip()})
    foreign = [kind for kind in kinds if _FOREIGN.match(kind)]
    if foreign:
        message = f"ncnn has no operator for {', '.join(foreign)}, which the network uses."
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


def rewrite(graph: fx.GraphModule) -> fx.GraphModule:
    """Say what pnnx can't convert in operators that it can; the outputs stay the same. Changes ``graph``.

    - Every s-th pixel (a slice with a step) becomes max pooling over one pixel with that stride.
    - Choosing from an axis (select, unbind) after a permutation that moves the batch off the front becomes choosing
      before a permutation that doesn't: ncnn has no batch axis that could move.
    """
    rules: dict[Any, Callable[[fx.Node], None]] = {
        _aten.slice.Tensor: _pool_instead_of_step,
        _aten.unbind.int: _unbind_before_permute,
        _aten.select.int: _select_before_permute,
    }
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target in rules:
            rules[node.target](node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _pool_instead_of_step(node: fx.Node) -> None:
    """x[:, :, a:b:s] of x [B, C, H, W]: the plain slice a:b, then max pooling with kernel 1 and stride s."""
    given: list[Any] = [*node.args, None, None, None]
    x, axis, start, end, step = given[0], given[1] or 0, given[2], given[3], given[4] or 1
    if step == 1 or not isinstance(x, fx.Node) or x.meta["val"].dim() != 4 or axis not in (2, 3, -2, -1):
        return
    stride = [step if axis % 4 == a else 1 for a in (2, 3)]
    with node.graph.inserting_before(node):
        if start or (end is not None and end < x.meta["val"].shape[axis]):
            x = _call(node.graph, _aten.slice.Tensor, x, axis, start, end)
        pooled = _call(node.graph, _aten.max_pool2d.default, x, [1, 1], stride)
    node.replace_all_uses_with(pooled)


def _unbind_before_permute(node: fx.Node) -> None:
    """Each output becomes a select, of what the permutation was given."""
    given: tuple[Any, ...] = node.args
    x, axis = (*given, 0)[:2]
    if not _moves_batch(x):
        return
    for user in list(node.users):
        with node.graph.inserting_before(user):
            selected = _select(user.graph, x, axis, user.args[1])
        user.replace_all_uses_with(selected)


def _select_before_permute(node: fx.Node) -> None:
    given: tuple[Any, ...] = node.args
    x, axis, index = given
    if _moves_batch(x):
        with node.graph.inserting_before(node):
            node.replace_all_uses_with(_select(node.graph, x, axis, index))


def _moves_batch(x: Any) -> bool:
    return isinstance(x, fx.Node) and x.target is _aten.permute.default and _order(x)[0] != 0


def _order(permute: fx.Node) -> list[int]:
    """Which axis of the input each axis of the output is."""
    given: tuple[Any, ...] = permute.args
    return [int(axis) % len(given[1]) for axis in given[1]]


def _select(graph: fx.Graph, permute: fx.Node, axis: Any, index: Any) -> fx.Node:
    """select(permute(x, order), axis, index), with the select first.

    Said as a slice of the last axis, into which the chosen one and those after it are merged: tensors of more than four
    axes (the batch not counted) don't exist in ncnn.
    """
    x, order = permute.args[0], _order(permute)
    assert isinstance(x, fx.Node)
    chosen = order[axis % len(order)]
    left = [a - (a > chosen) for a in order if a != chosen]
    shape = [int(size) for size in x.meta["val"].shape]
    rest = math.prod(shape[chosen + 1 :])
    merged = [*shape[:chosen], shape[chosen] * rest]
    whole: Any = x.args[0] if x.target in (_aten.reshape.default, _aten.view.default) else x
    if list(whole.meta["val"].shape) != merged:
        whole = _call(graph, _aten.reshape.default, whole, merged)
    start = int(index) % shape[chosen] * rest
    part = _call(graph, _aten.slice.Tensor, whole, chosen, start, start + rest)
    part = _call(graph, _aten.reshape.default, part, [*shape[:chosen], *shape[chosen + 1 :]])
    return _call(graph, _aten.permute.default, part, left)


def _call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    """A new node, with its result's shape worked out from its arguments'."""
    node = graph.call_function(target, args)
    node.meta["val"] = target(*(a.meta["val"] if isinstance(a, fx.Node) else a for a in args))
    return node
