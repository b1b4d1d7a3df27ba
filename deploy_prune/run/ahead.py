"""With several jobs: what the loop over targets and budgets will ask for, on different devices at once.

The loop itself goes on one after the other, and finds what was measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial

from deploy_prune.budget.candidates import CandidateCosts
from deploy_prune.errors import DeployPruneError
from deploy_prune.run import deliver, final_latency, stages
from deploy_prune.run.context import RunContext
from deploy_prune.run.deliver import Attempt, Learned
from deploy_prune.run.input_sizes import AtSize
from deploy_prune.run.rack import Work, at_once, num_devices
from deploy_prune.run.stages import place_of
from deploy_prune.types import Artifact, Budget, Target


def plan(context: RunContext, costs: CandidateCosts, learned: Learned) -> None:
    """Measure the candidates of every target and budget that is not planned yet.

    Depths are chosen before, one after the other: that takes no device. The plans themselves are made later, and find
    all that they measure in the cache. So do errors: who meets one again tells of it.
    """

    def choose(costs: CandidateCosts, target: Target, budget: Budget) -> None:
        if not stages.is_planned(context, costs, learned.found, target, budget):
            stages.choose_channels(context, costs, learned.found, target, budget)

    asked = [(target, budget) for target in context.targets for budget in context.recipe.budgets_of(target.name)]
    if context.jobs > 1:
        for target, budget in asked:
            stages.choose_depth(context, costs, learned.found, target, budget)
        _do(context, costs, [(target, partial(choose, target=target, budget=budget)) for target, budget in asked])


def make(
    context: RunContext, costs: CandidateCosts, learned: Learned, chosen: Mapping[str, AtSize]
) -> dict[str, Attempt]:
    """Make every artifact, one after the other, then measure them; the attempts by place. ``chosen``: sizes, by place.

    Empty where nothing can be measured at once: there, each row is known as soon as its own network is.
    """
    made: dict[str, Attempt] = {}
    works: list[Work[None]] = []
    if min(context.jobs, num_devices(context.targets)) <= 1:
        return made

    def time_dense(costs: CandidateCosts, target: Target, dense: Artifact) -> None:
        final_latency.time_dense(_told(context, costs), target, dense)

    def time_slim(costs: CandidateCosts, target: Target, budget: Budget, dense: Artifact) -> None:
        place = place_of(target, budget)
        told = _told(chosen[place].context, costs)
        made[place] = deliver.measured(told, target, budget, dense, made[place])

    for target in context.targets:
        with suppress(DeployPruneError):  # whoever delivers meets it again
            dense = learned.dense_artifact(context, target)
            works.append((target, partial(time_dense, target=target, dense=dense)))
            for budget in context.recipe.budgets_of(target.name):
                at = chosen[place_of(target, budget)]
                made[place_of(target, budget)] = deliver.make(at.context, at.costs, at.learned, target, budget)
                works.append((target, partial(time_slim, target=target, budget=budget, dense=dense)))
    _do(context, costs, works)
    return made


def _told(context: RunContext, costs: CandidateCosts) -> RunContext:
    """The context whose progress is that of a thread of the rack."""
    return replace(context, session=replace(context.session, progress=costs.progress))


def _do(context: RunContext, costs: CandidateCosts, works: Sequence[Work[None]]) -> None:
    with closing(at_once(costs, works, context.jobs)) as outcomes:
        for _ in outcomes:
            pass
