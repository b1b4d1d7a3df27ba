"""Recompute the sizes in a graph's calls after a cut: what a view makes, where a slice begins, what a pad adds.

One function a kind of operator, one table (REWRITES). Everything follows from the labels: a dimension's new size is
the number of its coordinates whose label is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx

from deploy_prune.errors import SurgeryError
from deploy_prune.surgery.graph_network import DENSE_NAME, Blueprint
from deploy_prune.surgery.labels import Value
from deploy_prune.surgery.rules.movement import pad_widths

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True, eq=False)
class Rewriting:
    """A graph being rewritten. ``kept``: bool[labels]."""

    graph: fx.GraphModule
    blueprint: Blueprint
    kept: Tensor

    def value(self, node: Any) -> Value:
        """The labels of a node's value; an unlabelled scalar for anything else."""
        found = self.any_value(node) if isinstance(node, fx.Node) else None
        return found if isinstance(found, Value) else Value(shape=())

    def any_value(self, node: fx.Node) -> Any:
        """What became of a node in the dense graph: a value, or several, or a number."""
        return self.blueprint.values.get(node.meta.get(DENSE_NAME, node.name))

    def mask(self, value: Value, dim: int) -> Tensor:
        """bool[size]: which coordinates along one dimension stay."""
        dim %= len(value.shape)
        stays = torch.ones(value.shape[dim], dtype=torch.bool)
        for labels in value.fields:
            if labels.shape[dim] > 1:
                known = self.kept[labels.clamp(min=0)] | (labels < 0)
                others = [d for d in range(known.dim()) if d != dim and known.shape[d] > 1]
                for other in others:
                    known = known.any(other, keepdim=True)
                stays &= known.flatten()
        return stays

    def size(self, value: Value, dim: int) -> int:
        """The new size of one dimension."""
        return int(self.mask(value, dim).sum())

    def whole(self, value: Value, dim: int) -> bool:
        """Nothing is lost along this dimension."""
        return bool(self.mask(value, dim).all())

    def constant(self, node: fx.Node, data: Tensor) -> fx.Node:
        """A new constant of the graph, for use by ``node``."""
        name = f"_kept_{node.name}"
        self.graph.register_buffer(name, data, persistent=False)
        with self.graph.graph.inserting_before(node):
            return self.graph.graph.get_attr(name)


Rewrite = Callable[[Rewriting, fx.Node], None]


def rewrite(graph: fx.GraphModule, blueprint: Blueprint, kept: Tensor) -> None:
    """Recompute every call's sizes, in place.

    Raises:
        SurgeryError: a call has sizes that can't be recomputed.
    """
    work = Rewriting(graph=graph, blueprint=blueprint, kept=kept)
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and hasattr(node.target, "_schema"):
            change = REWRITES.get(node.target._schema.name.split("::")[-1].rstrip("_"))
            if change is not None:
                change(work, node)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def _argument(node: fx.Node, name: str) -> Any:
    for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == name:
            if i < len(node.args):
                return node.args[i]
            return node.kwargs.get(name, argument.default_value if argument.has_default_value() else None)
    return None


def _set_argument(node: fx.Node, name: str, value: Any) -> None:
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    place = names.index(name)
    if place < len(node.args):
        node.args = (*node.args[:place], value, *node.args[place + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}


def _sizes(name: str) -> Rewrite:
    """view, reshape, expand: a list of the output's sizes; one that depends on the batch is left to torch (-1).

    So what was left to torch before is told: where the batch is in another size, it is the same for every batch.
    """

    def change(work: Rewriting, node: fx.Node) -> None:
        made, given = work.value(node), _argument(node, name)
        sizes = [s if s == -1 or work.whole(made, i) else work.size(made, i) for i, s in enumerate(given)]
        free = [i for i, s in enumerate(given) if isinstance(s, fx.Node) and not work.whole(made, i)]
        if len(free) == 1 and (-1 not in given or _name(node) != "expand"):
            sizes = [work.size(made, i) if s == -1 else s for i, s in enumerate(sizes)]
            sizes[free[0]] = -1
        _set_argument(node, name, sizes)

    return change


def unflatten(work: Rewriting, node: fx.Node) -> None:
    """The sizes that one dimension is split into."""
    made, dim = work.value(node), _argument(node, "dim") % len(work.value(node.args[0]).shape)
    sizes = [work.size(made, dim + i) if s != -1 else -1 for i, s in enumerate(_argument(node, "sizes"))]
    _set_argument(node, "sizes", sizes)


def split(work: Rewriting, node: fx.Node) -> None:
    """split, chunk and their like: one size per piece."""
    pieces = work.any_value(node)
    source, dim = node.args[0], _argument(node, "dim") or 0
    if not isinstance(pieces, tuple) or work.whole(work.value(source), dim):
        return
    node.target = aten.split_with_sizes.default
    node.args, node.kwargs = (source, [work.size(p, dim) for p in pieces], dim), {}


def take(work: Rewriting, node: fx.Node) -> None:
    """slice, narrow, roll, channel_shuffle, index_select: which coordinates of one dimension, in which order."""
    source = work.value(node.args[0])
    for dim in _taken_dims(node):
        if not source.shape or work.whole(source, dim):
            continue
        taken = _taken(node, work, dim, source.shape[dim])
        before = work.mask(source, dim)
        position = before.cumsum(0) - 1
        wanted = position[taken[before[taken]]]
        _replace_by(work, node, dim, wanted)


def _taken_dims(node: fx.Node) -> list[int]:
    if "shuffle" in _name(node):
        return [1]
    return list(_argument(node, "dims")) if _name(node) == "roll" else [_argument(node, "dim") or 0]


def _taken(node: fx.Node, work: Rewriting, dim: int, size: int) -> Tensor:
    """The dense coordinates that the call takes along a dimension."""
    everything, name = torch.arange(size), _name(node)
    if name == "slice":
        limits = (_argument(node, "start"), _argument(node, "end"), _argument(node, "step"))
        return everything[slice(*limits)]
    if name == "narrow":
        start = _argument(node, "start") % size
        return everything[start : start + _argument(node, "length")]
    if name == "roll":
        if len(_argument(node, "dims")) > 1:
            message = "A roll over several dimensions, one of them cut, can't be rewritten."
            raise SurgeryError(message)
        return everything.roll(_argument(node, "shifts")[0])
    if "shuffle" in name:
        return everything.view(_argument(node, "groups"), -1).t().flatten()
    data = work.value(_argument(node, "index")).data
    if data is None:
        message = f"{node.name} picks channels by indices that are not known when tracing."
        raise SurgeryError(message)
    return data.flatten().cpu() % size


def _replace_by(work: Rewriting, node: fx.Node, dim: int, wanted: Tensor) -> None:
    """Turn the call into a slice if it takes a run of coordinates, else into an index_select."""
    source = node.args[0]
    node.kwargs = {}
    if len(wanted) and bool((wanted.diff() == 1).all()):
        node.target = aten.slice.Tensor
        node.args = (source, dim, int(wanted[0]), int(wanted[-1]) + 1)
    else:
        index = work.constant(node, wanted)
        node.target = aten.index_select.default
        node.args = (source, dim, index)


def select(work: Rewriting, node: fx.Node) -> None:
    """One channel: the same at its new place."""
    source, dim, place = work.value(node.args[0]), _argument(node, "dim"), _argument(node, "index")
    if isinstance(place, int) and not work.whole(source, dim):
        before = work.mask(source, dim)
        _set_argument(node, "index", int(before[: place % len(before)].sum()))


def index(work: Rewriting, node: fx.Node) -> None:
    """x[..., indices, ...] with one known vector of indices along a cut dimension."""
    source, given = work.value(node.args[0]), _argument(node, "indices")
    cut = [d for d in range(len(source.shape)) if not work.whole(source, d)]
    used = [d for d, i in enumerate(given) if i is not None]
    if not set(cut) & set(used):
        return
    data = work.value(given[used[0]]).data
    if len(used) > 1 or data is None or data.dim() != 1:
        message = f"{node.name} indexes cut channels in a way that can't be rewritten."
        raise SurgeryError(message)
    dim = used[0]
    before = work.mask(source, dim)
    taken = data.cpu() % len(before)
    _replace_by(work, node, dim, (before.cumsum(0) - 1)[taken[before[taken]]])


def pad(work: Rewriting, node: fx.Node) -> None:
    """The padding that stays, on each side of a cut dimension."""
    source, made = work.value(node.args[0]), work.value(node)
    if not made.shape:
        return
    widths = pad_widths(source, _argument(node, "pad"))
    for dim, (before, after) in enumerate(widths):
        if any(f.shape[dim] > 1 for f in made.fields):
            stays = work.mask(made, dim)
            widths[dim] = int(stays[:before].sum()), int(stays[len(stays) - after :].sum()) if after else 0
    given = len(_argument(node, "pad")) // 2
    _set_argument(node, "pad", [w for pair in reversed(widths[len(widths) - given :]) for w in pair])


def convolution(work: Rewriting, node: fx.Node) -> None:
    """The number of groups, where whole groups are the units (see weights.py)."""
    weight, groups = work.value(_argument(node, "weight")), _argument(node, "groups")
    if groups == 1:
        return
    source = work.value(_argument(node, "input"))
    if weight.unlabelled() and source.shape and not work.whole(source, -len(weight.shape) + 1):
        groups = work.size(source, -len(weight.shape) + 1)
        with work.graph.graph.inserting_before(node):
            kernels = work.graph.graph.call_function(aten.slice.Tensor, (_argument(node, "weight"), 0, 0, groups))
        _set_argument(node, "weight", kernels)
        _set_argument(node, "groups", groups)
    elif "transpose" in _name(node):
        _set_argument(node, "groups", max(1, work.size(weight, 0) * groups // weight.shape[0]))
    elif groups >= weight.shape[1]:
        _set_argument(node, "groups", work.size(weight, 0) * groups // weight.shape[0])


def layer_norm(work: Rewriting, node: fx.Node) -> None:
    """The normalised sizes."""
    source, given = work.value(node.args[0]), _argument(node, "normalized_shape")
    if source.shape:
        sizes = [work.size(source, len(source.shape) - len(given) + i) for i in range(len(given))]
        _set_argument(node, "normalized_shape", sizes)


def group_norm(work: Rewriting, node: fx.Node) -> None:
    """The number of groups, where whole groups are the units (see weights.py)."""
    source, groups = work.value(node.args[0]), _argument(node, "num_groups")
    if source.shape and groups >= (size := source.shape[1] // groups):
        _set_argument(node, "num_groups", work.size(source, 1) // size)


def attention(work: Rewriting, node: fx.Node) -> None:
    """The scale is 1/sqrt of the width that a head had."""
    query = work.value(node.args[0])
    if query.shape and _argument(node, "scale") is None and not work.whole(query, -1):
        node.kwargs = {**node.kwargs, "scale": query.shape[-1] ** -0.5}


def _name(node: fx.Node) -> str:
    return str(node.target._schema.name.split("::")[-1].rstrip("_"))  # type: ignore[union-attr]


def _table(*rows: tuple[Rewrite, str]) -> dict[str, Rewrite]:
    return {name: change for change, names in rows for name in names.split()}


REWRITES: Final[dict[str, Rewrite]] = _table(
    (_sizes("size"), "view _unsafe_view expand"),
    (_sizes("shape"), "reshape"),
    (unflatten, "unflatten"),
    (split, "split split_with_sizes chunk tensor_split"),
    (take, "slice narrow roll index_select channel_shuffle native_channel_shuffle"),
    (select, "select"),
    (index, "index"),
    (pad, "pad constant_pad_nd"),
    (convolution, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution"),
    (layer_norm, "layer_norm rms_norm"),
    (group_norm, "group_norm"),
    (attention, "scaled_dot_product_attention"),
)
