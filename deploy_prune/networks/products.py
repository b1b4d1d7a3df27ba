"""What the operators of a graph multiply: one table, for every count of MACs in the package.

A product runs over a space of dimensions, one MAC for each of its points. What is counted is what torch's
FlopCounterMode counts, halved: convolutions, products of matrices (of weights and of activations) and attention. A
transposed convolution has one for each position of its input. Recurrent layers and attention are counted as the
products that they consist of, also where torch has a fused kernel that its counter doesn't look into; so are bilinear
layers and sums of products (addbmm). A matrix times a vector and elementwise products are not counted, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Final, Literal

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from deploy_prune.types import LayerKind

Role = Literal["position", "input", "output"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dim:
    """A dimension of a product's space: its size, and the (operand, axis) pairs that it lies along.

    ``input``: summed over, and of the weight; ``output``: of the weight, and of the result; ``position``: all others.
    """

    role: Role
    size: int
    seen: tuple[tuple[fx.Node, int], ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Product:
    """One product: MACs = taps * the sizes of its dimensions, the batch among them.

    ``weight``: the operand that is one, None for a product of activations. ``vectors``: as in ``types.Layer``; norms
    and embeddings have no ``taps``. ``input_positions``: None if the input has the positions of the product.
    """

    kind: LayerKind
    weight: fx.Node | None
    dims: tuple[Dim, ...]
    taps: int = 1
    vectors: int = 0
    input_positions: int | None = None

    def size(self, role: Role) -> int:
        """The product of the sizes of this role."""
        return prod(d.size for d in self.dims if d.role == role)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole batch."""
        return self.taps * prod(d.size for d in self.dims)


IsWeight = Callable[[fx.Node], bool]
_Given = Mapping[str, Any]
_Formula = Callable[[fx.Node, _Given, IsWeight], Iterator[Product]]


def products(node: fx.Node, is_weight: IsWeight) -> tuple[Product, ...]:
    """What a node of an exported graph multiplies, and norms of single channels.

    A few rare operators that are made of products are counted by torch, as one dimension without labels.

    Args:
        node: a call of an ATen operator, with shapes in its meta data.
        is_weight: whether an operand is a parameter or a buffer.
    """
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return ()
    name = name_of(node)
    if name in BY_TORCH:
        dims = (Dim(role="position", size=_by_torch(node)),)
        return (Product(kind="product", weight=None, dims=dims),)
    if (formula := FORMULAS.get(name)) is None:
        return ()
    names = [a.name for a in schema.arguments]
    return tuple(formula(node, {**dict(zip(names, node.args, strict=False)), **node.kwargs}, is_weight))


def name_of(node: fx.Node) -> str:
    """An ATen operator's name, without namespace, overload and the mark of in-place operators."""
    return str(getattr(node.target, "__name__", node.target)).split(".")[0].rstrip("_")


def shape_of(node: Any) -> list[int]:
    """The shape of a node's (first) result; a free size has the example's value."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    value = value[0] if isinstance(value, list | tuple) and value else value
    return [plain_size(size) for size in value.shape] if isinstance(value, Tensor) else []


def plain_size(size: Any) -> int:
    """A free size as it is in the example; a guess, 2, for one that depends on the numbers in a tensor."""
    node: Any = getattr(size, "node", None)
    known = size if node is None else node.hint
    return int(node.expr.subs(dict.fromkeys(node.expr.free_symbols, 2)) if known is None else known)


def _convolution(node: fx.Node, given: _Given, is_weight: IsWeight) -> Iterator[Product]:
    """Weight [O, I/G, ...], transposed [I, O/G, ...], over [B, C, ...] or [C, ...].

    Transposed and grouped, the axis of all groups counts as the output, and that of one group as the input.
    """
    x, weight = given["input"], given["weight"]
    transposed, groups = given.get("transposed", "transpose" in name_of(node)), given.get("groups", 1)
    x_shape, (first, second, *kernel) = shape_of(x), shape_of(weight)
    channel = len(x_shape) - len(kernel) - 1
    over = x_shape if transposed else shape_of(node)
    positions = [_along(x, d, "position", over[d]) for d in range(len(x_shape)) if d != channel]
    out, inner = (1, 0) if transposed and groups == 1 else (0, 1)
    widths = [first, second]
    alone = widths[out] == x_shape[channel] == groups  # all channels may share one kernel, which has no labels then
    yield Product(
        kind="depthwise" if groups > 1 and widths[inner] == 1 else "conv",
        weight=weight,
        taps=prod(kernel),
        vectors=int(given.get("bias") is not None),
        input_positions=prod(x_shape) // x_shape[channel],
        dims=(
            *positions,
            Dim(role="input", size=widths[inner], seen=((weight, inner),)),
            Dim(role="output", size=widths[out], seen=((weight, out), *(((x, channel),) if alone else ()))),
        ),
    )


def _along(operand: fx.Node, axis: int, role: Role, size: int | None = None) -> Dim:
    """A dimension that is an operand's axis. ``size``: another length than the axis has: that one's labels end here."""
    length = shape_of(operand)[axis]
    size = length if size is None else size
    return Dim(role=role, size=size, seen=((operand, axis),) if size == length else ())


def _linear(node: fx.Node, given: _Given, is_weight: IsWeight) -> Iterator[Product]:
    """X [..., I] times weight [O, I]."""
    x, weight = given["input"], given["weight"]
    if len(shape_of(weight)) == 2:
        yield _by_rows(x, weight, "linear", int(given.get("bias") is not None))


def _by_rows(x: fx.Node, weight: fx.Node, kind: LayerKind, vectors: int = 0) -> Product:
    """X [..., I] times weight [O, I]; or a state [..., I] of as many rows."""
    positions = [_along(x, d, "position") for d in range(len(shape_of(x)) - 1)]
    dims = (*positions, _along(weight, 1, "input"), _along(weight, 0, "output"))
    return Product(kind=kind, weight=weight, dims=dims, vectors=vectors)


def _matmul(node: fx.Node, given: _Given, is_weight: IsWeight) -> Iterator[Product]:
    """A [..., M, K] times b [..., K, N], either of them perhaps a vector; a matrix times a vector isn't counted."""
    a, b = [x for x in given.values() if isinstance(x, fx.Node)][-2:]
    if len(shape_of(b)) > 1:
        rows = () if len(shape_of(a)) == 1 else (_Axis(a, -2),)
        yield _contraction(is_weight, (a, b), rows, (_Axis(a, -1), _Axis(b, -2)), (_Axis(b, -1),))


@dataclass(frozen=True)
class _Axis:
    """An operand's axis, counted from its end."""

    operand: fx.Node
    axis: int

    @property
    def size(self) -> int:
        return shape_of(self.operand)[self.axis]

    @property
    def seen(self) -> tuple[fx.Node, int]:
        return self.operand, self.axis % len(shape_of(self.operand))


def _contraction(
    is_weight: IsWeight,
    operands: tuple[fx.Node, fx.Node],
    rows: tuple[_Axis, ...],
    inner: tuple[_Axis, ...],
    columns: tuple[_Axis, ...],
) -> Product:
    """A product of two operands, over the axes before their last two broadcast, rows, columns, and what is summed."""
    before = max(len(shape_of(x)) for x in operands) - 2
    batch = []
    for d in range(before):
        axes = [_Axis(x, d - before - 2) for x in operands if len(shape_of(x)) >= before - d + 2]
        batch.append(_dim("position", axes))
    first, second = operands
    weight = second if is_weight(second) else first if is_weight(first) else None
    sides: tuple[Role, Role] = ("position", "output") if weight is None or weight is second else ("output", "position")
    outer = [_dim(role, [axis]) for role, axes in zip(sides, (rows, columns), strict=True) for axis in axes]
    dims = (*batch, _dim("input", inner), *outer)
    return Product(kind="product" if weight is None else "linear", weight=weight, dims=dims)


def _dim(role: Role, axes: Sequence[_Axis]) -> Dim:
    """The dimension along these axes, those of size 1 being repeated."""
    size = max(a.size for a in axes)
    return Dim(role=role, size=size, seen=tuple(a.seen for a in axes if a.size == size))


def _attention(node: fx.Node, given: _Given, is_weight: IsWeight) -> Iterator[Product]:
    """Softmax(q k^T) v: q [..., H, L, E], k [..., H, S, E], v [..., H, S, F]; fewer heads of k and v are repeated."""
    query, key, value = (given[name] for name in ("query", "key", "value"))
    rank = len(shape_of(query))
    rows = [_Axis(query, d) for d in range(-rank, -1)]
    batch = [_dim("position", [r, *([_Axis(key, r.axis)] if -r.axis <= len(shape_of(key)) else [])]) for r in rows[:-1]]
    places = (*batch, _dim("position", rows[-1:]))
    tokens = _dim("output", [_Axis(key, -2)])
    summed = Dim(role="input", size=tokens.size, seen=tokens.seen)
    scores = (*places, _dim("input", [_Axis(query, -1), _Axis(key, -1)]), tokens)
    yield Product(kind="product", weight=None, dims=scores)
    yield Product(kind="product", weight=None, dims=(*places, summed, _dim("output", [_Axis(value, -1)])))


def _recurrent(node: fx.Node, given: _Given, is_weight: IsWeight) -> Iterator[Product]:
    """Lstm, gru, rnn and their cells: at every step, each matrix [gates * H, I], [gates * H, H] or [P, H]."""
    for weight in given.get("params") or (given["w_ih"], given["w_hh"]):
        if len(shape_of(weight)) == 2:
            yield _by_rows(given["data"] if "data" in given else given["input"], weight, "recurrent")


def _bilinear(node: fx.Node, given: _Given, is_weight: IsWeight) -> Iterator[Product]:
    """X [..., I] weight [O, I, J] y [..., J]."""
    x, weight = given["input1"], given["weight"]
    positions = [_along(x, d, "position") for d in range(len(shape_of(x)) - 1)]
    dims = (*positions, *(_along(weight, d, "input") for d in (1, 2)), _along(weight, 0, "output"))
    yield Product(kind="linear", weight=weight, dims=dims, vectors=int(given.get("bias") is not None))


def _norm(node: fx.Node, given: _Given, is_weight: IsWeight) -> Iterator[Product]:
    """Norms of single channels (batch norm, instance norm), [B, C, ...]: no product, but vectors beside a layer."""
    x, weight = given["input"], given.get("weight")
    positions = [_along(x, d, "position") for d in range(len(shape_of(x))) if d != 1]
    held = [given.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    seen = ((x, 1), *((p, 0) for p in held if p is not None))
    vectors = sum(given.get(name) is not None for name in ("weight", "bias"))
    dims = (*positions, Dim(role="output", size=shape_of(x)[1], seen=seen))
    yield Product(kind="norm", weight=weight, dims=dims, taps=0, vectors=vectors)


def _embedding(node: fx.Node, given: _Given, is_weight: IsWeight) -> Iterator[Product]:
    """Rows of weight [V, D], picked by indices [...]: no product, but a weight."""
    positions = [_along(given["indices"], d, "position") for d in range(len(shape_of(given["indices"])))]
    dims = (*positions, _along(given["weight"], 0, "input"), _along(given["weight"], 1, "output"))
    yield Product(kind="embedding", weight=given["weight"], dims=dims, taps=0)


@dataclass(frozen=True)
class _Letter:
    """A dimension of an einsum: its size, and where it lies."""

    size: int
    seen: tuple[tuple[fx.Node, int], ...]


_Term = dict[str, _Letter]


def _einsum(node: fx.Node, given: _Given, is_weight: IsWeight) -> Iterator[Product]:
    """Two terms at a time, in the order of ``path``; what no letter is summed over is an elementwise product."""
    terms, result = _terms(given["equation"].replace(" ", ""), given["tensors"])
    yield from _in_pairs(terms, result, list(given.get("path") or ()), is_weight)


def _tensordot(node: fx.Node, given: _Given, is_weight: IsWeight) -> Iterator[Product]:
    """Two tensors, summed over pairs of dimensions; inner: over the last of both."""
    words, summed = [], range(len(given.get("dims_self", [-1])))
    for operand, name, other in ((given["self"], "dims_self", "a"), (given["other"], "dims_other", "A")):
        letters = [chr(ord(other) + d) for d in range(len(shape_of(operand)))]
        for pair in summed:
            letters[given.get(name, [-1])[pair]] = str(pair)
        words.append("".join(letters))
    result = "".join(c for word in words for c in word if not c.isdecimal())
    if name_of(node) == "tensordot" or result:
        terms, _ = _terms(",".join(words) + "->" + result, [given["self"], given["other"]])
        yield from _in_pairs(terms, result, [], is_weight)


def _chain(node: fx.Node, given: _Given, is_weight: IsWeight) -> Iterator[Product]:
    """Matrices one after the other, in the order with the fewest products."""
    matrices = given["tensors"] if "tensors" in given else given["matrices"]
    sizes = [shape_of(matrices[0])[0], *(shape_of(m)[-1] for m in matrices)]

    @cache
    def best(first: int, end: int) -> tuple[int, int]:
        """(MACs, where the last product is) of the matrices from ``first`` to before ``end``."""
        if end - first == 1:
            return 0, first
        at = range(first + 1, end)
        return min((best(first, k)[0] + best(k, end)[0] + sizes[first] * sizes[k] * sizes[end], k) for k in at)

    def walk(first: int, end: int) -> Iterator[Product]:
        if end - first > 1:
            middle = best(first, end)[1]
            yield from walk(first, middle)
            yield from walk(middle, end)
            inner = _dim("input", [_Axis(matrices[middle - 1], -1), _Axis(matrices[middle], 0)])
            dims = (_along(matrices[first], 0, "position"), inner, _dim("output", [_Axis(matrices[end - 1], -1)]))
            yield Product(kind="product", weight=None, dims=dims)

    yield from walk(0, len(matrices))


def _in_pairs(terms: list[_Term], result: str, path: list[int], is_weight: IsWeight) -> Iterator[Product]:
    while len(terms) > 1:
        i, j = sorted(path[:2]) if path else (0, 1)
        second, first = terms.pop(j), terms.pop(i)
        needed = set(result).union(*terms)
        both = set(first) & set(second)
        summed = both - needed
        space = {c: _met(first, second, c) for c in [*first, *second] if c in both | needed}
        if summed:
            yield _pair(first, second, space, summed, is_weight)
        left = {c: letter for c, letter in space.items() if c not in summed}
        terms.insert(len(terms) if path else 0, left)
        path = path[2:]


def _met(first: _Term, second: _Term, letter: str) -> _Letter:
    found = [term[letter] for term in (first, second) if letter in term]
    return _Letter(size=found[0].size, seen=tuple(s for f in found for s in f.seen))


def _pair(first: _Term, second: _Term, space: _Term, summed: set[str], is_weight: IsWeight) -> Product:
    """One contraction: of a weight, its summed letters are inputs, and its others outputs."""
    owners = [{node for letter in term.values() for node, _ in letter.seen} for term in (second, first)]
    weight = next((o for (o,) in (own for own in owners if len(own) == 1) if is_weight(o)), None)
    mine: _Term = first if weight is None or weight in owners[1] else second
    dims = []
    for c, letter in space.items():
        only = c in mine and c not in (second if mine is first else first)
        role: Role = "input" if c in summed else "output" if only else "position"
        dims.append(Dim(role=role, size=letter.size, seen=letter.seen))
    return Product(kind="product" if weight is None else "linear", weight=weight, dims=tuple(dims))


def _terms(equation: str, operands: Sequence[fx.Node]) -> tuple[list[_Term], str]:
    """Each operand's letters (those of size 1 left out: they are repeated), and the result's letters."""
    left, arrow, right = equation.partition("->")
    shapes = [shape_of(x) for x in operands]
    words = left.split(",")
    widest = max((len(s) - len(w) + 3 for w, s in zip(words, shapes, strict=True) if "..." in w), default=0)
    dots = "".join(chr(0x2460 + i) for i in range(widest))
    terms: list[_Term] = []
    for word, operand, shape in zip(words, operands, shapes, strict=True):
        own = len(shape) - len(word) + 3
        letters = word.replace("...", dots[widest - own :] if "..." in word else "")
        term: _Term = {}
        for axis, (c, size) in enumerate(zip(letters, shape, strict=True)):
            if size > 1:
                term.setdefault(c, _Letter(size, ((operand, axis),)))
        terms.append(term)
    once = sorted(c for c in set(left) - {",", "."} if left.count(c) == 1)
    return terms, right.replace("...", dots) if arrow else dots + "".join(once)


FORMULAS: Final[Mapping[str, _Formula]] = {
    name: formula
    for formula, names in (
        (_convolution, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution "
                       "_convolution"),
        (_linear, "linear"),
        (_matmul, "matmul mm bmm addmm baddbmm addbmm"),
        (_attention, "scaled_dot_product_attention"),
        (_recurrent, "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
        (_bilinear, "bilinear"),
        (_einsum, "einsum"),
        (_tensordot, "tensordot inner"),
        (_chain, "linalg_multi_dot chain_matmul"),
        (_embedding, "embedding"),
        (_norm, "batch_norm instance_norm cudnn_batch_norm native_batch_norm _native_batch_norm_legit_no_training"),
    )
    for name in names.split()
}  # fmt: skip

BY_TORCH: Final = frozenset({"matrix_power", "linalg_matrix_power", "cov", "corrcoef"})


def _by_torch(node: fx.Node) -> int:
    """The MACs of an operator that is made of products, by torch's own counter, on tensors without numbers."""
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), _without_numbers)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        node.target(*args, **kwargs)  # type: ignore[operator]
    return int(counter.get_total_flops()) // 2


def _without_numbers(node: fx.Node) -> Any:
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return torch.empty(shape_of(node), dtype=value.dtype, device="meta")
    return plain_size(value) if isinstance(value, torch.SymInt) else value
