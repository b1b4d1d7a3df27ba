"""Measure finished artifacts, and decide what happens if one misses its budget."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Final

from deploy_prune.budget.candidates import CandidateCosts, Timed
from deploy_prune.errors import BudgetError
from deploy_prune.export.denormals import most_denormal
from deploy_prune.latency.paired import paired_ratio
from deploy_prune.latency.steady import measure_steadily
from deploy_prune.report.row import Row
from deploy_prune.run import keys
from deploy_prune.run.context import RunContext
from deploy_prune.run.folder import RunFolder
from deploy_prune.run.proof import calibration_inputs
from deploy_prune.run.stages import place_of, refused, slim_network
from deploy_prune.types import Artifact, Budget, Latency, Target

SLOWER: Final = 1.1
"""A finished artifact that takes so many times as long as its candidate does so for its weights, not for its shape."""
LOOKED_AT: Final = 16
"""Examples on which the cause is looked for."""
_RECORDED: Final = ("warmup", "threads", "device", "measured_on", "disturbed", "runs_per_sample")


class BudgetMissedError(BudgetError):
    """The finished artifact is slower than asked; ``slim`` and ``dense`` were measured, interleaved."""

    def __init__(self, message: str, slim: Latency, dense: Latency) -> None:
        super().__init__(message)
        self.slim, self.dense = slim, dense


def time_dense(context: RunContext, target: Target, artifact: Artifact) -> Latency:
    """dense/TARGET/latency.json."""
    place = f"dense/{target.name}"

    def compute() -> None:
        part = context.recipe.measure
        (latency,) = measure_steadily(target, [artifact], part.runs, part.warmup, context.session.progress)
        write_latency(context.folder, place, latency, None)

    key = keys.latency(context.basis, target, None, [artifact])
    context.folder.stage(f"{place}/latency", key, [f"{place}/latency.json"], compute)
    return read_latency(context.folder, place)[0]


def time_slim(
    context: RunContext, target: Target, budget: Budget, artifacts: tuple[Artifact, Artifact]
) -> tuple[Latency, Latency]:
    """TARGET/BUDGET/latency.json: (slim, dense), interleaved.

    Raises:
        BudgetMissedError: slim is over the budget by more than the tolerance.
    """
    place, part = place_of(target, budget), context.recipe.measure

    def compute() -> None:
        work = f"{target.name} {budget.text}: measure"
        context.session.progress(work, 0, 1)
        dense, slim = measure_steadily(target, artifacts, part.runs, part.warmup, context.session.progress)
        asked_ms = budget.absolute(dense.p50_ms) if budget.metric == "latency" else slim.p50_ms
        context.session.progress(work, 1, 1, asked_ms=asked_ms, p50_ms=slim.p50_ms)
        require_within(place, budget, part.tolerance, slim, dense)
        write_latency(context.folder, place, slim, dense)

    key = keys.latency(context.basis, target, budget, artifacts)
    context.folder.stage(f"{place}/latency", key, [f"{place}/latency.json"], compute)
    slim, dense = read_latency(context.folder, place)
    assert dense is not None
    return slim, dense


def require_within(place: str, budget: Budget, tolerance: float, slim: Latency, dense: Latency) -> None:
    """Hold what was measured, interleaved, against a budget of latency.

    Raises:
        BudgetMissedError: slim is over the budget by more than the tolerance.
    """
    asked_ms = budget.absolute(dense.p50_ms)
    if budget.metric == "latency" and slim.p50_ms > asked_ms * (1 + tolerance):
        message = (
            f"{place} takes {slim.p50_ms:.4g} ms; the budget is {asked_ms:.4g} ms (+-{tolerance:.0%}), in "
            f"{len(slim.samples_ms)} inferences; is the machine busy? Run again, or raise measure.tolerance."
        )
        raise BudgetMissedError(message, slim, dense)


def explained(
    context: RunContext, costs: CandidateCosts, target: Target, budget: Budget, missed: BudgetMissedError
) -> BudgetMissedError:
    """The error; if the candidate of the same shape was much faster, also with what slows the finished weights down."""
    place = place_of(target, budget)
    chosen = _chosen(context, place)
    if chosen["observed"] is None:
        return missed
    planned, finished = chosen["observed"] / chosen["dense"], missed.slim.p50_ms / missed.dense.p50_ms
    if finished <= SLOWER * planned:
        return missed
    message = f"{missed} A network of the same shape with other weights took {planned:.0%} of dense, this one "
    message += f"{finished:.0%}: "
    if refused(context, place) is not None:
        message += "its candidate was in int8, and this artifact, for which int8 was refused, is in fp16."
        return BudgetMissedError(message, missed.slim, missed.dense)
    inputs = calibration_inputs(context.data, LOOKED_AT)
    found = most_denormal(slim_network(context, costs, place), inputs)
    if found is None:
        message += "the device was slower, or its runtime treats these weights differently."
    else:
        message += f"{found[1]:.0%} of what {found[0]} gives are denormal numbers (below 1.2e-38), which some "
        message += "processors take many times as long for. Train with less weight decay, or longer after the cut."
    return BudgetMissedError(message, missed.slim, missed.dense)


def _chosen(context: RunContext, place: str) -> dict[str, Any]:
    """The plan's step that was taken."""
    steps = context.folder.read_json(f"{place}/loop.json")["steps"]
    return next(step for step in steps if step["chosen"])


def replan_after_miss(
    context: RunContext, costs: CandidateCosts, target: Target, budget: Budget, missed: BudgetMissedError
) -> None:
    """Take the finished artifact's measurement for its candidate's, so that the next plan is another."""
    place = place_of(target, budget)
    timed = Timed(slim_ms=missed.slim.p50_ms, dense_ms=missed.dense.p50_ms)
    costs.override(target, _chosen(context, place)["counts"], timed)
    context.folder.forget(f"{place}/plan")


def with_latency(row: Row, budget: Budget | None, slim: Latency, dense: Latency) -> Row:
    """The row with what was measured, in the same rounds; ``budget`` None: the dense network's own row.

    What a share of dense asks for follows from this ``dense``, a budget in ms stays as it is.
    """
    is_asked = budget is not None and budget.metric == "latency"
    speedup = paired_ratio(dense, slim) if budget is not None else None
    return replace(
        row, asked=budget.absolute(dense.p50_ms) if budget and is_asked else row.asked, measured_p50_ms=slim.p50_ms,
        measured_p90_ms=slim.p90_ms, measured_p99_ms=slim.p99_ms, dense_p50_ms=dense.p50_ms,
        measured_on=slim.measured_on, disturbed=slim.disturbed, speedup=speedup.median if speedup else None,
        speedup_low=speedup.low if speedup else None, speedup_high=speedup.high if speedup else None,
    )  # fmt: skip


def write_latency(folder: RunFolder, place: str, latency: Latency, dense: Latency | None) -> None:
    """A place's latency.json."""
    record = {**asdict(latency), "p50_ms": latency.p50_ms, "p90_ms": latency.p90_ms, "p99_ms": latency.p99_ms}
    record["dense_samples_ms"] = None if dense is None else dense.samples_ms
    folder.write_json(f"{place}/latency.json", record)


def read_latency(folder: RunFolder, place: str) -> tuple[Latency, Latency | None]:
    """(slim, dense) of a place's latency.json."""
    record = folder.read_json(f"{place}/latency.json")
    common = {k: record[k] for k in _RECORDED} | {"conditions": tuple(record["conditions"])}
    slim = Latency(samples_ms=tuple(record["samples_ms"]), **common)
    dense = record["dense_samples_ms"]
    return slim, None if dense is None else Latency(samples_ms=tuple(dense), **common)
