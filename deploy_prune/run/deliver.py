"""One target and budget: plan, cut and prove, retrain, export and check, measure; and again if the artifact misses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from torch import nn

from deploy_prune.budget.candidates import CandidateCosts
from deploy_prune.errors import DeployPruneError
from deploy_prune.report.row import Row
from deploy_prune.run import final_latency, pictures, stages
from deploy_prune.run.context import RunContext
from deploy_prune.run.rows import empty_row, input_size, parity, require_size, with_costs, with_network
from deploy_prune.run.stages import place_of
from deploy_prune.types import Artifact, Budget, SearchResult, Target

PLANS: Final = 3
"""A budget that the finished artifact misses, though its candidate met it, is planned again: so many times in all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Learned:
    """What all targets and budgets begin with.

    Attributes:
        found: the digest of the search's files, and what it found.
        adapted: the digest of the dense network's weights on the target task.
        teacher: that network.
    """

    found: tuple[str, SearchResult]
    adapted: str
    teacher: nn.Module

    def dense_artifact(self, context: RunContext, target: Target) -> Artifact:
        """The dense network in a target's format: what the slim ones are measured beside."""
        return stages.export(context, self.teacher, target, f"dense/{target.name}", self.adapted)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A plan and what became of it: what is known of its row, its artifact (None: there is none), what went wrong."""

    row: Row
    artifact: Artifact | None = None
    failure: DeployPruneError | None = None


def deliver(
    context: RunContext, costs: CandidateCosts, learned: Learned, target: Target, budget: Budget, dense: Artifact,
    first: Attempt | None = None,
) -> Row:  # fmt: skip
    """The row of a target and budget. If its artifact misses what its candidate met, it is planned with that known.

    ``dense``: the dense artifact. ``first``: an attempt that was made and measured before.
    """
    for _ in range(PLANS):
        attempt = first or measured(context, target, budget, dense, make(context, costs, learned, target, budget))
        missed, first = attempt.failure, None
        if not isinstance(missed, final_latency.BudgetMissedError):
            break
        attempt = replace(attempt, failure=final_latency.explained(context, costs, target, budget, missed))
        final_latency.replan_after_miss(context, costs, target, budget, missed)
    return attempt.row if attempt.failure is None else attempt.row.failed(attempt.failure)


def make(context: RunContext, costs: CandidateCosts, learned: Learned, target: Target, budget: Budget) -> Attempt:
    """All but measuring."""
    row = empty_row(target, budget.text, budget.metric, context.task.score)
    attempt = Attempt(row=replace(row, image_size=input_size(context)))
    try:
        for known in _steps(context, costs, learned, target, budget, attempt.row):
            attempt = known
    except DeployPruneError as error:
        attempt = replace(attempt, failure=error)
    return attempt


def _steps(
    context: RunContext, costs: CandidateCosts, learned: Learned, target: Target, budget: Budget, row: Row
) -> Iterator[Attempt]:
    """What is known after each step."""
    place = place_of(target, budget)
    planned = stages.plan(context, costs, learned.found, target, budget)
    yield Attempt(row=(row := with_costs(context, costs, row, target, budget)))
    trained = stages.retrain(context, costs, place, planned)
    slim = stages.slim_network(context, costs, place)
    yield Attempt(row=(row := with_network(context, row, slim, place)))
    pictures.draw(context, place, slim, trained)
    artifact = stages.export(context, slim, target, place, trained)
    row = replace(row, precision=artifact.precision, refused=stages.refused(context, place))
    row = replace(row, size_bytes=artifact.size_bytes, parity_max_abs=parity(context, place))
    yield Attempt(row=row)
    require_size(row)
    yield Attempt(row=replace(row, score_artifact=stages.require_score(context, place)), artifact=artifact)


def measured(context: RunContext, target: Target, budget: Budget, dense: Artifact, attempt: Attempt) -> Attempt:
    """The attempt's artifact beside the dense one, interleaved; nothing where it has none, or no device is attached."""
    if attempt.artifact is None or target.runner is None:
        return attempt
    try:
        slim, beside = final_latency.time_slim(context, target, budget, (dense, attempt.artifact))
    except final_latency.BudgetMissedError as missed:
        row = final_latency.with_latency(attempt.row, budget, missed.slim, missed.dense)
        return replace(attempt, row=row, failure=missed)
    except DeployPruneError as error:
        return replace(attempt, failure=error)
    return replace(attempt, row=final_latency.with_latency(attempt.row, budget, slim, beside))
