"""Label rules of operators that read or write elements by indices: along the indexed dimensions all stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from deploy_prune.surgery.labels import Value, varying
from deploy_prune.surgery.rules.arithmetic import overlay
from deploy_prune.surgery.rules.call import Call, Result, along, keep_dims, on
from deploy_prune.surgery.rules.movement import move


def index(call: Call) -> Result:
    """x[..., indices, ...]. Indices that are not known when tracing: the dimensions that they pick from stay."""
    source = call.given["self"]
    indices = call.given["index"] if call.name == "index_select" else call.given.get("indices")
    given = list(indices) if isinstance(indices, list | tuple) else [indices]
    known = [i for i in given if isinstance(i, Value)]
    if all(i.data is not None for i in known):
        return move(call)
    if len(known) == 1 and len(given) - given.count(None) == 1 and call.name == "index":
        return _picked(call, source, given.index(known[0]), known[0])
    first = call.given["dim"] % len(source.shape) if call.name == "index_select" else 0
    picked = {first + d for d, i in enumerate(given) if i is not None}
    anywhere = [_anywhere(i) if isinstance(i, Value) else i for i in given]
    name = "index" if call.name == "index_select" else "indices"
    call = replace(call, given={**call.given, "self": source, name: anywhere[0] if name == "index" else anywhere})
    return _past(call, source, picked, f"{call.name} with indices that depend on the input")


def _picked(call: Call, source: Value, place: int, index: Value) -> Result:
    """One index from dimension ``place`` on: numbers for that dimension, or a mask over as many as it has itself."""
    number, rank = len(source.shape), len(index.shape)
    mask = rank > 1 and len(call.shape) == number - rank + 1
    taken = list(range(place, place + (rank if mask else 1)))
    if number + (1 - rank if mask else rank - 1) != len(call.shape):
        raise ValueError(call.shape)
    fields = keep_dims(call, source, taken, f"{call.name} with indices that depend on the input")
    call.freeze(index, f"{call.name} takes it as indices")
    made = [1] * (1 if mask else rank)
    shapes = [(*f.shape[:place], *made, *f.shape[place + len(taken) :]) for f in fields]
    return call.result([f.reshape(shape) for f, shape in zip(fields, shapes, strict=True)])


def _anywhere(indices: Value) -> Value:
    """Indices of the same shape that are all 0."""
    return replace(indices, data=torch.zeros(indices.shape, dtype=torch.int64), fields=())


def gather(call: Call) -> Result:
    """Each element from another place along one dimension: what labels the other dimensions passes."""
    source = call.given["self"]
    picked = call.given["index"] if "index" in call.given else call.given["indices"]
    dim = call.given["dim"] % len(source.shape)
    if any(p > s for d, (p, s) in enumerate(zip(picked.shape, source.shape, strict=True)) if d != dim):
        raise ValueError(picked.shape)
    op = torch.ops.aten.gather.default
    call = replace(call, op=op, given={"self": source, "dim": dim, "index": _anywhere(picked), "sparse_grad": False})
    made = _past(call, source, {dim}, "gather with indices that depend on the input")
    assert isinstance(made, Value)
    theirs = keep_dims(call, picked, [dim], "gather takes it as indices")
    return call.result(overlay(call, made.fields, theirs, "gather combines it with channels that can't be cut"))


def scatter(call: Call) -> Result:
    """Elements written to other places along one dimension: in the others target, indices and source go together."""
    target = call.given["self"]
    rank = len(target.shape)
    fields: list[Tensor] = []
    for part in call.values():
        if len(part.shape) != rank or rank == 1:
            call.freeze(part, f"{call.name} takes it as indices")
            continue
        narrow = [d for d in range(rank) if part.shape[d] != target.shape[d]]
        mine = keep_dims(call, part, [call.given["dim"], *narrow], f"{call.name} mixes its coordinates")
        fields = overlay(call, fields, mine, f"{call.name} combines it with channels that can't be cut")
    return call.result(fields)


def index_put(call: Call) -> Result:
    """x[..., indices, ...] = values. What labels the dimensions beside the indexed ones passes."""
    target, values, indices = call.given["self"], call.given["values"], call.given["indices"]
    rank = len(target.shape)
    indexed = _indexed(indices)
    for part in (i for i in indices if i is not None):
        call.freeze(part, f"{call.name} takes it as indices")
    reason = f"{call.name} mixes its coordinates"
    passing = keep_dims(call, target, indexed, reason)
    aligned = indexed == list(range(len(indexed))) or _ranks(indices) == [1]
    if prod(values.shape) > 1 and not aligned:
        call.freeze(replace(target, fields=passing), reason)
        call.freeze(values, reason)
        return call.result(passing)
    extra = len(values.shape) - rank
    mixed = [d for d in range(len(values.shape)) if d < extra or d - extra in indexed]
    theirs = [_aligned(f, extra) for f in keep_dims(call, values, mixed, reason)]
    return call.result(overlay(call, passing, theirs, f"{call.name} combines it with channels that can't be cut"))


def _ranks(indices: Sequence[Value | None]) -> list[int]:
    return [len(i.shape) for i in indices if i is not None]


def _indexed(indices: Sequence[Value | None]) -> list[int]:
    """The dimensions that may be indexed: a mask takes as many as it has, numbers one, here no more than that."""
    dims: list[int] = []
    place = 0
    for index in indices:
        size = 1 if index is None else max(1, len(index.shape))
        dims += [] if index is None else range(place, place + size)
        place += size
    return dims


def _aligned(labels: Tensor, extra: int) -> Tensor:
    """The field with so many dimensions (all of size 1) fewer in front, or more if negative."""
    return labels.reshape(labels.shape[extra:]) if extra > 0 else labels[(None,) * -extra]


def assigned(call: Call) -> Result:
    """slice_scatter, select_scatter: part of a tensor is written over; it goes together with what is written."""
    target, source = call.given["self"], call.given["src"]
    dim = call.given["dim"] % len(target.shape)
    mine = keep_dims(call, target, [dim], f"{call.name} writes over a part of it")
    if call.name == "select_scatter":
        shape = (*source.shape[:dim], 1, *source.shape[dim:])
        source = replace(source, shape=shape, fields=tuple(f.unsqueeze(dim) for f in source.fields))
    theirs = keep_dims(call, source, [dim], f"{call.name} writes it over a part of another")
    return call.result(overlay(call, mine, theirs, f"{call.name} combines it with channels that can't be cut"))


def embedding_bag(call: Call) -> Result:
    """Sums, means or maxima over rows of weight [V, D] picked by indices."""
    weight = call.given["weight"]
    name = call.module or call.name
    keep_dims(call, weight, [0], f"{name} is indexed by values")
    for value in call.values():
        if value is not weight:
            call.freeze(value, f"{name} takes it as indices")
    return call.result(on(-1, len(call.shape), along(call, weight, 1)))


def one_hot(call: Call) -> Result:
    """A new last dimension with a 1 at the index."""
    return call.result([f.unsqueeze(-1) for f in call.values()[0].fields])


def _past(call: Call, source: Value, picked: set[int], reason: str) -> Result:
    """Move the fields that don't vary along the picked dimensions; the others stay."""
    for labels in source.fields:
        if picked & set(varying(labels)):
            call.labels.freeze(labels, reason)
    passing = replace(source, fields=source.without(sorted(picked)))
    return move(replace(call, given={**call.given, "self": passing}))
