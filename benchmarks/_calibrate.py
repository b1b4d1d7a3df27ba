"""Fit a device's rate, bandwidth and overhead to published latencies of whole networks.

    t(network) = sum over operators of MACs / rate + elements / bandwidth + starts * overhead

with MACs, elements and starts as latency/predict.py counts them. A device has three unknowns and often five networks;
so the two that a few networks tell apart badly, elements per MAC and overhead in MACs, are held near those of other
devices with the same kind of runtime (a log-normal prior, whose mean is learned from those devices, itself held near
a first guess).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy
from numpy.typing import NDArray
from scipy.optimize import least_squares

from deploy_prune.latency.ops import Op
from deploy_prune.latency.predict import DEPTHWISE, work

Vector = NDArray[numpy.float64]

NOISE = 0.1
"""Relative error of the model that the prior is weighed against."""
FIRST_ELEMENTS = 0.1
FIRST_OVERHEAD = {"cpu": 2e-4, "accelerator": 1e-3}
"""First guesses at elements per MAC, and at overhead in 1e9 MACs (a few microseconds of a core, or the start of a
kernel); they weigh as much as two devices."""
FIRST_WEIGHT = 2.0
SPREAD = numpy.array([0.4, 0.8])
"""Standard deviations, in log, of devices around their kind's mean."""
ROUNDS = 2
ENOUGH = 8
"""So many devices of a kind, spread over the list, tell its mean."""

FORMS: dict[str, str] = {
    "roofline": "every kind at the same rate, operands read and results written once, no overhead",
    "+ overhead": "and an overhead per operator",
    "+ kinds": "and rates by kind: Winograd, depthwise, attention",
    "+ traffic": "and traffic by kind",
    "no prior": "the sum of the two sides instead of the larger, each device by itself",
    "sum": "the sum, each device held near those of its kind: what latency/predict.py does",
}


@dataclass(frozen=True, kw_only=True)
class Features:
    """Per operator of a network: 1e9 MACs, 1e9 elements, starts; as counted, and plain (before any factor by kind)."""

    gmacs: Vector
    gelements: Vector
    starts: Vector
    plain_gmacs: Vector
    plain_gelements: Vector


Known = Mapping[tuple[str, int], Features]
"""Features by network and granule."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Published ms by network. ``granule``: of its channels. ``processor``: cpu or accelerator."""

    name: str
    published: Mapping[str, float]
    element_bytes: int
    granule: int
    processor: str

    def without(self, network: str) -> Device:
        """The same, not knowing one network."""
        return replace(self, published={n: ms for n, ms in self.published.items() if n != network})


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A device's rates: 1e9 MACs and elements a second, ms per start."""

    gmacs_per_s: float
    gelements_per_s: float
    overhead_ms: float


def features(ops: Sequence[Op], granule: int) -> Features:
    """What a network's operators ask, by latency/predict.py."""
    asked = [work(op, granule) for op in ops]
    return Features(
        gmacs=numpy.array([w.gmacs / (DEPTHWISE if w.depthwise else 1.0) for w in asked]),
        gelements=numpy.array([w.elements for w in asked]),
        starts=numpy.array([w.starts for w in asked]),
        plain_gmacs=numpy.array([op.macs(granule) / 1e9 for op in ops]),
        plain_gelements=numpy.array([(op.activations + op.weights) / 1e9 for op in ops]),
    )


def predict_ms(c: Calibration, f: Features, form: str) -> float:
    """A network's predicted latency in ms."""
    plain = form in {"roofline", "+ overhead"}
    compute = (f.plain_gmacs if plain else f.gmacs) / c.gmacs_per_s
    memory = (f.plain_gelements if plain or form == "+ kinds" else f.gelements) / c.gelements_per_s
    sides = compute + memory if form in {"sum", "no prior"} else numpy.maximum(compute, memory)
    overhead = 0.0 if form == "roofline" else c.overhead_ms * float(f.starts.sum())
    return 1e3 * float(sides.sum()) + overhead


def fit(device: Device, known: Known, form: str, prior: Vector) -> Calibration:
    """The rates that explain a device's published latencies, held near its kind's ``prior`` (log of the two ratios)."""
    names = list(device.published)
    logs = numpy.log([device.published[n] for n in names])
    spread = SPREAD * (1e3 if form == "no prior" else 1.0)

    def misses(x: Vector) -> Vector:
        c = _calibration(x)
        fits = numpy.log([predict_ms(c, known[n, device.granule], form) for n in names]) - logs
        return numpy.concatenate([fits / NOISE, (x[1:] - prior) / spread])

    start = numpy.array([0.0, *prior])
    first = _calibration(start)
    start[0] = numpy.median(numpy.log([predict_ms(first, known[n, device.granule], form) for n in names]) - logs)
    return _calibration(least_squares(misses, start, max_nfev=30, x_scale=1.0, ftol=1e-5, xtol=1e-5).x)


def learn_prior(devices: Sequence[Device], known: Known, form: str) -> Vector:
    """The mean, in log, of devices' elements per MAC and overhead in 1e9 MACs."""
    kind = devices[0].processor if devices else "accelerator"
    first = numpy.log([FIRST_ELEMENTS, FIRST_OVERHEAD[kind]])
    prior, devices = first.copy(), devices[:: max(1, len(devices) // ENOUGH)]
    if form == "no prior":
        return prior
    for _ in range(ROUNDS):
        fitted = [fit(device, known, form, prior) for device in devices]
        ratios = [[c.gelements_per_s / c.gmacs_per_s, c.overhead_ms * c.gmacs_per_s / 1e3] for c in fitted]
        total = numpy.log(ratios).sum(axis=0) if ratios else numpy.zeros(2)
        prior = (total + FIRST_WEIGHT * first) / (len(ratios) + FIRST_WEIGHT)
    return prior


def _calibration(x: Vector) -> Calibration:
    """From log rate, log elements per MAC, log overhead in 1e9 MACs."""
    rate, ratio, overhead = numpy.exp(numpy.clip(x, -40, 40))
    return Calibration(gmacs_per_s=rate, gelements_per_s=rate * ratio, overhead_ms=1e3 * overhead / rate)
