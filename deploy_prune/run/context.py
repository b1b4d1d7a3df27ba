"""What every stage of a run needs: the recipe, its data and targets, the run's folder and the accelerator."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from deploy_prune.data.splits import TransferData
from deploy_prune.device.targets import load_targets
from deploy_prune.errors import RecipeError, TargetError, perhaps
from deploy_prune.export import FORMATS
from deploy_prune.export.artifact import require
from deploy_prune.families import raw_form
from deploy_prune.networks import build
from deploy_prune.recipe.data import at_size
from deploy_prune.recipe.parts import Recipe
from deploy_prune.retrain.stopping import require_held
from deploy_prune.run import keys, preprocessing
from deploy_prune.run.folder import RunFolder
from deploy_prune.run.twins import Twins
from deploy_prune.search.methods import check_options
from deploy_prune.system import cache
from deploy_prune.tasks import Objective, Task
from deploy_prune.training.kept import KEEP_EVERY_S, Kept
from deploy_prune.training.loop import (
    Session,
    make_accelerator,
)
from deploy_prune.training.processes import require_processes
from deploy_prune.training.threads import Tell, share_cores
from deploy_prune.training.trackers import Tracked, require_trackers
from deploy_prune.types import Progress, Target


@dataclass(frozen=True, kw_only=True, eq=False)
class RunContext:
    """What every stage needs. ``since``: what was measured before (seconds since 1970) is measured again.

    ``summary``: sentences of what goes into the network, and what speaks against it. ``processes``: so many train
    together. ``jobs``: so many devices are measured on at once. ``smaller``: height and width of the input, where they
    are not the recipe's only or largest ones: then there is an own dense network, trained on at this size.
    """

    recipe: Recipe
    task: Task
    folder: RunFolder
    data: TransferData
    session: Session
    targets: tuple[Target, ...]
    since: float
    summary: tuple[str, ...]
    processes: int = 1
    jobs: int = 1
    smaller: tuple[int, int] | None = None

    @property
    def dense(self) -> str:
        """The folder of the dense network of this input size."""
        return "dense" if self.smaller is None else f"dense@{'x'.join(map(str, self.smaller))}"

    @cached_property
    def basis(self) -> keys.Basis:
        """What the stages' keys are made of."""
        return keys.Basis(recipe=self.recipe, data=self.data)

    @cached_property
    def example(self) -> tuple[Tensor, ...]:
        """What artifacts are made for: zeros, each [1, ...]."""
        return example_of(self.data)

    def at_size(self, size: tuple[int, int]) -> RunContext:
        """The same run at a smaller input, of this height and width.

        Raises:
            DataError: the examples can't be loaded at this size.
        """
        data = self.task.load(at_size(self.recipe.data, size), self.recipe.seed)
        return replace(self, data=data, smaller=size)

    def build(self, num_classes: int) -> Objective:
        """The network for so many classes, with new weights, and what it is trained for."""
        return self.objective(build.build_network(self.recipe.model, num_classes))

    def objective(self, network: nn.Module) -> Objective:
        """The network in its raw form, which shares its weights, and what it is trained for."""
        return Objective(task=self.task, form=raw_form(network, self.example))

    def stage(self, name: str, key: keys.Key, files: Sequence[str], compute: Callable[[], None]) -> None:
        """A stage for which a finished twin's files serve, too: of the same key, in this run or in one beside it."""
        runs, progress = self.folder.path.parent.resolve(), self.session.progress
        twins = Twins(runs=runs, since=self.since, tell=lambda sentence: progress(sentence, 1, 1))
        self.folder.stage(name, key, files, compute, twins)

    def session_of(self, stage: str, key: keys.Key) -> Session:
        """The session in which a stage trains: it goes on where it was stopped."""
        progress, file = self.session.progress, self.folder.partial(stage)
        kept = Kept(file, self.folder.digest(stage, key), lambda sentence: progress(sentence, 1, 1), KEEP_EVERY_S)
        return replace(self.session, kept=kept)

    @property
    def same_task(self) -> bool:
        """Source and target have the same classes (or none), so that class layers are kept."""
        return self.data.same_task


def prepare(
    recipe: Recipe, folder: RunFolder, progress: Progress, fresh: bool = False, tell_threads: Tell | None = None
) -> RunContext:  # fmt: skip
    """What the stages need. Everything that can be wrong with the recipe's names and files is found here.

    ``fresh``: nothing that was measured before is used. ``tell_threads``: see `pipeline.run`.

    Raises:
        DeployPruneError: options, targets, data, weights or device don't work, or nothing would train new class layers.
    """
    check_options(recipe.search, recipe.prune)
    targets = _targets(recipe)
    require_trackers(recipe.track)
    processes = require_processes(recipe)
    accelerator = make_accelerator(
        recipe.device, recipe.mixed_precision, recipe.accumulate, recipe.track, folder.path / "tracking"
    )
    if recipe.track:
        progress = Tracked(progress, accelerator, recipe.name, {"recipe": recipe.model_dump_json()})
    progress = share_cores(progress, recipe.threads, accelerator.device, tell_threads if processes == 1 else None)
    session = Session(
        accelerator=accelerator, seed=recipe.seed, progress=progress, checkpointing=recipe.gradient_checkpointing,
        compiling=recipe.compile,
    )  # fmt: skip
    found = preprocessing.resolve(recipe)
    summary = found.summary + preprocessing.try_weights(found, accelerator.device) + _by_other_rates(targets)
    if recipe.retrain.steps == 0 and not found.data.same_task:
        message = "retrain.steps: 0 leaves the new class layers as they are drawn, for the target's classes are others."
        raise RecipeError(message)
    require_held(torch.bincount(found.data.target_train.strata).tolist(), recipe.retrain.hold_out)
    return RunContext(
        recipe=found.recipe, task=found.task, folder=folder, data=found.data, session=session, targets=targets,
        summary=summary, processes=processes,
        since=time.time() if fresh else cache.still_valid(),
    )  # fmt: skip


def example_of(data: TransferData) -> tuple[Tensor, ...]:
    """Zeros of the inputs' shapes and types, each [1, ...]."""
    return tuple(torch.zeros_like(x) for x in data.source_train.take(torch.tensor([0])).inputs)


def _by_other_rates(targets: Sequence[Target]) -> tuple[str, ...]:
    """What speaks against predictions with rates of another format or precision."""
    return tuple(
        f"targets: the latency of {target.name} is predicted with the rates that its file has, which are of "
        f"{target.rates_of}; a share of dense is nearer to the truth than the milliseconds."
        for target in targets
        if target.rates_of is not None and target.runner is None
    )


def _targets(recipe: Recipe) -> tuple[Target, ...]:
    targets = load_targets(recipe.targets, recipe.precision)
    for target in targets:
        require(target.format, FORMATS[target.format], target.precision)
    names = [t.name for t in targets]
    if len(set(names)) < len(names):
        message = f"targets: two of them have the name {max(names, key=names.count)!r}; give one file another name."
        raise TargetError(message)
    if unknown := [name for name in recipe.target_budgets if name not in names]:
        message = (
            f"target_budgets: there is no target {unknown[0]!r} among {', '.join(names)}.{perhaps(unknown[0], names)}"
        )
        raise RecipeError(message)
    return targets
