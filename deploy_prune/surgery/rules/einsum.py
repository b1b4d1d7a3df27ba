"""Label rule of einsum: every letter is a dimension of one common space, in which the operands are multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from string import ascii_letters

from torch import Tensor

from deploy_prune.surgery.labels import Value, varying
from deploy_prune.surgery.rules.arithmetic import pointwise_like
from deploy_prune.surgery.rules.call import Call, Result


def einsum(call: Call) -> Result:
    """Letters that meet go together; letters summed over may carry a gate if a weight has them, else they stay.

    Raises:
        ValueError: a letter comes twice in one operand (a diagonal).
    """
    values, equation = call.values(), str(call.given["equation"]).replace(" ", "")
    terms, right = spelled_out(equation, [len(v.shape) for v in values])
    return multiply(call, values, terms, right)


def spelled_out(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The operands' and the result's letters; dimensions under an ellipsis get letters of their own, from the last on.

    Without an arrow the result has the ellipsis, then the letters that come once, in alphabetical order.
    """
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    hidden = [rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True)]
    unused = [c for c in ascii_letters if c not in equation]
    names = "".join(unused[: max((n for n, t in zip(hidden, terms, strict=True) if "." in t), default=0)])
    if not arrow:
        once = "".join(sorted(c for c in set(left) - set(",.") if left.count(c) == 1))
        right = ("..." if "." in left else "") + once
    terms = [t.replace("...", names[len(names) - n :]) for t, n in zip(terms, hidden, strict=True)]
    right = right.replace("...", names)
    if any(len(set(t)) != len(t) for t in (*terms, right)):
        raise ValueError(equation)
    return terms, right


def multiply(call: Call, values: Sequence[Value], terms: Sequence[str], right: str) -> Result:
    """The product of these operands, summed over the letters that the result doesn't have."""
    letters = right + "".join(sorted(set("".join(terms)) - set(right)))
    sizes: dict[str, int] = {}
    for term, value in zip(terms, values, strict=True):
        for letter, size in zip(term, value.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    parts = [_spread(v, t, letters) for t, v in zip(terms, values, strict=True)]
    product = pointwise_like(_shaped(call, tuple(sizes[c] for c in letters)), parts)
    assert isinstance(product, Value)
    gated = {d for p in parts if p.vanishing() for f in p.fields for d in varying(f)}
    call.labels.reads += [f.flatten() for p in parts if p.vanishing() for f in p.fields if _beyond(f, len(right))]
    fields = [f.reshape(f.shape[: len(right)]) for f in _summed(call, product, right, gated)]
    vanishes = all(p.vanishing() or p.unlabelled() for p in parts)
    return Value(shape=call.shape, fields=tuple(fields), vanishes=vanishes)


def _shaped(call: Call, shape: tuple[int, ...]) -> Call:
    return replace(call, shapes=(shape,))


def _spread(value: Value, term: str, letters: str) -> Value:
    """The operand with a dimension for every letter."""
    order = [term.index(c) for c in letters if c in term]
    place = tuple(slice(None) if c in term else None for c in letters)
    shape = tuple(value.shape[term.index(c)] if c in term else 1 for c in letters)
    fields = tuple(f.permute(order)[place] for f in value.fields)
    return Value(shape=shape, fields=fields, tensor=value.tensor, vanishes=value.vanishes)


def _beyond(labels: Tensor, rank: int) -> bool:
    return all(d >= rank for d in varying(labels))


def _summed(call: Call, product: Value, right: str, gated: set[int]) -> list[Tensor]:
    """The fields of the product that are left when the letters beyond the result's are summed over."""
    left = []
    for labels in product.fields:
        beyond = [d for d in varying(labels) if d >= len(right)]
        if len(beyond) < len(varying(labels)):
            left.append(call.labels.tie(labels, beyond, "einsum sums over it"))
        elif not set(beyond) <= gated:
            call.labels.freeze(labels, "einsum sums over it, and no weight could carry a gate")
    return left
