"""What a recipe can reach: its groups, its targets' smallest and largest cost, and whether each budget can be met."""

from __future__ import annotations

import time
from pathlib import Path

from deploy_prune.commands.left_whole import places
from deploy_prune.recipe.parts import Recipe
from deploy_prune.report.results import CheckReport
from deploy_prune.run.context import prepare
from deploy_prune.run.folder import RunFolder
from deploy_prune.run.input_sizes import open_all
from deploy_prune.run.reach import reaches
from deploy_prune.system.guard import scratch
from deploy_prune.training.trackers import require_trackers
from deploy_prune.types import Progress, silent


def check(recipe: Recipe, progress: Progress = silent) -> CheckReport:
    """What can be pruned, what not and why, and whether each budget can be met. No training, nothing written.

    Raises:
        DeployPruneError: the recipe can't work: network, weights, data or target.
    """
    started = time.perf_counter()
    require_trackers(recipe.track)
    untracked = recipe.model_copy(update={"track": ()})
    context = prepare(untracked, RunFolder(path=Path()), progress)
    with scratch() as folder:
        opened = open_all(context, folder)
        summary, costs = opened[0][0].summary, opened[0][1]
        targets, budgets = reaches(
            opened[-1][1], {t: recipe.budgets_of(t.name) for t in context.targets}, context.session.progress
        )
        counts = costs.structure.dense_counts
        return CheckReport(
            recipe_name=recipe.name, network=recipe.model.source, structure=costs.structure,
            dense={"macs": costs.cost(context.targets[0], "macs")(counts), "params": float(costs.num_params(counts))},
            targets=targets, budgets=budgets, seconds=time.perf_counter() - started,
            summary=summary, places=places(costs.network, costs.structure.whole),
        )  # fmt: skip
