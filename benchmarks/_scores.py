"""Scores that need no training, for benchmarks of what doesn't depend on the weights."""

from __future__ import annotations

import torch

from deploy_prune.budget.candidates import CandidateCosts
from deploy_prune.device.targets import load_target
from deploy_prune.recipe.parts import SearchPart
from deploy_prune.search.frame import SearchGoal, SearchJob
from deploy_prune.search.methods import METHODS, values
from deploy_prune.training.loop import Session, make_accelerator
from deploy_prune.types import Scores, silent


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
