"""Attention over tensors of any rank as 4-D attention, which computes the same.

Torch's exporter to ONNX takes no other: "only 4D query, key, and value are supported".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import fx

from deploy_prune.export.calls import call, value

aten: Final = torch.ops.aten
RANK: Final = 4
"""Batch, heads, positions, width of a head."""


def four_dimensional(node: fx.Node) -> fx.Node | None:
    """A call of attention as 4-D attention, or None: it is one. What is before the heads becomes one dimension."""
    return None if _ranks(node) == {RANK} else _rewritten(node)


def _ranks(node: fx.Node) -> set[int]:
    """The ranks of query, key and value."""
    return {value(x).dim() for x in _operands(node)}


def _operands(node: fx.Node) -> list[fx.Node]:
    return [node.args[i] if i < len(node.args) else node.kwargs[n] for i, n in enumerate(("query", "key", "value"))]  # type: ignore[misc]


def _rewritten(node: fx.Node) -> fx.Node:
    """The same attention by a 4-D one, its result in the shape of the node's."""
    given = dict(zip(("attn_mask", "dropout_p", "is_causal"), node.args[3:], strict=False)) | dict(node.kwargs)
    given = {k: v for k, v in given.items() if k not in ("query", "key", "value")}
    shape = value(node).shape
    with node.graph.inserting_before(node):
        operands = [_of_rank_4(node, x, shape[:-3]) for x in _operands(node)]
        if isinstance(mask := given.get("attn_mask"), fx.Node):
            given["attn_mask"] = _mask(node, mask, shape[:-3])
        made = call(node, aten.scaled_dot_product_attention.default, *operands, **given)
        if len(shape) > RANK:
            return call(node, aten.unflatten.int, made, 0, _sizes(node, shape[:-3]))
        for _ in range(RANK - len(shape)):
            made = call(node, aten.squeeze.dim, made, 0)
    return made


def _of_rank_4(node: fx.Node, x: fx.Node, leading: Sequence[Any]) -> fx.Node:
    """An operand [..., H, L, D], spread over the result's leading dimensions, these as one."""
    for _ in range(max(RANK, len(leading) + 3) - value(x).dim()):
        x = call(node, aten.unsqueeze.default, x, 0)
    if len(leading) < 2:
        return x
    mine = value(x).shape[: len(leading)]
    if list(mine) != list(leading):
        x = call(node, aten.expand.default, x, [*_sizes(node, leading, symbols=True), -1, -1, -1])
    return call(node, aten.flatten.using_ints, x, 0, len(leading) - 1)


def _mask(node: fx.Node, mask: fx.Node, leading: Sequence[Any]) -> fx.Node:
    """The mask [..., H, L, S] for 4-D attention; one that is the same for all leading dimensions stays small."""
    rank = value(mask).dim()
    mine = value(mask).shape[:-3]
    if len(leading) < 2 or all(size == 1 for size in mine):
        return call(node, aten.flatten.using_ints, mask, 0, rank - RANK) if rank > RANK else mask
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
            source = next(x for x in _operands(node) if value(x).dim() > dim and value(x).shape[dim] == size)
            sizes.append(_call_size(node, source, dim))
    return sizes


def _call_size(node: fx.Node, source: fx.Node, dim: int) -> fx.Node:
    made = node.graph.call_function(aten.sym_size.int, (source, dim))
    made.meta = {**node.meta, "val": value(source).shape[dim]}
    return made
