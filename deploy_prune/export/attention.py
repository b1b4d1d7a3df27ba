"""Attention over tensors of any rank as 4-D attention, which computes the same.

Torch's exporter to ONNX takes no other: "only 4D query, key, and value are supported".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

aten: Final = torch.ops.aten
RANK: Final = 4
"""Batch, heads, positions, width of a head."""


def four_dimensional(program: ExportedProgram) -> ExportedProgram:
    """The program, in place, with 4-D attention: dimensions before the heads become one, missing ones are added."""
    changed = False
    for module in program.graph_module.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        target = aten.scaled_dot_product_attention.default
        calls = [n for n in module.graph.find_nodes(op="call_function", target=target) if _ranks(n) != {RANK}]
        for node in calls:
            made = _rewritten(node)
            node.replace_all_uses_with(made)
            program.graph_signature.replace_all_uses(node.name, made.name)
            module.graph.erase_node(node)
        if calls:
            changed = True
            module.graph.lint()
            module.recompile()
    if changed:
        program.validate()
    return program


def _ranks(node: fx.Node) -> set[int]:
    """The ranks of query, key and value."""
    return {_val(x).dim() for x in _operands(node)}


def _operands(node: fx.Node) -> list[fx.Node]:
    return [node.args[i] if i < len(node.args) else node.kwargs[n] for i, n in enumerate(("query", "key", "value"))]  # type: ignore[misc]


def _val(node: Any) -> Tensor:
    val = node.meta["val"]
    assert isinstance(val, Tensor)
    return val


def _rewritten(node: fx.Node) -> fx.Node:
    """The same attention by a 4-D one, its result in the shape of the node's."""
    given = dict(zip(("attn_mask", "dropout_p", "is_causal"), node.args[3:], strict=False)) | dict(node.kwargs)
    given = {k: v for k, v in given.items() if k not in ("query", "key", "value")}
    shape = _val(node).shape
    with node.graph.inserting_before(node):
        operands = [_of_rank_4(node, x, shape[:-3]) for x in _operands(node)]
        if isinstance(mask := given.get("attn_mask"), fx.Node):
            given["attn_mask"] = _mask(node, mask, shape[:-3])
        made = _call(node, aten.scaled_dot_product_attention.default, *operands, **given)
        if len(shape) > RANK:
            return _call(node, aten.unflatten.int, made, 0, _sizes(node, shape[:-3]))
        for _ in range(RANK - len(shape)):
            made = _call(node, aten.squeeze.dim, made, 0)
    return made


def _call(like: fx.Node, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A new call before ``like``, with the notes that torch's exporters read: its value's shape, its module."""
    made = like.graph.call_function(op, args, kwargs)
    values: Any = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
    with _val(like).fake_mode:  # type: ignore[attr-defined]
        made.meta = {**like.meta, "val": op(*values[0], **values[1])}
    return made


def _of_rank_4(node: fx.Node, x: fx.Node, leading: Sequence[Any]) -> fx.Node:
    """An operand [..., H, L, D], spread over the result's leading dimensions, these as one."""
    for _ in range(max(RANK, len(leading) + 3) - _val(x).dim()):
        x = _call(node, aten.unsqueeze.default, x, 0)
    if len(leading) < 2:
        return x
    mine = _val(x).shape[: len(leading)]
    if list(mine) != list(leading):
        x = _call(node, aten.expand.default, x, [*_sizes(node, leading, symbols=True), -1, -1, -1])
    return _call(node, aten.flatten.using_ints, x, 0, len(leading) - 1)


def _mask(node: fx.Node, mask: fx.Node, leading: Sequence[Any]) -> fx.Node:
    """The mask [..., H, L, S] for 4-D attention; one that is the same for all leading dimensions stays small."""
    rank = _val(mask).dim()
    mine = _val(mask).shape[:-3]
    if len(leading) < 2 or all(size == 1 for size in mine):
        return _call(node, aten.flatten.using_ints, mask, 0, rank - RANK) if rank > RANK else mask
    return _of_rank_4(node, mask, leading)


def _sizes(node: fx.Node, leading: Sequence[Any], *, symbols: bool = False) -> list[Any]:
    """The sizes as arguments of a call: of those that are free, one is left to torch (-1) unless ``symbols``."""
    sizes: list[Any] = []
    for dim, size in enumerate(leading):
        if isinstance(size, int):
            sizes.append(size)
        elif not symbols and -1 not in sizes:
            sizes.append(-1)
        else:
            source = next(x for x in _operands(node) if _val(x).dim() > dim and _val(x).shape[dim] == size)
            sizes.append(_call_size(node, source, dim))
    return sizes


def _call_size(node: fx.Node, source: fx.Node, dim: int) -> fx.Node:
    made = node.graph.call_function(aten.sym_size.int, (source, dim))
    made.meta = {**node.meta, "val": _val(source).shape[dim]}
    return made
