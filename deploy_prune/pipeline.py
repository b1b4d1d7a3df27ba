"""The story: from a recipe to slim networks, checked artifacts and latency per budget."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from torch import nn

from deploy_prune import data, models, road, timing
from deploy_prune.enforce import UNITS, tolerance_above
from deploy_prune.errors import DeployPruneError, RunFolderError, TargetError
from deploy_prune.export import FORMATS
from deploy_prune.export.parity import check_parity
from deploy_prune.latency.runners import measure
from deploy_prune.latency.targets import load_target
from deploy_prune.recipe import Recipe
from deploy_prune.recipe_file import dump
from deploy_prune.recipe_file import load as load_recipe
from deploy_prune.report.page import write_page
from deploy_prune.road import Road, place_of
from deploy_prune.runfolder import RunFolder, load_tensors
from deploy_prune.search import check_options
from deploy_prune.shell import write_text
from deploy_prune.surgery import architecture
from deploy_prune.training import Session, make_accelerator
from deploy_prune.types import Artifact, Budget, Metric, Progress, Row, SearchResult, Structure, Target, silent
from deploy_prune.workbench import Workbench

PLANS: Final = 2
"""A budget that the finished artifact misses, though its candidate met it, is planned once more."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: its folder and its results."""

    folder: Path
    rows: tuple[Row, ...]


def run(recipe: Recipe, out: Path, progress: Progress = silent, fresh: bool = False) -> Run:
    """Do what the recipe says, in ``out/NAME``; what is finished there is not done again (unless ``fresh``).

    Raises:
        DeployPruneError: before any training if the recipe can't work; a single target x budget that fails becomes
            a row with status "failed".
    """
    way = _set_out(recipe, out, progress, fresh)
    with TemporaryDirectory() as scratch:
        return _travel(way, road.workbench(way, Path(scratch)))


def _travel(way: Road, bench: Workbench) -> Run:
    """From what is possible to what was delivered, stage by stage."""
    recipe = way.recipe
    road.require_reach(_reaches(bench, way.targets, recipe)[1])

    dense = road.train_dense(way)
    found = road.search(way, bench, dense)
    adapted = road.adapt_dense(way, dense)
    teacher = road.teacher_of(way)

    rows: list[Row] = []
    for target in way.targets:
        dense_artifact = road.export(way, teacher, target, f"dense/{target.name}", adapted)
        rows.append(_dense_row(way, bench, target, dense_artifact))
        for budget in recipe.parsed_budgets:
            rows.append(_deliver(way, bench, found, teacher, target, budget, dense_artifact))
            way.folder.write_results(rows)
    way.folder.write_provenance(dump(recipe), recipe.seed)
    write_page(way.folder.path)
    return Run(folder=way.folder.path, rows=tuple(rows))


def _set_out(recipe: Recipe, out: Path, progress: Progress, fresh: bool) -> Road:
    """Everything that can be wrong with the recipe's names and files is found here, before any work."""
    way = _prepared(recipe, RunFolder(path=out / recipe.name), progress)
    way.folder.open(fresh)
    write_text(way.folder.path / "recipe.yaml", dump(recipe))
    return way


def _prepared(recipe: Recipe, folder: RunFolder, progress: Progress) -> Road:
    torch.set_num_threads(recipe.threads or torch.get_num_threads())
    check_options(recipe.search)
    targets = _targets(recipe)
    session = Session(accelerator=make_accelerator(recipe.device), seed=recipe.seed, progress=progress)
    examples = data.load(recipe.data, recipe.seed)
    if recipe.model.weights is not None:
        models.load_weights(models.build(recipe.model, examples.num_source), Path(recipe.model.weights))
    return Road(recipe=recipe, folder=folder, data=examples, session=session, targets=targets)


def _targets(recipe: Recipe) -> tuple[Target, ...]:
    targets = tuple(load_target(name) for name in recipe.targets)
    names = [t.name for t in targets]
    if len(set(names)) < len(names):
        message = f"targets: two of them have the name {max(names, key=names.count)!r}; give one file another name."
        raise TargetError(message)
    return targets


def _deliver(
    way: Road, bench: Workbench, found: tuple[str, SearchResult], teacher: nn.Module, target: Target, budget: Budget,
    dense: Artifact,
) -> Row:  # fmt: skip
    """One target and budget; if the finished artifact misses what its candidate met, planned again with that known."""
    row = _empty_row(target, budget.text, budget.metric)
    failure: DeployPruneError | None = None
    for _ in range(PLANS):
        try:
            for known in _steps(way, bench, found, teacher, target, budget, dense):
                row = known
        except timing.BudgetMissedError as missed:
            failure = missed
            timing.learn(way, bench, target, budget, missed)
        except DeployPruneError as error:
            failure = error
            break
        else:
            return row
    return replace(row, status="failed", error=str(failure))


def _steps(
    way: Road, bench: Workbench, found: tuple[str, SearchResult], teacher: nn.Module, target: Target, budget: Budget,
    dense: Artifact,
) -> Iterator[Row]:  # fmt: skip
    """Plan, cut and prove, retrain, export and check, measure; the row after each, as far as it is known."""
    place = place_of(target, budget)
    row = _empty_row(target, budget.text, budget.metric)
    planned = road.plan(way, bench, found, target, budget)
    yield (row := _with_costs(way, bench, row, target, budget))
    trained = road.retrain(way, bench, found[1], teacher, place, planned)
    slim = road.slim_network(way, bench, place)
    yield (row := _with_network(way, row, slim, place))
    artifact = road.export(way, slim, target, place, trained)
    yield (row := replace(row, size_bytes=artifact.size_bytes, parity_max_abs=_parity(way, place)))
    if target.runner is not None:
        latency, beside = timing.time_slim(way, target, budget, (dense, artifact))
        asked = budget.absolute(beside.p50_ms) if budget.metric == "latency" else row.asked
        yield replace(
            row, asked=asked, measured_p50_ms=latency.p50_ms, measured_p90_ms=latency.p90_ms,
            dense_p50_ms=beside.p50_ms, measured_on=latency.measured_on,
        )  # fmt: skip


def _empty_row(target: Target, budget: str, metric: Metric) -> Row:
    return Row(
        target=target.name, runtime=target.runtime, precision=target.precision, budget=budget, metric=metric,
        asked=None, predicted=None, predicted_ms=None, measured_p50_ms=None, measured_p90_ms=None, dense_p50_ms=None,
        measured_on=None, macs=0, params=0, size_bytes=None, accuracy=None, accuracy_dense=None, parity_max_abs=None,
        status="ok", error=None,
    )  # fmt: skip


def _dense_row(way: Road, bench: Workbench, target: Target, artifact: Artifact) -> Row:
    """The dense network on a target: the first row of each."""
    counts, place = bench.structure.dense_counts, f"dense/{target.name}"
    score = way.folder.read_json("dense/adapted.json")["accuracy"]
    row = replace(
        _empty_row(target, "dense", way.recipe.metric), macs=round(bench.cost(target, "macs")(counts)),
        params=bench.num_params(counts), size_bytes=artifact.size_bytes, accuracy=score, accuracy_dense=score,
        parity_max_abs=_parity(way, place),
    )  # fmt: skip
    if target.runner is None:
        return replace(row, predicted_ms=bench.cost(target, "latency")(counts))
    latency = timing.time_dense(way, target, artifact)
    return replace(
        row, measured_p50_ms=latency.p50_ms, measured_p90_ms=latency.p90_ms, dense_p50_ms=latency.p50_ms,
        measured_on=latency.measured_on,
    )  # fmt: skip


def _with_network(way: Road, row: Row, slim: nn.Module, place: str) -> Row:
    return replace(
        row, params=sum(p.numel() for p in slim.parameters()),
        accuracy=way.folder.read_json(f"{place}/retrain.json")["accuracy"],
        accuracy_dense=way.folder.read_json("dense/adapted.json")["accuracy"],
    )  # fmt: skip


def _with_costs(way: Road, bench: Workbench, row: Row, target: Target, budget: Budget) -> Row:
    """Asked and predicted, from the loop; MACs by count; predicted latency where nothing is measured."""
    steps = way.folder.read_json(f"{place_of(target, budget)}/loop.json")["steps"]
    chosen = next(step for step in steps if step["chosen"])
    predicted_ms = chosen["predicted"] if budget.metric == "latency" else None
    if target.runner is None:
        predicted_ms = bench.cost(target, "latency")(chosen["counts"])
        way.folder.write_json(
            f"{place_of(target, budget)}/latency.json", {"predicted_ms": predicted_ms, "method": "roofline"}
        )
    return replace(
        row, asked=chosen["asked"], predicted=chosen["predicted"], predicted_ms=predicted_ms,
        macs=round(bench.cost(target, "macs")(chosen["counts"])),
    )  # fmt: skip


def _parity(way: Road, place: str) -> float:
    return float(way.folder.read_json(f"{place}/parity.json")["max_abs"])


# --- check: what a recipe can reach ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TargetReach:
    """How small and how large the network can get on one target, in the metric's unit."""

    target: str
    granularity: int
    granularity_source: str
    metric: Metric
    smallest: float
    dense: float
    predicted_by: str


@dataclass(frozen=True, kw_only=True)
class BudgetReach:
    """Whether one budget can be met on one target; ``reason`` says why not."""

    target: str
    budget: str
    metric: Metric
    asked: float
    met: bool
    reason: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckReport:
    """What ``check`` found. ``dense``: macs and params."""

    recipe_name: str
    network: str
    structure: Structure
    dense: dict[str, float]
    targets: tuple[TargetReach, ...]
    budgets: tuple[BudgetReach, ...]
    missing_extras: tuple[str, ...]
    seconds: float


def check(recipe: Recipe, progress: Progress = silent) -> CheckReport:
    """What can be pruned, what not and why, and whether each budget can be met. No training, nothing written.

    Raises:
        DeployPruneError: the recipe can't work: network, weights, data or target.
    """
    started = time.perf_counter()
    way = _prepared(recipe, RunFolder(path=Path()), progress)
    with TemporaryDirectory() as scratch:
        bench = road.workbench(way, Path(scratch))
        targets, budgets = _reaches(bench, way.targets, recipe)
        counts = bench.structure.dense_counts
        return CheckReport(
            recipe_name=recipe.name, network=recipe.model.source, structure=bench.structure,
            dense={"macs": bench.cost(way.targets[0], "macs")(counts), "params": float(bench.num_params(counts))},
            targets=targets, budgets=budgets, missing_extras=(), seconds=time.perf_counter() - started,
        )  # fmt: skip


def _reaches(
    bench: Workbench, targets: tuple[Target, ...], recipe: Recipe
) -> tuple[tuple[TargetReach, ...], tuple[BudgetReach, ...]]:
    reaches: dict[tuple[str, Metric], TargetReach] = {}
    budgets = []
    for target in targets:
        for budget in recipe.parsed_budgets:
            key = target.name, budget.metric
            reach = reaches.setdefault(key, reaches.get(key) or _reach(bench, target, budget.metric))
            asked = budget.absolute(reach.dense)
            met = reach.smallest <= asked * (1 + tolerance_above(budget, recipe.measure.tolerance))
            unit = UNITS[budget.metric]
            reason = (
                f"it asks for {asked:.4g} {unit}, and the smallest reachable is {reach.smallest:.4g} {unit} "
                f"({reach.smallest / reach.dense:.0%} of dense, in steps of {reach.granularity} channels); "
                "ask for more, or prune more groups"
            )
            budgets.append(
                BudgetReach(
                    target=target.name,
                    budget=budget.text,
                    metric=budget.metric,
                    asked=asked,
                    met=met,
                    reason=None if met else reason,
                )  # fmt: skip
            )
    return tuple(reaches.values()), tuple(budgets)


def _reach(bench: Workbench, target: Target, metric: Metric) -> TargetReach:
    """Measured where a device is attached: the dense and the smallest network are made and timed."""
    counts = bench.smallest(target)
    if metric == "latency" and target.runner is not None:
        timed = bench.timed(target, counts)
        smallest, dense, by = timed.slim_ms, timed.dense_ms, "measurement"
    else:
        model = bench.cost(target, metric)
        smallest, dense = model(counts), model(bench.structure.dense_counts)
        by = "roofline" if metric == "latency" else "count"
    return TargetReach(
        target=target.name, granularity=bench.granule(target), metric=metric, smallest=smallest, dense=dense,
        granularity_source="measured here" if target.granularity is None else "target file", predicted_by=by,
    )  # fmt: skip


# --- afterwards: load, measure again, export again -------------------------------------------------------------------


def load(path: str | Path, *, trust: bool = False) -> nn.Module:
    """The slim network of a run's TARGET/BUDGET folder, with its weights, in eval mode. No pickle is involved.

    Args:
        path: a folder with architecture.json and weights.safetensors, or an architecture.json (then: fresh weights
            from torch's global generator).
        trust: build networks whose source is ``module:callable`` too. That imports and calls what the file names.

    Raises:
        ArchitectureError: the file is damaged, needs ``trust``, or doesn't fit the network's definition.
        RunFolderError: the weights are missing or damaged.
    """
    path = Path(path)
    file = path / "architecture.json" if path.is_dir() else path
    described = architecture.load(file)
    slim = architecture.build(described, architecture.dense_network(described, trust))
    if path.is_dir():
        architecture.load_weights(slim, load_tensors(path / "weights.safetensors"), path)
    return slim.eval()


def bench(run_folder: Path, runs: int) -> tuple[Row, ...]:
    """Measure a run's artifacts again; rows of targets without a device come back as they were.

    Raises:
        RunFolderError: there is no finished run.
        MeasurementError: an artifact can't be measured.
    """
    folder = RunFolder(path=run_folder)
    rows = folder.read_results()
    return tuple(_measured_again(folder, rows, load_recipe(str(run_folder / "recipe.yaml")), runs))


def _measured_again(folder: RunFolder, rows: Sequence[Row], recipe: Recipe, runs: int) -> Iterator[Row]:
    budgets = {b.text: b for b in recipe.parsed_budgets}
    targets = {target.name: target for target in map(load_target, recipe.targets)}
    for row in rows:
        if row.target not in targets or row.budget not in {"dense", *budgets}:
            message = (
                f"{folder.path} has no results of its recipe.yaml ({row.target} {row.budget}); run the recipe again."
            )
            raise RunFolderError(message)
        target = targets[row.target]
        if target.runner is None or row.status == "failed":
            yield row
            continue
        dense = road.artifact_of(folder, f"dense/{target.name}")
        budget = budgets.get(row.budget)
        slim = dense if budget is None else road.artifact_of(folder, place_of(target, budget))
        beside, latency = measure(target, [dense, slim], runs, recipe.measure.warmup)
        asked = row.asked if budget is None or budget.metric != "latency" else budget.absolute(beside.p50_ms)
        yield replace(
            row, asked=asked, measured_p50_ms=latency.p50_ms, measured_p90_ms=latency.p90_ms,
            dense_p50_ms=beside.p50_ms, measured_on=latency.measured_on,
        )  # fmt: skip


def export(source: Path, target: str, out: Path, trust: bool = False) -> Artifact:
    """Write the artifact of a slim network (source and trust as for ``load``) for a target, checked on random inputs.

    Raises:
        DeployPruneError: as ``load``; the target is unknown; the artifact can't be written or isn't equal.
    """
    chosen = load_target(target)
    if not source.exists():
        message = f"There is no {source}; give a run's TARGET/BUDGET folder or an architecture.json."
        raise RunFolderError(message)
    network = load(source, trust=trust)
    described = architecture.load(source / "architecture.json" if source.is_dir() else source)
    place = source.resolve() if source.is_dir() else source.resolve().parent
    recipe_file = place.parent.parent / "recipe.yaml"
    part = load_recipe(str(recipe_file)).export if recipe_file.is_file() else Recipe.model_fields["export"].default
    artifact = FORMATS[chosen.format].write(network, torch.zeros(described.input_shape), out, chosen.precision, part)
    try:
        check_parity(network, artifact, torch.randn(road.PROOF_EXAMPLES, *described.input_shape[1:]))
    except DeployPruneError:
        out.unlink()
        raise
    return artifact
