"""What a graph multiplies, with labels: while it is traced as they are, afterwards as the layers of a structure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor, fx

from deploy_prune.networks.products import Dim, Product, Role, products
from deploy_prune.surgery.labels import Value, compress, varying
from deploy_prune.types import Layer, Width


@dataclass(frozen=True, kw_only=True, eq=False)
class Applied:
    """A product or norm in a graph: ``types.Layer`` before it is known which labels go together.

    ``fields``: for each of the product's dimensions, the label fields that vary along it, and their axis.
    ``batch``: examples in it: 1 for what doesn't depend on the network's inputs. ``node``: that of the graph.
    """

    node: str
    module: str
    product: Product
    tensor: str
    fields: tuple[tuple[tuple[Tensor, int], ...], ...]
    batch: int

    def made(self) -> Tensor:
        """The labels of the channels that a layer or norm makes."""
        dims = zip(self.product.dims, self.fields, strict=True) if self.product.kind != "product" else ()
        found = [labels.flatten() for dim, fields in dims if dim.role == "output" for labels, _ in fields]
        labels = torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)
        return labels[labels >= 0]


def note(node: fx.Node, values: Mapping[fx.Node, Any], module: str, batch: int) -> Iterator[Applied]:
    """What a node multiplies; of norms, those of activations.

    Args:
        node: a call of an operator.
        values: what labels say of its operands. They are taken as they are: what goes together, rules say.
        module: the path of the module that calls it.
        batch: examples in what it reads, 0 if that doesn't depend on the network's inputs.
    """
    for product in products(node, lambda x: _name(values, x) is not None):
        if product.kind != "norm" or batch:
            weight = product.weight
            yield Applied(
                node=node.name,
                module=module,
                product=product,
                tensor="" if weight is None else _name(values, weight) or f"%{weight.name}",
                fields=tuple(tuple(_fields(dim, values)) for dim in product.dims),
                batch=max(1, batch),
            )


def _name(values: Mapping[fx.Node, Any], node: fx.Node) -> str | None:
    """The parameter or buffer that an operand is."""
    value = values.get(node)
    return value.tensor if isinstance(value, Value) else None


def _fields(dim: Dim, values: Mapping[fx.Node, Any]) -> Iterator[tuple[Tensor, int]]:
    for operand, axis in dim.seen:
        value = values.get(operand)
        for labels in value.fields if isinstance(value, Value) else ():
            if axis in varying(labels):
                yield labels, axis


def layers(noted: Sequence[Applied], classes: Tensor, group_of: Mapping[int, str]) -> tuple[Layer, ...]:
    """The layers of a structure. ``classes``: int64[labels]; ``group_of``: class -> group."""
    uses: dict[str, int] = defaultdict(int)
    units: dict[str, int] = defaultdict(int)
    for name in group_of.values():
        units[name] += 1
    made = []
    for each in noted:
        uses[each.module] += 1
        suffix = f"#{uses[each.module]}" if uses[each.module] > 1 else ""
        widths = [
            _width(dim, fields, classes, group_of, units)
            for dim, fields in zip(each.product.dims, each.fields, strict=True)
        ]
        made.append(_layer(each, each.module + suffix, widths))
    return tuple(made)


def _width(
    dim: Dim,
    fields: Sequence[tuple[Tensor, int]],
    classes: Tensor,
    group_of: Mapping[int, str],
    units: Mapping[str, int],
) -> Width:
    """How many of a dimension's coordinates stay. One that belongs to no unit does; so does one that has no class."""
    along = next((found for labels, axis in fields if (found := _along(labels, axis, classes)) is not None), None)
    if along is None:
        return Width(fixed=dim.size, per_unit={})
    coordinates: dict[str, int] = defaultdict(int)
    for root, times in zip(*(x.tolist() for x in along.unique(return_counts=True)), strict=True):
        if root in group_of:
            coordinates[group_of[root]] += times
    per_unit = {g: n // units[g] for g, n in coordinates.items() if n % units[g] == 0}
    return Width(fixed=dim.size - sum(per * units[g] for g, per in per_unit.items()), per_unit=per_unit)


def _along(labels: Tensor, axis: int, classes: Tensor) -> Tensor | None:
    """int64[size]: the classes along an axis; None where they are all one (those of a head, within the head)."""
    known = compress(torch.where(labels >= 0, classes[labels.clamp(min=0)], labels))
    if known.shape[axis] == 1:
        return None
    for other in range(known.dim()):
        known = known if other == axis else known.narrow(other, 0, 1)
    return known.flatten()


def _layer(each: Applied, name: str, widths: Sequence[Width]) -> Layer:
    """What is constant goes into the positions, the inputs and the outputs; a second width that isn't, repeats them."""
    product, batch = each.product, each.batch
    constant: dict[Role, int] = {
        role: prod(w.fixed for d, w in zip(product.dims, widths, strict=True) if d.role == role and not w.per_unit)
        for role in ("position", "input", "output")
    }
    varying_of: dict[Role, list[Width]] = {
        role: [w for d, w in zip(product.dims, widths, strict=True) if d.role == role and w.per_unit]
        for role in ("position", "input", "output")
    }
    sides = [_times((varying_of[r] or [Width(fixed=1, per_unit={})])[0], constant[r]) for r in ("input", "output")]
    repeats = [*varying_of["position"], *varying_of["input"][1:], *varying_of["output"][1:]]
    read = product.size("position") if product.input_positions is None else product.input_positions
    positions, *repeats = _of_one(batch, [Width(fixed=constant["position"], per_unit={}), *repeats])
    return Layer(
        name=name, kind=product.kind, tensor=each.tensor, taps=product.taps, positions=positions.fixed,
        input_positions=max(1, read // batch), inputs=sides[0], outputs=sides[1], vectors=product.vectors,
        repeats=tuple(repeats),
    )  # fmt: skip


def _times(width: Width, factor: int) -> Width:
    return Width(fixed=width.fixed * factor, per_unit={g: per * factor for g, per in width.per_unit.items()})


def _of_one(batch: int, widths: Sequence[Width]) -> list[Width]:
    """The widths of one example, whichever of them the batch is in; what has no batch in it stays."""
    made = []
    for width in widths:
        shared = gcd(batch, width.fixed, *width.per_unit.values())
        made.append(Width(fixed=width.fixed // shared, per_unit={g: n // shared for g, n in width.per_unit.items()}))
        batch //= shared
    return made


def with_whole(layer: Layer, channels: Mapping[str, int]) -> Layer:
    """A layer of whose widths these groups (name -> units) are not cut any more."""
    inputs, outputs, *repeats = (
        Width(
            fixed=width.fixed + sum(per * channels[g] for g, per in width.per_unit.items() if g in channels),
            per_unit={g: per for g, per in width.per_unit.items() if g not in channels},
        )
        for width in layer.widths
    )
    return replace(layer, inputs=inputs, outputs=outputs, repeats=tuple(repeats))
