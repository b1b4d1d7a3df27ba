"""Target accuracy per latency budget on digits: the learned masks against baselines, over seeds.

    python benchmarks/digits_transfer.py [--methods gate,uniform,random] [--seeds 3] [--out FOLDER] [--recipe NAME]
                                         [--set KEY=VALUE ...]

Runs the recipe (mobilenet) on this machine for every seed and method. All methods of one seed share the dense network,
the teacher and the shots; it is trained for 300 steps on the source classes, where it has converged, for a search that
trains weights trains them further. About 25 minutes. What --out/rows.json has is not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _results
from rich.console import Console
from rich.table import Table

from deploy_prune.recipe.file import load_recipe
from deploy_prune.report.terminal import rich_progress
from deploy_prune.run import pipeline
from deploy_prune.system.shell import write_text

Rows = list[dict[str, Any]]


def run(recipe: str, method: str, seed: int, out: Path, settings: list[str]) -> Rows:
    """One run on the host; runs of one seed share a folder, and so the dense network."""
    mine = [f"seed={seed}", f"search.method={method}", "targets=[host]", "train.steps=300", f"name=seed-{seed}"]
    with rich_progress() as progress:
        return [asdict(row) for row in pipeline.run(load_recipe(recipe, mine + settings), out, progress).rows]


def summary(rows: Rows) -> dict[str, Any]:
    """Over seeds: mean accuracy and its standard error, worst distance of measured from asked, failed rows."""
    values = [row["score"] for row in rows if row["score"] is not None]
    off = [abs(r["measured_p50_ms"] / r["asked"] - 1) for r in rows if r["measured_p50_ms"] and r["asked"]]
    return {
        "accuracy": statistics.mean(values),
        "standard_error": statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0,
        "n": len(values),
        "worst_off": max(off, default=0.0),
        "failed": sum(row["status"] == "failed" for row in rows),
    }


def show(figures: dict[str, dict[str, dict[str, Any]]]) -> None:
    table = Table("method", "budget", "accuracy", "+-", "worst |measured/asked - 1|", "failed")
    for method, by_budget in figures.items():
        for budget, found in by_budget.items():
            table.add_row(
                method, budget, f"{found['accuracy']:.2%}", f"{found['standard_error']:.2%}",
                f"{found['worst_off']:.1%}", f"{found['failed']} of {found['n']}",
            )  # fmt: skip
    Console().print(table)


def main() -> None:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="gate,uniform,random")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/digits_transfer"))
    parser.add_argument("--recipe", default="mobilenet")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    known, file = dict[str, Rows](), arguments.out / "rows.json"
    if file.exists():
        known = json.loads(file.read_text())
    methods = arguments.methods.split(",")
    for seed in range(arguments.seeds):
        for method in methods:
            name = f"{method} {seed}"
            if name not in known:
                known[name] = run(arguments.recipe, method, seed, arguments.out, arguments.settings)
                write_text(file, json.dumps(known, indent=1) + "\n")
            for row in known[name]:
                print(name, row["budget"], row["score"], row["status"], row["error"] or "", flush=True)
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for method in methods:
        rows = [row for seed in range(arguments.seeds) for row in known[f"{method} {seed}"]]
        budgets = dict.fromkeys(row["budget"] for row in rows)
        figures[method] = {b: summary([row for row in rows if row["budget"] == b]) for b in budgets}
    show(figures)
    _results.write(
        "digits_transfer", {"methods": figures, "rows": known}, recipe=arguments.recipe, seeds=arguments.seeds,
        settings=arguments.settings,
    )  # fmt: skip


if __name__ == "__main__":
    main()
