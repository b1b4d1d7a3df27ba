"""One search on a small network, as every test of a method makes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator

from deploy_prune.cost import CostModel, macs
from deploy_prune.recipe.parts import SearchPart
from deploy_prune.search.frame import SearchGoal, SearchJob
from deploy_prune.search.methods import METHODS
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training.kept import Kept
from deploy_prune.training.loop import Session
from deploy_prune.types import Loss, Progress, SearchResult, silent


def run_search(
    method: str,
    example: Any,
    accelerator: Accelerator,
    share: float = 0.5,
    steps: int = 20,
    *,
    seed: int = 0,
    loss: Loss = CLASSIFIER.batch_loss,
    cost: CostModel | None = None,
    progress: Progress = silent,
    lr: float = 0.01,
    lr_gates: float = 0.1,
    kept: Kept | None = None,
    batches: Iterator[Any] | None = None,
    **options: Any,
) -> SearchResult:
    """Search for a share of the dense cost (default: MACs)."""
    cost = cost or macs(example.structure)
    config = SearchPart(method=method, steps=steps, lr=lr, lr_gates=lr_gates, options=options)
    job = SearchJob(
        network=example.network, structure=example.structure, loss=loss, batches=batches or example.batches(seed),
        goal=SearchGoal(cost=cost, limit=share * cost(example.structure.dense_counts)), config=config,
        session=Session(accelerator=accelerator, seed=seed, progress=progress, kept=kept),
    )  # fmt: skip
    return METHODS[method](job)
