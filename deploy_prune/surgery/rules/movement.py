"""Label rules of data movement: the operator itself is run on the labels, so that no rule can be wrong about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any, Final

import torch
from torch import Tensor

from deploy_prune.surgery.labels import KEPT, Value, compress, moved, varying
from deploy_prune.surgery.rules.arithmetic import overlay, pointwise_like
from deploy_prune.surgery.rules.call import Call, Result, keep_dims, widest


def move(call: Call) -> Result:
    """Any operator that only moves or copies elements of its first argument."""
    source, *others = call.values()
    if call.given.get("dtype") is not None:
        return reinterpreted(call)
    if any(other.data is None for other in others):
        call.freeze(source, f"{call.name} depends on the input")
        return call.result(())
    outputs: list[list[Tensor]] = [[] for _ in call.shapes]
    for labels in source.fields:
        for fields, result in zip(outputs, _run(call, source, labels), strict=True):
            _take_field(call, labels, fields, result)
    made = tuple(moved(source, s, widest(f)) for s, f in zip(call.shapes, outputs, strict=True))
    return made if call.several else made[0]


def cast(call: Call) -> Result:
    """The same elements in another type or place: labels are no numbers, and don't change."""
    source = call.values()[0]
    return moved(source, call.shape, source.fields)


def reinterpreted(call: Call) -> Result:
    """view(dtype): an element becomes several narrower ones along the last dimension, or several one wider one."""
    source = call.values()[0]
    fields = source.fields
    before, after = source.shape[-1], call.shape[-1]
    if after > before:
        fields = tuple(f.repeat_interleave(after // before, -1) if f.shape[-1] > 1 else f for f in fields)
    elif after < before:
        parts = [f.unflatten(-1, (after, -1)) if f.shape[-1] > 1 else f.unsqueeze(-1) for f in fields]
        reason = f"{call.name} joins it into one element"
        fields = tuple(call.labels.tie(f, [f.dim() - 1], reason).squeeze(-1) for f in parts)
    return call.result(fields)


def complex_parts(call: Call) -> Result:
    """view_as_real, view_as_complex: a last dimension for the two parts of each number comes or goes."""
    source = call.values()[0]
    if len(call.shape) > len(source.shape):
        return moved(source, call.shape, [f.unsqueeze(-1) for f in source.fields])
    fields = keep_dims(call, source, [-1], f"{call.name} joins its two parts")
    return moved(source, call.shape, [f.squeeze(-1) for f in fields])


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
    """The operator's results on a label field (in float64, exact up to 2^53, which every operator accepts).

    Raises:
        ValueError: they have other shapes than in the graph.
    """
    given = dict(call.given)
    numbers = labels.expand(source.shape).to(torch.float64)
    arguments = {k: _concrete(numbers if v is source else v) for k, v in given.items()}
    schema = call.op._schema.arguments
    result = call.op(
        *[arguments[a.name] for a in schema if not a.kwarg_only and a.name in arguments],
        **{a.name: arguments[a.name] for a in schema if a.kwarg_only and a.name in arguments},
    )
    results = [r.round().long() for r in (result if isinstance(result, list | tuple) else [result])]
    if tuple(tuple(r.shape) for r in results) != call.shapes:
        raise ValueError([r.shape for r in results])
    return results


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


def cat(call: Call) -> Result:
    """Concatenation: fields that span the joined dimension are joined, the others go together."""
    parts: list[Value] = [p for p in call.given["tensors"] if prod(p.shape) or len(p.shape) != 1]
    rank = len(call.shape)
    dim = call.given.get("dim", 0) % rank
    reason = f"{call.name} joins it with a tensor that can't be cut"
    vanishes = all(p.vanishing() for p in parts)
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
                if vanishes:
                    call.labels.gate_together(first, other)
            elif any(part.shape[d] > 1 for d in dims):
                call.labels.freeze(first, reason)
        fields.append(first)
    return Value(shape=call.shape, fields=tuple(widest(fields)), vanishes=vanishes)


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


JOINED_DIMS: Final = {"hstack": 1, "vstack": 0, "row_stack": 0, "dstack": 2, "column_stack": 1}


def joined(call: Call) -> Result:
    """Hstack and its like: cat along a fixed dimension, of tensors that have it.

    Raises:
        ValueError: they don't have it.
    """
    dim = JOINED_DIMS[call.name]
    if any(len(p.shape) <= max(dim, 1) for p in call.given["tensors"]):
        raise ValueError(call.name)
    return cat(replace(call, given={**call.given, "dim": dim}))


def stack(call: Call) -> Result:
    """Like cat along a new dimension."""
    dim = call.given.get("dim", 0) % len(call.shape)
    parts = []
    for p in call.given["tensors"]:
        shape = (*p.shape[:dim], 1, *p.shape[dim:])
        parts.append(moved(p, shape, [f.unsqueeze(dim) for f in p.fields]))
    return pointwise_like(call, parts)
