"""How deep to cut: which branches go, before `choose` decides on widths.

A search ranks branches beside channels. So a budget has an own depth: where one threshold on all ranks leaves what the
budget pays for, the branches below it are gone. But a branch that goes changes a network more than a channel does, and
how well their ranks compare depends on the network and on how long the search was: in a short search for a small budget
branches are shut early, on little evidence. So there is a second order, by trial on the dense network. Along both, the
depths beside the budget's own are tried, each with the widths that the budget then pays for, and the search goes on in
the direction in which networks get better, as long as they do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
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
class Tried:
    """A cut that was tried: the branches that are gone, in which order, and the loss with either start's weights."""

    order: str
    gone: tuple[str, ...]
    losses: Mapping[Start, float]

    @property
    def loss(self) -> float:
        """With the better weights."""
        return min(self.losses.values())


@dataclass(frozen=True, kw_only=True)
class Depth:
    """The branches that go, and the weights to begin with; all cuts that were tried."""

    gone: tuple[str, ...]
    start: Start
    tried: tuple[Tried, ...]


def choose_depth(
    costs: CandidateCosts, target: Target, budget: Budget, ranks: Scores, scores: Scores,
    orders: Mapping[str, Sequence[str]], judges: Mapping[Start, Judge], progress: Progress,
) -> Depth:  # fmt: skip
    """The depth at which the budget buys the network of the lowest loss.

    Args:
        costs: of the network, whose branches are groups.
        target: where the budget is to be met.
        budget: it is priced by the cost model alone; nothing is measured.
        ranks: group -> float[C], of the search.
        scores: what ranks are worth at this cost, as for `choose`.
        orders: the branches, in the order in which they go; by the search (`by_rank`), and by trial (`by_trial`).
        judges: tell how good a cut is, of the one network's weights and of the other's.
        progress: told of each depth that is tried.

    Raises:
        BudgetError: the budget can't be met at any depth.
    """
    structure, model = costs.structure, costs.cost(target, budget.metric)
    limit, smallest = budget.absolute(costs.dense(target, budget.metric)), costs.smallest(target)
    granule, least = costs.granule(target), costs.prune.min_channels
    own = own_depth(ranks, structure, model, limit)
    tried: dict[frozenset[str], Tried] = {}

    def loss_at(order: str, depth: int) -> float:
        gone = tuple(orders[order][:depth])
        if frozenset(gone) not in tried:
            keep = choose(scores, structure, model, limit, granule, least, fixed_counts(structure, gone))
            losses = {start: judge(keep) for start, judge in judges.items()}
            tried[frozenset(gone)] = Tried(order=order, gone=gone, losses=losses)
            progress(f"{target.name} {budget.text}: depth", len(tried), len(tried), branches_gone=depth)
        return tried[frozenset(gone)].loss

    for order, names in orders.items():
        fixed = [fixed_counts(structure, names[:depth]) for depth in range(len(names) + 1)]
        reachable = [depth for depth in range(len(fixed)) if model({**smallest, **fixed[depth]}) <= limit]
        _descend(partial(loss_at, order), reachable or [len(names)], own)
    best = min(tried.values(), key=lambda one: one.loss)
    start = min(best.losses, key=lambda start: best.losses[start])
    return Depth(gone=best.gone, start=start, tried=tuple(tried.values()))


def _descend(loss_at: Callable[[int], float], depths: Sequence[int], start: int) -> None:
    """Try depths in both directions as long as the loss falls."""
    place = min(range(len(depths)), key=lambda i: abs(depths[i] - start))
    for step in (-1, 1):
        here = place
        while 0 <= here + step < len(depths) and loss_at(depths[here + step]) < loss_at(depths[here]):
            here += step
    loss_at(depths[place])


def by_rank(ranks: Scores, structure: Structure) -> list[str]:
    """The names of the branches, in the order in which they go."""
    return sorted((branch.name for branch in structure.branches), key=lambda name: float(ranks[name][0]))


def by_trial(structure: Structure, cost: CostModel, judge: Judge, progress: Progress) -> list[str]:
    """The names of the branches, in the order in which they go if each time the one goes that is missed least.

    What is least is the rise of the loss per cost that is saved. A rise that was seen with fewer branches gone is taken
    for a lower bound: only the branch that looks best is tried again, until one stays the best (lazy greedy, Minoux,
    1978). So about three trials a branch are enough.

    Args:
        structure: its groups are those of ``cost``.
        cost: prices what goes; in any metric.
        judge: of the dense network.
        progress: told of each branch.
    """
    gone: list[str] = []
    whole: Keep = {group.name: torch.ones(group.channels, dtype=torch.bool) for group in structure.groups}
    base, rises = judge(whole), {branch.name: -inf for branch in structure.branches}
    while rises:
        now: dict[str, float] = {}
        while (name := min(rises, key=lambda name: rises[name])) not in now:
            now[name] = judge({**whole, **{each: torch.tensor([False]) for each in (*gone, name)}})
            before, after = (cost(_without(structure, each)) for each in (gone, [*gone, name]))
            rises[name] = (now[name] - base) / max(before - after, 1e-12 * abs(before))
        gone.append(name)
        base = now[name]
        del rises[name]
        progress("order of branches", len(gone), len(structure.branches), loss=base)
    return gone


def _without(structure: Structure, gone: Collection[str]) -> Counts:
    return {**structure.dense_counts, **dict.fromkeys(gone, 0)}


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
