"""What a runtime has to do for one inference: every operator of a network's graph, with its arithmetic and its traffic.

Read from torch.export's graph. Counted is what runtimes do and not what the graph says: a batch norm is folded into the
convolution before it, an activation is computed where its operand is written, a view costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, gcd
from typing import Any, Final, Literal

from torch import Tensor, fx
from torch.export import ExportedProgram

from deploy_prune.networks.products import Product, products, shape_of

OpKind = Literal[
    "pointwise", "conv", "winograd", "depthwise", "matmul", "attention", "transcendental", "elementwise", "movement"
]
"""``pointwise``: a 1x1 convolution. ``winograd``: a 3x3 one of stride 1, for which runtimes have Winograd's algorithm
(arXiv 1509.09308). ``matmul``: by a weight. ``attention``: a product of activations. ``transcendental``: a
function that takes many instructions for each element. Without arithmetic to speak of: ``elementwise``, operands of one
shape; ``movement``, all else: poolings, norms, softmax, concatenations, transposes.
"""
ARITHMETIC: Final = frozenset({"pointwise", "conv", "winograd", "depthwise", "matmul", "attention"})

FREE: Final = frozenset(
    [
        "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "expand_as", "contiguous",
        "detach", "detach_", "alias", "dropout", "clone", "dropout_", "feature_dropout", "alpha_dropout", "select",
        "unbind", "getitem", "to", "_to_copy", "identity", "lift_fresh_copy", "type_as", "float", "view_as",
        "_assert_tensor_metadata", "sym_size", "sym_size.int", "narrow", "_unsafe_view", "chunk", "split",
        "split_with_sizes", "slice",
    ]
)  # fmt: skip
"""Operators without any work: the same numbers under another shape, or a part of them."""
FUSED: Final = frozenset(
    [
        "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "leaky_relu", "clamp", "clamp_min", "clamp_max",
        "prelu", "relu_6", "threshold",
    ]
)  # fmt: skip
"""Activations of a few instructions, computed on what an operator is about to write."""
TRANSCENDENTAL: Final = frozenset(
    [
        "sigmoid", "silu", "gelu", "mish", "elu", "selu", "celu", "tanh", "softplus", "log_sigmoid", "glu", "exp",
        "expm1", "log", "log1p", "log2", "log10", "erf", "sin", "cos", "logit",
    ]
)  # fmt: skip
"""Functions with an exponential, a logarithm or the like in them: on a CPU many instructions, fused or not."""
SOFTMAX: Final = frozenset({"softmax", "log_softmax"})
"""The same, behind a search of the maximum and before a sum: nothing that another operator could take in."""
MOVES: Final = frozenset({"permute", "transpose", "t", "swapaxes", "movedim", "numpy_T", "transpose_", "permute_copy"})
"""Data that changes places. Beside a product of matrices that is only the order in which the product reads it."""
PRODUCTS: Final = frozenset(
    {"matmul", "bmm", "mm", "linear", "addmm", "baddbmm", "scaled_dot_product_attention", "einsum"}
)
ELEMENTWISE: Final = frozenset({"add", "sub", "mul", "div", "rsub", "maximum", "minimum", "pow", "sqrt"})


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operator of a runtime, for one inference.

    MACs = positions * taps * inputs * outputs, as in ``types.Layer`` (``inputs``: channels per filter). ``tensor``: the
    weight's name, None for an operator without. ``anchor``: the weight whose output channels the result has, None for
    the network's input. ``reads``: (anchor, elements) of each operand but weights; ``writes``: elements of the result.
    ``functions``: elements that a transcendental function is computed of.
    """

    name: str
    kind: OpKind
    tensor: str | None
    anchor: str | None
    taps: int
    positions: int
    inputs: int
    outputs: int
    reads: tuple[tuple[str | None, int], ...]
    writes: int
    weights: int
    functions: int = 0

    def macs(self, granule: int = 1) -> int:
        """Multiply-accumulates with widths rounded up to the granule (a width of up to 4, an image's, stays)."""
        return self.positions * self.taps * stair(self.inputs, granule) * stair(self.outputs, granule)

    @property
    def activations(self) -> int:
        """Elements read and written, weights left out."""
        return self.writes + sum(elements for _, elements in self.reads)


NARROW: Final = 4
"""A layer that reads an image's channels has kernels of its own: its input isn't filled up to the granule."""


def stair(width: int, granule: int) -> int:
    """A width rounded up to the granule, if it is more than an image's."""
    return width if width <= NARROW else ceil(width / granule) * granule


def list_ops(program: ExportedProgram) -> tuple[Op, ...]:
    """Every operator that costs time, in order of execution. The batch is as in the program's example."""
    return tuple(_Reader(program).ops())


class _Reader:
    """Walks a program's graph once."""

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self._nodes = list(program.graph.nodes)
        self._place = {node: place for place, node in enumerate(self._nodes)}
        self._weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._weights |= signature.inputs_to_lifted_tensor_constants
        self._anchor: dict[fx.Node, str | None] = {}

    def ops(self) -> Iterator[Op]:
        for node in self._nodes:
            if node.op != "call_function" or _elements(node) == 0:
                continue
            found = tuple(self._ops(node))
            self._anchor[node] = found[-1].anchor if found else self._inherited(node)
            yield from found

    def _ops(self, node: fx.Node) -> Iterator[Op]:
        name = _name(node)
        operands = self._operands(node)
        found = [x for x in products(node, lambda x: _source(x).name in self._weights) if x.taps]
        if name in FREE or not (operands or found) or (name in MOVES and _beside_product(node)):
            return
        if name in {"pad", "constant_pad_nd"} and all(_name(user).startswith("conv") for user in node.users):
            return
        if (name in FUSED or (name == "batch_norm" and _weighted(_source(operands[0])))) and _sole(operands[0]):
            return
        if name == "scaled_dot_product_attention":
            yield self._attention(node, found)
        elif found and found[0].weight is None:
            yield self._of_activations(node, found)
        elif found:
            yield from self._by_weights(node, found)
        elif name == "embedding":
            yield self._picked(node)
        elif name in TRANSCENDENTAL | SOFTMAX:
            made = self._made(node, "transcendental" if name in TRANSCENDENTAL else "movement")
            yield replace(made, functions=made.writes)
        else:
            yield self._made(node, "elementwise" if name in ELEMENTWISE else "movement")

    def _by_weights(self, node: fx.Node, found: Sequence[Product]) -> Iterator[Op]:
        """A layer; of a recurrent one each matrix, of which the first reads and writes for all."""
        names = [self._name_of(x.weight) for x in found if x.weight is not None]
        held = [_elements(x.weight) for x in found]
        made = self._made(node, "matmul", names[0])
        whole = replace(made, weights=made.weights - sum(held[1:]))
        for product, name, weights in zip(found, names, held, strict=True):
            own = whole if product is found[0] else replace(made, reads=(), writes=0, weights=weights)
            yield replace(
                own, kind=_kind(product, node), tensor=name, anchor=name, taps=product.taps,
                positions=product.size("position"), inputs=product.size("input"), outputs=product.size("output"),
            )  # fmt: skip

    def _of_activations(self, node: fx.Node, found: Sequence[Product]) -> Op:
        """Products of activations, one after the other."""
        inner = gcd(*(product.size("input") for product in found))
        macs = sum(product.macs for product in found)
        return replace(self._made(node, "attention"), taps=1, positions=macs // inner, inputs=1, outputs=inner)

    def _attention(self, node: fx.Node, found: Sequence[Product]) -> Op:
        """Attention's two products, its square matrix being written and read once."""
        scores, result = found
        square = scores.size("position") * scores.size("output")
        width = gcd(scores.size("input"), result.size("output"))
        made = self._made(node, "attention")
        return replace(
            made, taps=1, positions=(scores.macs + result.macs) // width, inputs=1, outputs=width,
            writes=made.writes + 2 * square, functions=square,
        )  # fmt: skip

    def _picked(self, node: fx.Node) -> Op:
        """Rows of a table: only these are read."""
        made = self._made(node, "movement")
        return replace(made, reads=(*made.reads, (None, made.writes)), weights=0)

    def _made(self, node: fx.Node, kind: OpKind, tensor: str | None = None) -> Op:
        """What a node reads and writes; it multiplies nothing yet."""
        operands = self._operands(node)
        reads = tuple((self._anchor.get(x), _elements(x)) for x in operands)
        weights = sum(_elements(x) for x in node.all_input_nodes if x.name in self._weights)
        anchor = tensor if tensor is not None else self._inherited(node)
        return Op(
            name=node.name, kind=kind, tensor=tensor, anchor=anchor, taps=0, positions=0, inputs=0, outputs=0,
            reads=reads, writes=_elements(node), weights=weights,
        )  # fmt: skip

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that a node reads, but for weights."""
        return [x for x in node.all_input_nodes if x.name not in self._weights and _elements(x) > 0]

    def _inherited(self, node: fx.Node) -> str | None:
        """The anchor of the largest operand; on a tie the last one's, who of a sum is the branch that may be gone."""
        operands = self._operands(node)
        return self._anchor.get(max(operands, key=lambda x: (_elements(x), self._place[x]))) if operands else None

    def _name_of(self, weight: fx.Node) -> str:
        """A weight's name; one that is computed goes by its node, as in ``types.Layer``."""
        return str(self._weights.get(_source(weight).name, f"%{weight.name}"))


def _name(node: fx.Node) -> str:
    """An operator's name without namespace and overload, and without the mark of in-place operators."""
    name = str(getattr(node.target, "__name__", node.target)).split(".")[0]
    return name if name in FREE else name.rstrip("_")


def _value(node: Any) -> Tensor | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        return value[0]
    return value if isinstance(value, Tensor) else None


def _elements(node: Any) -> int:
    value = _value(node)
    return 0 if value is None else int(value.numel())


def _source(node: fx.Node) -> fx.Node:
    """The node whose numbers these are: before operators without work."""
    while node.op == "call_function" and _name(node) in FREE | MOVES and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _weighted(node: fx.Node) -> bool:
    return node.op == "call_function" and (_name(node).startswith("conv") or _name(node) in PRODUCTS)


def _sole(node: fx.Node) -> bool:
    """Whether an operator writes this value, and only one reads it."""
    source = _source(node)
    return source.op == "call_function" and len(node.users) == 1 and len(source.users) == 1


def _beside_product(node: fx.Node) -> bool:
    """Whether a product of matrices is all that reads the value, or what made it."""
    return _name(_source(node)) in PRODUCTS or all(_ends_in_product(user) for user in node.users)


def _ends_in_product(node: fx.Node) -> bool:
    if node.op == "call_function" and _name(node) in FREE | MOVES:
        return bool(node.users) and all(_ends_in_product(user) for user in node.users)
    return node.op == "call_function" and _name(node) in PRODUCTS - {"linear"}


def _kind(product: Product, node: fx.Node) -> OpKind:
    """The kind of a layer with a weight."""
    if product.kind == "depthwise":
        return "depthwise"
    if product.kind != "conv":
        return "matmul"
    if product.taps == 1:
        return "pointwise"
    read, inputs, outputs = product.input_positions or 0, product.size("input"), product.size("output")
    dense = _elements(node.args[0]) == read * inputs
    same = _elements(node) == read * outputs
    return "winograd" if dense and same and shape_of(product.weight)[2:] == [3, 3] else "conv"
