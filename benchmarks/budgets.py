"""Asked for so many milliseconds: what is measured in the end, and what uniform pruning takes at the same MACs.

    python benchmarks/budgets.py [NAME:CHANNELS,HEIGHT,WIDTH:CLASSES...] [--budgets 80%,65%,50%,35%] [--rows FILE]

A NAME of torchvision or timm has its prefix: torchvision:mobilenet_v2:3,224,224:1000. Per network and budget, of the
latency of this machine's `host` (ONNX Runtime, one thread), the closed loop is run as a recipe runs it: with a latency
table of its own (an empty cache), the finished artifact measured beside the dense one, and planned again if that is
over the budget, at most deliver.PLANS times. `timing.learn` does the latter for a run folder; there is none here, so
`Workbench.correct` is called as it does. Then both are measured once more, and no choice depends on that: it is the
share in the rows. Then the slim network is timed beside another one that has the same share of every group, plain
counts without granularity, and most nearly the same MACs. Scores are magnitudes of initial weights: latency doesn't
depend on weights.

Rows that --rows has are not made again. The whole list goes into benchmarks/results/budgets.json. A budget that the
smallest network can't meet, as `deploy-prune check` judges it, is listed and not counted; one that the loop fails to
meet is counted as missed.

Aims: measured within 3% of what was asked in 95% of the rows, and within 6% in all.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import _results
import torch
from _scores import first, magnitude, uniform
from latency_table import NETWORKS

from deploy_prune import cost
from deploy_prune.budget.candidates import CandidateCosts, Timed
from deploy_prune.budget.loop import Plan, enforce
from deploy_prune.commands.given_inputs import parse_inputs
from deploy_prune.commands.predict import network_of
from deploy_prune.commands.profile import costs_of
from deploy_prune.device.targets import load_target
from deploy_prune.errors import BudgetError
from deploy_prune.export import isolated
from deploy_prune.latency.paired import paired_ratio
from deploy_prune.latency.steady import measure_steadily
from deploy_prune.recipe.parts import parse_budget
from deploy_prune.run.deliver import PLANS
from deploy_prune.run.reach import reaches
from deploy_prune.surgery.cut import cut
from deploy_prune.types import Artifact, Budget, Keep, Scores, Target, silent

BUDGETS: Final = "80%,65%,50%,35%"
AIMS: Final = {"within_3_percent": 0.95, "worst": 0.06}

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """What a recipe hands over: its plan, its artifact, and the share of dense latency that it is reported with."""

    plan: Plan
    artifact: Artifact
    share: float
    plans: int


def network_rows(network: str, budgets: Sequence[Budget]) -> Iterator[tuple[str, Row]]:
    """(budget, row) for each budget of one network."""
    name, shape, classes = network.rsplit(":", 2)
    torch.manual_seed(0)
    module, sizes, part = network_of(name, parse_inputs([shape]), False, int(classes))
    target = load_target("host")
    with TemporaryDirectory() as folder:
        os.environ["DEPLOY_PRUNE_CACHE"] = str(Path(folder) / "cache")
        costs = costs_of(module, sizes, part, Path(folder))
        dense = written(
            costs, target, first(costs.structure, costs.structure.dense_counts), Path(folder) / "dense.onnx"
        )
        scores = magnitude(costs)
        for budget in budgets:
            started = time.perf_counter()
            row = budget_row(costs, target, budget, scores, dense)
            yield budget.text, {"asked": budget.limit, **row, "seconds": round(time.perf_counter() - started, 1)}


def budget_row(costs: CandidateCosts, target: Target, budget: Budget, scores: Scores, dense: Artifact) -> Row:
    """What became of one budget."""
    ((reach,), (met,)) = reaches(costs, {target: (budget,)})
    if not met.met:
        return {"status": "out of reach", "smallest": reach.smallest / reach.dense, "reason": met.reason}
    try:
        made = deliver(costs, target, budget, scores, dense)
    except BudgetError as error:
        return {"status": "failed", "reason": str(error)}
    return {"status": "ok", **looked_at(costs, target, budget, dense, made)}


def deliver(costs: CandidateCosts, target: Target, budget: Budget, scores: Scores, dense: Artifact) -> Delivered:
    """Plan, cut, export and measure; planned again if the finished artifact is over the budget.

    Raises:
        BudgetError: no candidate is within the budget.
    """
    part = costs.measure
    for plans in range(1, PLANS + 1):
        plan = enforce(costs, target, budget, scores, silent, budget.text)
        slim = written(costs, target, plan.keep, dense.path.with_stem("slim"))
        beside, latency = measure_steadily(target, [dense, slim], part.runs, part.warmup)
        share = latency.p50_ms / beside.p50_ms
        made = Delivered(plan=plan, artifact=slim, share=share, plans=plans)
        if share <= budget.limit * (1 + part.tolerance):
            break
        costs.override(target, plan.chosen.counts, Timed(slim_ms=latency.p50_ms, dense_ms=beside.p50_ms))
    return made


def looked_at(costs: CandidateCosts, target: Target, budget: Budget, dense: Artifact, made: Delivered) -> Row:
    """Measured once more beside the dense artifact, as `deploy-prune bench` does; then beside uniform pruning."""
    part, macs = costs.measure, cost.macs(costs.structure)
    counts = made.plan.chosen.counts
    even = uniform(costs.structure, macs(counts))
    plain = written(costs, target, first(costs.structure, even), dense.path.with_stem("uniform"))
    whole, slim = measure_steadily(target, [dense, made.artifact], part.runs, part.warmup)
    ours, beside = measure_steadily(target, [made.artifact, plain], part.runs, part.warmup)
    ratio = paired_ratio(beside, ours)
    all_macs, share = macs(costs.structure.dense_counts), slim.p50_ms / whole.p50_ms
    return {
        "share": share, "error": share / budget.limit - 1, "macs": macs(counts) / all_macs,
        "uniform_macs": macs(even) / all_macs, "uniform_over_ours": ratio.median, "interval": [ratio.low, ratio.high],
        "dense_ms": whole.p50_ms, "slim_ms": slim.p50_ms, "samples": len(slim.samples_ms),
        "in_the_loop": made.plan.chosen.observed / made.plan.chosen.dense, "reported": made.share,
        "looks": len(made.plan.candidates), "plans": made.plans,
    }  # fmt: skip


def written(costs: CandidateCosts, target: Target, keep: Keep, path: Path) -> Artifact:
    """The artifact of the network with these units."""
    slim = cut(costs.network, costs.structure, keep)
    return isolated.write(target.format, slim, costs.inputs[0], path, target.precision, costs.export)


def summary(rows: Mapping[str, Row]) -> dict[str, Any]:
    """How near the measured latencies are to what was asked, and uniform pruning's to ours."""
    counted = [row for row in rows.values() if row["status"] != "out of reach"]
    errors = [abs(row["error"]) for row in counted if row["status"] == "ok"]
    ratios = [row["uniform_over_ours"] for row in counted if row["status"] == "ok"]
    return {
        "counted": len(counted), "out_of_reach": len(rows) - len(counted), "failed": len(counted) - len(errors),
        "within_3_percent": sum(e <= 0.03 for e in errors) / max(1, len(counted)),
        "worst": max(errors, default=None), "uniform_over_ours": median(ratios) if ratios else None,
    }  # fmt: skip


def told(row: Row) -> str:
    """A row in a line."""
    if row["status"] != "ok":
        return f"{row['status']}: {row['reason']}"
    return (
        f"{row['share']:.1%} of dense measured, {row['error']:+.1%} off, {row['macs']:.1%} of the MACs; uniform with "
        f"{row['uniform_macs']:.1%} takes {row['uniform_over_ours']:.2f} times as long; {row['plans']} plans, "
        f"{row['seconds']:.0f} s"
    )


def main() -> None:
    """Make the rows that --rows doesn't have, and write benchmarks/results/budgets.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--budgets", default=BUDGETS, help="shares of the dense latency")
    parser.add_argument("--rows", type=Path, default=Path("runs/budgets.json"))
    arguments = parser.parse_args()
    budgets = [parse_budget(text, "latency") for text in arguments.budgets.split(",")]
    if any(budget.metric != "latency" or not budget.relative for budget in budgets):
        parser.error("--budgets are shares of the dense latency, as in 80%,50%")
    under = _results.conditions(arguments, {"networks", "budgets", "rows"})
    rows: dict[str, Row] = _results.kept(arguments.rows, under)
    for network in arguments.networks:
        missing = [budget for budget in budgets if f"{network} {budget.text}" not in rows]
        for text, row in network_rows(network, missing) if missing else ():
            rows[f"{network} {text}"] = row
            _results.keep(arguments.rows, under, rows)
            print(f"{network} {text}: {told(row)}", flush=True)
    asked = {key: rows[key] for key in (f"{n} {b.text}" for n in arguments.networks for b in budgets)}
    print(summary(asked))
    if (tuple(arguments.networks), arguments.budgets) == (NETWORKS, BUDGETS):
        _results.write("budgets", {"rows": asked, "summary": summary(asked), "aims": AIMS}, target="host")


if __name__ == "__main__":
    main()
