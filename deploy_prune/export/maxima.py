"""Adaptive max pooling as maxima of slices, which every runtime has."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import fx
from torch.export import ExportGraphSignature

from deploy_prune.export.calls import arguments, call, value

aten: Final = torch.ops.aten
_ADAPTIVE: Final = frozenset({
    aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default,
})  # fmt: skip


def rewrite_maxima(graph: fx.Graph, signature: ExportGraphSignature) -> bool:
    """Compute adaptive max poolings axis after axis, in place; whether there are any.

    One whose positions are used beside its values is left as it is.
    """
    changed = False
    for pooling in [node for node in graph.nodes if node.op == "call_function" and node.target in _ADAPTIVE]:
        used = [part for part in pooling.users if part.users]
        if [part.args[1] for part in used] != [0]:
            continue
        values = used[0]
        with graph.inserting_before(values):
            made = _largest(pooling, values)
        values.replace_all_uses_with(made)
        signature.replace_all_uses(values.name, made.name)
        for dead in (*pooling.users, pooling):
            graph.erase_node(dead)
        changed = True
    return changed


def _largest(pooling: fx.Node, like: fx.Node) -> Any:
    """Output i of o along an axis is the largest of inputs floor(i n / o) to ceil((i + 1) n / o) of n, as in torch."""
    given = arguments(pooling)
    x, sizes = given["self"], given["output_size"]
    for axis, made in zip(range(-len(sizes), 0), sizes, strict=True):
        n = value(x).shape[axis]
        if made == 1:
            x = call(like, aten.amax.default, x, [axis], True)
        elif made != n:
            ends = [(i * n // made, -(-(i + 1) * n // made)) for i in range(made)]
            parts = [call(like, aten.slice.Tensor, x, axis, *each) for each in ends]
            x = call(
                like, aten.cat.default, [call(like, aten.amax.default, part, [axis], True) for part in parts], axis
            )
    return x
