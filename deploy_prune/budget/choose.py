"""Choose how many units each group keeps: the highest kept score within a budget, on the target's staircase.

    maximise  sum_g value_g(n_g)   subject to  cost(n) <= limit,  n_g on group g's stairs

with value_g(n) the sum of the group's n highest scores. The cost couples the groups (input x output channels), so
choices are always priced whole. Greedy from both ends, then exchanges between groups, then what is left is filled.

Legend: G groups, S stairs of a group (padded), N choices priced at once, C units of a group, U units of all groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd, isinf, prod

import torch
from torch import Tensor

from deploy_prune.cost import CostModel, share_by_layer
from deploy_prune.errors import BudgetError
from deploy_prune.types import ChannelGroup, Counts, Keep, Metric, Scores, Structure

_ENUMERATED = 20_000
"""Up to so many choices in all, every one is priced and the best is the answer."""
_STRIDES = (1, 2, 4, 1 << 30)
"""How many stairs one greedy step may take: single ones, some to cross a flat part of the cost, or all."""
_COARSE = 64
"""A group with more stairs is first taken in larger steps, about so many in all, then in single ones."""
_MOVES = 256
"""Moves of one group that an exchange looks at: up to 256 / (2 G) stairs up and down, at least one."""
_ROUNDS = 40
"""Exchanges at most."""
_GAIN = 1e-3
"""An exchange that gains less than this share of the score not kept is the last."""
_PRICED = 4_000_000
"""Layers x groups x choices priced at most per round of exchanges: bounds its time to some 10 ms."""
_SHARE = 2
"""A greedy step goes at most half the way to the limit before it prices anew."""
_SLACK = 0.02
"""The last step seeks to leave less than this share of the limit unused ..."""
_LOSS = 0.005
"""... and may give up this share of the kept score for it, but no more than ..."""
_LOSS_OF_CUT = 0.02
"""... this share of the score not kept."""
_MOSTLY = 0.5
"""Layers that can't be cut are named where they are more than this share of what is left."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Problem:
    """``counts_GS`` and ``values_GS``: units and kept score per stair, padded; ``top_G``: the number of the highest."""

    cost: CostModel
    limit: float
    counts_GS: Tensor
    values_GS: Tensor
    top_G: Tensor

    def price(self, levels_NG: Tensor) -> Tensor:
        return self.cost.batched(self._at(self.counts_GS, levels_NG))

    def value(self, levels_NG: Tensor) -> Tensor:
        return self._at(self.values_GS, levels_NG).sum(-1)

    def counts(self, levels_G: Tensor) -> Counts:
        chosen = self._at(self.counts_GS, levels_G).long().tolist()
        return dict(zip(self.cost.groups, chosen, strict=True))

    @staticmethod
    def _at(table_GS: Tensor, levels_NG: Tensor) -> Tensor:
        return table_GS.take(levels_NG + torch.arange(0, table_GS.numel(), table_GS.shape[1]))


def choose(
    scores: Scores,
    structure: Structure,
    cost: CostModel,
    limit: float,
    granule: int,
    min_channels: int = 1,
    fixed: Counts | None = None,
) -> Keep:
    """The units to keep: the highest sum of kept scores with ``cost(counts) <= limit``, filled up to the limit.

    Scores are values (they are added up); where some are negative all are shifted so that the lowest is 0. A group's
    channels (units * period) are a multiple of ``granule``, at least ``max(granule, min_channels)``, or all it has.
    Within 1% of the best (tested by brute force on small problems). Up to 0.5% of the score may be given for the
    fill. Ties go to the unit of the lower number. The method of METHODS: knapsack over coupled layers, as in HALP
    (arXiv 2110.10811), by greedy steps and exchanges.

    Args:
        scores: group -> float[C], finite; higher is kept first.
        structure: its groups are those of ``cost``.
        cost: prices counts, in its own unit.
        limit: in the cost's unit.
        granule: channels, the target's granularity.
        min_channels: channels that every group keeps at least.
        fixed: groups that keep just so many units; see `depth.fixed_counts`. Branches that aren't named stay.

    Returns:
        group -> bool[C], True = stays.

    Raises:
        BudgetError: not even the smallest choice is within the limit; or nothing can be cut; or scores are not finite.
    """
    fixed = {**{branch.name: 1 for branch in structure.branches}, **(fixed or {})}
    stairs = {**_stairs(structure, granule, min_channels), **{name: [count] for name, count in fixed.items()}}
    lowest, highest = smallest_counts(structure, granule, min_channels) | fixed, structure.dense_counts | fixed
    smallest, dense = cost(lowest), cost(highest)
    if not structure.groups and (smallest > limit or not dense):
        raise BudgetError(_nothing_to_cut(structure, limit, cost.metric))
    if dense <= limit:
        return {group.name: torch.arange(group.channels) < highest[group.name] for group in structure.groups}
    if smallest > limit:
        raise BudgetError(_out_of_reach(limit, smallest, dense, cost.metric) + _fixed(cost, lowest))
    _check_finite(scores)
    problem = _problem(scores, structure, cost, limit, stairs)
    counts = _solve(problem)
    if cost(counts) > limit:  # by a rounding error: choices priced in a batch round differently from one alone
        counts = _solve(replace(problem, limit=limit - 1e-12 * abs(limit)))
    return {name: _highest(scores[name], count) for name, count in counts.items()}


def smallest_counts(structure: Structure, granule: int, min_channels: int = 1) -> Counts:
    """Every group at its lowest stair, without any branch."""
    return {name: counts[0] for name, counts in _stairs(structure, granule, min_channels).items()}


def _stairs(structure: Structure, granule: int, min_channels: int) -> dict[str, list[int]]:
    """The counts of units that each group may have, ascending."""
    return {group.name: _stairs_of(group, granule, min_channels) for group in structure.groups}


def _stairs_of(group: ChannelGroup, granule: int, min_channels: int) -> list[int]:
    if group.is_branch:
        return [0, 1]
    step = granule // gcd(granule, group.period)
    least = max(granule, min_channels)
    return [n for n in range(step, group.channels, step) if n * group.period >= least] + [group.channels]


def _problem(
    scores: Scores, structure: Structure, cost: CostModel, limit: float, stairs: dict[str, list[int]]
) -> _Problem:
    shift = min(0.0, min(float(score_C.min()) for score_C in scores.values()))
    width = max(len(counts) for counts in stairs.values())
    counts_GS = torch.zeros(len(cost.groups), width, dtype=torch.float64)
    values_GS = torch.zeros_like(counts_GS)
    for row, name in enumerate(cost.groups):
        counts = torch.tensor(stairs[name])
        kept = (scores[name].detach().double().cpu() - shift).sort(descending=True).values.cumsum(0)
        kept = torch.cat([kept.new_zeros(1), kept])
        counts_GS[row, : len(counts)] = counts.double()
        values_GS[row, : len(counts)] = kept[counts]
    top_G = torch.tensor([len(stairs[name]) - 1 for name in cost.groups])
    return _Problem(cost=cost, limit=limit, counts_GS=counts_GS, values_GS=values_GS, top_G=top_G)


def _solve(problem: _Problem) -> Counts:
    """All choices if they are few; else greedy from the top and from the bottom, exchanges, and the fill."""
    if prod((problem.top_G + 1).tolist()) <= _ENUMERATED:
        return problem.counts(_best_of_all(problem))
    bottom_G = torch.zeros_like(problem.top_G)
    coarse_G = (problem.top_G // _COARSE).clamp(min=1)
    ends = [_descend(problem, problem.top_G, coarse_G), bottom_G]
    for unit_G in (coarse_G, torch.ones_like(coarse_G)):
        ends = [_ascend(problem, levels_G, unit_G) for levels_G in ends]
    better_G = max(ends, key=lambda levels_G: float(problem.value(levels_G)))
    return problem.counts(_pack(problem, _exchange(problem, better_G)))


def _best_of_all(problem: _Problem) -> Tensor:
    """The highest kept score; but where it leaves much unused, the costliest choice that loses next to no score."""
    every_NG = torch.cartesian_prod(*(torch.arange(top + 1) for top in problem.top_G.tolist()))
    every_NG = every_NG.view(-1, len(problem.top_G))
    price, kept = problem.price(every_NG), problem.value(every_NG)
    kept = torch.where(price <= problem.limit, kept, -torch.inf)
    best = int(kept.argmax())
    if float(price[best]) < (1 - _SLACK) * problem.limit:
        best = int(torch.where(kept >= _least(problem, float(kept[best])), price, -torch.inf).argmax())
    return every_NG[best]


def _descend(problem: _Problem, levels_G: Tensor, unit_G: Tensor) -> Tensor:
    """Take stairs off where the least score is lost per cost saved, until the limit is met."""
    while (over := float(problem.price(levels_G[None])[0]) - problem.limit) > 0 and bool((levels_G > 0).any()):
        moved, step_NG = _steps(problem, levels_G, -unit_G)
        saved = problem.limit + over - problem.price(step_NG)
        lost = problem.value(levels_G) - problem.value(step_NG)
        worth = torch.where(saved > 0, lost / saved, torch.inf)
        levels_G = _take(levels_G, step_NG, moved, saved, worth, over / _SHARE)
    return levels_G


def _ascend(problem: _Problem, levels_G: Tensor, unit_G: Tensor) -> Tensor:
    """Add stairs where the most score is gained per cost added, until none fits."""
    while bool((levels_G < problem.top_G).any()):
        here = float(problem.price(levels_G[None])[0])
        moved, step_NG = _steps(problem, levels_G, unit_G)
        price = problem.price(step_NG)
        fits = price <= problem.limit
        if not bool(fits.any()):
            break
        moved, step_NG, added = moved[fits], step_NG[fits], price[fits] - here
        gained = problem.value(step_NG) - problem.value(levels_G)
        worth = torch.where(added > 0, -gained / added, -torch.inf)
        taken = _take(levels_G, step_NG, moved, added, worth, (problem.limit - here) / _SHARE)
        levels_G = taken if float(problem.price(taken[None])[0]) <= problem.limit else step_NG[worth.argmin()]
    return levels_G


def _steps(problem: _Problem, levels_G: Tensor, unit_G: Tensor) -> tuple[Tensor, Tensor]:
    """Every move of one group by a stride of its units: the group's number [N] and the choice it leads to [N, G]."""
    groups = len(levels_G)
    moved = torch.arange(groups).repeat(len(_STRIDES))
    strides = torch.tensor(_STRIDES).repeat_interleave(groups)
    there = (levels_G[moved] + unit_G[moved] * strides).clamp(min=0).minimum(problem.top_G[moved])
    changes = there != levels_G[moved]
    return _moves(levels_G, moved[changes], there[changes])


def _moves(levels_G: Tensor, moved: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    choices = levels_G.repeat(len(moved), 1)
    choices[torch.arange(len(moved)), moved] = there
    return moved, choices


def _take(levels_G: Tensor, step_NG: Tensor, moved: Tensor, change: Tensor, worth: Tensor, at_most: float) -> Tensor:
    """Make the best moves (lowest ``worth``), one a group, while their changes add up to ``at_most``; one always."""
    levels_G = levels_G.clone()
    groups, changes, worths = moved.tolist(), change.tolist(), worth.tolist()
    taken: set[int] = set()
    total = 0.0
    for row in worth.argsort(stable=True).tolist():
        total += changes[row]
        if taken and (total > at_most or isinf(worths[row])):
            break
        if groups[row] not in taken:
            levels_G[groups[row]] = step_NG[row, groups[row]]
            taken.add(groups[row])
    return levels_G


def _exchange(problem: _Problem, levels_G: Tensor) -> Tensor:
    """Move one or two groups at a time, by up to some stairs, as long as the kept score grows within the limit."""
    for _ in range(_ROUNDS):
        value = float(problem.value(levels_G))
        choices, price, kept = _neighbours(problem, levels_G, lambda gained, added: gained)
        best = int(torch.where(price <= problem.limit, kept, -torch.inf).argmax())
        if not bool(price[best] <= problem.limit) or float(kept[best]) <= value:
            break
        levels_G = choices[best]
        if float(kept[best]) - value <= _GAIN * (float(problem.value(problem.top_G)) - value):
            break
    return levels_G


def _least(problem: _Problem, best: float) -> float:
    """The kept score that a fuller choice must have, given the best one."""
    return best - min(_LOSS * best, _LOSS_OF_CUT * (float(problem.value(problem.top_G)) - best))


def _pack(problem: _Problem, levels_G: Tensor) -> Tensor:
    """Use up the limit: the costliest neighbour that fits and loses next to no score."""
    least = _least(problem, float(problem.value(levels_G)))
    for _ in range(_ROUNDS):
        here = float(problem.price(levels_G[None])[0])
        if problem.limit - here <= _SLACK * problem.limit:
            break
        choices, price, kept = _neighbours(problem, levels_G, lambda gained, added: added)
        best = int(torch.where((price <= problem.limit) & (kept >= least), price, -torch.inf).argmax())
        if not bool(kept[best] >= least) or not here < float(price[best]) <= problem.limit:
            break
        levels_G = choices[best]
    return levels_G


def _neighbours(
    problem: _Problem, levels_G: Tensor, wish: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Choices that differ in one or two groups: levels [N, G], prices [N], kept scores [N].

    Pairs are first estimated as the sum of their two moves; those with the highest ``wish(gained, added)`` are priced.
    """
    reach = max(1, _MOVES // (2 * len(levels_G)))
    offsets = torch.cat([torch.arange(-reach, 0), torch.arange(1, reach + 1)])
    moved = torch.arange(len(levels_G)).repeat_interleave(len(offsets))
    there = levels_G[moved] + offsets.repeat(len(levels_G))
    inside = (there >= 0) & (there <= problem.top_G[moved])
    moved, one = _moves(levels_G, moved[inside], there[inside])
    added = problem.price(one) - problem.price(levels_G[None])
    gained = problem.value(one) - problem.value(levels_G)
    first, second = _pairs(problem, moved, added, gained, levels_G, wish)
    both = one[first].clone()
    both[torch.arange(len(first)), moved[second]] = one[second, moved[second]]
    choices = torch.cat([one, both, levels_G[None]])
    return choices, problem.price(choices), problem.value(choices)


def _pairs(
    problem: _Problem,
    moved: Tensor,
    added: Tensor,
    gained: Tensor,
    levels_G: Tensor,
    wish: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The pairs of moves worth pricing: all if they are few, else the most wished for among those that should fit."""
    first, second = torch.nonzero(moved[:, None] < moved[None, :], as_tuple=True)
    affordable = max(64, _PRICED // (len(levels_G) * max(1, len(problem.cost.layers))))
    if len(first) <= affordable:
        return first, second
    slack = problem.limit - problem.price(levels_G[None])
    total_added, total_gained = added[first] + added[second], gained[first] + gained[second]
    wished = torch.where(total_added <= slack, wish(total_gained, total_added), -torch.inf)
    top = wished.topk(affordable).indices
    return first[top], second[top]


def _highest(score_C: Tensor, count: int) -> Tensor:
    keep_C = torch.zeros(len(score_C), dtype=torch.bool)
    keep_C[score_C.detach().cpu().argsort(descending=True, stable=True)[:count]] = True
    return keep_C


def _check_finite(scores: Scores) -> None:
    for name, score_C in scores.items():
        if not bool(torch.isfinite(score_C).all()):
            message = f"The scores of the group {name} are not finite; lower search.lr and search.lr_gates."
            raise BudgetError(message)


def _out_of_reach(limit: float, smallest: float, dense: float, metric: Metric) -> str:
    return (
        f"The budget of {_amount(limit, metric)} can't be met: with every group at its fewest channels the network "
        f"still costs {_amount(smallest, metric)} ({smallest / dense:.1%} of the dense {_amount(dense, metric)}); "
        f"raise the budget (budgets), or lower prune.min_channels, or free more groups (prune.only, prune.skip)."
    )


def _fixed(cost: CostModel, counts: Counts) -> str:
    """The layers without channels to cut, and their share, where most of the smallest network's cost is theirs."""
    uncut = {c.layer.name for c in cost.layers if not any(width.per_unit for width in c.layer.widths)}
    shares = {name: part / cost(counts) for name, part in share_by_layer(cost, counts) if name in uncut}
    if sum(shares.values()) <= _MOSTLY:
        return ""
    widest = sorted(shares, key=lambda name: -shares[name])[:3]
    return f" {sum(shares.values()):.0%} of that is in layers of which nothing can be cut, as {', '.join(widest)}."


def _nothing_to_cut(structure: Structure, limit: float, metric: Metric) -> str:
    """Refusal of any budget, with the reasons of the widest layers that are left whole."""
    widest = sorted(structure.whole, key=lambda w: -w.channels)[:3]
    why = "; ".join(f"{w.name} ({w.channels} channels): {w.reason}" for w in widest)
    message = f"The budget of {_amount(limit, metric)} can't be met: no channel of this network can be cut. "
    return message + (why or "No layer with a weight reads what another one makes") + "."


def _amount(value: float, metric: Metric) -> str:
    match metric:
        case "latency":
            return f"{value:.4g} ms"
        case "macs":
            return f"{value / 1e6:.4g} MMACs"
        case "params":
            return f"{value:,.0f} parameters"
        case "size":
            return f"{value:,.0f} bytes"
