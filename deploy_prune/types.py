"""Shared frozen data: what one stage hands to the next.

Dimension letters used in the whole package: B batch, C channels (units of a group), H W height and width,
L coordinates of one tensor axis, K kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any, Literal, Protocol

from deploy_prune.system.shell import size_bytes

if TYPE_CHECKING:
    from torch import Tensor

Keep = dict[str, "Tensor"]
"""Group name -> bool[C]. True = stays, never the reverse."""
Scores = dict[str, "Tensor"]
"""Group name -> float[C]. Higher = more important; comparable between groups."""
Counts = dict[str, int]
"""Group name -> number of units kept."""
Forward = Callable[..., Any]
"""A network, or a network with its gates on: inputs -> outputs."""
Loss = Callable[[Forward, Any], "Tensor"]
"""(forward, batch) -> scalar loss. The one thing a search knows about what the network is for."""
Metric = Literal["latency", "macs", "params", "size"]
Precision = Literal["fp32", "fp16", "int8"]


class Progress(Protocol):
    """Told about long work: its name, steps done, steps in all, and figures ("kept/GROUP": the share that is kept)."""

    def __call__(self, work: str, done: int, total: int, **figures: float) -> None:
        """Take note of one step."""


def silent(work: str, done: int, total: int, **figures: float) -> None:
    """The progress that shows nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Axis:
    """One axis of one named tensor (parameter or buffer) of the dense network, and the unit each coordinate belongs to.

    ``unit_of`` is int64[L]: the unit's number within the group, or -1 where the coordinate is not of this group.
    """

    tensor: str
    axis: int
    unit_of: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelGroup:
    """Units that are chosen one by one; all coordinates of one unit, on every member axis, live or die together.

    ``channels``: number of units C. ``period``: coordinates of one unit on the axis that names the group (1 for
    a plain convolution; the width of a head or of a whole convolution group otherwise).
    ``consumers``: the axes that read the channels by contraction (a convolution's or linear layer's input side):
    a gate multiplies there. ``members``: every axis that loses coordinates when a unit goes, consumers included.
    ``statistics``: (module, rank, dimension, size) of tensors over which a module's own code takes statistics (norm,
    mean, softmax) -> int64[size], as ``unit_of`` of an ``Axis``.

    ``vanishes``: of a branch, the tensors that are read for it alone. A branch is a group with a single unit, which may
    go, too: what a network adds to a value, and works without (a residual block). It has no ``members``, and its
    ``consumers`` are the last weight and bias on it: where they are multiplied by 0, it adds nothing.
    """

    name: str
    channels: int
    period: int
    consumers: tuple[Axis, ...]
    members: tuple[Axis, ...]
    statistics: Mapping[tuple[str, int, int, int], Tensor] = field(default_factory=dict)
    vanishes: tuple[str, ...] = ()

    @property
    def is_branch(self) -> bool:
        """Whether it is a branch, which may vanish as a whole."""
        return bool(self.vanishes)


@dataclass(frozen=True, kw_only=True)
class Width:
    """Number of channels on one side of a layer: ``fixed + sum(per_unit[g] * kept units of g)``."""

    fixed: int
    per_unit: Mapping[str, int]

    def at(self, counts: Mapping[str, int]) -> int:
        """The width for these kept units per group."""
        return self.fixed + sum(per * counts[group] for group, per in self.per_unit.items())


LayerKind = Literal["conv", "depthwise", "linear", "norm", "embedding", "recurrent", "product"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One application of a weight: MACs = positions * taps * inputs * outputs * repeats (all per example).

    ``inputs`` is the width of the weight's input axis (channels per filter, so 1 for depthwise), ``outputs`` of
    its output axis, ``taps`` the kernel's positions (9 for 3x3), ``positions`` the output's (H*W, or tokens).
    ``input_positions`` is the same for the layer's input; ``repeats`` are further widths, of what is done anew for each
    (heads, experts, channels that a token mixer takes as positions). ``vectors`` counts parameters per output channel
    beside the weight (1 for a bias, 2 for an affine norm). Norms and embeddings have ``taps`` 0. ``name`` is the
    module's path. A ``product`` is of two activations, without ``tensor``; networks/products.py has more.
    ``branches``: the groups that are branches it lies on: without one of them, it isn't there.
    """

    name: str
    kind: LayerKind
    tensor: str
    taps: int
    positions: int
    input_positions: int
    inputs: Width
    outputs: Width
    vectors: int
    repeats: tuple[Width, ...] = ()
    branches: tuple[str, ...] = ()

    @property
    def widths(self) -> tuple[Width, ...]:
        """Inputs, outputs and repeats."""
        return (self.inputs, self.outputs, *self.repeats)

    def times(self, counts: Mapping[str, int]) -> int:
        """How often it is repeated with these kept units per group; 0 if it isn't there."""
        return prod(width.at(counts) for width in self.repeats) * self.is_there(counts)

    def is_there(self, counts: Mapping[str, int]) -> bool:
        """Whether all branches that it lies on stay."""
        return all(counts[branch] for branch in self.branches)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A set of channels that can't be pruned, and why."""

    name: str
    channels: int
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """What tracing a network finds: its groups, its layers in order of execution, and what is left whole and why.

    ``mixing``: weights of norms that take statistics over channels (layer norm, group norm).
    ``blueprint``: what surgery needs to cut the exported graph; None if only the network's own modules are cut.
    ``own_modules``: whether the network's own modules can be cut, where no branch goes.
    """

    groups: tuple[ChannelGroup, ...]
    layers: tuple[Layer, ...]
    whole: tuple[Whole, ...]
    mixing: tuple[str, ...] = ()
    blueprint: Any = field(default=None, repr=False)
    own_modules: bool = True

    @property
    def branches(self) -> tuple[ChannelGroup, ...]:
        """The groups that may vanish as a whole."""
        return tuple(g for g in self.groups if g.is_branch)

    @property
    def dense_counts(self) -> Counts:
        """Every group at full width."""
        return {g.name: g.channels for g in self.groups}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """``limit`` in the metric's unit (ms, MACs, parameters, bytes), or, if ``relative``, as a fraction of dense."""

    text: str
    metric: Metric
    limit: float
    relative: bool

    def absolute(self, dense: float) -> float:
        """The limit in the metric's unit, given the dense network's value."""
        return self.limit * dense if self.relative else self.limit


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """A device's rates, for prediction: time of an operator = arithmetic / rate + bytes / bandwidth + overhead.

    Units: ``gmacs_per_s`` 1e9 multiply-accumulates a second for plain convolutions, ``depthwise_gmacs_per_s`` the
    same for depthwise convolutions, ``matmul_gmacs_per_s`` for matrix products (None: as for plain convolutions),
    ``gfunctions_per_s`` 1e9 transcendental functions of an element a second (None: they are fused and take no time, as
    on accelerators), ``gbytes_per_s`` 1e9 bytes a second, ``layer_overhead_ms`` per convolution or matrix product
    (latency/predict.py has the other operators' share), ``winograd`` how much faster 3x3 convolutions of stride 1 are
    per multiply-accumulate (1: no such kernel), ``network_overhead_ms`` once a network. ``source``: of the numbers.
    ``precision``: what they are of; None: of the target's own.
    """

    gmacs_per_s: float
    depthwise_gmacs_per_s: float
    gbytes_per_s: float
    layer_overhead_ms: float
    network_overhead_ms: float
    source: str
    winograd: float = 2.0
    matmul_gmacs_per_s: float | None = None
    gfunctions_per_s: float | None = None
    precision: Precision | None = None


@dataclass(frozen=True, kw_only=True)
class ErrorBand:
    """How far a device's predictions go wrong: on networks that were left out of its calibration, one at a time.

    ``median``: of the relative errors, as a fraction. ``low`` and ``high``: for 80% of the networks, the published
    latency lies between ``low`` and ``high`` times the predicted one. ``networks``: how many; 0 = by other devices.
    """

    median: float
    low: float
    high: float
    networks: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device with its runtime, from edge_targets/*.yaml.

    ``granularity``: channel counts are chosen in multiples of this; None = find it by measurement. ``runner``: the
    device's name: ``local``, ``ssh://...`` or ``adb://...`` (device/address.py); None = no device attached, latency is
    predicted from ``roofline``. ``error``: of those predictions, where it is known. ``program``: the path, on this
    machine, of the runtime's own benchmark program, for a device without Python (device/programs.py). ``alike``: more
    devices of the same kind, any of which may measure in the place of ``runner``. ``rates_of``: the format and
    precision that ``roofline`` is of, where they aren't this target's.
    """

    name: str
    title: str
    format: str
    precision: Precision
    runtime: str
    granularity: int | None
    runner: str | None
    threads: int
    roofline: Roofline | None
    notes: str = ""
    error: ErrorBand | None = None
    program: str | None = None
    alike: tuple[str, ...] = ()
    rates_of: str | None = None

    @property
    def devices(self) -> tuple[str, ...]:
        """Every device that may measure; () without one."""
        return () if self.runner is None else (self.runner, *self.alike)

    def on(self, device: str) -> Target:
        """The same target, measured on this device and no other."""
        return replace(self, runner=device, alike=())


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of a file: its shape, the batch included, and numpy's name of its type."""

    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file or folder that a runtime loads, with what is needed to say exactly which one it is.

    ``layout``: of the file's input; ``input_shape`` is [B, C, H, W] in either case. ``unchecked``: why it was not
    compared with the network where it was written; None: it was, or whoever wrote it still has to. ``inputs``: all of
    them, in order; () for one float32 input of ``input_shape``. Of several, ``input_shape`` is the first one's.
    """

    path: Path
    format: str
    precision: str
    sha256: str
    input_shape: tuple[int, ...]
    versions: Mapping[str, str]
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    unchecked: str | None = None
    inputs: tuple[Input, ...] = ()

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Every input's shape."""
        return tuple(x.shape for x in self.inputs) or (self.input_shape,)

    @property
    def size_bytes(self) -> int:
        """Size of the file, or of all files in the folder."""
        return size_bytes(self.path)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Measured: raw samples in ms, one per inference, or each a figure over ``runs_per_sample`` inferences.

    ``conditions``: clocks and temperatures before and after each measurement, as far as the device tells them.
    ``disturbed``: what moved meanwhile, further than is good for a figure; None if nothing is known to have.
    """

    samples_ms: tuple[float, ...] = field(repr=False)
    warmup: int
    threads: int
    device: str
    measured_on: str
    conditions: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    disturbed: str | None = None
    runs_per_sample: int = 1

    @property
    def p50_ms(self) -> float:
        """Median."""
        return self._percentile(50)

    @property
    def p90_ms(self) -> float:
        """90th percentile."""
        return self._percentile(90)

    @property
    def p99_ms(self) -> float:
        """99th percentile."""
        return self._percentile(99)

    def _percentile(self, percent: int) -> float:
        if len(self.samples_ms) < 2:
            return self.samples_ms[0]
        return quantiles(self.samples_ms, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted, never measured: latency in ms, where it comes from (table or roofline), and how wrong it may be."""

    ms: float
    method: str
    error: ErrorBand | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchResult:
    """What a search learned: scores per unit, the network's state dict when it ended, and its trace, a row a step."""

    scores: Scores
    state: dict[str, Tensor]
    trace: tuple[Mapping[str, float], ...]
