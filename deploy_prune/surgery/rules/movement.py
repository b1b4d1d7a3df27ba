"""Label rules of data movement: the operator itself is run on the labels, so that no rule can be wrong about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from deploy_prune.surgery.labels import KEPT, Value, compress, moved, varying
from deploy_prune.surgery.rules.arithmetic import overlay, pointwise_like
from deploy_prune.surgery.rules.call import Call, Result, widest


def move(call: Call) -> Result:
    """Any operator that only moves or copies elements of its first argument."""
    source, *others = call.values()
    if call.name == "type_as" or "other" in call.given:  # of the other it takes the type
        return moved(source, call.shape, source.fields)
    if any(other.data is None for other in others):
        call.freeze(source, f"{call.name} depends on the input")
        return call.result(())
    outputs: list[list[Tensor]] = [[] for _ in call.shapes]
    for labels in source.fields:
        for fields, result in zip(outputs, _run(call, source, labels), strict=True):
            _take_field(call, labels, fields, result)
    made = tuple(moved(source, s, widest(f)) for s, f in zip(call.shapes, outputs, strict=True))
    return made if call.several else made[0]


def like_another(call: Call) -> Result:
    """expand_as, view_as, reshape_as: as the operator that takes the other's sizes.

    A dimension that is widened from 1 has the other's coordinates, and their labels.
    """
    source, other = call.values()[:2]
    if call.name != "expand_as":
        return move(replace(call, op=torch.ops.aten.reshape.default, given={"self": source, "shape": call.shape}))
    shape = (1,) * (len(call.shape) - len(source.shape)) + source.shape
    mine = [f[(None,) * (len(shape) - f.dim())] for f in source.fields]
    wider = [d for d in range(len(shape)) if shape[d] == 1 and call.shape[d] > 1]
    theirs = [f for f in other.fields if set(varying(f)) & set(wider)]
    return call.result(overlay(call, mine, theirs, f"{call.name} combines it with channels that can't be cut"))


def pad(call: Call) -> Result:
    """Padding: of a labelled dimension, each new coordinate gets a label of its own and goes with what it meets."""
    source = call.given["input"] if "input" in call.given else call.values()[0]
    given: Sequence[int] = call.given["pad"] if "pad" in call.given else call.given["padding"]
    widths = pad_widths(source, given)
    constant = call.name == "constant_pad_nd" or (call.name == "pad" and call.given.get("mode") == "constant")
    fields = []
    for labels in source.fields:
        if not constant and any(labels.shape[d] > 1 and any(w) for d, w in enumerate(widths)):
            call.labels.freeze(labels, f"{call.name} repeats its edge")
        mine = [w if labels.shape[d] > 1 else (0, 0) for d, w in enumerate(widths)]
        flat = [w for pair in reversed(mine) for w in pair]
        wide = torch.nn.functional.pad(labels, flat)
        for d, (before, after) in enumerate(mine):
            for start, size in ((0, before), (wide.shape[d] - after, after)):
                for at in range(start, start + size):
                    wide.select(d, at).fill_(int(call.labels.new(1)))
        fields.append(wide)
    return moved(source, call.shape, fields)


def pad_widths(source: Value, given: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) per dimension, from torch's list that begins with the last dimension."""
    pairs = [(int(given[i]), int(given[i + 1])) for i in range(0, len(given), 2)]
    return [(0, 0)] * (len(source.shape) - len(pairs)) + pairs[::-1]


def _run(call: Call, source: Value, labels: Tensor) -> list[Tensor]:
    """The operator's results on a label field (in float64, exact up to 2^53, which every operator accepts)."""
    given = dict(call.given)
    numbers = labels.expand(source.shape).to(torch.float64)
    arguments = {k: _concrete(numbers if v is source else v) for k, v in given.items()}
    schema = call.op._schema.arguments
    result = call.op(
        *[arguments[a.name] for a in schema if not a.kwarg_only and a.name in arguments],
        **{a.name: arguments[a.name] for a in schema if a.kwarg_only and a.name in arguments},
    )
    return [r.round().long() for r in (result if isinstance(result, list | tuple) else [result])]


def _concrete(given: Any) -> Any:
    if isinstance(given, Value):
        return given.data
    return [_concrete(g) for g in given] if isinstance(given, list | tuple) else given


def _take_field(call: Call, before: Tensor, fields: list[Tensor], result: Tensor) -> None:
    if not result.numel():
        return
    labels = compress(result)
    dims = varying(labels)
    if not dims:
        call.labels.freeze(labels, f"{call.name} picks a single channel")
        return
    if len(dims) > len(varying(before)):
        call.labels.rectangle(labels)
    for other in [f for f in fields if set(varying(f)) & set(dims)]:
        finer = other if other.unique().numel() >= labels.unique().numel() else labels
        call.labels.freeze(labels if finer is other else other, f"{call.name} lays another axis over it")
        if finer is other:
            return
        fields[:] = [f for f in fields if f is not other]
    fields.append(labels)


def index(call: Call) -> Result:
    """x[..., indices, ...]. Indices that are not known when tracing: the dimensions that they pick from stay."""
    source = call.given["self"]
    indices = call.given["index"] if call.name == "index_select" else call.given.get("indices")
    given = list(indices) if isinstance(indices, list | tuple) else [indices]
    known = [i for i in given if isinstance(i, Value)]
    if all(i.data is not None for i in known):
        return move(call)
    first = call.given["dim"] % len(source.shape) if call.name == "index_select" else 0
    picked = {first + d for d, i in enumerate(given) if i is not None}
    anywhere = [replace(i, data=torch.zeros(i.shape, dtype=torch.int64)) if isinstance(i, Value) else i for i in given]
    name = "index" if call.name == "index_select" else "indices"
    call = replace(call, given={**call.given, "self": source, name: anywhere[0] if name == "index" else anywhere})
    return _past(call, source, picked, f"{call.name} with indices that depend on the input")


def gather(call: Call) -> Result:
    """Each element from another place along one dimension: what labels the other dimensions passes."""
    source, picked = call.given["self"], call.given["index"]
    if any(p > s for p, s in zip(picked.shape, source.shape, strict=True)):
        call.freeze(source, "gather repeats it")
        return call.result(())
    anywhere = replace(picked, data=torch.zeros(picked.shape, dtype=torch.int64))
    dim = call.given["dim"] % len(source.shape)
    call = replace(call, given={**call.given, "index": anywhere})
    return _past(call, source, {dim}, "gather with indices that depend on the input")


def _past(call: Call, source: Value, picked: set[int], reason: str) -> Result:
    """Move the fields that don't vary along the picked dimensions; the others stay."""
    for labels in source.fields:
        if picked & set(varying(labels)):
            call.labels.freeze(labels, reason)
    passing = replace(source, fields=source.without(sorted(picked)))
    return move(replace(call, given={**call.given, "self": passing}))


def cat(call: Call) -> Result:
    """Concatenation: fields that span the joined dimension are joined, the others go together."""
    parts: list[Value] = [p for p in call.given["tensors"] if prod(p.shape) or len(p.shape) != 1]
    rank = len(call.shape)
    dim = call.given.get("dim", 0) % rank
    reason = f"{call.name} joins it with a tensor that can't be cut"
    fields: list[Tensor] = []
    for dims in sorted(
        {tuple(sorted({*varying(f), dim}) if dim in varying(f) else varying(f)) for p in parts for f in p.fields}
    ):
        mine = [_spanning(call, p, dims, dim) for p in parts]
        if dim in dims:
            pieces = [_piece(p, m, dims, dim) for p, m in zip(parts, mine, strict=True)]
            fields.append(compress(torch.cat(pieces, dim)))
            continue
        first = next(m for m in mine if m is not None)
        for part, other in zip(parts, mine, strict=True):
            if other is not None:
                call.labels.merge(first, other, reason)
            elif any(part.shape[d] > 1 for d in dims):
                call.labels.freeze(first, reason)
        fields.append(first)
    return call.result(widest(fields))


def _spanning(call: Call, part: Value, dims: Sequence[int], dim: int) -> Tensor | None:
    """The part's field that varies along (a subset of) these dimensions."""
    for labels in part.fields:
        own = set(varying(labels))
        if own == set(dims) or (dim in dims and own and own <= set(dims)):
            return labels
    return None


def _piece(part: Value, labels: Tensor | None, dims: Sequence[int], dim: int) -> Tensor:
    shape = [part.shape[d] if d in dims or d == dim else 1 for d in range(len(part.shape))]
    if labels is None:
        return torch.full(shape, KEPT)
    return labels.expand(shape)


def stack(call: Call) -> Result:
    """Like cat along a new dimension."""
    dim = call.given.get("dim", 0) % len(call.shape)
    parts = []
    for p in call.given["tensors"]:
        shape = (*p.shape[:dim], 1, *p.shape[dim:])
        parts.append(moved(p, shape, [f.unsqueeze(dim) for f in p.fields]))
    return pointwise_like(call, parts)
