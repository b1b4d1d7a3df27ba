"""Target accuracy per latency budget on digits: the trainable gate against baselines, over seeds.

    python benchmarks/digits_transfer.py [--methods gate,uniform,random] [--seeds 3] [--out FOLDER] [--recipe NAME]

Runs the recipe (mobilenet) on this machine for every method and seed; for baselines, which train nothing while they
search, the dense network is trained for as many steps more. About half an hour on 2 cores. Stages that are finished
in --out are not done again.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import _results
from rich.console import Console
from rich.table import Table

from deploy_prune import pipeline
from deploy_prune.console import rich_progress
from deploy_prune.recipe_file import load
from deploy_prune.types import Row

TRAINED = ("gate",)
"""Methods whose search trains the weights, too."""


def run(recipe: str, method: str, seed: int, out: Path) -> tuple[Row, ...]:
    """One run on the host."""
    base = load(recipe)
    steps = base.train.steps + (0 if method in TRAINED else base.search.steps)
    name = f"{method if method in TRAINED else 'baselines'}-{seed}"
    settings = [f"seed={seed}", f"search.method={method}", "targets=[host]", f"train.steps={steps}", f"name={name}"]
    with rich_progress() as progress:
        return pipeline.run(load(recipe, settings), out, progress).rows


def mean_accuracy(rows: list[Row]) -> dict[str, float]:
    """Mean and standard error of the target accuracy, and the mean of how far measured is from asked."""
    values = [row.accuracy for row in rows if row.accuracy is not None]
    spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {"accuracy": statistics.mean(values), "standard_error": spread, "n": len(values)}


def main() -> None:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="gate,uniform,random")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/digits_transfer"))
    parser.add_argument("--recipe", default="mobilenet")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    rows_of: dict[tuple[str, str], list[Row]] = {}
    for seed in range(arguments.seeds):
        for method in arguments.methods.split(","):
            for row in run(arguments.recipe, method, seed, arguments.out):
                rows_of.setdefault((method, row.budget), []).append(row)
                print(method, seed, row.budget, row.accuracy, row.status, row.error or "", flush=True)
    table = Table("method", "budget", "accuracy", "+-", "worst |measured/asked - 1|")
    for (method, budget), rows in rows_of.items():
        off = [abs(r.measured_p50_ms / r.asked - 1) for r in rows if r.measured_p50_ms and r.asked]
        figures.setdefault(method, {})[budget] = {**mean_accuracy(rows), "worst_off": max(off, default=0.0)}
        found = figures[method][budget]
        table.add_row(
            method, budget, f"{found['accuracy']:.2%}", f"{found['standard_error']:.2%}", f"{found['worst_off']:.1%}"
        )
    Console().print(table)
    _results.write("digits_transfer", {"methods": figures}, recipe=arguments.recipe, seeds=arguments.seeds)


if __name__ == "__main__":
    main()
