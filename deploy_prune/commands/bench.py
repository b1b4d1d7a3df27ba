"""`deploy-prune bench`: measure a finished run again, and explain latency that fell less than the MACs did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deploy_prune.budget.candidates import PROFILE_S, profilable, writer
from deploy_prune.cost import Lost
from deploy_prune.device import RUNTIMES
from deploy_prune.device.address import parse
from deploy_prune.errors import DeployPruneError, RunFolderError, TargetError
from deploy_prune.latency.granularity import granularity
from deploy_prune.latency.measure import profile_for
from deploy_prune.latency.steady import measure_steadily
from deploy_prune.latency.why_slower import lost
from deploy_prune.recipe.parts import Recipe
from deploy_prune.report.results import Bench
from deploy_prune.report.row import Row
from deploy_prune.run import stages, stored_recipe
from deploy_prune.run.final_latency import BudgetMissedError, require_within, with_latency
from deploy_prune.run.folder import RunFolder
from deploy_prune.run.stages import place_of
from deploy_prune.run.trust import found_targets
from deploy_prune.types import Artifact, Budget, Target


def bench(run_folder: Path, runs: int, device: str | None = None, trust: bool = False) -> tuple[Bench, ...]:
    """Measure a run's artifacts again, and compare them with their budgets.

    Rows of targets without a device come back as they were; so do rows that failed, but without what was measured
    then. A row that misses its budget, or can't be measured, is failed, with the reason.

    ``device``: measure there instead (``local``, ``ssh://...``, ``adb://...``), all targets that have a runtime for it.
    ``trust``: start the program that a target of the run names on its device.

    Raises:
        RunFolderError: there is no finished run, or it needs ``trust``.
        TargetError: ``device`` is no device's name, or no target of the run can be measured there.
    """
    folder = RunFolder(path=run_folder)
    rows = folder.read_results()
    recipe = stored_recipe.load(run_folder)
    targets = found_targets(recipe, run_folder / stored_recipe.NAME, trust)
    if device is not None:
        targets = _moved(targets, device)
    return tuple(_measured_again(folder, rows, recipe, targets, runs))


def _moved(targets: Mapping[str, Target], device: str) -> dict[str, Target]:
    """The targets, on another device where their runtime is one that we can start there."""
    parse(device)
    if not any(target.runtime in RUNTIMES for target in targets.values()):
        known = ", ".join(sorted({target.runtime for target in targets.values()}))
        message = (
            f"Nothing of this run can be measured on {device}: its runtimes are {known}, not {', '.join(RUNTIMES)}."
        )
        raise TargetError(message)
    return {k: t.on(device) if t.runtime in RUNTIMES else t for k, t in targets.items()}


def _measured_again(
    folder: RunFolder, rows: Sequence[Row], recipe: Recipe, targets: Mapping[str, Target], runs: int
) -> Iterator[Bench]:
    macs = {row.target: row.macs for row in rows if row.budget == "dense"}
    for row in rows:
        budgets = {b.text: b for b in recipe.budgets_of(row.target)}
        if row.target not in targets or row.budget not in {"dense", *budgets}:
            message = (
                f"{folder.path} has no results of its recipe.yaml ({row.target} {row.budget}); run the recipe again."
            )
            raise RunFolderError(message)
        target, budget = targets[row.target], budgets.get(row.budget)
        dense = macs.get(row.target)
        found = Bench(row=row, macs_share=row.macs / dense if row.macs and dense else None)
        if row.status == "failed":
            yield replace(found, row=_without_latency(row, budget))
        elif target.runner is None:
            yield found
        else:
            try:
                yield _measured(found, folder, recipe, target, budget, runs)
            except DeployPruneError as error:
                yield replace(found, row=_without_latency(row, budget).failed(error))


def _without_latency(row: Row, budget: Budget | None) -> Row:
    """A row that isn't measured again has no figures of another day to stand beside those of today."""
    follows = row.metric == "latency" and (budget is None or budget.relative)
    return replace(
        row, asked=None if follows else row.asked, measured_p50_ms=None, measured_p90_ms=None, measured_p99_ms=None,
        dense_p50_ms=None, measured_on=None, disturbed=None, speedup=None, speedup_low=None, speedup_high=None,
    )  # fmt: skip


def _measured(
    found: Bench, folder: RunFolder, recipe: Recipe, target: Target, budget: Budget | None, runs: int
) -> Bench:
    """The row measured again, beside dense; "failed" if that misses the budget, by the run's own tolerance."""
    dense = stages.artifact_of(folder, f"dense/{target.name}")
    place = f"dense/{target.name}" if budget is None else place_of(target, budget)
    slim = dense if budget is None else stages.artifact_of(folder, place)
    artifacts = [dense] if budget is None else [dense, slim]
    beside, *others = measure_steadily(target, artifacts, runs, recipe.measure.warmup)
    latency = others[0] if others else beside
    row = replace(with_latency(found.row, budget, latency, beside), status="ok")
    if budget is not None:
        try:
            require_within(place, budget, recipe.measure.tolerance, latency, beside)
        except BudgetMissedError as missed:
            row = row.failed(missed)
    found = replace(found, row=row)
    times = beside.p50_ms, latency.p50_ms
    return replace(found, lost=_why(target, (dense, slim), times, recipe)) if found.lags else found


def _why(
    target: Target, artifacts: tuple[Artifact, Artifact], times_ms: tuple[float, float], recipe: Recipe
) -> tuple[Lost, ...]:
    if not profilable(target):
        return ()
    dense, slim = profile_for(target, artifacts, times_ms[0], PROFILE_S)
    granule = granularity(target, writer(target, recipe.export))
    return lost(artifacts, ((dense, times_ms[0]), (slim, times_ms[1])), granule)
