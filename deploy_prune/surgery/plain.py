"""Label rules of operators without weights of their own: elementwise, products, reductions, pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from torch import Tensor

from deploy_prune.surgery.calls import Call, Result, along, contract, keep_dims, on, same, widest
from deploy_prune.surgery.labels import Value, moved, varying
from deploy_prune.surgery.weights import apply_linear


def pointwise(call: Call) -> Result:
    """Element by element, with broadcasting: coordinates that meet go together."""
    rank = len(call.shape)
    operands = [
        (tuple(f[(None,) * (rank - f.dim())] for f in v.fields), (1,) * (rank - len(v.shape)) + v.shape)
        for v in call.values()
    ]
    reason = f"{call.name} combines it with a tensor that can't be cut"
    fields: list[Tensor] = []
    for mine, _ in operands:
        for labels in mine:
            _meet_unlabelled(call, labels, operands, reason)
            for other in fields:
                if set(varying(labels)) & set(varying(other)):
                    call.labels.merge(labels, other, reason)
            fields.append(labels)
    return call.result(widest(fields))


def _meet_unlabelled(
    call: Call, labels: Tensor, operands: Sequence[tuple[tuple[Tensor, ...], tuple[int, ...]]], reason: str
) -> None:
    for theirs, shape in operands:
        covered = {d for f in theirs for d in varying(f)}
        if any(shape[d] > 1 and d not in covered for d in varying(labels)):
            call.labels.freeze(labels, reason)


def prelu(call: Call) -> Result:
    """One slope a channel (dimension 1), or one for all."""
    x, weight = call.given["self"], call.given["weight"]
    slopes = along(call, weight, 0) if prod(weight.shape) > 1 else None
    if slopes is not None:
        same(call, along(call, x, 1), slopes, f"{call.module or call.name} acts on channels that can't be cut")
    return call.result(x.fields or on(1, len(x.shape), slopes))


def gated_half(call: Call) -> Result:
    """glu: the first half of a dimension times the sigmoid of the second."""
    x = call.values()[0]
    dim = call.given.get("dim", -1) % len(x.shape)
    half = x.shape[dim] // 2
    parts = [
        moved(x, call.shape, [f.narrow(dim, start, half) if f.shape[dim] > 1 else f for f in x.fields])
        for start in (0, half)
    ]
    return pointwise_like(call, parts)


def affine(call: Call) -> Result:
    """addmm: self + mat1 @ mat2."""
    product = matmul(call)
    assert isinstance(product, Value)
    return pointwise_like(call, [call.given["self"], product])


def matmul(call: Call) -> Result:
    """A [..., M, K] @ b [..., K, N] (vectors, too); a parameter as b is a weight."""
    a, b = call.values()[-2:]
    if len(a.shape) < 2 or len(b.shape) < 2:
        for value in (a, b):
            call.freeze(value, f"{call.name} with a vector")
        return call.result(())
    rank = len(call.shape)
    reason = f"{call.name} reads channels that can't be cut"
    if b.tensor is not None and len(b.shape) == 2:
        contract(call, along(call, a, -1), b, 0, reason)
        apply_linear(call, b, 0, 1, 0)
        return call.result((*a.without([len(a.shape) - 1]), *on(rank - 1, rank, along(call, b, 1))))
    left = _contracted(call, a, -1, rank)
    right = _contracted(call, b, -2, rank)
    same(call, _only(call, a, -1), _only(call, b, -2), reason)
    rows = [f for f in left if f.shape[-1] == 1]
    columns = [f for f in right if f.shape[-2] == 1]
    return call.result(_batched(call, rows, columns, reason))


def _only(call: Call, value: Value, dim: int) -> Tensor | None:
    """Labels along one dimension from the fields that vary along no other."""
    ids = [f.flatten() for f in value.fields if varying(f) == (dim % len(value.shape),)]
    return ids[0] if ids else None


def _contracted(call: Call, value: Value, dim: int, rank: int) -> list[Tensor]:
    """The fields left when a dimension is summed over: what spans it and others is tied along it (a head is a unit)."""
    left = []
    for labels in value.fields:
        dims = varying(labels)
        if dims == (dim % len(value.shape),):
            continue
        if labels.shape[dim] > 1:
            labels = call.labels.tie(labels, [dim % len(value.shape)], f"{call.name} sums over it")  # noqa: PLW2901
        left.append(labels[(None,) * (rank - labels.dim())])
    return left


def _batched(call: Call, rows: Sequence[Tensor], columns: Sequence[Tensor], reason: str) -> list[Tensor]:
    fields: list[Tensor] = []
    for labels in (*rows, *columns):
        for other in fields:
            if set(varying(labels)) & set(varying(other)):
                call.labels.merge(labels, other, reason)
        fields.append(labels)
    return widest(fields)


def attention(call: Call) -> Result:
    """softmax(q k^T) v over q [..., H, L, D]: a head is a unit, and so is a channel of v."""
    query, key, value = call.given["query"], call.given["key"], call.given["value"]
    rank = len(call.shape)
    reason = f"{call.name} combines it with channels that can't be cut"
    heads = [*_contracted(call, query, -1, rank), *_contracted(call, key, -1, rank)]
    same(call, _only(call, query, -1), _only(call, key, -1), reason)
    mask = call.given.get("attn_mask")
    if isinstance(mask, Value):
        heads += [f[(None,) * (rank - f.dim())] for f in mask.fields]
    fields = [f for f in value.fields if f.shape[-2] == 1]
    return call.result(_batched(call, heads, fields, reason))


def over_positions(call: Call) -> Result:
    """Pooling and resizing: channels pass, positions mix."""
    x = next(iter(call.values()))
    spatial = [d for d in range(len(x.shape)) if x.shape[d] != call.shape[d]] if len(x.shape) == len(call.shape) else []
    last = {"1d": 1, "2d": 2, "3d": 3}.get(call.name[-2:], 0)
    dims = sorted({*spatial, *range(len(x.shape) - last, len(x.shape))})
    return call.result(keep_dims(call, x, dims, f"{call.name} mixes positions"))


def reduction(call: Call) -> Result:
    """mean, sum, max, ...: dimensions that vanish (or shrink to 1)."""
    x = call.values()[0]
    rank = len(x.shape)
    dims = call.given.get("dim")
    dims = list(range(rank)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    dims = [d % rank for d in dims] if rank else []
    fields = keep_dims(call, x, dims, f"{call.name} reduces over it")
    if len(call.shape) != rank:
        fields = tuple(f.reshape([s for d, s in enumerate(f.shape) if d not in dims]) for f in fields)
    return call.result(fields)


def along_dim(call: Call) -> Result:
    """softmax, cumsum, sort, ...: one dimension's coordinates see each other, the others pass."""
    x = call.values()[0]
    dim = call.given.get("dim", -1)
    fields = keep_dims(call, x, [-1 if dim is None else dim], f"{call.name} mixes its coordinates")
    return call.result(fields) if not call.several else tuple(Value(shape=s, fields=fields) for s in call.shapes)


def same_as_input(call: Call) -> Result:
    """Dropout and the like: nothing changes."""
    return call.result(call.values()[0].fields)


def pointwise_like(call: Call, parts: Sequence[Value]) -> Result:
    """Parts that lie over each other: combined as by an elementwise operator."""
    given = {str(i): p for i, p in enumerate(parts)}
    return pointwise(replace(call, given=given))
