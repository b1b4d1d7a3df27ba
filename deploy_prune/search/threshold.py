"""Ranks that are comparable between groups, as scores with which one threshold cuts at every budget."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from deploy_prune.cost import CostModel
from deploy_prune.types import Scores

_POINTS = 1024
"""Thresholds at which a rank's worth is computed; it is linear between them."""
_FLOOR = 0.05
"""The share of a group below which its count is not taken when a rank's worth is computed."""


def threshold_values(ranks: Scores, cost: CostModel) -> Scores:
    """Turn ranks that are comparable between groups into scores with which `choose` cuts at one global threshold.

    Let n(t) be the counts above the threshold t, and T the cost that the groups add, without stairs. A unit of group g
    at rank t gets

        value = dT/dn_g(n(t)) / T(n(t))^2

    so that at every budget all groups' last units are worth the same per cost just where one threshold cuts. The
    square makes that the best choice also where layers couple groups: there T is a posynomial, and the value is
    concave in the logarithms of the counts (with the power 1, emptying every second group would do as well; ranks as
    plain values would empty the groups whose units are dear). Counts are taken no lower than 5% of the group.

    Args:
        ranks: group -> float[C]; only their order counts, over all groups.
        cost: of the network; in any metric.

    Returns:
        group -> float64[C], positive, in the order of the ranks; equal ranks of a group are worth the same.
    """
    if not ranks:
        return {}
    sorted_ranks = {name: rank_C.detach().double().cpu().sort().values for name, rank_C in ranks.items()}
    everything_U = torch.cat(list(sorted_ranks.values())).sort(descending=True).values
    points_P = everything_U[torch.linspace(0, len(everything_U) - 1, min(len(everything_U), _POINTS)).long()]
    above = [len(sorted_ranks[g]) - torch.searchsorted(sorted_ranks[g], points_P) for g in cost.groups]
    worth_PG = _worth(torch.stack(above, 1).double(), torch.tensor([len(sorted_ranks[g]) for g in cost.groups]), cost)
    return {
        name: _interpolate(ranks[name].detach().double().cpu(), points_P, worth_PG[:, column])
        for column, name in enumerate(cost.groups)
    }


def _worth(counts_PG: Tensor, sizes_G: Tensor, cost: CostModel) -> Tensor:
    """The value of one more unit of each group, at each of these counts; falling along P and never 0."""
    soft_PG = ((counts_PG + _FLOOR * sizes_G) / (1 + _FLOOR)).requires_grad_()
    smooth = replace(cost, granule=1)
    with torch.enable_grad():
        total_P = smooth.batched(soft_PG) - smooth.batched(torch.zeros_like(soft_PG[:1]))
        (slope_PG,) = torch.autograd.grad(total_P.sum(), soft_PG)
    slope_PG = slope_PG.maximum(1e-9 * slope_PG.max().clamp(min=1e-300))
    relative_P1 = (total_P.detach() / total_P.detach().max())[:, None]
    falling_PG = (slope_PG / slope_PG.max() / relative_P1**2).cummin(0).values
    return falling_PG * torch.linspace(1, 1 - 1e-6, len(counts_PG), dtype=torch.float64)[:, None]


def _interpolate(rank_C: Tensor, points_P: Tensor, worth_P: Tensor) -> Tensor:
    """The worth at each rank, linear between points (which fall)."""
    if len(points_P) == 1:
        return worth_P.expand(len(rank_C)).clone()
    below_C = torch.searchsorted(-points_P, -rank_C).clamp(1, len(points_P) - 1)
    upper_C, lower_C = points_P[below_C - 1], points_P[below_C]
    share_C = torch.where(upper_C > lower_C, (upper_C - rank_C) / (upper_C - lower_C), 1.0).clamp(0, 1)
    return worth_P[below_C - 1].lerp(worth_P[below_C], share_C)
