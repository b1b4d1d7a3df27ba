"""Latency predicted from a device's rates, for targets that are not attached.

Both sides of the roofline model (Williams, Waterman, Patterson, CACM 52(4), 2009, doi 10.1145/1498765.1498785), added
up per operator,

    t = MACs / rate + functions / rate of functions + bytes / bandwidth + overhead,

and an overhead per network, with widths rounded up to the device's granularity. Functions are those that have an
exponential or the like in them, one for each element. The model itself takes the larger
side, as if arithmetic and traffic overlapped; published latencies say that the sum is nearer
(benchmarks/published_latencies.py has both), and it is linear, so that the closed form of ``cost.CostModel`` is exact
at every width and not only at the dense ones.

How the kinds of operators differ in traffic and overhead is the same for all devices (the factors below); a device has
its rates (matrix products have one of their own), bandwidth and overheads. None of the shared factors is fitted to one
device. The benchmark says how far the whole goes wrong on networks that were left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final, Literal

from deploy_prune.cost import CostModel, LayerCost
from deploy_prune.errors import TargetError
from deploy_prune.latency.ops import ARITHMETIC, Op, OpKind
from deploy_prune.types import Counts, Layer, Prediction, Roofline, Structure, Target

BYTES: Final = {"fp32": 4, "fp16": 2, "int8": 1}

ATTENTION: Final = 0.7
"""Multiply-accumulates a second of attention's products, relative to a product by a weight: they are narrow.
(Winograd's F(2x2, 3x3) needs 2.25 times fewer than a plain one, arXiv 1509.09308, section 4.1; its transforms take a
part of that back: ``Roofline.winograd`` is 2 unless a device's file says otherwise.)"""

DEPTHWISE: Final = 0.35
"""The same of depthwise convolutions, relative to a plain one, for a device's file that has nothing better: no operand
is used again."""

FUNCTION: Final = 40.0
"""Multiply-accumulates that a CPU's core does in the time of one transcendental function of an element, for a device's
file that has nothing better. An estimate for Arm, by the instructions of a vectorised SiLU, and not measured there; on
x86 runtimes differ by more than ten times (benchmarks/activations.py). On accelerators these functions are fused: any
cost makes the root-mean-square error of published networks that have them larger, on NPUs."""

TRAFFIC: Final[Mapping[OpKind, float]] = {"conv": 1.5, "winograd": 2.0, "elementwise": 0.4, "transcendental": 0.4}
"""Traffic relative to reading operands and writing the result once. Windows overlap (a convolution by matrix product
copies them out); Winograd's tiles of 4x4 for 2x2 results overlap too; what is added up lies in a cache or is fused."""

START: Final = 0.5
"""Overhead of an operator without arithmetic, relative to a convolution's: some runtimes fuse it."""

WINOGRAD_START: Final = 2.0
"""The same of a convolution by Winograd's algorithm: it is a product between two transforms, in some runtimes three
kernels, in others one."""

RateKind = Literal["plain", "depthwise", "matmul"]
"""Of which of a device's rates an operator's multiply-accumulates are."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one operator asks of a device, in the units of ``types.Roofline``.

    ``gmacs``: 1e9 multiply-accumulates, at the device's rate of this ``kind``; ``gfunctions``: 1e9 transcendental
    functions of an element; ``reads`` (per anchor), ``writes``, ``weights``: 1e9 elements of traffic; ``starts``:
    overheads.
    """

    gmacs: float
    gfunctions: float
    kind: RateKind
    reads: tuple[tuple[str | None, float], ...]
    writes: float
    weights: float
    starts: float

    @property
    def elements(self) -> float:
        """All traffic, 1e9 elements."""
        return self.writes + self.weights + sum(elements for _, elements in self.reads)


def work(op: Op, granule: int, winograd: float = 2.0, fused: bool = False) -> Work:
    """What an operator asks of a device that rounds channels up to the granule.

    ``winograd``: as in ``Roofline``. ``fused``: a transcendental function asks for nothing.
    """
    kind: OpKind = "conv" if op.kind == "winograd" and winograd == 1 else op.kind
    is_free = fused and kind == "transcendental"
    traffic = 0.0 if is_free else TRAFFIC.get(kind, 1.0) / 1e9
    faster = {"winograd": winograd, "attention": ATTENTION}.get(kind, 1.0)
    return Work(
        gmacs=op.macs(granule) / faster / 1e9,
        gfunctions=0.0 if fused else op.functions / 1e9,
        kind=_rate_kind(op),
        reads=tuple((anchor, elements * traffic) for anchor, elements in op.reads),
        writes=op.writes * traffic,
        weights=op.weights / 1e9,
        starts=0.0 if is_free else WINOGRAD_START if kind == "winograd" else 1.0 if kind in ARITHMETIC else START,
    )


def _rate_kind(op: Op) -> RateKind:
    """A weight times a single vector is not a matrix product: reading the weight takes longer than multiplying."""
    if op.kind == "depthwise":
        return "depthwise"
    return "matmul" if op.kind in {"matmul", "attention"} and op.positions > 1 else "plain"


def predict(ops: Sequence[Op], target: Target) -> Prediction:
    """The predicted latency of one inference, and the band that 80% of the left-out networks were within.

    Raises:
        TargetError: the target's file has no roofline, or no granularity to round to.
    """
    rates, granule = _rates(target)
    width = BYTES[rates.precision or target.precision]
    ms = rates.network_overhead_ms
    fused = rates.gfunctions_per_s is None
    for asked in (work(op, granule, rates.winograd, fused) for op in ops):
        ms += sum(_sides(asked, rates, width)) + asked.starts * rates.layer_overhead_ms
    return Prediction(ms=ms, method="roofline", error=target.error)


def roofline(structure: Structure, target: Target, ops: Sequence[Op] | None = None) -> CostModel:
    """The predicted latency of one inference, in ms, as a function of the units kept: ``predict`` on the dense network.

    ``ops``: the network's operators; without, its layers alone are priced. What an operator reads and writes goes with
    the outputs of the layer that it comes from.

    Raises:
        TargetError: the target's file has no roofline, or no granularity to round to.
    """
    rates, granule = _rates(target)
    ops = ops_of(structure) if ops is None else ops
    shares = _Shares(structure, granule)
    width = BYTES[rates.precision or target.precision]
    per_element = 1e3 * width / rates.gbytes_per_s
    constant = rates.network_overhead_ms
    for op in ops:
        shares.enter(op)
        asked = work(op, granule, rates.winograd, fused=rates.gfunctions_per_s is None)
        compute, _ = _sides(asked, rates, width)
        constant += shares.start(op.anchor, asked.starts * rates.layer_overhead_ms)
        constant += shares.add(op.anchor, compute, both=op.kind != "depthwise" and op.tensor is not None)
        constant += shares.add(op.tensor, asked.weights * per_element, both=op.kind != "depthwise")
        for anchor, elements in ((op.anchor, asked.writes), *asked.reads):
            constant += shares.add(anchor, elements * per_element, both=False)
    return CostModel(
        metric="latency",
        layers=shares.costs(),
        groups=tuple(g.name for g in structure.groups),
        constant=constant,
        granule=granule,
    )


class _Shares:
    """Times that go with a layer's outputs, or with its inputs and outputs, summed up while operators go by."""

    def __init__(self, structure: Structure, granule: int) -> None:
        self._layers = [x for x in structure.layers if x.taps]
        self._counts, self._granule = structure.dense_counts, granule
        self._waiting: dict[str, list[int]] = {}
        for index, layer in enumerate(self._layers):
            self._waiting.setdefault(layer.tensor, []).append(index)
        self._of: dict[str, int] = {}
        self._product = [0.0] * len(self._layers)
        self._linear = [0.0] * len(self._layers)
        self._fixed = [0.0] * len(self._layers)

    def enter(self, op: Op) -> None:
        """From now on, the weight's name means its next application."""
        if op.tensor is not None and self._waiting.get(op.tensor):
            self._of[op.tensor] = self._waiting[op.tensor].pop(0)

    def add(self, tensor: str | None, ms: float, *, both: bool) -> float:
        """Give a dense network's time to a layer. Returns what has no layer to go to."""
        index = self._of.get(tensor or "")
        if index is None:
            return ms
        inputs, outputs = _widths(self._layers[index], self._counts, self._granule)
        outputs *= self._layers[index].times(self._counts)
        if both:
            self._product[index] += ms / (inputs * outputs)
        else:
            self._linear[index] += ms / outputs
        return 0.0

    def start(self, tensor: str | None, ms: float) -> float:
        """Give what an operator takes to start to the layer that it comes from. Returns what has no layer to go to."""
        index = self._of.get(tensor or "")
        if index is None:
            return ms
        self._fixed[index] += ms
        return 0.0

    def costs(self) -> tuple[LayerCost, ...]:
        """A layer's costs, in order of execution."""
        rows = zip(self._layers, self._product, self._linear, self._fixed, strict=True)
        return tuple(LayerCost(layer=x, product=p, linear=n, fixed=f) for x, p, n, f in rows)


def ops_of(structure: Structure) -> tuple[Op, ...]:
    """The operators that a structure's layers are; those between the layers are not among them."""
    return tuple(_op(x, structure.dense_counts) for x in structure.layers if x.taps)


def _op(layer: Layer, counts: Counts) -> Op:
    inputs, outputs = layer.inputs.at(counts), layer.outputs.at(counts)
    read = layer.input_positions * (outputs if layer.kind == "depthwise" else inputs)
    positions, tensor = layer.positions * layer.times(counts), layer.tensor or None
    return Op(
        name=layer.name, kind=_kind(layer), tensor=tensor, anchor=tensor, taps=layer.taps, positions=positions,
        inputs=inputs, outputs=outputs, reads=((None, read),), writes=positions * outputs,
        weights=layer.taps * inputs * outputs if tensor else 0,
    )  # fmt: skip


def _kind(layer: Layer) -> OpKind:
    if layer.kind == "depthwise":
        return "depthwise"
    if layer.kind in {"linear", "recurrent"}:
        return "matmul"
    if layer.kind == "product":
        return "attention"
    if layer.taps == 1:
        return "pointwise"
    return "winograd" if layer.taps == 9 and layer.positions == layer.input_positions else "conv"


def _sides(asked: Work, rates: Roofline, element_bytes: int) -> tuple[float, float]:
    """The two sides of the roofline, in ms."""
    rate = {
        "plain": rates.gmacs_per_s,
        "depthwise": rates.depthwise_gmacs_per_s,
        "matmul": rates.matmul_gmacs_per_s or rates.gmacs_per_s,
    }[asked.kind]
    functions = asked.gfunctions / rates.gfunctions_per_s if rates.gfunctions_per_s else 0.0
    return 1e3 * (asked.gmacs / rate + functions), 1e3 * asked.elements * element_bytes / rates.gbytes_per_s


def _widths(layer: Layer, counts: Counts, granule: int) -> tuple[int, int]:
    """A layer's widths on the stairs of ``CostModel``."""
    inputs, outputs = (ceil(w.at(counts) / granule) * granule for w in (layer.inputs, layer.outputs))
    return inputs, outputs


def _rates(target: Target) -> tuple[Roofline, int]:
    if target.roofline is None or target.granularity is None:
        message = f"The latency on {target.name} can't be predicted: its file needs 'roofline:' and a granularity."
        raise TargetError(message)
    return target.roofline, target.granularity
