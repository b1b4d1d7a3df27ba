"""How deep to cut: which branches go, before `choose` decides on widths.

A search ranks branches beside channels. So a budget has an own depth: where one threshold on all ranks leaves what the
budget pays for, the branches below it are gone. But a branch that goes changes a network more than a channel does, and
how well their ranks compare depends on the network and on how long the search was. So the depths beside it are tried,
too, each with the widths that the budget then pays for, and the search goes on in the direction in which networks get
better, as long as they do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch

from deploy_prune.budget.candidates import CandidateCosts
from deploy_prune.budget.choose import choose
from deploy_prune.cost import CostModel
from deploy_prune.types import Budget, Counts, Keep, Progress, Scores, Structure, Target

Judge = Callable[[Keep], float]
"""What is left by these masks -> its loss on held-out examples."""
Start = Literal["search", "dense"]
STARTS: Final[tuple[Start, ...]] = ("search", "dense")
"""Whose weights a slim network begins with. At a budget above the smallest, branches stay that the search had shut long
ago, and all that it trained since has got used to their absence: there the dense network's weights may be better."""


@dataclass(frozen=True, kw_only=True)
class Depth:
    """The branches that go, and the weights to begin with.

    ``losses``: number of branches that are gone -> start -> the loss, of all depths that were tried.
    """

    gone: tuple[str, ...]
    start: Start
    losses: Mapping[int, Mapping[Start, float]]


def choose_depth(
    costs: CandidateCosts, target: Target, budget: Budget, ranks: Scores, scores: Scores,
    judges: Mapping[Start, Judge], progress: Progress,
) -> Depth:  # fmt: skip
    """The depth at which the budget buys the network of the lowest loss.

    Args:
        costs: of the network, whose branches are groups.
        target: where the budget is to be met.
        budget: it is priced by the cost model alone; nothing is measured.
        ranks: group -> float[C], of the search.
        scores: what ranks are worth at this cost, as for `choose`.
        judges: tell how good a cut is, of the one network's weights and of the other's.
        progress: told of each depth that is tried.

    Raises:
        BudgetError: the budget can't be met at any depth.
    """
    structure, model = costs.structure, costs.cost(target, budget.metric)
    order, smallest = by_rank(ranks, structure), costs.smallest(target)
    limit = budget.absolute(model(structure.dense_counts))
    fixed = [fixed_counts(structure, order[:depth]) for depth in range(len(order) + 1)]
    reachable = [depth for depth in range(len(fixed)) if model({**smallest, **fixed[depth]}) <= limit]
    losses: dict[int, dict[Start, float]] = {}

    def loss_at(depth: int) -> float:
        if depth not in losses:
            granule, least = costs.granule(target), costs.prune.min_channels
            keep = choose(scores, structure, model, limit, granule, least, fixed[depth])
            losses[depth] = {start: judge(keep) for start, judge in judges.items()}
            progress(f"{target.name} {budget.text}: depth", len(losses), len(losses), branches_gone=depth)
        return min(losses[depth].values())

    best = _descend(loss_at, reachable or [len(order)], own_depth(ranks, structure, model, limit))
    start = min(losses[best], key=lambda start: losses[best][start])
    return Depth(gone=tuple(order[:best]), start=start, losses=dict(sorted(losses.items())))


def _descend(loss_at: Callable[[int], float], depths: Sequence[int], start: int) -> int:
    """The depth of the lowest loss, looked for in both directions as long as it falls."""
    best = place = min(range(len(depths)), key=lambda i: abs(depths[i] - start))
    for step in (-1, 1):
        here = place
        while 0 <= here + step < len(depths) and loss_at(depths[here + step]) < loss_at(depths[here]):
            here += step
        best = min(best, here, key=lambda i: loss_at(depths[i]))
    return depths[best]


def by_rank(ranks: Scores, structure: Structure) -> list[str]:
    """The names of the branches, in the order in which they go."""
    return sorted((branch.name for branch in structure.branches), key=lambda name: float(ranks[name][0]))


def own_depth(ranks: Scores, structure: Structure, cost: CostModel, limit: float) -> int:
    """How many branches go at the highest number of units above one threshold that the limit pays for.

    Args:
        ranks: group -> float[C], comparable between groups.
        structure: its groups are those of ``cost``.
        cost: prices counts.
        limit: in the cost's unit.
    """
    ranked = {name: ranks[name].detach().double().cpu().sort().values for name in cost.groups}
    thresholds_T = torch.cat(list(ranked.values())).unique()
    above = [len(rank_C) - torch.searchsorted(rank_C, thresholds_T) for rank_C in ranked.values()]
    least_G = torch.tensor([0 if group.is_branch else 1 for group in structure.groups])
    counts_TG = torch.stack(above, 1).maximum(least_G).double()
    fits_T = cost.batched(counts_TG) <= limit
    counts_G = counts_TG[int(fits_T.to(torch.int8).argmax())] if bool(fits_T.any()) else counts_TG[-1]
    is_branch_G = torch.tensor([group.is_branch for group in structure.groups])
    return int((counts_G[is_branch_G] == 0).sum())


def fixed_counts(structure: Structure, gone: Collection[str]) -> Counts:
    """What `choose` has no say in once these branches are gone: all branches, and what lies on those that are gone."""
    return {
        **{branch.name: int(branch.name not in gone) for branch in structure.branches},
        **{name: structure.dense_counts[name] for name in inside(structure, gone)},
    }


def inside(structure: Structure, gone: Collection[str]) -> set[str]:
    """The groups whose channels only layers on these branches have."""
    there: set[str] = set()
    not_there: set[str] = set()
    for layer in structure.layers:
        names = {name for width in layer.widths for name in width.per_unit}
        (there if set(gone).isdisjoint(layer.branches) else not_there).update(names)
    return not_there - there
