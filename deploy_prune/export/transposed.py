"""Transposed convolutions in forms that a runtime has: batch norms folded in, and ordinary convolutions in their place.

With stride s, an output at q s + r reads only the kernel's places r, r + s, r + 2 s ...: a transposed convolution is
s ordinary ones (s1 s2 in two dimensions) at the input's resolution, whose results are interleaved. That is exact, keeps
groups, and multiplies no zeros if the stride divides the kernel (Shi et al., arXiv 1609.07009).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, fx

from deploy_prune.export.calls import arguments

aten: Final = torch.ops.aten
_TRANSPOSED: Final[dict[Any, int]] = {aten.conv_transpose1d.default: 1, aten.conv_transpose2d.input: 2}
"""Operator -> its number of spatial dimensions."""
_ACTIVATIONS: Final = frozenset({
    aten.relu.default, aten.relu_.default, aten.relu6.default, aten.hardtanh.default, aten.hardtanh_.default,
})  # fmt: skip
"""Runtimes compute them with the convolution whose result they take, if nothing is between."""
_CONVOLUTIONS: Final = {1: aten.conv1d.default, 2: aten.conv2d.default}


@dataclass(frozen=True, kw_only=True, eq=False)
class Transposed:
    """A transposed convolution with known weights.

    ``weight``: [I, O / groups, k, ...]; ``bias``: [O]; ``stride``, ``padding``, ``output_padding``, ``dilation``: one
    number a spatial dimension, of which ``sizes`` are the input's. ``activation``: of the outputs, with its arguments.
    """

    sizes: tuple[int, ...]
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    dilation: tuple[int, ...]
    activation: tuple[Any, tuple[Any, ...]] | None = None

    @property
    def kernel(self) -> tuple[int, ...]:
        """How far the kernel reaches in each dimension, the gaps of its dilation included."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.weight.shape[2:], self.dilation, strict=True))

    @property
    def made(self) -> tuple[int, ...]:
        """The output's sizes."""
        every = zip(self.sizes, self.stride, self.padding, self.kernel, self.output_padding, strict=True)
        return tuple((size - 1) * s - 2 * p + k + o for size, s, p, k, o in every)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """``has``: whether it has such a one. ``groups``: its ordinary convolutions may have groups."""

    has: Callable[[Transposed], bool]
    groups: bool


def rewrite_transposed(module: fx.GraphModule, runtime: Runtime) -> fx.GraphModule:
    """The module of a program, in place, with batch norms folded into transposed convolutions, in forms that it has.

    One whose weights depend on the input is left as it is, and so is a batch norm that takes a batch's own statistics.
    ``module`` is as torch.export gives it: with values' shapes.
    """
    for node in list(module.graph.nodes):
        given = _read(module, node)
        if given is None:
            continue
        norm = next(iter(node.users))
        folded = _folded(module, given, norm) if len(node.users) == 1 else None
        if folded is None and runtime.has(given):
            continue
        replaced, given = (node, given) if folded is None else (norm, folded)
        following = next(iter(replaced.users)) if len(replaced.users) == 1 else replaced
        if following.target in _ACTIVATIONS:
            given = replace(given, activation=(following.target, following.args[1:]))
            replaced = following
        with module.graph.inserting_before(replaced):
            made = _form(module, node.args[0], given, runtime)
        made.meta["val"] = replaced.meta["val"]
        replaced.replace_all_uses_with(made)
        module.graph.erase_node(replaced)  # one in place wouldn't count as dead
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _read(module: fx.GraphModule, node: fx.Node) -> Transposed | None:
    """The transposed convolution that a node calls; None: it calls none, or its weights aren't known."""
    rank = _TRANSPOSED.get(node.target)
    if rank is None or not node.users:
        return None
    given = arguments(node)
    weight, bias = _known(module, given["weight"]), _known(module, given["bias"])
    sizes = given["input"].meta["val"].shape[-rank:]
    if weight is None or (bias is None) != (given["bias"] is None) or not all(isinstance(s, int) for s in sizes):
        return None
    if given["input"].meta["val"].dim() != rank + 2:
        return None
    each: dict[str, Any] = {key: _each(given[key], rank) for key in ("stride", "padding", "output_padding", "dilation")}
    return Transposed(sizes=tuple(sizes), weight=weight, bias=bias, groups=given["groups"], **each)


def _each(given: Any, rank: int) -> tuple[int, ...]:
    """An argument of a convolution: one number for all dimensions, or one each."""
    numbers = [given] if isinstance(given, int) else list(given)
    return tuple(numbers * rank if len(numbers) == 1 else numbers)


def _known(module: fx.GraphModule, node: Any) -> Tensor | None:
    """The value of a tensor that is made of weights alone, as a weight norm's is; else None."""
    if not isinstance(node, fx.Node) or node.op not in ("get_attr", "call_function"):
        return None
    if node.op == "get_attr":
        value: Any = module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value.detach() if isinstance(value, Tensor) else None
    known = {source: _known(module, source) for source in node.all_input_nodes}
    if not known or any(value is None for value in known.values()):
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: known[source])
    value = node.target(*args, **kwargs)  # type: ignore[operator]
    return value.detach() if isinstance(value, Tensor) else None


def _folded(module: fx.GraphModule, given: Transposed, norm: fx.Node) -> Transposed | None:
    """With the batch norm of what it gives; None: ``norm`` is none, or one of the batch's own statistics."""
    if norm.target is not aten.batch_norm.default:
        return None
    found = arguments(norm)
    weight, bias, mean, var = (_known(module, found[n]) for n in ("weight", "bias", "running_mean", "running_var"))
    if found["training"] or mean is None or var is None:
        return None
    if (weight is None) != (found["weight"] is None) or (bias is None) != (found["bias"] is None):
        return None
    scale = (var + found["eps"]).rsqrt() * (1 if weight is None else weight)
    shift = (0 if given.bias is None else given.bias) - mean
    by_group = given.weight.unflatten(0, (given.groups, -1))
    scaled = by_group * scale.view(given.groups, 1, -1, *[1] * len(given.sizes))
    return replace(given, weight=scaled.flatten(0, 1), bias=shift * scale + (0 if bias is None else bias))


def _form(module: fx.GraphModule, source: fx.Node, given: Transposed, runtime: Runtime) -> fx.Node:
    """The calls that compute it: itself, one for each group, itself without padding and cut, or interleaved."""
    if runtime.has(given):
        return _transposed(module, source, given)
    groups, inputs = given.groups, len(given.weight)
    if 1 < groups < inputs and not runtime.groups:  # one for each input is an ordinary depthwise convolution
        each = inputs // groups
        slices = [_slice(module, source, 1, i * each, (i + 1) * each) for i in range(groups)]
        made = [_form(module, x, one, runtime) for x, one in zip(slices, _by_group(given), strict=True)]
        return module.graph.call_function(aten.cat.default, (made, 1))
    if runtime.has(whole := _unpadded(given)):
        places = zip(given.padding, whole.made, given.made, strict=True)
        return _cut(module, _transposed(module, source, whole), list(places))
    return _interleaved(module, source, given)


def _by_group(given: Transposed) -> list[Transposed]:
    weights = given.weight.chunk(given.groups)
    biases = [None] * given.groups if given.bias is None else given.bias.chunk(given.groups)
    return [
        replace(given, weight=w.contiguous(), bias=None if b is None else b.clone(), groups=1)
        for w, b in zip(weights, biases, strict=True)
    ]


def _unpadded(given: Transposed) -> Transposed:
    """With all outputs, of which ``given``'s are a part; zeros at the kernel's ends make those that it adds."""
    more = [max(0, o - p) for o, p in zip(given.output_padding, given.padding, strict=True)]
    weight = torch.nn.functional.pad(given.weight, [n for extra in reversed(more) for n in (0, extra)])
    none = (0,) * len(more)
    return replace(given, weight=weight, padding=none, output_padding=none)


def _transposed(module: fx.GraphModule, source: fx.Node, given: Transposed) -> fx.Node:
    operator = next(op for op, rank in _TRANSPOSED.items() if rank == len(given.sizes))
    numbers = (list(given.stride), list(given.padding), list(given.output_padding), given.groups, list(given.dilation))
    weights = _weights(module, given.weight, given.bias)
    return _activated(module, module.graph.call_function(operator, (source, *weights, *numbers)), given)


def _activated(module: fx.GraphModule, y: fx.Node, given: Transposed) -> fx.Node:
    if given.activation is None:
        return y
    operator, options = given.activation
    return module.graph.call_function(operator, (y, *options))


def _interleaved(module: fx.GraphModule, source: fx.Node, given: Transposed) -> fx.Node:
    """An ordinary convolution that gives the outputs of all phases as channels, which are then interleaved and cut."""
    call, rank, phases = module.graph.call_function, len(given.sizes), math.prod(given.stride)
    taps = [math.ceil(k / s) for k, s in zip(given.kernel, given.stride, strict=True)]
    padding, sizes, places = [], [], []  # a place: where the outputs begin, how many are computed, how many there are
    for size, s, p, tap, made in zip(given.sizes, given.stride, given.padding, taps, given.made, strict=True):
        padding.append(max(0, tap - 1 - p // s, math.ceil((p + made) / s) - size))
        sizes.append(size + 2 * padding[-1] - tap + 1)
        places.append((p - (tap - 1 - padding[-1]) * s, sizes[-1] * s, made))
    bias = None if given.bias is None else given.bias.repeat_interleave(phases)
    weights = _weights(module, _phases(given, taps), bias)
    y = call(_CONVOLUTIONS[rank], (source, *weights, [1] * rank, padding, [1] * rank, given.groups))
    y = _activated(module, y, given)
    if phases > 1:
        outputs = given.groups * given.weight.shape[1]
        y = call(aten.view.default, (y, [-1, outputs, *given.stride, *sizes]))
        order = [x for i in range(rank) for x in (2 + rank + i, 2 + i)]
        y = call(aten.permute.default, (y, [0, 1, *order]))
        y = call(aten.reshape.default, (y, [-1, outputs, *(computed for _, computed, _ in places)]))
    return _cut(module, y, places)


def _cut(module: fx.GraphModule, y: fx.Node, places: list[tuple[int, int, int]]) -> fx.Node:
    """In each spatial dimension, from a place on, of so many values so many."""
    for dim, (start, computed, made) in enumerate(places):
        if made != computed:
            y = _slice(module, y, 2 + dim, start, start + made)
    return y


def _slice(module: fx.GraphModule, x: fx.Node, dim: int, start: int, end: int) -> fx.Node:
    return module.graph.call_function(aten.slice.Tensor, (x, dim, start, end))


def _phases(given: Transposed, taps: list[int]) -> Tensor:
    """The ordinary convolution's weight [O s1 s2, I / groups, taps1, taps2], or with one spatial dimension."""
    rank, weight = len(taps), given.weight
    whole = weight.new_zeros(*weight.shape[:2], *(t * s for t, s in zip(taps, given.stride, strict=True)))
    kernel: Any = (..., *(slice(0, k, d) for k, d in zip(given.kernel, given.dilation, strict=True)))
    whole[kernel] = weight
    for dim in reversed(range(rank)):  # place = tap * stride + phase
        whole = whole.unflatten(2 + dim, (taps[dim], given.stride[dim]))
    whole = whole.unflatten(0, (given.groups, -1))  # groups, I / groups, O / groups, taps1, phases1, taps2, phases2
    tap_dims, phase_dims = [3 + 2 * i for i in range(rank)], [4 + 2 * i for i in range(rank)]
    ordered: Tensor = whole.flip(tap_dims).permute(0, 2, *phase_dims, 1, *tap_dims)
    return ordered.flatten(0, 1 + rank).contiguous()


def _weights(module: fx.GraphModule, weight: Tensor, bias: Tensor | None) -> tuple[fx.Node, fx.Node | None]:
    """New constants of the module."""
    number = sum(name.startswith("transposed_") for name, _ in module.named_buffers(recurse=False))
    made: list[fx.Node | None] = []
    for kind, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            module.register_buffer(f"transposed_{number}_{kind}", tensor)
        made.append(None if tensor is None else module.graph.get_attr(f"transposed_{number}_{kind}"))
    return made[0], made[1]  # type: ignore[return-value]
