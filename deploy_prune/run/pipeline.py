"""The pipeline: from a recipe to slim networks, checked artifacts and latencies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from torch import nn

from deploy_prune.budget.candidates import CandidateCosts
from deploy_prune.errors import DeployPruneError
from deploy_prune.recipe.parts import Recipe
from deploy_prune.report.page import write_page
from deploy_prune.report.row import Row
from deploy_prune.run import final_latency, pictures, rack, stages, stored_recipe
from deploy_prune.run.context import RunContext, prepare
from deploy_prune.run.folder import RunFolder
from deploy_prune.run.reach import unusable_targets
from deploy_prune.run.rows import dense_row, empty_row, failed_rows, parity, require_size, with_costs, with_network
from deploy_prune.run.stages import place_of
from deploy_prune.system.guard import scratch
from deploy_prune.system.launched import require_started_once
from deploy_prune.system.locks import hold
from deploy_prune.training.threads import Tell
from deploy_prune.types import Artifact, Budget, Progress, SearchResult, Target, silent

PLANS: Final = 3
"""A budget that the finished artifact misses, though its candidate met it, is planned again: so many times in all."""


def untold(sentence: str) -> None:
    """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: its folder, its results, and sentences of what went into the network."""

    folder: Path
    rows: tuple[Row, ...]
    summary: tuple[str, ...] = ()


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
    ``jobs``: so many devices are measured on at once while budgets are planned.

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
            return _run_stages(context, stages.candidate_costs(context, folder))
        finally:
            context.session.accelerator.end_training()


def _run_stages(context: RunContext, costs: CandidateCosts) -> Run:
    """Train, search, adapt; then every target and budget in turn."""
    part_done = _count_parts(context)
    unusable = unusable_targets(context, costs)
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

    rack.look_ahead(usable, costs, found)
    rows: list[Row] = []
    for target in context.targets:
        for row in _target_rows(context, costs, found, (adapted, teacher), target, unusable.get(target.name)):
            rows.append(row)
            context.folder.write_results(rows)
            part_done()

    context.folder.write_provenance(stored_recipe.read(context.folder.path), context.recipe.seed, context.summary)
    write_page(context.folder.path)
    return Run(folder=context.folder.path, rows=tuple(rows), summary=context.summary)


def _count_parts(context: RunContext) -> Callable[[], None]:
    """What tells the progress, after each part of the run, how many of all are done."""
    rows = len(context.targets) * (1 + len(context.recipe.budgets))
    total, numbers = 3 + rows, itertools.count(1)  # 3: dense network, search, adaptation
    return lambda: context.session.progress("whole run", next(numbers), total)


def _target_rows(
    context: RunContext, costs: CandidateCosts, found: tuple[str, SearchResult], adapted: tuple[str, nn.Module],
    target: Target, unusable: DeployPruneError | None,
) -> Iterator[Row]:  # fmt: skip
    """The dense network on a target, then a row a budget; all failed where there can be no dense artifact."""
    key, teacher = adapted
    try:
        if unusable is not None:
            raise unusable
        dense = stages.export(context, teacher, target, f"dense/{target.name}", key)
    except DeployPruneError as error:
        yield from failed_rows(context, costs, target, error)
        return
    yield dense_row(context, costs, target, dense)
    for budget in context.recipe.parsed_budgets:
        yield _deliver(context, costs, found, teacher, target, budget, dense)


def _prepare(recipe: Recipe, out: Path, progress: Progress, fresh: bool, tell_threads: Tell | None) -> RunContext:
    """Everything that can be wrong with the recipe's names and files is found here, before any work."""
    context = prepare(recipe, RunFolder(path=out / recipe.name), progress, fresh, tell_threads)
    if not fresh:
        stored_recipe.require_same_experiment(context.recipe, context.folder.path)
    context.folder.open(fresh)
    stored_recipe.write(context.recipe, context.folder.path)
    return context


def _deliver(
    context: RunContext, costs: CandidateCosts, found: tuple[str, SearchResult], teacher: nn.Module, target: Target,
    budget: Budget, dense: Artifact,
) -> Row:  # fmt: skip
    """One target and budget; if the finished artifact misses what its candidate met, planned again with that known."""
    row = empty_row(target, budget.text, budget.metric, context.task.score)
    failure: DeployPruneError | None = None
    for _ in range(PLANS):
        try:
            for known in _steps(context, costs, found, teacher, target, budget, dense):
                row = known
        except final_latency.BudgetMissedError as missed:
            failure = final_latency.explained(context, costs, target, budget, missed)
            row = final_latency.with_latency(row, budget, missed.slim, missed.dense)
            final_latency.replan_after_miss(context, costs, target, budget, missed)
        except DeployPruneError as error:
            failure = error
            break
        else:
            return row
    assert failure is not None
    return row.failed(failure)


def _steps(
    context: RunContext, costs: CandidateCosts, found: tuple[str, SearchResult], teacher: nn.Module, target: Target,
    budget: Budget, dense: Artifact,
) -> Iterator[Row]:  # fmt: skip
    """Plan, cut and prove, retrain, export and check, measure; the row after each, as far as it is known."""
    place = place_of(target, budget)
    row = empty_row(target, budget.text, budget.metric, context.task.score)
    planned = stages.plan(context, costs, found, target, budget)
    yield (row := with_costs(context, costs, row, target, budget))
    trained = stages.retrain(context, costs, place, planned)
    slim = stages.slim_network(context, costs, place)
    yield (row := with_network(context, row, slim, place))
    pictures.draw(context, place, slim, trained)
    artifact = stages.export(context, slim, target, place, trained)
    row = replace(row, precision=artifact.precision, refused=stages.refused(context, place))
    yield (row := replace(row, size_bytes=artifact.size_bytes, parity_max_abs=parity(context, place)))
    require_size(row)
    yield (row := replace(row, score_artifact=stages.require_score(context, place)))
    if target.runner is not None:
        latency, beside = final_latency.time_slim(context, target, budget, (dense, artifact))
        yield final_latency.with_latency(row, budget, latency, beside)
