"""Branches: what a network adds to a value, and works without. A residual block is one.

A branch ends in an addition ``stays + branch``. Inside are all nodes of the graph that nothing else reads, their
weights too. Where the last weight and bias on it are multiplied by 0, the branch adds nothing: that is its gate, and
to take the branch away is to leave out the addition with all that is inside. Of the two sides of an addition the
costlier one is the branch, if the other one depends on the network's input.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from deploy_prune.networks.products import name_of, shape_of
from deploy_prune.surgery.applied import Applied
from deploy_prune.types import Axis, ChannelGroup, Layer


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SUFFIX: Final = ":branch"
"""Of a branch's name: ``prune.skip: ["*:branch"]`` leaves all of them."""
_LAYERS: Final = _names(
    """conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution linear batch_norm layer_norm
    rms_norm group_norm instance_norm"""
)
"""Operators whose result is 0 where their weight and bias are."""
_ZERO_STAYS: Final = _names(
    """dropout feature_dropout view _unsafe_view reshape flatten unflatten permute transpose t swapaxes movedim
    contiguous clone alias to _to_copy slice narrow select squeeze unsqueeze roll expand pixel_shuffle pixel_unshuffle
    channel_shuffle relu leaky_relu hardtanh relu6 gelu silu hardswish tanh elu neg div avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d max_pool2d upsample_nearest1d upsample_nearest2d
    upsample_bilinear2d upsample_bicubic2d"""
)
"""Operators of one operand whose result is 0 where it is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """A branch in an exported graph; all nodes by their names.

    ``addition``: where it ends. ``stays``: the number of the addition's operand that stays. ``inside``: what goes with
    the other one. ``closes``: (tensor, axis, size) of the last weights and biases, which its gate multiplies.
    ``tensors``: parameters and buffers that are read inside alone.
    """

    name: str
    addition: str
    stays: int
    inside: frozenset[str]
    closes: tuple[tuple[str, int, int], ...]
    tensors: tuple[str, ...]

    def group(self) -> ChannelGroup:
        """The group with its single unit."""
        zeros = [torch.zeros(size, dtype=torch.int64) for *_, size in self.closes]
        axes = tuple(Axis(tensor=t, axis=d, unit_of=at) for (t, d, _), at in zip(self.closes, zeros, strict=True))
        return ChannelGroup(name=self.name, channels=1, period=1, consumers=axes, members=(), vanishes=self.tensors)

    def renamed(self, names: Mapping[str, str]) -> Branch:
        """The same in a graph whose nodes have other names; those that it lacks are left out."""
        inside = frozenset(names[name] for name in self.inside if name in names)
        return replace(self, addition=names[self.addition], inside=inside)


def branches_of(
    program: ExportedProgram,
    applied: Sequence[Applied],
    depends: Collection[fx.Node],
    read: Collection[tuple[str, int]],
) -> tuple[Branch, ...]:
    """The branches of a graph, in order.

    Args:
        program: the exported network.
        applied: what it multiplies.
        depends: the nodes that depend on the network's inputs.
        read: (tensor, axis) that other gates are on.
    """
    return tuple(_Finder(program=program, applied=applied, depends=depends, read=read).branches())


_Side = tuple[fx.Node, set[fx.Node], list[fx.Node]]


class _Finder:
    """Looks for branches in one graph."""

    def __init__(
        self,
        program: ExportedProgram,
        applied: Sequence[Applied],
        depends: Collection[fx.Node],
        read: Collection[tuple[str, int]],
    ) -> None:
        self.nodes = list(program.graph.nodes)
        self.place = {node: i for i, node in enumerate(self.nodes)}
        places = [n for n in self.nodes if n.op == "placeholder"]
        specs = zip(places, program.graph_signature.input_specs, strict=True)
        self.tensors: dict[fx.Node, str] = {n: s.target for n, s in specs if s.target is not None}
        self.applied: dict[str, list[Applied]] = defaultdict(list)
        for each in applied:
            self.applied[each.node].append(each)
        self.depends, self.read = depends, read

    def branches(self) -> Iterator[Branch]:
        taken: set[str] = set()
        for node in self.nodes:
            if node.op == "call_function" and name_of(node) == "add":
                sides = [side for stays, branch in self._sides(node) if (side := self._side(node, stays, branch))]
                if sides:
                    yield self._branch(node, *max(sides, key=lambda side: self._macs(side[1])), taken)

    def _sides(self, node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
        """(what would stay, what would go) of an addition of two values of the same shape."""
        first, second = node.args[:2]
        if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)) or first is second:
            return
        values = [x.meta.get("val") for x in (node, first, second)]
        alike = len({v.dtype if isinstance(v, Tensor) else None for v in values}) == 1
        if alike and shape_of(first) == shape_of(second) == shape_of(node):
            yield first, second
            if node.kwargs.get("alpha", 1) == 1:
                yield second, first

    def _side(self, node: fx.Node, stays: fx.Node, branch: fx.Node) -> _Side | None:
        """(what stays, what is inside, the tensors that close it); None if this side can't go."""
        if set(branch.users) != {node} or stays not in self.depends or branch not in self.depends:
            return None
        inside = self._inside(branch)
        closes = self._closes(branch, inside)
        return (stays, inside, closes) if closes and self._macs(inside) else None

    def _inside(self, branch: fx.Node) -> set[fx.Node]:
        """What is computed for this node alone."""
        inside = {branch}
        for node in reversed(self.nodes[: self.place[branch]]):
            if node.users and inside.issuperset(node.users) and (node.op != "placeholder" or node in self.tensors):
                inside.add(node)
        return inside

    def _macs(self, inside: set[fx.Node]) -> int:
        return sum(each.product.macs for node in inside for each in self.applied.get(node.name, ()))

    def _closes(self, node: fx.Node, inside: set[fx.Node]) -> list[fx.Node]:
        """The tensors that are 0 where nothing comes out of a node; [] if there are none such."""
        if node not in inside or node.op != "call_function":
            return []
        name, operands = name_of(node), [x for x in node.args if isinstance(x, fx.Node)]
        if name in _LAYERS or name == "addmm":
            weights = [x for x in node.all_input_nodes if x in self.tensors and _is_weight(node, x)]
            bare = name == "addmm" or len(weights) == len(_weights(node))
            return weights if weights and bare and inside.issuperset(weights) else []
        if name in _ZERO_STAYS:
            return self._closes(operands[0], inside) if operands else []
        if name == "mul" and len(operands) == 2:
            own = [x for x in operands if x in self.tensors and x in inside and shape_of(x)]
            return own[:1] or self._closes(operands[0], inside) or self._closes(operands[1], inside)
        if name == "mul" and operands:
            return self._closes(operands[0], inside)
        if name == "add" and len(operands) == 2:
            both = [self._closes(x, inside) for x in operands]
            return [*both[0], *both[1]] if all(both) else []
        return []

    def _branch(
        self, node: fx.Node, stays: fx.Node, inside: set[fx.Node], closes: list[fx.Node], taken: set[str]
    ) -> Branch:
        applied = [each for x in self.nodes if x in inside for each in self.applied.get(x.name, ())]
        name = base = _common([each.module for each in applied]) + SUFFIX
        number = 2
        while name in taken:
            name, number = f"{base}#{number}", number + 1
        taken.add(name)
        return Branch(
            name=name, addition=node.name, stays=node.args.index(stays), inside=frozenset(x.name for x in inside),
            closes=tuple(self._axis(x) for x in dict.fromkeys(closes)),
            tensors=tuple(self.tensors[x] for x in self.nodes if x in inside and x in self.tensors),
        )  # fmt: skip

    def _axis(self, tensor: fx.Node) -> tuple[str, int, int]:
        """(name, axis, size) of the first axis that no other gate is on; along it all coordinates are multiplied."""
        name, shape = self.tensors[tensor], shape_of(tensor)
        axis = next((d for d in range(len(shape)) if (name, d) not in self.read), 0)
        return name, axis, shape[axis]


def _weights(node: fx.Node) -> list[Any]:
    """The weight and bias that a layer is called with."""
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return [given[name] for name in ("weight", "bias") if isinstance(given.get(name), fx.Node)]


def _is_weight(node: fx.Node, operand: fx.Node) -> bool:
    """Whether it is what a layer's result is proportional to, or added: not a running statistic, nor an input."""
    if name_of(node) == "addmm":
        return operand in (node.args[0], node.args[2])
    return operand in _weights(node)


def _common(paths: Sequence[str]) -> str:
    """The path of the module that holds all of these."""
    parts = [path.split(".") for path in paths]
    same = takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))
    return ".".join(level[0] for level in same) or f"{paths[0]} to {paths[-1]}"


def lies_on(
    layers: Sequence[Layer], applied: Sequence[Applied], branches: Sequence[Branch]
) -> dict[str, tuple[str, ...]]:
    """Layer name -> the branches that it lies on. ``applied``: what each layer was made of."""
    return {
        layer.name: tuple(b.name for b in branches if each.node in b.inside)
        for layer, each in zip(layers, applied, strict=True)
    }
