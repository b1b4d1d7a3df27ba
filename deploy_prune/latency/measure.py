"""Measuring artifacts on a target: raw latency samples, and the time of every node of the runtime's own graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from deploy_prune.device import RUNTIMES, SCRIPT, TIMEOUT_S, entry, reach
from deploy_prune.device.address import LOCAL
from deploy_prune.errors import CommandError, MeasurementError, printable
from deploy_prune.latency.disturbance import disturbance
from deploy_prune.system.locks import one_at_a_time
from deploy_prune.system.strict_json import shown
from deploy_prune.types import Artifact, Latency, Progress, Target, silent

MIN_S: Final = 1.0
"""Artifacts are timed for about this long each ..."""
MAX_RUNS: Final = 3000
"""... but not more often than this."""
MAX_MS: Final = 1e9
"""Eleven days; no inference takes as long."""
_MEASURED_ON: Final = {LOCAL: "host"}
_WAITS: Final = "wait for another process that measures there"


def measure(
    target: Target,
    artifacts: Sequence[Artifact],
    runs: int,
    warmup: int,
    *,
    min_s: float = MIN_S,
    timeout_s: float = TIMEOUT_S,
    progress: Progress = silent,
) -> tuple[Latency, ...]:
    """Time artifacts on an attached target, interleaved in one process, in a random order a round; one Latency each.

    An untimed run of the same artifact goes before each timed one: its weights are in the caches, as they are where it
    runs alone.

    Sample i of every Latency is from the same round, so ratios of samples are paired. Every Latency has the same
    number of samples: ``runs``, or more to fill ``min_s`` seconds (at most 3000).

    Args:
        target: a target with a runner; of several devices, one that is free is taken.
        artifacts: at least one.
        runs: timed inferences per artifact, at least.
        warmup: untimed inferences per artifact before them.
        min_s: time each artifact for about this long, if ``runs`` inferences take less.
        timeout_s: for all of it.
        progress: told if another process measures there, which is waited for.

    Raises:
        MeasurementError: no device is attached, the runtime fails, or it outlasts ``timeout_s``.
    """
    spec = {"mode": "bench", "runs": runs, "warmup": warmup, "min_s": min_s, "max_runs": MAX_RUNS}
    device, answer = _run(target, artifacts, spec, timeout_s, progress)
    samples = _samples(target, answer)
    each, conditions = answer.get("runs_per_sample", 1), answer.get("conditions")
    if type(each) is not int or not 0 < each <= MAX_RUNS or not isinstance(conditions, dict | None):
        message = f"The measurement on {target.name} returned runs_per_sample {shown(each)} and conditions "
        raise MeasurementError(message + f"{shown(conditions)}, which no device can have.")
    if len(samples) != len(artifacts) or any(len(one) * each < runs for one in samples):
        message = f"The measurement on {target.name} returned too few samples."
        raise MeasurementError(message)
    return tuple(
        Latency(
            samples_ms=one,
            warmup=warmup,
            threads=target.threads,
            device=printable(answer.get("device"), 200),
            measured_on=_MEASURED_ON.get(device, device),
            conditions=(conditions,) if conditions else (),
            disturbed=disturbance(conditions),
            runs_per_sample=each,
        )
        for one in samples
    )


def profile(
    target: Target, artifacts: Sequence[Artifact], runs: int = 150, warmup: int = 30, timeout_s: float = TIMEOUT_S
) -> tuple[dict[str, float], ...]:
    """Per artifact, the ms that one inference spends in each node of the runtime's optimised graph.

    In ONNX Runtime: whole microseconds a run, averaged over ``runs`` without the slowest tenth.
    Nodes bear the runtime's names; ``table.by_layer`` finds their layers.

    Raises:
        MeasurementError: as ``measure``, or the runtime has no profiler.
    """
    _, answer = _run(target, artifacts, {"mode": "profile", "runs": runs, "warmup": warmup}, timeout_s)
    try:
        found = tuple({str(name): float(ms) for name, ms in nodes.items()} for nodes in answer["nodes"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        message = f"The profile from {target.name} can't be read: {shown(answer)}."
        raise MeasurementError(message) from error
    if len(found) != len(artifacts) or not all(0 <= ms < MAX_MS for nodes in found for ms in nodes.values()):
        message = f"The profile from {target.name} returned timings that aren't positive numbers."
        raise MeasurementError(message)
    return found


def profile_for(
    target: Target, artifacts: Sequence[Artifact], slowest_ms: float, seconds: float
) -> tuple[dict[str, float], ...]:
    """``profile``, each artifact for about so many seconds: 20 to 300 runs. ``slowest_ms``: of the slowest artifact."""
    runs = round(1e3 * seconds / (2 * slowest_ms))
    return profile(target, artifacts, runs=min(max(runs, 20), 300), warmup=5)


def device_of(latency: Latency) -> str:
    """Where it was measured, as targets name devices."""
    return next((device for device, shown in _MEASURED_ON.items() if shown == latency.measured_on), latency.measured_on)


def _samples(target: Target, answer: Mapping[str, Any]) -> list[tuple[float, ...]]:
    try:
        samples = [tuple(float(ms) for ms in one) for one in answer["samples_ms"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        message = f"The measurement on {target.name} returned no samples: {shown(answer)}."
        raise MeasurementError(message) from error
    if not all(0 < ms < MAX_MS for one in samples for ms in one):
        message = f"The measurement on {target.name} returned timings that aren't positive numbers."
        raise MeasurementError(message)
    return samples


def _run(
    target: Target,
    artifacts: Sequence[Artifact],
    spec: Mapping[str, Any],
    timeout_s: float,
    progress: Progress = silent,
) -> tuple[str, dict[str, Any]]:
    """The device that was free, and its answer."""
    if target.runner is None:
        message = f"No device is attached for {target.name} (runner: none); its latency can only be predicted."
        raise MeasurementError(message)
    if not artifacts:
        message = "There is nothing to measure: no artifacts were given."
        raise MeasurementError(message)
    if target.runtime not in RUNTIMES:
        message = f"{target.name} can't be measured: its runtime '{target.runtime}' is none of {', '.join(RUNTIMES)}."
        raise MeasurementError(message)
    models = [entry(artifact, target.runtime) for artifact in artifacts]
    told, work = {**spec, "models": models, "threads": target.threads}, f"{target.name}: {_WAITS}"
    try:  # two that measure beside each other both measure too much
        with one_at_a_time("device", *target.devices, wait=lambda: progress(work, 0, 1)) as device:
            return device, reach(device, target.program)(SCRIPT, told, timeout_s)
    except CommandError as error:
        message = f"The measurement on {target.name} failed. {error}"
        raise MeasurementError(message) from error
