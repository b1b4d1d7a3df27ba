"""Robust figures from latency samples."""

from __future__ import annotations

from statistics import median
from typing import Final

from deploy_prune.errors import MeasurementError
from deploy_prune.types import Latency

NOISY: Final = 1.25
"""A p90 this many times the p50 means that something else was running."""


def ratio(a: Latency, b: Latency) -> float:
    """How many times as long as ``b`` does ``a`` take: the median of a_i / b_i over rounds.

    Raises:
        MeasurementError: they are not from one interleaved measurement.
    """
    if len(a.samples_ms) != len(b.samples_ms):
        message = "These latencies were not measured together: they have different numbers of samples."
        raise MeasurementError(message)
    return median(x / y for x, y in zip(a.samples_ms, b.samples_ms, strict=True))


def is_noisy(latency: Latency) -> bool:
    """Whether the measurement was disturbed: p90 is more than 1.25 times p50."""
    return latency.p90_ms > NOISY * latency.p50_ms
