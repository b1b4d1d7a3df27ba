"""The rows of results.json: what is known of a target and budget after each stage."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from deploy_prune.budget.candidates import CandidateCosts
from deploy_prune.errors import BudgetError, DeployPruneError
from deploy_prune.recipe.data import sizes_of
from deploy_prune.report.row import Row
from deploy_prune.run import final_latency, stages
from deploy_prune.run.context import RunContext
from deploy_prune.run.stages import place_of
from deploy_prune.tasks import Score
from deploy_prune.types import Artifact, Budget, Metric, Target


def dense_row(context: RunContext, costs: CandidateCosts, target: Target, artifact: Artifact) -> Row:
    """The dense network on a target: the first row of each."""
    place = f"dense/{target.name}"
    row = _dense_costs(context, costs, target)
    row = replace(
        row, size_bytes=artifact.size_bytes, score=row.score_dense, parity_max_abs=parity(context, place),
        precision=artifact.precision, refused=stages.refused(context, place),
    )  # fmt: skip
    try:
        if target.runner is None:
            row = replace(row, predicted_ms=costs.cost(target, "latency")(costs.structure.dense_counts))
        else:
            latency = final_latency.time_dense(context, target, artifact)
            row = final_latency.with_latency(row, None, latency, latency)
        return replace(row, score_artifact=stages.require_score(context, place))
    except DeployPruneError as error:
        return row.failed(error)


def failed_rows(context: RunContext, costs: CandidateCosts, target: Target, error: DeployPruneError) -> list[Row]:
    """The rows of a target without a dense artifact, beside which the others would be measured."""
    dense = _dense_costs(context, costs, target)
    dense = replace(dense, score=dense.score_dense).failed(error)
    asked = context.recipe.budgets_of(target.name)
    slim = [empty_row(target, b.text, b.metric, context.task.score).failed(error) for b in asked]
    return [dense, *slim]


def empty_row(target: Target, budget: str, metric: Metric, score: Score) -> Row:
    """Of a target and budget of which nothing is known yet."""
    return Row(
        target=target.name, runtime=target.runtime, format=target.format, precision=target.precision, budget=budget,
        metric=metric, asked=None, predicted=None, predicted_ms=None, measured_p50_ms=None, measured_p90_ms=None,
        dense_p50_ms=None, measured_on=None, macs=None, params=None, size_bytes=None, score=None, score_dense=None,
        score_artifact=None, parity_max_abs=None, score_name=score.name, score_unit=score.unit,
        higher_is_better=score.higher, status="predicted" if target.runner is None else "ok", error=None,
    )  # fmt: skip


def input_size(context: RunContext) -> tuple[int, int] | None:
    """Height and width of the input, where the recipe lists several."""
    sizes = sizes_of(context.recipe.data)
    return (context.smaller or sizes[0]) if len(sizes) > 1 else None


def with_costs(context: RunContext, costs: CandidateCosts, row: Row, target: Target, budget: Budget) -> Row:
    """Asked and predicted, from the loop; MACs by count; predicted latency where nothing is measured."""
    steps = context.folder.read_json(f"{place_of(target, budget)}/loop.json")["steps"]
    chosen = next(step for step in steps if step["chosen"])
    predicted_ms = chosen["predicted"] if budget.metric == "latency" else None
    predicted_dense_ms: float | None = None
    if target.runner is None:
        model = costs.cost(target, "latency")
        predicted_ms, predicted_dense_ms = model(chosen["counts"]), costs.dense(target, "latency")
        context.folder.write_json(
            f"{place_of(target, budget)}/latency.json", {"predicted_ms": predicted_ms, "method": "roofline"}
        )
    return replace(
        row, asked=chosen["asked"], predicted=chosen["predicted"], predicted_ms=predicted_ms,
        predicted_dense_ms=predicted_dense_ms, macs=round(costs.cost(target, "macs")(chosen["counts"])),
    )  # fmt: skip


def with_network(context: RunContext, row: Row, slim: nn.Module, place: str) -> Row:
    """The retrained network's size and score, beside the dense one's."""
    return replace(
        _with_dense(context, row), params=sum(p.numel() for p in slim.parameters()),
        score=context.folder.read_json(f"{place}/retrain.json")["score"],
    )  # fmt: skip


def parity(context: RunContext, place: str) -> float | None:
    """The largest relative difference of a place's artifact from its network; None in int8."""
    found: float | None = context.folder.read_json(f"{place}/parity.json")["max_abs"]
    return found


def require_size(row: Row) -> None:
    """A finished file is held to its budget too; its candidate had other weights.

    Raises:
        BudgetError: it is larger than asked.
    """
    if row.metric == "size" and row.asked is not None and row.size_bytes is not None and row.size_bytes > row.asked:
        message = (
            f"The finished artifact has {row.size_bytes} bytes; the budget is {row.asked:.0f}. Its weights compress "
            "less well than its candidate's did, or the target task has more classes. Ask for a little less."
        )
        raise BudgetError(message)


def _dense_costs(context: RunContext, costs: CandidateCosts, target: Target) -> Row:
    """What is counted of the dense network."""
    counts = costs.structure.dense_counts
    row = _with_dense(context, empty_row(target, "dense", context.recipe.metric, context.task.score))
    row = replace(row, image_size=input_size(context))
    return replace(row, macs=round(costs.cost(target, "macs")(counts)), params=costs.num_params(counts))


def _with_dense(context: RunContext, row: Row) -> Row:
    """The yardstick, the network as given, and the examples that the slim network learns from."""
    told, used = context.folder.read_json("dense/adapted.json"), context.data
    given = context.folder.read_json("dense/training.json")["source_score"]
    return replace(
        row, score_dense=told["score"], score_given=given, dense_adapted=told["adapted"],
        train_examples=len(used.target_train), train_examples_of=used.num_available,
        test_examples=len(used.target_test),
    )  # fmt: skip
