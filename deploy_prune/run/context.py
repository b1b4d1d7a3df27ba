"""What every stage of a run needs: the recipe, its data and targets, the run's folder and the accelerator."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deploy_prune.data.splits import TransferData
from deploy_prune.device.targets import load_target
from deploy_prune.errors import TargetError
from deploy_prune.export import FORMATS
from deploy_prune.export.artifact import require
from deploy_prune.networks import build
from deploy_prune.recipe.parts import Recipe
from deploy_prune.retrain.stopping import require_held
from deploy_prune.run import keys, preprocessing
from deploy_prune.run.folder import RunFolder
from deploy_prune.search.methods import check_options
from deploy_prune.system import cache
from deploy_prune.training.loop import (
    Session,
    make_accelerator,
)
from deploy_prune.training.threads import Tell, share_cores
from deploy_prune.training.trackers import Tracked, require_trackers
from deploy_prune.types import Progress, Target


@dataclass(frozen=True, kw_only=True, eq=False)
class RunContext:
    """What every stage needs. ``since``: what was measured before (seconds since 1970) is measured again.

    ``summary``: sentences of what goes into the network, and what speaks against it.
    """

    recipe: Recipe
    folder: RunFolder
    data: TransferData
    session: Session
    targets: tuple[Target, ...]
    since: float
    summary: tuple[str, ...]

    @cached_property
    def basis(self) -> keys.Basis:
        """What the stages' keys are made of."""
        return keys.Basis(recipe=self.recipe, data=self.data)

    @property
    def example(self) -> Tensor:
        """[1, C, H, W]: what artifacts are made for."""
        return build.example_input(self.recipe.data)

    @property
    def same_task(self) -> bool:
        """Source and target have the same classes, so that the classifier is kept."""
        return self.data.source_classes == self.data.target_classes


def prepare(
    recipe: Recipe, folder: RunFolder, progress: Progress, fresh: bool = False, tell_threads: Tell | None = None
) -> RunContext:  # fmt: skip
    """What the stages need. Everything that can be wrong with the recipe's names and files is found here.

    ``fresh``: nothing that was measured before is used. ``tell_threads``: see `pipeline.run`.

    Raises:
        DeployPruneError: options, targets, data, weights or device don't work.
    """
    check_options(recipe.search)
    targets = _targets(recipe)
    require_trackers(recipe.track)
    accelerator = make_accelerator(
        recipe.device, recipe.mixed_precision, recipe.accumulate, recipe.track, folder.path / "tracking"
    )
    if recipe.track:
        progress = Tracked(progress, accelerator, recipe.name, {"recipe": recipe.model_dump_json()})
    progress = share_cores(progress, recipe.threads, accelerator.device, tell_threads)
    session = Session(accelerator=accelerator, seed=recipe.seed, progress=progress)
    found = preprocessing.resolve(recipe)
    summary = found.summary + preprocessing.try_weights(found, accelerator.device)
    require_held(torch.bincount(found.data.target_train.labels).tolist(), recipe.retrain.hold_out)
    return RunContext(
        recipe=found.recipe, folder=folder, data=found.data, session=session, targets=targets, summary=summary,
        since=time.time() if fresh else cache.still_valid(),
    )  # fmt: skip


def _targets(recipe: Recipe) -> tuple[Target, ...]:
    targets = tuple(load_target(name) for name in recipe.targets)
    for target in targets:
        require(target.format, FORMATS[target.format], target.precision)
    names = [t.name for t in targets]
    if len(set(names)) < len(names):
        message = f"targets: two of them have the name {max(names, key=names.count)!r}; give one file another name."
        raise TargetError(message)
    return targets
