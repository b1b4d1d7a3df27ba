"""One operator call as the label rules see it, and the few things every rule does with labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from deploy_prune.surgery.labels import Labels, Value, varying

Result = Value | tuple[Value, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One operator call: its arguments by name (tensors as ``Value``), the shapes it returns, and where notes go."""

    labels: Labels
    op: Any
    name: str
    module: str
    given: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    several: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the only (or first) output."""
        return self.shapes[0]

    def values(self) -> list[Value]:
        """All tensor arguments, in order, those inside lists too."""
        found: list[Value] = []
        for given in self.given.values():
            found += [g for g in (given if isinstance(given, list | tuple) else [given]) if isinstance(g, Value)]
        return found

    def result(self, fields: Sequence[Tensor]) -> Result:
        """The outputs: the first with these fields, further ones (indices, statistics) unlabelled."""
        first = Value(shape=self.shape, fields=tuple(fields))
        return (first, *(Value(shape=s) for s in self.shapes[1:])) if self.several else first

    def alike(self, fields: Sequence[Tensor]) -> Result:
        """The outputs, all of one layout (values and their indices): each with these fields."""
        made = tuple(Value(shape=s, fields=tuple(fields)) for s in self.shapes)
        return made if self.several else made[0]

    def freeze(self, value: Value, reason: str) -> None:
        """Everything this value's fields label stays."""
        for labels in value.fields:
            self.labels.freeze(labels, reason)


Rule = Callable[[Call], Result]


def along(call: Call, value: Value, dim: int) -> Tensor | None:
    """int64[size]: the labels along one dimension; what differs only in other dimensions is tied. None: no labels."""
    dim %= len(value.shape)
    found: Tensor | None = None
    for labels in value.fields:
        if labels.shape[dim] == 1:
            continue
        others = [d for d in varying(labels) if d != dim]
        ids = call.labels.tie(labels, others, f"{call.name} reads it as one axis").flatten()
        if found is not None:
            call.labels.merge(found, ids, f"{call.name} reads it twice")
        found = ids
    return found


def on(dim: int, rank: int, ids: Tensor | None) -> tuple[Tensor, ...]:
    """A field of the given rank with these labels along one dimension (empty for no labels)."""
    if ids is None:
        return ()
    shape = [1] * rank
    shape[dim] = -1
    return (ids.view(shape),)


def same(call: Call, a: Tensor | None, b: Tensor | None, reason: str) -> None:
    """Two label vectors of one axis go together; labels that meet an axis without labels stay."""
    if a is not None and b is not None:
        call.labels.merge(a, b, reason)
    elif a is not None or b is not None:
        call.labels.freeze(a if a is not None else b, reason)  # type: ignore[arg-type]


def contract(call: Call, x: Tensor | None, weight: Value, axis: int, reason: str) -> None:
    """A weight's axis reads the channels x: they go together, and a gate may sit on that axis."""
    ids = along(call, weight, axis)
    same(call, x, ids, reason)
    if ids is not None and weight.vanishing():
        call.labels.reads.append(ids)
    elif ids is not None:
        call.labels.freeze(ids, f"the weight of {call.module or call.name} is computed, not stored")


def zero_free(call: Call, value: Value, dims: Sequence[int], reason: str) -> Value:
    """A weight of which these dimensions are summed over, for its norm: sound if gates make it 0 along them.

    What a gate doesn't multiply (nothing reads it through this axis) stays.
    """
    dims = [d % len(value.shape) for d in dims]
    for labels in value.fields:
        if set(varying(labels)) & set(dims):
            call.labels.needs_gate(labels, reason)
    return replace(value, fields=value.without(dims))


def keep_dims(call: Call, value: Value, dims: Sequence[int], reason: str) -> tuple[Tensor, ...]:
    """The fields that survive an operator that mixes the coordinates along these dimensions.

    What only labels a mixed dimension stays; what spans it and others is tied along it, so that a unit is what the
    operator treats as a whole (a head, the channel that a pixel shuffle makes).
    """
    mixed = {d % len(value.shape) for d in dims}
    fields = []
    for labels in value.fields:
        spanned = mixed & set(varying(labels))
        if spanned and spanned == set(varying(labels)):
            call.labels.freeze(labels, reason)
        else:
            fields.append(call.labels.tie(labels, sorted(spanned), reason))
    return tuple(fields)


def widest(fields: Sequence[Tensor]) -> list[Tensor]:
    """Drop fields whose dimensions another field covers."""
    kept: list[Tensor] = []
    for labels in sorted(fields, key=lambda f: -len(varying(f))):
        if not any(set(varying(labels)) <= set(varying(other)) for other in kept):
            kept.append(labels)
    return kept
