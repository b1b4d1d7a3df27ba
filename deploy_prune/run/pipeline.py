"""The pipeline: from a recipe to slim networks, checked artifacts and latencies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Group
from rich.jupyter import JupyterMixin
from rich.text import Text

from deploy_prune.budget.candidates import CandidateCosts
from deploy_prune.errors import DeployPruneError
from deploy_prune.recipe.parts import Recipe
from deploy_prune.report.page import write_page
from deploy_prune.report.row import Row
from deploy_prune.report.table import results_table
from deploy_prune.run import ahead, input_sizes, pictures, stages, stored_recipe
from deploy_prune.run.context import RunContext, prepare
from deploy_prune.run.deliver import Attempt, Learned, deliver
from deploy_prune.run.folder import RunFolder
from deploy_prune.run.input_sizes import AtSize, Opened
from deploy_prune.run.reach import unusable_targets
from deploy_prune.run.rows import dense_row, failed_rows
from deploy_prune.run.stages import place_of
from deploy_prune.system.guard import scratch
from deploy_prune.system.launched import require_started_once
from deploy_prune.system.locks import hold
from deploy_prune.training.threads import Tell
from deploy_prune.types import Progress, Target, silent


def untold(sentence: str) -> None:
    """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class Run(JupyterMixin):
    """A finished run: its folder, its results, and sentences of what went into it. A notebook shows a table."""

    folder: Path
    rows: tuple[Row, ...]
    summary: tuple[str, ...] = ()

    def __rich__(self) -> Group:
        """What the command ``recipe`` shows at its end."""
        return Group(results_table(self.rows), *map(Text, self.summary), Text(str(self.folder)))


def run(
    recipe: Recipe,
    out: Path,
    progress: Progress = silent,
    fresh: bool = False,
    tell: Tell = untold,
    tell_threads: Tell | None = None,
    jobs: int = 1,
) -> Run:
    """Do what the recipe says, in ``out/NAME``; what is finished there is not done again (unless ``fresh``).

    ``tell`` gets, before any work, sentences of what goes into the network: its input and the examples.
    ``tell_threads``: training on a CPU may use fewer threads where other programs are at work, and this is told how
    many, and why; None: the number of threads that torch has stays. The recipe's ``threads`` wins.
    ``jobs``: so many devices are measured on at once.

    Nobody else may write in ``out/NAME`` meanwhile.

    Raises:
        DeployPruneError: before any training if the recipe can't work; a single target x budget that fails becomes
            a row with status "failed".
    """
    require_started_once()
    with hold(out / recipe.name), scratch() as folder:
        context = replace(_prepare(recipe, out, progress, fresh, tell_threads), jobs=jobs)
        for sentence in context.summary:
            tell(sentence)
        try:
            opened = input_sizes.open_all(context, folder)
            for sentence in opened[0][0].summary[len(context.summary) :]:
                tell(sentence)
            return _run_stages(opened)
        finally:
            context.session.accelerator.end_training()


def _run_stages(opened: Sequence[Opened]) -> Run:
    """Train, search, adapt; then every target and budget in turn. ``opened``: the largest input size first."""
    context, costs = opened[0]
    part_done = _count_parts(context)
    unusable = unusable_targets(context, opened[-1][1])
    usable = replace(context, targets=tuple(t for t in context.targets if t.name not in unusable))

    pictures.draw(context, pictures.TRUTH)
    dense = stages.train_dense(context)
    part_done()
    found = stages.search(usable, costs, dense)
    part_done()
    adapted = stages.adapt_dense(context, dense)
    part_done()
    teacher = stages.teacher_of(context)
    pictures.draw(context, "dense", teacher, adapted)

    learned = Learned(found=found, adapted=adapted, teacher=teacher)
    if len(opened) == 1:
        ahead.plan(usable, costs, learned)
    chosen = input_sizes.choose(input_sizes.learn_all(opened, learned), usable.targets)
    made = ahead.make(usable, costs, learned, chosen)
    rows: list[Row] = []
    for target in context.targets:
        for row in _target_rows(context, costs, learned, chosen, made, target, unusable.get(target.name)):
            rows.append(row)
            context.folder.write_results(rows)
            part_done()

    context.folder.write_provenance(stored_recipe.read(context.folder.path), context.recipe.seed, context.summary)
    write_page(context.folder.path)
    return Run(folder=context.folder.path, rows=tuple(rows), summary=context.summary)


def _count_parts(context: RunContext) -> Callable[[], None]:
    """What tells the progress, after each part of the run, how many of all are done."""
    rows = sum(1 + len(context.recipe.budgets_of(target.name)) for target in context.targets)
    total, numbers = 3 + rows, itertools.count(1)  # 3: dense network, search, adaptation
    context.session.progress("whole run", 0, total)
    return lambda: context.session.progress("whole run", next(numbers), total)


def _target_rows(
    context: RunContext, costs: CandidateCosts, learned: Learned, chosen: Mapping[str, AtSize],
    made: Mapping[str, Attempt], target: Target, unusable: DeployPruneError | None,
) -> Iterator[Row]:  # fmt: skip
    """The dense network on a target, then a row a budget; all failed where there can be no dense artifact."""
    try:
        if unusable is not None:
            raise unusable
        dense = learned.dense_artifact(context, target)
    except DeployPruneError as error:
        yield from failed_rows(context, costs, target, error)
        return
    yield dense_row(context, costs, target, dense)
    for budget in context.recipe.budgets_of(target.name):
        place = place_of(target, budget)
        at = chosen[place]
        yield deliver(at.context, at.costs, at.learned, target, budget, dense, made.get(place))


def _prepare(recipe: Recipe, out: Path, progress: Progress, fresh: bool, tell_threads: Tell | None) -> RunContext:
    """Everything that can be wrong with the recipe's names and files is found here, before any work."""
    context = prepare(recipe, RunFolder(path=out / recipe.name), progress, fresh, tell_threads)
    if not fresh:
        stored_recipe.require_same_experiment(context.recipe, context.folder.path)
    context.folder.open(fresh)
    stored_recipe.write(context.recipe, context.folder.path)
    return context
