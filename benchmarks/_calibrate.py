"""Fit a device's rates and overheads to published latencies of whole networks.

    t(network) = sum over operators of (arithmetic / rate + elements / bandwidth + starts * overhead) + network overhead

with MACs, functions, elements and starts as latency/predict.py counts them, and a rate of its own for matrix products.
That of transcendental functions is a fixed part of a CPU's rate; on accelerators they are fused. A device has
five unknowns and often five networks; so the four that a few networks tell apart badly, relative to its rate, are
held near those of other devices with the same kind of runtime (a log-normal prior, whose mean is learned from those
devices, itself held near a first guess).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy
from numpy.typing import NDArray
from scipy.optimize import least_squares

from deploy_prune.latency.ops import Op
from deploy_prune.latency.predict import DEPTHWISE, FUNCTION, work

Vector = NDArray[numpy.float64]

NOISE = 0.1
"""Relative error of the model that the prior is weighed against."""
FIRST_ELEMENTS = 0.1
FIRST_OVERHEAD = {"cpu": 4e-4, "accelerator": 4e-3}
FIRST_NETWORK = {"cpu": 1e-4, "accelerator": 0.15}
"""First guesses at elements per MAC, and at the overheads of an operator and of a network in 1e9 MACs (a few
microseconds of a core, or the start of a kernel; nothing to speak of, or the way to an accelerator and back)."""
FIRST_WEIGHT = 2.0
"""So many devices the first guesses weigh."""
FUNCTIONS = {"cpu": FUNCTION}
"""MACs in the time of one transcendental function; elsewhere they take none. Not fitted: few of the published networks
have any."""
SPREAD = numpy.array([0.4, 0.8, 0.4, 0.4])
"""Standard deviations, in log, of devices around their kind's mean: elements, overhead, matrix products, network."""
FIXED = 1e-3
"""The same of what isn't fitted."""
ROUNDS = 2

FORMS: dict[str, str] = {
    "roofline": "every kind at the same rate, operands read and results written once, no overhead",
    "+ overhead": "and an overhead per operator",
    "+ kinds": "and rates by kind: Winograd, depthwise, attention",
    "+ traffic": "and traffic by kind",
    "no prior": "the sum of the two sides instead of the larger, each device by itself",
    "sum": "the sum, each device held near those of its kind",
    "+ products": "and a rate of matrix products and an overhead per network",
    "+ functions": "and transcendental functions, on CPUs: what latency/predict.py does",
}
LAST = "+ functions"
WITH_PRODUCTS = ("+ products", LAST)
SUMS = ("no prior", "sum", *WITH_PRODUCTS)
"""Forms with a rate of matrix products and an overhead per network, and those that add the two sides up."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Per operator of a network: 1e9 MACs, functions, elements, starts; as counted, and plain (before factors by kind).

    ``matmul``, ``transcendental``: whether it is a matrix product, or nothing but functions.
    """

    gmacs: Vector
    gfunctions: Vector
    gelements: Vector
    starts: Vector
    matmul: NDArray[numpy.bool_]
    transcendental: NDArray[numpy.bool_]
    plain_gmacs: Vector
    plain_gelements: Vector


Known = Mapping[tuple[str, int], Features]
"""Features by network and granule."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Published ms by network. ``granule``: of its channels. ``processor``: cpu or accelerator.

    ``matmul``: a first guess at the rate of matrix products relative to that of plain convolutions.
    """

    name: str
    published: Mapping[str, float]
    element_bytes: int
    granule: int
    processor: str
    matmul: float

    def without(self, network: str) -> Device:
        """The same, not knowing one network."""
        return replace(self, published={n: ms for n, ms in self.published.items() if n != network})


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A device's rates: 1e9 MACs (plain, of matrix products) and elements a second, ms per start and per network."""

    gmacs_per_s: float
    matmul_gmacs_per_s: float
    gelements_per_s: float
    overhead_ms: float
    network_ms: float


def features(ops: Sequence[Op], granule: int, winograd: float = 2.0) -> Features:
    """What a network's operators ask, by latency/predict.py. ``winograd``: as in ``types.Roofline``."""
    asked = [work(op, granule, winograd) for op in ops]
    return Features(
        gmacs=numpy.array([w.gmacs / (DEPTHWISE if w.kind == "depthwise" else 1.0) for w in asked]),
        gfunctions=numpy.array([w.gfunctions for w in asked]),
        gelements=numpy.array([w.elements for w in asked]),
        starts=numpy.array([w.starts for w in asked]),
        matmul=numpy.array([w.kind == "matmul" for w in asked]),
        transcendental=numpy.array([op.kind == "transcendental" for op in ops]),
        plain_gmacs=numpy.array([op.macs(granule) / 1e9 for op in ops]),
        plain_gelements=numpy.array([(op.activations + op.weights) / 1e9 for op in ops]),
    )


def predict_ms(c: Calibration, f: Features, form: str, processor: str) -> float:
    """A network's predicted latency in ms."""
    plain = form in {"roofline", "+ overhead"}
    rates = numpy.where(f.matmul, c.matmul_gmacs_per_s, c.gmacs_per_s)
    compute = (f.plain_gmacs if plain else f.gmacs) / rates
    has_functions = form == LAST and processor in FUNCTIONS
    if has_functions:
        compute = compute + f.gfunctions * FUNCTIONS[processor] / c.gmacs_per_s
    memory = (f.plain_gelements if plain or form == "+ kinds" else f.gelements) / c.gelements_per_s
    sides = compute + memory if form in SUMS else numpy.maximum(compute, memory)
    counted = numpy.where(f.transcendental, has_functions, 1.0)
    overhead = 0.0 if form == "roofline" else c.overhead_ms * float(counted @ f.starts) + c.network_ms
    return 1e3 * float(counted @ sides) + overhead


def fit(device: Device, known: Known, form: str, prior: Vector) -> Calibration:
    """The rates that explain a device's published latencies, held near its kind's ``prior`` (logs of the ratios)."""
    names = list(device.published)
    logs = numpy.log([device.published[n] for n in names])
    spread = SPREAD * (1e3 if form == "no prior" else 1.0)
    if form not in WITH_PRODUCTS:
        spread[2:] = FIXED

    def misses(x: Vector) -> Vector:
        c = _calibration(x)
        fits = numpy.log([predict_ms(c, known[n, device.granule], form, device.processor) for n in names]) - logs
        return numpy.concatenate([fits / NOISE, (x[1:] - prior) / spread])

    start = numpy.array([0.0, *prior])
    first = _calibration(start)
    start[0] = numpy.median(
        numpy.log([predict_ms(first, known[n, device.granule], form, device.processor) for n in names]) - logs
    )
    return _calibration(least_squares(misses, start, max_nfev=30, x_scale=1.0, ftol=1e-5, xtol=1e-5).x)


def learn_prior(devices: Sequence[Device], known: Known, form: str) -> Vector:
    """The means, in log, of what devices have beside their rate.

    Elements per MAC, an operator's overhead in 1e9 MACs, the rate of matrix products relative to that of convolutions,
    a network's overhead in 1e9 MACs.
    """
    kind, matmul = (devices[0].processor, devices[0].matmul) if devices else ("accelerator", 1.0)
    ratios = (matmul, FIRST_NETWORK[kind]) if form in WITH_PRODUCTS else (1.0, 1e-9)
    first = numpy.log([FIRST_ELEMENTS, FIRST_OVERHEAD[kind], *ratios])
    prior = first.copy()
    if form == "no prior":
        return prior
    for _ in range(ROUNDS):
        fitted = [_ratios(fit(device, known, form, prior)) for device in devices]
        total = numpy.sum(fitted, axis=0) if fitted else numpy.zeros_like(first)
        prior = (total + FIRST_WEIGHT * first) / (len(fitted) + FIRST_WEIGHT)
    return prior


def _calibration(x: Vector) -> Calibration:
    """From log rate and the logs of the four ratios."""
    rate, elements, overhead, matmul, network = numpy.exp(numpy.clip(x, -40, 40))
    return Calibration(
        gmacs_per_s=rate,
        matmul_gmacs_per_s=rate * matmul,
        gelements_per_s=rate * elements,
        overhead_ms=1e3 * overhead / rate,
        network_ms=1e3 * network / rate,
    )


def _ratios(c: Calibration) -> Vector:
    """The logs of the four ratios of a calibration."""
    rate = c.gmacs_per_s
    overheads = (c.overhead_ms * rate / 1e3, c.network_ms * rate / 1e3)
    return numpy.log([c.gelements_per_s / rate, overheads[0], c.matmul_gmacs_per_s / rate, overheads[1]])
