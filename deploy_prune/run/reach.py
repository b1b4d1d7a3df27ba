"""How small a network can get on each target, and whether each budget can be met."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Final

from deploy_prune.budget.candidates import CandidateCosts
from deploy_prune.budget.loop import UNITS, tolerance_above
from deploy_prune.errors import (
    BudgetError,
    CommandError,
    DeployPruneError,
    ExportError,
    MeasurementError,
    MissingDependencyError,
    ParityError,
)
from deploy_prune.report.results import BudgetReach, TargetReach
from deploy_prune.run import rack
from deploy_prune.run.context import RunContext
from deploy_prune.types import Budget, Metric, Progress, Target, silent

_GRANULARITY: Final = "find the channel granularity"
_UNUSABLE: Final = (CommandError, ExportError, MeasurementError, MissingDependencyError, ParityError)
"""Errors of one target: others can go on."""


def reaches(
    costs: CandidateCosts, asked: Mapping[Target, Sequence[Budget]], progress: Progress = silent
) -> tuple[tuple[TargetReach, ...], tuple[BudgetReach, ...]]:
    """Each target's reach in each metric that is asked for, and whether each budget lies in it."""
    found: dict[tuple[str, Metric], TargetReach] = {}
    metrics = {target: {budget.metric for budget in budgets} for target, budgets in asked.items()}
    steps = _Steps(progress, sum(len(_needs(target, metric)) for target in asked for metric in metrics[target]))
    met_or_not = []
    for target, budgets in asked.items():
        for budget in budgets:
            key = target.name, budget.metric
            if key not in found:
                found[key] = _reach(costs, target, budget.metric, steps)
            reach = found[key]
            wanted = budget.absolute(reach.dense)
            met = reach.smallest <= wanted * (1 + tolerance_above(budget, costs.measure.tolerance))
            unit = UNITS[budget.metric]
            reason = (
                f"it asks for {wanted:.4g} {unit}, and the smallest reachable is {reach.smallest:.4g} {unit} "
                f"({reach.smallest / reach.dense:.0%} of dense, in steps of {reach.granularity} channels); "
                f"ask for more, or {_free_more(costs)}"
            )
            met_or_not.append(
                BudgetReach(
                    target=target.name,
                    budget=budget.text,
                    metric=budget.metric,
                    asked=wanted,
                    met=met,
                    reason=None if met else reason,
                )  # fmt: skip
            )
    return tuple(found.values()), tuple(met_or_not)


def _free_more(costs: CandidateCosts) -> str:
    """What makes a smaller network possible."""
    more = "" if costs.structure.branches else " or let whole blocks go (prune.depth: true)"
    return f"prune more groups{more}"


class _Steps:
    """Tells of a check's steps: of each when it begins and ends, and of all how many are done and the time left."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self._started = time.perf_counter()

    @contextmanager
    def __call__(self, target: Target, doing: str) -> Iterator[None]:
        """One step, while it is done."""
        work, began = f"check {target.name}: {doing}", time.perf_counter()
        self._progress(work, 0, 1)
        yield
        now = time.perf_counter()
        self._done += 1
        self._progress(work, 1, 1, seconds=now - began)
        spent, left = now - self._started, self._total - self._done
        self._progress("check", self._done, self._total, seconds=spent, left_s=spent / self._done * left)


def _needs(target: Target, metric: Metric) -> tuple[str, ...]:
    """What a reach takes, as ``_reach`` does it."""
    if metric == "latency" and target.runner is not None:
        return _GRANULARITY, "write and time the dense and the smallest network"
    if metric == "size":
        return _GRANULARITY, "write the dense artifact", "write the smallest artifact"
    return _GRANULARITY, "count"


def _reach(costs: CandidateCosts, target: Target, metric: Metric, step: _Steps) -> TargetReach:
    """Measured where a device is attached: the dense and the smallest network are made, and timed or weighed."""
    first, *others = _needs(target, metric)
    with step(target, first):
        counts = costs.smallest(target)
    if metric == "latency" and target.runner is not None:
        with step(target, others[0]):
            timed = costs.timed(target, counts)
        smallest, dense, by = timed.slim_ms, timed.dense_ms, "measurement"
    elif metric == "size":
        with step(target, others[0]):
            dense = float(costs.whole.size_bytes(target, costs.structure.dense_counts))
        with step(target, others[1]):
            smallest = float(costs.size_bytes(target, counts))
        by = "file"
    else:
        with step(target, others[0]):
            model = costs.cost(target, metric)
            smallest, dense = model(counts), costs.dense(target, metric)
        by = "roofline" if metric == "latency" else "count"
    return TargetReach(
        target=target.name, granularity=costs.granule(target), metric=metric, smallest=smallest, dense=dense,
        granularity_source="measured here" if target.granularity is None else "target file", predicted_by=by,
    )  # fmt: skip


def require_reach(reaches: Sequence[BudgetReach]) -> None:
    """Stop if a budget can't be met.

    Raises:
        BudgetError: with the first such target and budget.
    """
    for reach in reaches:
        if not reach.met:
            message = f"budgets: {reach.budget!r} can't be met on {reach.target}: {reach.reason}"
            raise BudgetError(message)


def first_out_of_reach(context: RunContext, costs: CandidateCosts) -> BudgetReach | None:
    """The first budget that no width meets; None: all can be met. Targets that can't be used are left out.

    Its steps are told by whoever asks again, and finds what was measured; of writing and measuring ``costs`` tells.
    """
    for target in context.targets:
        with suppress(*_UNUSABLE):
            found = reaches(costs, {target: context.recipe.budgets_of(target.name)})[1]
            if missed := [reach for reach in found if not reach.met]:
                return missed[0]
    return None


def unusable_targets(context: RunContext, costs: CandidateCosts) -> dict[str, DeployPruneError]:
    """Targets for which nothing can be written or measured, by name, and why; the others' budgets can be met.

    Raises:
        BudgetError: a budget can't be met.
        DeployPruneError: no target can be used; the first one's reason.
    """
    broken: dict[str, DeployPruneError] = {}

    def look(costs: CandidateCosts, target: Target) -> None:
        budgets = context.recipe.budgets_of(target.name)
        require_reach(reaches(costs, {target: budgets}, costs.progress)[1])
        for metric in {budget.metric for budget in budgets}:
            costs.cost(target, metric)

    works: list[rack.Work[None]] = [(target, partial(look, target=target)) for target in context.targets]
    with closing(rack.at_once(costs, works, context.jobs)) as outcomes:
        for target, outcome in zip(context.targets, outcomes, strict=True):
            if isinstance(outcome, _UNUSABLE):
                broken[target.name] = outcome
            elif outcome is not None:
                raise outcome
    if len(broken) == len(context.targets):
        raise next(iter(broken.values()))
    return broken
