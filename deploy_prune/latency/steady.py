"""Measuring until the machine is quiet enough to believe the figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from deploy_prune.latency.runners import measure
from deploy_prune.types import Artifact, Latency, Target

AGREE: Final = 0.01
"""Two measurements in which each p50 over the first artifact's differs by less agree."""
MEASUREMENTS: Final = 5
"""At most so many measurements."""


def measure_steadily(target: Target, artifacts: Sequence[Artifact], runs: int, warmup: int) -> tuple[Latency, ...]:
    """``measure`` again until two measurements in a row agree, at most five times; the samples of all are pooled.

    When it stops doesn't depend on any budget, and no measurement is thrown away: the figure is not a choice among
    several. Samples stay paired between the artifacts.

    Args:
        target: a target with a runner.
        artifacts: at least one; the first is what the others are compared with.
        runs: timed inferences per artifact and measurement, at least.
        warmup: untimed inferences per artifact before them.

    Raises:
        MeasurementError: as ``measure``.
    """
    rounds: list[tuple[Latency, ...]] = []
    while len(rounds) < 2 or (not _agree(*rounds[-2:]) and len(rounds) < MEASUREMENTS):
        rounds.append(measure(target, artifacts, runs, warmup))
    pooled = ([sample for one in each for sample in one.samples_ms] for each in zip(*rounds, strict=True))
    conditions = tuple(told for each in rounds for told in each[0].conditions)
    disturbed = next((each[0].disturbed for each in rounds if each[0].disturbed), None)
    return tuple(
        replace(one, samples_ms=tuple(samples), conditions=conditions, disturbed=disturbed)
        for one, samples in zip(rounds[0], pooled, strict=True)
    )


def _agree(before: tuple[Latency, ...], after: tuple[Latency, ...]) -> bool:
    """Whether every artifact's p50 over the first one's is the same in both measurements, nearly."""
    shares = [[one.p50_ms / each[0].p50_ms for one in each] for each in (before, after)]
    return all(abs(b / a - 1) <= AGREE for a, b in zip(*shares, strict=True))
