"""A program's calls in the forms that every format's exporter takes, which compute the same.

One function a kind of operator, one table (REWRITES): sums with a factor as sums of products, padding by name as
numbers, attention as 4-D attention. Adaptive max pooling has a file of its own (maxima.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import fx
from torch.export import ExportedProgram

from deploy_prune.export.attention import four_dimensional
from deploy_prune.export.calls import arguments, call, value
from deploy_prune.export.maxima import rewrite_maxima

aten: Final = torch.ops.aten
Rewrites = Mapping[Any, Callable[[fx.Node], fx.Node | None]]
"""Operator -> its call in another form, or None: it has that form."""
_CONVOLUTIONS: Final[dict[Any, Any]] = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}


def rewritten(program: ExportedProgram, calls: Rewrites | None = None) -> ExportedProgram:
    """The program, changed in place: the ``calls`` (`REWRITES`) that need another form, in regions too."""
    calls = REWRITES if calls is None else calls
    changed = False
    for module in program.graph_module.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in [n for n in module.graph.nodes if n.op == "call_function" and n.target in calls]:
            with module.graph.inserting_before(node):
                made = calls[node.target](node)
            if made is None:
                continue
            changed = True
            node.replace_all_uses_with(made)
            program.graph_signature.replace_all_uses(node.name, made.name)
            module.graph.erase_node(node)
        changed |= rewrite_maxima(module.graph, program.graph_signature)
        module.graph.lint()
        module.recompile()
    if changed:
        program.validate()
    return program


def without_factor(node: fx.Node) -> fx.Node | None:
    """Self + alpha other, or self - alpha other: the product first. None: alpha is 1."""
    given = arguments(node)
    if given["alpha"] == 1:
        return None
    return call(node, node.target, given["self"], _times(node, given["other"], given["alpha"]))


def exchanged(node: fx.Node) -> fx.Node:
    """Other - alpha self, as a difference in order."""
    given = arguments(node)
    return call(node, aten.sub.Tensor, given["other"], _times(node, given["self"], given["alpha"]))


def from_number(node: fx.Node) -> fx.Node | None:
    """A number - alpha self: the product first. None: alpha is 1."""
    given = arguments(node)
    if given["alpha"] == 1:
        return None
    return call(node, node.target, _times(node, given["self"], given["alpha"]), given["other"])


def _times(node: fx.Node, factor: Any, alpha: Any) -> Any:
    if not isinstance(factor, fx.Node):
        return factor * alpha
    return factor if alpha == 1 else call(node, aten.mul.Tensor, factor, alpha)


def padded(node: fx.Node) -> fx.Node:
    """A convolution whose padding is "valid" or "same" in numbers, an odd one larger at the end, as torch has it."""
    given = arguments(node)
    x, rank = given["input"], value(given["weight"]).dim() - 2
    dilation = list(given["dilation"]) * (rank if len(given["dilation"]) == 1 else 1)
    total = [d * (k - 1) for d, k in zip(dilation, value(given["weight"]).shape[2:], strict=True)]
    if given["padding"] == "valid":
        total = [0] * rank
    if any(n % 2 for n in total):
        x = call(node, aten.pad.default, x, [n for t in reversed(total) for n in (0, t % 2)])
    fixed = (given["stride"], [t // 2 for t in total], dilation, given["groups"])
    return call(node, _CONVOLUTIONS[node.target], x, given["weight"], given["bias"], *fixed)


REWRITES: Final[Rewrites] = {
    **dict.fromkeys((aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor), without_factor),
    aten.rsub.Tensor: exchanged,
    aten.rsub.Scalar: from_number,
    **dict.fromkeys(_CONVOLUTIONS, padded),
    aten.scaled_dot_product_attention.default: four_dimensional,
}
"""What every format's exporter needs."""
