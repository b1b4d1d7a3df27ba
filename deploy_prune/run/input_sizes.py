"""Several input sizes: a budget buys a wide network for small images, or a narrow one for large images.

All sizes share one search, which is done at the largest. Each smaller one has an own dense network, which is trained on
at that size. Every budget is planned at each size; the cuts are repaired, and the one that scores best on held-out
source examples is trained and delivered.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from deploy_prune.budget.candidates import CandidateCosts
from deploy_prune.errors import BudgetError, DeployPruneError, SurgeryError
from deploy_prune.recipe.data import sizes_of
from deploy_prune.run import keys, stages, trained
from deploy_prune.run.context import RunContext
from deploy_prune.run.deliver import Learned
from deploy_prune.run.reach import first_out_of_reach
from deploy_prune.run.stages import place_of
from deploy_prune.search.methods import METHODS
from deploy_prune.types import Budget, Target

_LOG = logging.getLogger(__name__)

Size = tuple[int, int]
"""Height and width of the input, in pixels."""
Opened = tuple[RunContext, CandidateCosts]
"""A run at one input size, and what its cuts cost."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AtSize:
    """A run at one input size, what its cuts cost, and what they begin with."""

    context: RunContext
    costs: CandidateCosts
    learned: Learned


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A budget at one size: its cut's score on held-out examples, or why there is none. ``observed`` over ``asked``."""

    size: Size
    score: float | None
    ratio: float | None = None
    error: str | None = None


def open_all(context: RunContext, scratch: Path) -> tuple[Opened, ...]:
    """The run at each size that the recipe lists, the largest first; at its own where it has one.

    Branches are groups, too, where the recipe lets them go; where it leaves that open, if a budget needs it.

    Raises:
        DataError: the examples can't be loaded at a size.
        SurgeryError: the network doesn't take a size, or has other channel groups there.
    """
    opened, recipe = _open(context, scratch), context.recipe
    if recipe.prune.depth is not None or not METHODS[recipe.search.method].in_steps:
        return opened
    missed = first_out_of_reach(context, opened[-1][1])
    if missed is None:
        return opened
    told = f"Depth: whole branches may go, for narrower layers alone can't meet {missed.budget} on {missed.target}."
    part = recipe.prune.model_copy(update={"depth": True})
    recipe = recipe.model_copy(update={"prune": part})
    deep = _open(replace(context, recipe=recipe, summary=(*context.summary, told)), scratch / "branches")
    return deep if deep[0][1].structure.branches else opened


def _open(context: RunContext, scratch: Path) -> tuple[Opened, ...]:
    largest = stages.candidate_costs(context, scratch)
    found = [(context, largest)]
    for size in sizes_of(context.recipe.data)[1:]:
        smaller = context.at_size(size)
        name = "x".join(map(str, size))
        try:
            costs = stages.candidate_costs(smaller, scratch / name)
        except DeployPruneError as error:
            message = f"data.image_size: the network can't be cut at {name}: {error}"
            raise SurgeryError(message) from error
        if keys.groups(costs.structure) != keys.groups(largest.structure):
            message = f"data.image_size: at {name} the network has other channel groups than at the largest size; give "
            message += "one size."
            raise SurgeryError(message)
        found.append((smaller, replace(costs, beside=largest)))
    return tuple(found)


def learn_all(opened: Sequence[Opened], largest: Learned) -> tuple[AtSize, ...]:
    """Each size with its dense network; all have the search of the largest, the first."""
    found = []
    for number, (context, costs) in enumerate(opened):
        learned = largest
        if number:
            adapted = stages.adapt_dense(context, stages.train_dense(context))
            learned = replace(largest, adapted=adapted, teacher=stages.teacher_of(context))
        found.append(AtSize(context=context, costs=costs, learned=learned))
    return tuple(found)


def choose(sizes: Sequence[AtSize], targets: Sequence[Target]) -> Mapping[str, AtSize]:
    """For each target and budget (by place) the size that is delivered."""
    budgets_of = sizes[0].context.recipe.budgets_of
    asked = [(target, budget) for target in targets for budget in budgets_of(target.name)]
    return {place_of(target, budget): _chosen(sizes, target, budget) for target, budget in asked}


def _chosen(sizes: Sequence[AtSize], target: Target, budget: Budget) -> AtSize:
    """TARGET/BUDGET/size.json: the sizes that were tried. Where none meets the budget: the largest, which tells why.

    So it is, with a warning, where one can't be tried: of one target, others go on. The next run tries again.
    """
    if len(sizes) == 1:
        return sizes[0]
    largest = sizes[0].context
    name = f"{place_of(target, budget)}/size.json"

    def compute() -> None:
        tried = []
        for number, at in enumerate(sizes, 1):
            tried.append(_tried(at, target, budget))
            shown = {} if tried[-1].score is None else {"score": tried[-1].score}
            largest.session.progress(f"{target.name} {budget.text}: input size", number, len(sizes), **shown)
        largest.folder.write_json(name, [asdict(one) for one in tried])

    try:
        largest.folder.stage(name.removesuffix(".json"), _key(sizes, target, budget), [name], compute)
    except DeployPruneError as error:
        _LOG.warning(
            "%s %s: the largest input is taken, for others can't be tried: %s", target.name, budget.text, error
        )
        return sizes[0]
    scores = [one["score"] for one in largest.folder.read_json(name)]
    sign = 1 if largest.task.score.higher else -1
    return max(zip(scores, sizes, strict=True), key=lambda pair: -1e300 if pair[0] is None else sign * pair[0])[1]


def _key(sizes: Sequence[AtSize], target: Target, budget: Budget) -> keys.Key:
    """What the plans of all sizes depend on, and their dense networks."""
    depths = []
    for at in sizes:
        dense = at.context.folder.content([f"{at.context.dense}/weights.safetensors"])
        depths.append(keys.depth(at.context.basis, at.learned.found[0], dense, at.costs.structure, target, budget))
    return keys.size(depths)


def _tried(at: AtSize, target: Target, budget: Budget) -> Tried:
    """The budget planned at a size, and the score of the cut once it is repaired."""
    high, wide = at.costs.inputs[0].shape[-2:]
    size = high, wide
    try:
        stages.choose_depth(at.context, at.costs, at.learned.found, target, budget)
        planned = stages.choose_channels(at.context, at.costs, at.learned.found, target, budget)
    except BudgetError as error:
        return Tried(size=size, score=None, error=str(error))
    start = trained.start_of(at.context, at.costs.structure, place_of(target, budget))
    score = trained.score_of_cut(at.context, at.costs.structure, planned.keep, start)
    return Tried(size=size, score=score, ratio=planned.chosen.ratio)
