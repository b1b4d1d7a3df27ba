"""Channel labels: who lives or dies together.

Every coordinate of every parameter axis gets an integer label. Running the network's graph once over labels instead
of numbers records which labels must be kept or removed together (``merge``) and which can't go (``freeze``).

A ``Value`` is what flows along an edge of that graph: a shape and label fields. A field is an int64 tensor that
broadcasts to the shape and varies only along the dimensions whose coordinates it labels: a convolution's weight
[O, I, 3, 3] has the fields [O, 1, 1, 1] and [1, I, 1, 1]; after a view into heads there may be a field [1, 1, H, D].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

KEPT = -1
"""A coordinate without a label of its own: always there."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Value:
    """A tensor of the graph as labels see it.

    ``tensor``: set while this still is a parameter or buffer of that name, moved about but not computed with.
    ``vanishes``: computed from a parameter, and 0 where that is 0 (a normalised weight).
    ``data``: the numbers themselves, kept for integer constants (indices).
    """

    shape: tuple[int, ...]
    fields: tuple[Tensor, ...] = ()
    tensor: str | None = None
    data: Tensor | None = field(default=None, repr=False)
    vanishes: bool = False

    def __post_init__(self) -> None:
        for labels in self.fields:
            if len(labels.shape) != len(self.shape) or any(
                have not in (1, size) for have, size in zip(labels.shape, self.shape, strict=True)
            ):
                message = f"labels {list(labels.shape)} of a tensor {list(self.shape)}"
                raise ValueError(message)

    def vanishing(self) -> bool:
        """It is 0 wherever the gate on an axis of its parameter is 0."""
        return self.vanishes or self.tensor is not None

    def unlabelled(self) -> bool:
        """No coordinate of any axis has a label."""
        return not self.fields

    def without(self, dims: Sequence[int]) -> tuple[Tensor, ...]:
        """The fields that don't vary along any of these dimensions."""
        return tuple(f for f in self.fields if not set(varying(f)) & set(dims))


def varying(labels: Tensor) -> tuple[int, ...]:
    """The dimensions along which a field labels coordinates."""
    return tuple(d for d, size in enumerate(labels.shape) if size > 1)


def compress(labels: Tensor) -> Tensor:
    """The same field, in memory of its own, with every dimension along which it is constant narrowed to size 1."""
    for dim, size in enumerate(labels.shape):
        if size > 1 and bool((labels == labels.narrow(dim, 0, 1)).all()):
            labels = labels.narrow(dim, 0, 1)
    return labels.clone(memory_format=torch.contiguous_format)  # a view would hold the memory of the wide field


@dataclass(kw_only=True)
class Labels:
    """The labels of one network, and what has been found out about them."""

    count: int = 0
    reads: list[Tensor] = field(default_factory=list)
    """Labels on the input side of a weight that contracts them."""
    mixing: list[str] = field(default_factory=list)
    """Weights of norms that take statistics over channels."""
    seen: dict[tuple[str, int, int, int], Tensor] = field(default_factory=dict)
    """Module, rank, dimension, size -> labels along that dimension, over which the module takes statistics."""
    own: dict[str, tuple[Tensor | None, ...]] = field(default_factory=dict)
    """Tensor name -> the labels of each of its axes."""
    _edges: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _frozen: list[tuple[Tensor, str]] = field(default_factory=list)
    _ungated: list[tuple[Tensor, str]] = field(default_factory=list)
    _rectangles: list[Tensor] = field(default_factory=list)
    _summands: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def new(self, size: int) -> Tensor:
        """int64[size] labels not used before."""
        first, self.count = self.count, self.count + size
        return torch.arange(first, self.count)

    def merge(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Coordinates of a and b (broadcastable) go together; what meets a kept one stays, for ``reason``."""
        a, b = torch.broadcast_tensors(a, b)
        both = (a >= 0) & (b >= 0)
        if bool(both.any()):
            self._edges.append((a[both], b[both]))
        self.freeze(a[(a >= 0) & (b == KEPT)], reason)
        self.freeze(b[(b >= 0) & (a == KEPT)], reason)

    def freeze(self, labels: Tensor, reason: str) -> None:
        """These labels, and all that go with them, stay."""
        labels = labels[labels >= 0]
        if labels.numel():
            self._frozen.append((labels.flatten(), reason))

    def needs_gate(self, labels: Tensor, reason: str) -> None:
        """These labels stay unless a gate sits on their own axis."""
        labels = labels[labels >= 0]
        if labels.numel():
            self._ungated.append((labels.flatten(), reason))

    def gate_together(self, a: Tensor, b: Tensor) -> None:
        """Weights with these labels (broadcastable) are added up: a gate on the sum is one on each of them."""
        a, b = torch.broadcast_tensors(a, b)
        both = (a >= 0) & (b >= 0)
        self._summands.append((a[both], b[both]))

    def statistics(self, module: str, rank: int, dim: int, labels: Tensor) -> None:
        """A module's code takes statistics along a dimension with these labels, over those that are kept.

        Where it does so for several tensors alike, nothing tells them apart while gates are on: they go together.
        """
        first = self.seen.setdefault((module, rank, dim, len(labels)), labels)
        self.merge(first, labels, f"{module} takes statistics over it and other channels")

    def statistics_of(self, unit_of: Tensor) -> dict[tuple[str, int, int, int], Tensor]:
        """Where the units of a group are seen so. ``unit_of``: int64[count], -1 for labels of others."""
        found = {place: torch.where(ids < 0, -1, unit_of[ids.clamp(min=0)]) for place, ids in self.seen.items()}
        return {place: units for place, units in found.items() if bool((units >= 0).any())}

    def read(self) -> Tensor:
        """bool[count]: the labels that a weight's input side has."""
        marks = torch.zeros(self.count, dtype=torch.bool)
        for ids in self.reads:
            marks[ids[ids >= 0]] = True
        if not self._summands:
            return marks
        sums = _components(self._summands, self.count)
        return torch.isin(sums, sums[marks])

    def tie(self, labels: Tensor, dims: Sequence[int], reason: str) -> Tensor:
        """Coordinates that differ only along ``dims`` go together. Returns the field narrowed there to size 1."""
        for dim in dims:
            if labels.shape[dim] > 1:
                first = labels.amax(dim, keepdim=True)
                self.merge(first, labels, reason)
                labels = first
        return labels

    def rectangle(self, labels: Tensor) -> None:
        """This field spans several dimensions: what is kept of it must be a product of what is kept along each."""
        self._rectangles.append(labels.squeeze())

    def classes(self) -> Tensor:
        """int64[count]: the class of each label, numbered from 0 in order of first appearance."""
        return _components(self._edges, self.count)

    def resolve_rectangles(self) -> Tensor:
        """Make every multi-dimensional field a product; returns the final classes.

        Where nothing tied a field along all axes but one, the longest axis stays free and the others are tied.
        """
        while True:
            classes = self.classes()
            open_fields = [r for r in self._rectangles if not _is_product(r, classes)]
            if not open_fields:
                return classes
            longest = max(open_fields, key=lambda r: r.numel())
            self._rectangles = [r for r in open_fields if r is not longest]
            free = int(np.argmax(longest.shape))
            self.tie(longest, [d for d in range(longest.dim()) if d != free], "its block must stay rectangular")

    def frozen(self, classes: Tensor) -> dict[int, str]:
        """Frozen class -> the first reason given."""
        reasons: dict[int, str] = {}
        read = self.read()
        for labels, reason in (*self._frozen, *((ids[~read[ids]], reason) for ids, reason in self._ungated)):
            for root in classes[labels].unique().tolist():
                reasons.setdefault(root, reason)
        return reasons


def _components(edges: Sequence[tuple[Tensor, Tensor]], count: int) -> Tensor:
    """int64[count]: which labels are connected, numbered from 0 in order of first appearance."""
    if not edges:
        return torch.arange(count)
    rows = torch.cat([a for a, _ in edges]).numpy()
    columns = torch.cat([b for _, b in edges]).numpy()
    links = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    return torch.from_numpy(connected_components(links, directed=False)[1].astype(np.int64))


def _is_product(labels: Tensor, classes: Tensor) -> bool:
    """Whether the classes of a field vary along one dimension only (labels < 0 count as classes of their own)."""
    known = torch.where(labels >= 0, classes[labels.clamp(min=0)], labels)
    return len(varying(compress(known))) <= 1


def moved(value: Value, shape: Sequence[int], fields: Sequence[Tensor]) -> Value:
    """The value after pure data movement: another shape and fields, still the same parameter."""
    return replace(value, shape=tuple(shape), fields=tuple(fields), data=None)
