"""Measuring until the machine is quiet enough to believe the figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from deploy_prune.latency.measure import device_of, measure
from deploy_prune.types import Artifact, Latency, Progress, Target, silent

AGREE: Final = 0.01
"""Two measurements agree if each p50 over the first artifact's (of one artifact alone: its p50) differs by no more:
a third of the tolerance that a recipe holds budgets to by default (``measure.tolerance``)."""
MEASUREMENTS: Final = 5
"""At most so many measurements."""


def measure_steadily(
    target: Target, artifacts: Sequence[Artifact], runs: int, warmup: int, progress: Progress = silent
) -> tuple[Latency, ...]:
    """``measure`` again until two measurements in a row agree, at most five times; the samples of all are pooled.

    Several artifacts agree if their shares of the first one do: a machine that slows all of them down doesn't matter.
    One alone has nothing beside it, and its p50 itself must come back. Where no two agree, ``disturbed`` says so.

    When it stops doesn't depend on any budget, and no measurement is thrown away: the figure is not a choice among
    several. Samples stay paired between the artifacts.

    Args:
        target: a target with a runner.
        artifacts: at least one; the first is what the others are compared with.
        runs: timed inferences per artifact and measurement, at least.
        warmup: untimed inferences per artifact before them.
        progress: told of every measurement, with the last artifact's p50.

    Raises:
        MeasurementError: as ``measure``.
    """
    work = f"{target.name}: measure until the machine is quiet"
    rounds: list[tuple[Latency, ...]] = []
    while len(rounds) < 2 or (not _agree(*rounds[-2:]) and len(rounds) < MEASUREMENTS):
        progress(work, len(rounds), MEASUREMENTS, **({"p50_ms": rounds[-1][-1].p50_ms} if rounds else {}))
        rounds.append(measure(target, artifacts, runs, warmup, progress=progress))
        if target.alike:  # the others on the device that the first was on
            target = target.on(device_of(rounds[0][0]))
    progress(work, len(rounds), len(rounds), p50_ms=rounds[-1][-1].p50_ms)
    pooled = ([sample for one in each for sample in one.samples_ms] for each in zip(*rounds, strict=True))
    conditions = tuple(told for each in rounds for told in each[0].conditions)
    disturbed = next((each[0].disturbed for each in rounds if each[0].disturbed), None) or _unsteady(rounds)
    return tuple(
        replace(one, samples_ms=tuple(samples), conditions=conditions, disturbed=disturbed)
        for one, samples in zip(rounds[0], pooled, strict=True)
    )


def _agree(before: tuple[Latency, ...], after: tuple[Latency, ...]) -> bool:
    """Whether what is compared is the same in both measurements, nearly."""
    return all(abs(b / a - 1) <= AGREE for a, b in zip(_compared(before), _compared(after), strict=True))


def _compared(measured: tuple[Latency, ...]) -> list[float]:
    """Every other artifact's p50 over the first one's; the p50 in ms of one alone."""
    first, *others = (one.p50_ms for one in measured)
    return [other / first for other in others] or [first]


def _unsteady(rounds: Sequence[tuple[Latency, ...]]) -> str | None:
    """How far apart the measurements are, if none agreed with the one before it; None if two did."""
    if _agree(*rounds[-2:]):
        return None
    each = max(zip(*map(_compared, rounds), strict=True), key=lambda values: max(values) / min(values))
    alone = len(rounds[0]) == 1
    low, high = (f"{value:.3g} ms" if alone else f"{value:.1%}" for value in (min(each), max(each)))
    what = "its p50" if alone else "its share of dense"
    return f"no two of {len(rounds)} measurements in a row agree to {AGREE:.0%}: {what} was {low} to {high}"
