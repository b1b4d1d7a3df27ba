"""Scores and counts that need no training, for benchmarks of what doesn't depend on the weights."""

from __future__ import annotations

from typing import Final

import torch

from deploy_prune import cost
from deploy_prune.budget.candidates import CandidateCosts
from deploy_prune.device.targets import load_target
from deploy_prune.recipe.parts import SearchPart
from deploy_prune.search.frame import SearchGoal, SearchJob
from deploy_prune.search.methods import METHODS, values
from deploy_prune.training.loop import Session, make_accelerator
from deploy_prune.types import Counts, Keep, Scores, Structure, silent

SHARES: Final = 10_001
"""Shares of every group, from none to all, of which uniform pruning takes the one with the nearest MACs."""


def magnitude(costs: CandidateCosts) -> Scores:
    """Which channels go first; any ranking would do."""
    structure = costs.structure
    host = costs.cost(load_target("host"), "macs")
    job = SearchJob(
        network=costs.network, structure=structure, loss=lambda forward, batch: torch.zeros(()), batches=iter(()),
        goal=SearchGoal(cost=host, limit=0.5 * host(structure.dense_counts)), config=SearchPart(method="magnitude"),
        session=Session(accelerator=make_accelerator("cpu", "no"), seed=0, progress=silent),
    )  # fmt: skip
    return values("magnitude", METHODS["magnitude"](job).scores, host)


def uniform(structure: Structure, limit: float) -> Counts:
    """The same share of every group, at least one unit, such that the MACs are nearest to the limit.

    Groups of one size aren't all rounded at the same share, so that the MACs rise in small steps.
    """
    model, dense = cost.macs(structure), structure.dense_counts
    channels_G = torch.tensor([dense[name] for name in model.groups], dtype=torch.float64)
    shares_N1 = torch.linspace(0, 1, SHARES, dtype=torch.float64)[:, None]
    rounding_G = (torch.arange(len(channels_G)) + 0.5) / len(channels_G)
    counts_NG = (shares_N1 * channels_G + rounding_G).floor().clamp(min=1).minimum(channels_G)
    nearest = int((model.batched(counts_NG) - limit).abs().argmin())
    return dict(zip(model.groups, counts_NG[nearest].long().tolist(), strict=True))


def first(structure: Structure, counts: Counts) -> Keep:
    """The first so many units of each group."""
    return {group.name: torch.arange(group.channels) < counts[group.name] for group in structure.groups}
