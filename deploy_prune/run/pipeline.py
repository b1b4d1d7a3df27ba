"""The pipeline: from a recipe to slim networks, checked artifacts and latencies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from torch import nn

from deploy_prune.budget.candidates import Workbench
from deploy_prune.errors import (
    BudgetError,
    CommandError,
    DeployPruneError,
    ExportError,
    MeasurementError,
    MissingDependencyError,
    ParityError,
)
from deploy_prune.recipe.parts import Recipe
from deploy_prune.report.page import write_page
from deploy_prune.run import final_latency, stages, stored_recipe
from deploy_prune.run.folder import RunFolder
from deploy_prune.run.reach import reaches, require_reach
from deploy_prune.run.stages import RunContext, place_of
from deploy_prune.system.guard import scratch
from deploy_prune.system.locks import hold
from deploy_prune.training.threads import Tell
from deploy_prune.types import Artifact, Budget, Metric, Progress, Row, SearchResult, Target, silent

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
) -> Run:
    """Do what the recipe says, in ``out/NAME``; what is finished there is not done again (unless ``fresh``).

    ``tell`` gets, before any work, sentences of what goes into the network: its input and the examples.
    ``tell_threads``: training on a CPU may use fewer threads where other programs are at work, and this is told how
    many, and why; None: the number of threads that torch has stays. The recipe's ``threads`` wins.

    Nobody else may write in ``out/NAME`` meanwhile.

    Raises:
        DeployPruneError: before any training if the recipe can't work; a single target x budget that fails becomes
            a row with status "failed".
    """
    with hold(out / recipe.name), scratch() as folder:
        context = _prepare(recipe, out, progress, fresh, tell_threads)
        for sentence in context.summary:
            tell(sentence)
        try:
            return _run_stages(context, stages.workbench(context, folder))
        finally:
            context.session.accelerator.end_training()


def _run_stages(context: RunContext, bench: Workbench) -> Run:
    """From what is possible to what was delivered, stage by stage."""
    recipe = context.recipe
    broken = _out_of_order(context, bench)

    dense = stages.train_dense(context)
    found = stages.search(
        replace(context, targets=tuple(t for t in context.targets if t.name not in broken)), bench, dense
    )
    adapted = stages.adapt_dense(context, dense)
    teacher = stages.teacher_of(context)

    rows: list[Row] = []
    for target in context.targets:
        try:
            if target.name in broken:
                raise broken[target.name]
            dense_artifact = stages.export(context, teacher, target, f"dense/{target.name}", adapted)
        except DeployPruneError as error:
            rows.extend(_failed_rows(context, bench, target, error))
            context.folder.write_results(rows)
            continue
        rows.append(_dense_row(context, bench, target, dense_artifact))
        for budget in recipe.parsed_budgets:
            rows.append(_deliver(context, bench, found, teacher, target, budget, dense_artifact))
            context.folder.write_results(rows)
    stored = (context.folder.path / stored_recipe.NAME).read_text(encoding="utf-8")
    context.folder.write_provenance(stored, recipe.seed, context.summary)
    write_page(context.folder.path)
    return Run(folder=context.folder.path, rows=tuple(rows), summary=context.summary)


def _prepare(recipe: Recipe, out: Path, progress: Progress, fresh: bool, tell_threads: Tell | None) -> RunContext:
    """Everything that can be wrong with the recipe's names and files is found here, before any work."""
    context = stages.prepare(recipe, RunFolder(path=out / recipe.name), progress, fresh, tell_threads)
    if not fresh:
        stored_recipe.require_same_experiment(context.recipe, context.folder.path)
    context.folder.open(fresh)
    stored_recipe.write(context.recipe, context.folder.path)
    return context


def _out_of_order(context: RunContext, bench: Workbench) -> dict[str, DeployPruneError]:
    """Targets for which nothing can be written or measured, by name, and why; the others' budgets can be met.

    Raises:
        BudgetError: a budget can't be met.
        DeployPruneError: no target is in order; the first one's reason.
    """
    broken: dict[str, DeployPruneError] = {}
    for target in context.targets:
        try:
            require_reach(reaches(bench, (target,), context.recipe, context.session.progress)[1])
            for metric in {budget.metric for budget in context.recipe.parsed_budgets}:
                bench.cost(target, metric)
        except (CommandError, ExportError, MeasurementError, MissingDependencyError, ParityError) as error:
            broken[target.name] = error
    if len(broken) == len(context.targets):
        raise next(iter(broken.values()))
    return broken


def _failed_rows(context: RunContext, bench: Workbench, target: Target, error: DeployPruneError) -> list[Row]:
    """The rows of a target without a dense artifact, beside which the others would be measured."""
    dense = _dense_costs(context, bench, target)
    dense = replace(dense, accuracy=dense.accuracy_dense).failed(error)
    slim = [_empty_row(target, budget.text, budget.metric).failed(error) for budget in context.recipe.parsed_budgets]
    return [dense, *slim]


def _deliver(
    context: RunContext, bench: Workbench, found: tuple[str, SearchResult], teacher: nn.Module, target: Target,
    budget: Budget, dense: Artifact,
) -> Row:  # fmt: skip
    """One target and budget; if the finished artifact misses what its candidate met, planned again with that known."""
    row = _empty_row(target, budget.text, budget.metric)
    failure: DeployPruneError | None = None
    for _ in range(PLANS):
        try:
            for known in _steps(context, bench, found, teacher, target, budget, dense):
                row = known
        except final_latency.BudgetMissedError as missed:
            failure, row = missed, final_latency.with_latency(row, budget, missed.slim, missed.dense)
            final_latency.replan_after_miss(context, bench, target, budget, missed)
        except DeployPruneError as error:
            failure = error
            break
        else:
            return row
    assert failure is not None
    return row.failed(failure)


def _steps(
    context: RunContext, bench: Workbench, found: tuple[str, SearchResult], teacher: nn.Module, target: Target,
    budget: Budget, dense: Artifact,
) -> Iterator[Row]:  # fmt: skip
    """Plan, cut and prove, retrain, export and check, measure; the row after each, as far as it is known."""
    place = place_of(target, budget)
    row = _empty_row(target, budget.text, budget.metric)
    planned = stages.plan(context, bench, found, target, budget)
    yield (row := _with_costs(context, bench, row, target, budget))
    trained = stages.retrain(context, bench, found[1], teacher, place, planned)
    slim = stages.slim_network(context, bench, place)
    yield (row := _with_network(context, row, slim, place))
    artifact = stages.export(context, slim, target, place, trained)
    yield (row := replace(row, size_bytes=artifact.size_bytes, parity_max_abs=_parity(context, place)))
    _require_size(row)
    yield (row := replace(row, accuracy_artifact=stages.require_accuracy(context, place)))
    if target.runner is not None:
        latency, beside = final_latency.time_slim(context, target, budget, (dense, artifact))
        yield final_latency.with_latency(row, budget, latency, beside)


def _empty_row(target: Target, budget: str, metric: Metric) -> Row:
    return Row(
        target=target.name, runtime=target.runtime, precision=target.precision, budget=budget, metric=metric,
        asked=None, predicted=None, predicted_ms=None, measured_p50_ms=None, measured_p90_ms=None, dense_p50_ms=None,
        measured_on=None, macs=None, params=None, size_bytes=None, accuracy=None, accuracy_dense=None,
        accuracy_artifact=None, parity_max_abs=None,
        status="predicted" if target.runner is None else "ok", error=None,
    )  # fmt: skip


def _require_size(row: Row) -> None:
    """A finished file is held to its budget too; its candidate had other weights.

    Raises:
        BudgetError: it is larger than asked.
    """
    if row.metric == "size" and row.asked is not None and row.size_bytes is not None and row.size_bytes > row.asked:
        message = (
            f"The finished artifact has {row.size_bytes} bytes; the budget is {row.asked:.0f}. Its weights compress "
            "less well than its candidate's did, or its classifier has more classes. Ask for a little less."
        )
        raise BudgetError(message)


def _dense_row(context: RunContext, bench: Workbench, target: Target, artifact: Artifact) -> Row:
    """The dense network on a target: the first row of each."""
    place = f"dense/{target.name}"
    row = _dense_costs(context, bench, target)
    row = replace(
        row, size_bytes=artifact.size_bytes, accuracy=row.accuracy_dense, parity_max_abs=_parity(context, place),
    )  # fmt: skip
    try:
        if target.runner is None:
            row = replace(row, predicted_ms=bench.cost(target, "latency")(bench.structure.dense_counts))
        else:
            latency = final_latency.time_dense(context, target, artifact)
            row = final_latency.with_latency(row, None, latency, latency)
        return replace(row, accuracy_artifact=stages.require_accuracy(context, place))
    except DeployPruneError as error:
        return row.failed(error)


def _dense_costs(context: RunContext, bench: Workbench, target: Target) -> Row:
    """What is counted of the dense network."""
    counts = bench.structure.dense_counts
    row = _with_dense(context, _empty_row(target, "dense", context.recipe.metric))
    return replace(row, macs=round(bench.cost(target, "macs")(counts)), params=bench.num_params(counts))


def _with_network(context: RunContext, row: Row, slim: nn.Module, place: str) -> Row:
    return replace(
        _with_dense(context, row), params=sum(p.numel() for p in slim.parameters()),
        accuracy=context.folder.read_json(f"{place}/retrain.json")["accuracy"],
    )  # fmt: skip


def _with_dense(context: RunContext, row: Row) -> Row:
    """The yardstick, the network as given, and the examples that the slim network learns from."""
    told, used = context.folder.read_json("dense/adapted.json"), context.data
    given = context.folder.read_json("dense/training.json")["source_accuracy"]
    return replace(
        row, accuracy_dense=told["accuracy"], accuracy_given=given, dense_adapted=told["adapted"],
        train_examples=len(used.target_train), train_examples_of=used.num_available,
        test_examples=len(used.target_test),
    )  # fmt: skip


def _with_costs(context: RunContext, bench: Workbench, row: Row, target: Target, budget: Budget) -> Row:
    """Asked and predicted, from the loop; MACs by count; predicted latency where nothing is measured."""
    steps = context.folder.read_json(f"{place_of(target, budget)}/loop.json")["steps"]
    chosen = next(step for step in steps if step["chosen"])
    predicted_ms = chosen["predicted"] if budget.metric == "latency" else None
    predicted_dense_ms: float | None = None
    if target.runner is None:
        model = bench.cost(target, "latency")
        predicted_ms, predicted_dense_ms = model(chosen["counts"]), model(bench.structure.dense_counts)
        context.folder.write_json(
            f"{place_of(target, budget)}/latency.json", {"predicted_ms": predicted_ms, "method": "roofline"}
        )
    return replace(
        row, asked=chosen["asked"], predicted=chosen["predicted"], predicted_ms=predicted_ms,
        predicted_dense_ms=predicted_dense_ms, macs=round(bench.cost(target, "macs")(chosen["counts"])),
    )  # fmt: skip


def _parity(context: RunContext, place: str) -> float | None:
    found: float | None = context.folder.read_json(f"{place}/parity.json")["max_abs"]
    return found
