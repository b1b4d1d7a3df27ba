"""Label rules of operators without weights of their own: elementwise, products, reductions, pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Final

import torch
from torch import Tensor

from deploy_prune.surgery.labels import Value, moved, varying
from deploy_prune.surgery.rules.call import Call, Result, along, contract, keep_dims, on, same, widest, zero_free


def pointwise(call: Call) -> Result:
    """Element by element, with broadcasting: coordinates that meet go together."""
    rank = len(call.shape)
    operands = [
        (tuple(f[(None,) * (rank - f.dim())] for f in v.fields), (1,) * (rank - len(v.shape)) + v.shape)
        for v in call.values()
    ]
    reason = f"{call.name} combines it with a tensor that can't be cut"
    fields: list[Tensor] = []
    source = _vanishing(call)
    if source is not None:
        operands.sort(key=lambda o: o[1] != source.shape or len(o[0]) != len(source.fields))
    for mine, _ in operands:
        for field in mine:
            labels = _meet_unlabelled(call, field, operands, reason)
            for other in fields:
                if set(varying(labels)) & set(varying(other)):
                    _meet(call, labels, other, reason)
            fields.append(labels)
    made = call.alike(widest(fields))
    if isinstance(made, Value) and (_sum_of_weights(call, made) or (source and len(made.fields) == len(source.fields))):
        return replace(made, vanishes=True)
    return made


_PRODUCTS: Final = {"mul", "multiply"}
_QUOTIENTS: Final = {"div", "divide", "true_divide"}
_SUMS: Final = {"add", "sub", "subtract", "rsub", "complex"}


def _vanishing(call: Call) -> Value | None:
    """The operand, as large as the result, whose zeros are the result's: of a product, a quotient, or any f(0) = 0.

    (A weight less its own mean: that is taken over kept coordinates, and from them alone, see kept_statistics.py.)
    """
    values = call.values()
    weights = [v for v in values if v.vanishing() and v.shape == call.shape]
    if not weights or call.name in _PRODUCTS:
        return weights[0] if weights else None
    if weights[0] is not values[0]:
        return None
    centred = call.name in {"sub", "subtract"} and values[0].tensor in call.labels.mixing
    return values[0] if centred or call.name in _QUOTIENTS or _is_zero_at_zero(call) else None


def _is_zero_at_zero(call: Call) -> bool:
    """The operator, run on 0, gives 0; a second tensor is a mask of what becomes 0."""
    x, *others = call.values()
    if others:
        return call.name == "masked_fill" and call.given.get("value") == 0
    given = {k: torch.zeros(1) if v is x else v for k, v in call.given.items()}
    schema = call.op._schema.arguments
    y = call.op(
        *[given[a.name] for a in schema if not a.kwarg_only], **{a.name: given[a.name] for a in schema if a.kwarg_only}
    )
    return isinstance(y, Tensor) and bool((y == 0).all())


def _sum_of_weights(call: Call, made: Value) -> bool:
    """A sum of weights with labels along the same dimensions: it is 0 where all of them are, so all get gates."""
    values = call.values()
    alike = len(values) > 1 and all(v.vanishing() and v.shape == call.shape for v in values)
    labelled = [{d for f in v.fields for d in varying(f)} for v in values]
    if call.name not in _SUMS or not alike or any(dims != labelled[0] for dims in labelled):
        return False
    for one in values[0].fields:
        for other in (f for v in values[1:] for f in v.fields):
            if set(varying(one)) & set(varying(other)):
                call.labels.gate_together(one, other)
    return True


def _meet(call: Call, a: Tensor, b: Tensor, reason: str) -> None:
    """Fields that share dimensions go together.

    But where one labels heads and their widths, the other only the widths (a table that all heads share): a head is
    the unit then, and the table stays.
    """
    small, large = sorted((a, b), key=lambda f: len(varying(f)))
    if set(varying(small)) <= set(varying(large)[1:]):
        call.labels.tie(large, varying(small), f"{call.name} combines it with what all heads share")
        call.labels.freeze(small, f"{call.name} shares it between heads")
    else:
        call.labels.merge(a, b, reason)


def _meet_unlabelled(
    call: Call, labels: Tensor, operands: Sequence[tuple[tuple[Tensor, ...], tuple[int, ...]]], reason: str
) -> Tensor:
    """A field that meets coordinates without labels stays; along those dimensions alone if it has others."""
    bare: set[int] = set()
    for theirs, shape in operands:
        covered = {d for f in theirs for d in varying(f)}
        bare |= {d for d in varying(labels) if shape[d] > 1 and d not in covered}
    if bare == set(varying(labels)):
        call.labels.freeze(labels, reason)
        return labels
    return call.labels.tie(labels, sorted(bare), reason)


def extreme(call: Call) -> Result:
    """max, min: of two tensors, or over a dimension (with indices), or over all."""
    return pointwise(call) if isinstance(call.given.get("other"), Value) else reduction(call)


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
        fields = (*a.without([len(a.shape) - 1]), *on(rank - 1, rank, along(call, b, 1)))
        return Value(shape=call.shape, fields=fields, vanishes=a.vanishing())
    left = _contracted(call, a, -1, rank)
    right = _contracted(call, b, -2, rank)
    _summed_over(call, (a, -1), (b, -2), reason)
    rows = [f for f in left if f.shape[-1] == 1]
    columns = [f for f in right if f.shape[-2] == 1]
    fields = tuple(overlay(call, rows, columns, reason))
    return Value(shape=call.shape, fields=fields, vanishes=a.vanishing() and b.vanishing())


def matrix_vector(call: Call) -> Result:
    """A matrix times a vector: a weight's own norm (spectral norm) is made so."""
    matrix, vector = call.values()[:2]
    reason = f"{call.name} sums over it"
    same(call, along(call, matrix, 1), along(call, vector, 0), reason)
    return call.result(on(0, 1, along(call, zero_free(call, matrix, [1], reason), 0)))


def _summed_over(call: Call, a: tuple[Value, int], b: tuple[Value, int], reason: str) -> None:
    """Channels that a product sums over go together; they can be cut only if one side is a weight, for its gate."""
    found = [_only(call, value, dim) for value, dim in (a, b)]
    same(call, found[0], found[1], reason)
    weights = [ids for ids, (value, _) in zip(found, (a, b), strict=True) if ids is not None and value.vanishing()]
    call.labels.reads += weights
    for ids in found:
        if ids is not None and not weights:
            call.labels.freeze(ids, f"{call.name} sums over it, and no weight could carry a gate")


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


def inner_product(call: Call) -> Result:
    """The product of two vectors, summed: both stay."""
    for value in call.values():
        call.freeze(value, f"{call.name} sums over it")
    return call.result(())


def overlay(call: Call, rows: Sequence[Tensor], columns: Sequence[Tensor], reason: str) -> list[Tensor]:
    """Fields of one result: those that share a dimension go together."""
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
    over = f"{call.name} sums over it"
    query, key, value = (replace(v, fields=keep_dims(call, v, [-2], over)) for v in (query, key, value))
    if call.given.get("enable_gqa"):
        key, value = (_shared_by_queries(v, query.shape[-3]) for v in (key, value))
    heads = [*_contracted(call, query, -1, rank), *_contracted(call, key, -1, rank)]
    _summed_over(call, (query, -1), (key, -1), reason)
    mask = call.given.get("attn_mask")
    if isinstance(mask, Value):
        heads += [f[(None,) * (rank - f.dim())] for f in keep_dims(call, mask, [-1, -2], over)]
    return call.result(overlay(call, heads, value.fields, reason))


def _shared_by_queries(value: Value, heads: int) -> Value:
    """Keys or values [..., G, L, D] as each of H query heads sees them: H/G heads in a row share one."""
    times = heads // value.shape[-3]
    fields = tuple(f.repeat_interleave(times, -3) if f.shape[-3] > 1 else f for f in value.fields)
    return replace(value, shape=(*value.shape[:-3], heads, *value.shape[-2:]), fields=fields)


def reduction(call: Call) -> Result:
    """mean, sum, max, ...: dimensions that vanish (or shrink to 1)."""
    x, *others = call.values()
    for other in others:
        call.freeze(other, f"{call.name} reduces over it")
    rank = len(x.shape)
    dims = call.given.get("dim")
    dims = list(range(rank)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    dims = [d % rank for d in dims] if rank else []
    if x.vanishing() and call.name in {"sum", "norm", "linalg_vector_norm"}:
        x = zero_free(call, x, dims, f"{call.name} sums over it")
    if x.vanishing() and rank > 1 and call.name in _STATISTICS and any(_spans(f, dims) for f in x.fields):
        call.labels.mixing += [x.tensor] if x.tensor is not None else []
        x = zero_free(call, x, dims, f"{call.module or call.name} standardises its weight over it")
    if call.name in _OVER_KEPT:
        x = over_kept(call, x, dims)
    fields = keep_dims(call, x, dims, f"{call.name} reduces over it")
    if len(call.shape) != rank:
        fields = tuple(f.reshape([s for d, s in enumerate(f.shape) if d not in dims]) for f in fields)
    return tuple(Value(shape=s, fields=fields) for s in call.shapes) if call.several else call.result(fields)


_STATISTICS: Final = {"mean", "var", "std", "var_mean", "std_mean"}


def _spans(labels: Tensor, dims: Sequence[int]) -> bool:
    return bool(set(varying(labels)) & set(dims))


_OVER_KEPT: Final = {"mean", "var", "std", "sum", "amax", "amin", "max", "min", "norm", "linalg_vector_norm"}
"""Reductions that can be taken over kept channels alone while gates are on: REDUCTIONS in kept_statistics.py."""


def over_kept(call: Call, x: Value, dims: Sequence[int]) -> Value:
    """The value without the fields that label nothing but one of these dimensions: statistics are of kept channels."""
    for dim in dims:
        ids = _only(call, x, dim)
        if ids is not None:
            call.labels.statistics(call.module, len(x.shape), dim, ids)
            x = replace(x, fields=tuple(f for f in x.fields if varying(f) != (dim,)))
    return x


def along_dim(call: Call) -> Result:
    """softmax, cumsum, sort, ...: one dimension's coordinates see each other, the others pass."""
    x = call.values()[0]
    dim = -1 if call.given.get("dim") is None else call.given["dim"]
    if call.name in {"softmax", "log_softmax"}:
        over_kept(call, x, [dim % len(x.shape)])
        passing = tuple(f for f in x.fields if varying(f) == (dim % len(x.shape),))
        mixed = replace(x, fields=tuple(f for f in x.fields if varying(f) != (dim % len(x.shape),)))
        return call.result((*passing, *keep_dims(call, mixed, [dim], f"{call.name} mixes its coordinates")))
    fields = keep_dims(call, x, [dim], f"{call.name} mixes its coordinates")
    return call.result(fields) if not call.several else tuple(Value(shape=s, fields=fields) for s in call.shapes)


def same_as_input(call: Call) -> Result:
    """Dropout and the like: nothing changes."""
    return call.alike(call.values()[0].fields)


def pointwise_like(call: Call, parts: Sequence[Value]) -> Result:
    """Parts that lie over each other: combined as by an elementwise operator."""
    given = {str(i): p for i, p in enumerate(parts)}
    return pointwise(replace(call, given=given))
