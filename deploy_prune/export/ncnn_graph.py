"""An exported network said in operators that pnnx and ncnn have; the outputs stay the same.

ncnn has no booleans, no integers, no batch axis that could move, and resizes pictures but no volumes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
ANCHORED: Final = {3: _aten.max_pool1d.default, 4: _aten.max_pool2d.default, 5: _aten.max_pool3d.default}
"""Dimensions, the batch included -> an operator of which pnnx knows where its batch is."""
_RECURRENT: Final[dict[Any, Any]] = {
    _aten.lstm.input: torch.nn.LSTM, _aten.gru.input: torch.nn.GRU, _aten.rnn_tanh.input: torch.nn.RNN,
}  # fmt: skip
_SPREADS: Final = (_aten.var.dim, _aten.var.correction, _aten.std.dim, _aten.std.correction)
_CHOOSE: Final = {_aten.where.self, _aten.masked_fill.Scalar, _aten.masked_fill.Tensor}
"""Operators on elements that need booleans."""


def anchor(graph: fx.GraphModule, inputs: Sequence[int]) -> None:
    """Show pnnx which axis of these inputs is the batch: max pooling over one element changes nothing."""
    given = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for node in (given[i] for i in inputs):
        dims = node.meta["val"].dim() - 2
        users = list(node.users)
        with graph.graph.inserting_after(given[-1]):
            pooled = _call(graph.graph, ANCHORED[dims + 2], node, [1] * dims)
        for user in users:
            user.replace_input_with(node, pooled)
    graph.recompile()


def rewrite(graph: fx.GraphModule) -> fx.GraphModule:
    """Say what pnnx can't convert in operators that it can; the outputs stay the same. Changes ``graph``.

    - Every s-th pixel (a slice with a step) becomes max pooling over one pixel with that stride.
    - Choosing from an axis (select, unbind) after a permutation that moves the batch off the front becomes choosing
      before a permutation that doesn't: ncnn has no batch axis that could move.
    - Resizing volumes becomes resizing pictures: height and width, then depth.
    - Layer norm over more than two axes becomes layer norm over one.
    - Variances and standard deviations become means of squares.
    - What attention may not look at is added, as minus infinity, and constants of other types become float32.
    - Recurrent layers that start from zeros become modules again: pnnx knows them as such.
    """
    rules: dict[Any, Callable[[fx.Node], None]] = {
        _aten.slice.Tensor: _pool_instead_of_step,
        _aten.unbind.int: _unbind_before_permute,
        _aten.select.int: _select_before_permute,
        _aten.alias.default: _leave_out,
        _aten.upsample_nearest3d.vec: _resize_twice,
        _aten.upsample_trilinear3d.vec: _resize_twice,
        _aten.layer_norm.default: _norm_over_one_axis,
        **dict.fromkeys(_SPREADS, _spread_by_means),
    }
    known = _constants(graph)
    _float_constants(graph, known)
    _recurrent_modules(graph, known)
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


def _leave_out(node: fx.Node) -> None:
    node.replace_all_uses_with(node.all_input_nodes[0])


def _resize_twice(node: fx.Node) -> None:
    """Both kinds work axis by axis: height and width with the depths as channels, then the depth."""
    linear = node.target is _aten.upsample_trilinear3d.vec
    given: list[Any] = list(node.args)
    x, size, align, scales = given[0], given[1], [given[2]] if linear else [], given[-1]
    resize = _aten.upsample_bilinear2d.vec if linear else _aten.upsample_nearest2d.vec
    (batch, channels, depth, height, width), made = x.meta["val"].shape, node.meta["val"].shape
    area = made[3] * made[4]
    with node.graph.inserting_before(node):
        flat = _call(node.graph, _aten.reshape.default, x, [batch, channels * depth, height, width])
        flat = _call(node.graph, resize, flat, size and size[1:], *align, scales and scales[1:])
        deep = _call(node.graph, _aten.reshape.default, flat, [batch, channels, depth, area])
        deep = _call(node.graph, resize, deep, size and [size[0], area], *align, scales and [scales[0], 1.0])
        whole = _call(node.graph, _aten.reshape.default, deep, list(made))
    node.replace_all_uses_with(whole)


def _norm_over_one_axis(node: fx.Node) -> None:
    given: list[Any] = [*node.args, None, None, None][:5]
    x, axes, affine, epsilon = given[0], given[1], given[2:4], 1e-5 if given[4] is None else given[4]
    if len(axes) < 3:
        return
    shape = list(x.meta["val"].shape)
    with node.graph.inserting_before(node):
        flat = _call(node.graph, _aten.reshape.default, x, [*shape[: -len(axes)], math.prod(axes)])
        affine = [a if a is None else _call(node.graph, _aten.reshape.default, a, [-1]) for a in affine]
        flat = _call(node.graph, _aten.layer_norm.default, flat, [math.prod(axes)], *affine, epsilon)
        whole = _call(node.graph, _aten.reshape.default, flat, shape)
    node.replace_all_uses_with(whole)


def _spread_by_means(node: fx.Node) -> None:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    x, keep = given["self"], bool(given.get("keepdim", False))
    shape = x.meta["val"].shape
    axes = given.get("dim") or list(range(len(shape)))
    less = given.get("correction", int(given.get("unbiased", True)))
    count = math.prod(shape[axis] for axis in axes)
    call = partial(_call, node.graph)
    with node.graph.inserting_before(node):
        rest = call(_aten.sub.Tensor, x, call(_aten.mean.dim, x, axes, True))
        spread = call(_aten.mean.dim, call(_aten.mul.Tensor, rest, rest), axes, keep)
        spread = call(_aten.mul.Tensor, spread, count / (count - (1 if less is None else less)))
        if node.target in (_aten.std.dim, _aten.std.correction):
            spread = call(_aten.sqrt.default, spread)
    node.replace_all_uses_with(spread)


def _float_constants(graph: fx.GraphModule, known: dict[fx.Node, Tensor]) -> None:
    """Give arithmetic and attention constants in float32."""
    for node in list(graph.graph.nodes):
        if node in known:
            continue
        if node.target is _aten.scaled_dot_product_attention.default:
            _add_mask(graph, node, known)
        elif _is_arithmetic(node):
            for constant in node.all_input_nodes:
                if constant in known and not known[constant].is_floating_point():
                    node.replace_input_with(constant, _constant(graph, node, known[constant].float()))


def _is_arithmetic(node: fx.Node) -> bool:
    """On elements, with a result of floating point."""
    pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    return pointwise and node.target not in _CHOOSE and bool(node.meta["val"].is_floating_point())


def _recurrent_modules(graph: fx.GraphModule, known: dict[fx.Node, Tensor]) -> None:
    for number, node in enumerate(n for n in list(graph.graph.nodes) if n.target in _RECURRENT):
        x, start, weights, biases, layers, _, _, both, batch_first = node.args
        starts = start if isinstance(start, list | tuple) else [start]
        if any(s not in known or bool(known[s].any()) for s in starts) or any(w not in known for w in weights):
            continue
        make, hidden = _RECURRENT[node.target], starts[0].meta["val"].shape[-1]
        module = make(x.meta["val"].shape[-1], hidden, layers, bias=biases, batch_first=batch_first, bidirectional=both)
        for name, value in zip((n for names in module._all_weights for n in names), weights, strict=True):
            setattr(module, name, torch.nn.Parameter(known[value], requires_grad=False))
        graph.add_submodule(f"recurrent_{number}", module.eval())
        with graph.graph.inserting_before(node):
            made = graph.graph.call_module(f"recurrent_{number}", (x,))
            states = graph.graph.call_function(operator.getitem, (made, 1))
        for user in list(node.users):
            if user.args[1] and len(starts) > 1:
                user.args = (states, user.args[1] - 1)  # of an LSTM, the second result is two
            else:
                user.replace_input_with(node, made)


def _add_mask(graph: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Tensor]) -> None:
    """A boolean mask (True: look there), or none that looks ahead, as what is added before the softmax."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    mask = known.get(given.get("attn_mask"))  # type: ignore[arg-type]
    if given.get("is_causal"):
        sizes = (given["query"].meta["val"].shape[-2], given["key"].meta["val"].shape[-2])
        mask = torch.ones(sizes, dtype=torch.bool).tril()
    if mask is None or mask.dtype != torch.bool:
        return
    added = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    rest = {name: value for name, value in node.kwargs.items() if name not in names}
    node.args = (*(given[name] for name in names[:3]), None if bool(mask.all()) else _constant(graph, node, added))
    node.kwargs = rest


def _constant(graph: fx.GraphModule, before: fx.Node, value: Tensor) -> fx.Node:
    """A new constant."""
    name = next(name for i in range(len(graph.graph.nodes) + 1) if not hasattr(graph, name := f"constant_{i}"))
    graph.register_buffer(name, value)
    with graph.graph.inserting_before(before):
        node = graph.graph.get_attr(name)
    node.meta["val"] = value
    return node


def _constants(graph: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """Tensors that depend on no input. None where the graph writes into one: it isn't the same throughout."""
    known: dict[fx.Node, Tensor] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr" and isinstance(found := _attribute(graph, node.target), Tensor):
            known[node] = found.detach()
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target._schema.is_mutable:
            if any(n in known for n in _written(node)):
                return {}
        elif torch.Tag.nondeterministic_seeded not in node.target.tags and all(
            n in known for n in node.all_input_nodes
        ):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: known[n])
            with torch.no_grad():
                made = node.target(*args, **kwargs)
            if isinstance(made, Tensor):
                known[node] = made
    return known


def _written(node: fx.Node) -> list[Any]:
    """The arguments that an operator changes."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given: dict[str, Any] = {**dict(zip((a.name for a in schema), node.args, strict=False)), **node.kwargs}
    return [given[a.name] for a in schema if a.alias_info is not None and a.alias_info.is_write and a.name in given]


def _attribute(graph: fx.GraphModule, name: str) -> Any:
    found: Any = graph
    for part in name.split("."):
        found = getattr(found, part)
    return found
