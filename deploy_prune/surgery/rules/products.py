"""Label rules of products that are an einsum by another name, of distances and of Kronecker products."""

from __future__ import annotations

from dataclasses import replace
from string import ascii_letters
from typing import Final

from torch import Tensor

from deploy_prune.surgery.labels import Value, varying
from deploy_prune.surgery.rules.arithmetic import overlay, pointwise_like
from deploy_prune.surgery.rules.call import Call, Result, along, keep_dims, on, same
from deploy_prune.surgery.rules.einsum import multiply, spelled_out

EQUATIONS: Final = {
    "outer": "i,j->ij",
    "ger": "i,j->ij",
    "linalg_vecdot": "...i,...i->...",
    "addbmm": "bij,bjk->ik",
    "baddbmm": "bij,bjk->bik",
    "addmv": "ij,j->i",
    "addr": "i,j->ij",
    "bilinear": "...i,oij,...j->...o",
}
"""Operator -> its product as an einsum."""


def product(call: Call) -> Result:
    """A product by its equation; add... has the tensor that it is added to as its first argument.

    Raises:
        ValueError: it is along another dimension than the last.
    """
    if call.given.get("dim", -1) != -1:
        raise ValueError(call.name)
    added = call.name in {"addbmm", "baddbmm", "addmv", "addr"}
    values = call.values()[1:] if added else call.values()
    terms, right = spelled_out(EQUATIONS[call.name], [len(v.shape) for v in values])
    made = multiply(call, values, terms, right)
    assert isinstance(made, Value)
    return pointwise_like(call, [call.given["self"], made]) if added else made


def bilinear(call: Call) -> Result:
    """x1 [..., I] and x2 [..., J] with weight [O, I, J] to [..., O]."""
    x1, x2, weight, bias = (call.given[n] for n in ("input1", "input2", "weight", "bias"))
    values = [x1, weight, x2]
    made = multiply(call, values, *spelled_out(EQUATIONS["bilinear"], [len(v.shape) for v in values]))
    assert isinstance(made, Value)
    if bias is not None:
        same(call, along(call, made, -1), along(call, bias, 0), f"the bias of {call.module} can't be cut")
    return made


def tensordot(call: Call) -> Result:
    """Two tensors, summed over pairs of their dimensions."""
    a, b = call.values()
    left, right = list(ascii_letters[: len(a.shape)]), list(ascii_letters[len(a.shape) :][: len(b.shape)])
    for i, j in zip(call.given["dims_self"], call.given["dims_other"], strict=True):
        right[j] = left[i]
    summed = set(left) & set(right)
    result = "".join(c for c in (*left, *right) if c not in summed)
    return multiply(call, [a, b], ["".join(left), "".join(right)], result)


def inner(call: Call) -> Result:
    """Products of vectors along the last dimension of both."""
    a, b = call.values()
    dims = {"dims_self": [len(a.shape) - 1], "dims_other": [len(b.shape) - 1]}
    return tensordot(replace(call, given={"self": a, "other": b, **dims}))


def chain(call: Call) -> Result:
    """Matrices multiplied one after the other."""
    values = call.values()
    terms = [ascii_letters[i : i + 2] for i in range(len(values))]
    return multiply(call, values, terms, terms[0][0] + terms[-1][1])


def distances(call: Call) -> Result:
    """cdist: x1 [..., P, M] and x2 [..., R, M] to [..., P, R]."""
    x1, x2 = call.values()
    reason = f"{call.name} sums over it"
    rows, columns = keep_dims(call, x1, [-1], reason), keep_dims(call, x2, [-1], reason)
    return call.alike(overlay(call, rows, [f.transpose(-1, -2) for f in columns], reason))


def distance(call: Call) -> Result:
    """cosine_similarity, pairwise_distance: two tensors are compared along one dimension, by default the last."""
    x1, x2 = call.values()
    shape = tuple(max(a, b) for a, b in zip(x1.shape, x2.shape, strict=True))
    both = pointwise_like(replace(call, shapes=(shape,)), [x1, x2])
    assert isinstance(both, Value)
    dim = call.given.get("dim", -1) % len(shape)
    fields = keep_dims(call, both, [dim], f"{call.name} reduces over it")
    return call.result(fields if len(call.shape) == len(shape) else [f.squeeze(dim) for f in fields])


def cross(call: Call) -> Result:
    """The cross product of vectors of 3 along one dimension."""
    both = pointwise_like(call, call.values())
    assert isinstance(both, Value)
    given = call.given.get("dim")
    dim = call.shape.index(3) if given is None else given
    return call.result(keep_dims(call, both, [dim], f"{call.name} mixes its coordinates"))


def kron(call: Call) -> Result:
    """Kronecker product of matrices: a row (column) of the first is a block of them, the second's all stay."""
    a, b = call.given["self"], call.given["other"]
    if len(a.shape) != len(b.shape):
        raise ValueError(call.shape)
    fields: list[Tensor] = []
    for dim, size in enumerate(b.shape):
        ids, theirs = along(call, a, dim), along(call, b, dim)
        if ids is None:
            fields += on(dim, len(call.shape), None if theirs is None else theirs.repeat(a.shape[dim]))
            continue
        if theirs is not None:
            call.labels.freeze(theirs, f"{call.name} repeats it for each row of another")
        fields += on(dim, len(call.shape), ids.repeat_interleave(size))
    mine = {d for f in fields for d in varying(f)} <= {d for f in a.fields for d in varying(f)}
    return Value(shape=call.shape, fields=tuple(fields), vanishes=a.vanishing() and (mine or b.vanishing()))
