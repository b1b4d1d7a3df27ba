"""Size and latency of dense and slim networks in every runtime that this machine has.

    python benchmarks/formats.py [--networks NAME:SIZE,...] [--formats onnx,ort,...] [--budget 50%] [--precision fp32]

Each network is cut for each runtime by the closed loop, to a share of its dense latency there, one thread, with the
granularity measured in that runtime. Then all runtimes' artifacts of a network, dense and slim, are timed in one
interleaved run. Aim: the slim network is faster by at least 0.9 of what was asked (1.8 times for 50%). Weights are
random: latency doesn't depend on them. A runtime whose package isn't installed is left out, and named.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import _results
import torch
from _scores import magnitude
from rich.console import Console
from rich.table import Table

from deploy_prune.budget.candidates import CandidateCosts, identity_of
from deploy_prune.budget.loop import enforce
from deploy_prune.device import RUNNERS, SCRIPT, TIMEOUT_S, entry
from deploy_prune.device.targets import load_target
from deploy_prune.errors import BudgetError, DeployPruneError
from deploy_prune.export import FORMATS, isolated
from deploy_prune.networks import build
from deploy_prune.recipe.parts import ModelPart, PrunePart, parse_budget
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.try_groups import keep_cuttable
from deploy_prune.types import Artifact, Scores, Target, silent

NETWORKS = "torchvision:mobilenet_v2:96,torchvision:mobilenet_v3_small:96,torchvision:resnet18:64"
RUNS, WARMUP = 200, 30


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A runtime's dense and slim artifact, and the loop's own figure."""

    dense: Artifact
    slim: Artifact
    found: float


def main() -> None:
    """Every network, then the table."""
    arguments = parse()
    rows = []
    for told in arguments.networks.split(","):
        source, _, size = told.rpartition(":")
        with TemporaryDirectory() as folder:
            rows += network_rows(source, int(size), arguments, Path(folder))
    show(rows)
    name = "formats" if arguments.precision == "fp32" else f"formats_{arguments.precision}"
    _results.write(name, {"rows": rows}, n=RUNS, budget=arguments.budget, precision=arguments.precision)


def network_rows(source: str, size: int, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row a runtime: what was asked, what the loop measured, and what the common run measures."""
    costs = candidate_costs(source, size, folder)
    scores = magnitude(costs)
    pairs = {}
    for format in arguments.formats.split(","):
        try:
            started = time.perf_counter()
            pairs[format] = pair(costs, target_of(format, arguments.precision), arguments.budget, scores, folder)
            took = time.perf_counter() - started
            print(f"{source} {format}: {pairs[format].found:.3f} of the asked latency, {took:.0f} s", flush=True)
        except DeployPruneError as error:
            print(f"{source} {format}: {error}", flush=True)
    samples = interleaved(list(pairs.values()), [str(FORMATS[format].runtime) for format in pairs])
    rows = []
    for (format, made), (dense, slim) in zip(pairs.items(), samples, strict=True):
        speed_up = median(d / s for d, s in zip(dense, slim, strict=True))
        rows.append({
            "network": source, "image_size": size, "format": format, "dense_ms": median(dense),
            "slim_ms": median(slim), "dense_bytes": made.dense.size_bytes, "slim_bytes": made.slim.size_bytes,
            "speed_up": speed_up, "of_asked": speed_up * float(arguments.budget.rstrip("%")) / 100,
            "loop": made.found,
        })  # fmt: skip
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    return rows


def candidate_costs(source: str, size: int, folder: Path) -> CandidateCosts:
    """The dense network and its groups."""
    torch.manual_seed(0)
    network = build.build_network(ModelPart(source=source), 10).eval()
    example = torch.randn(2, 3, size, size)
    structure = find_groups(network, (example[:1],), PrunePart())
    structure = keep_cuttable(network, structure, (example,), gates_of, PrunePart())
    return CandidateCosts(
        network=network, structure=structure, inputs=(example[:1],), scratch=folder,
        identity=identity_of(ModelPart(source=source)), calibration=(torch.randn(32, 3, size, size),),
    )  # fmt: skip


def target_of(format: str, precision: Any) -> Target:
    """This machine with another runtime."""
    runtime = str(FORMATS[format].runtime)
    return replace(load_target("host"), name=f"host-{format}", format=format, runtime=runtime, precision=precision)


def pair(costs: CandidateCosts, target: Target, budget: str, scores: Scores, folder: Path) -> Pair:
    """Cut to the budget in this runtime; the dense and the slim artifact.

    Raises:
        BudgetError: the budget is out of reach.
        DeployPruneError: the format's package isn't installed, or can't write the network.
    """
    kind = FORMATS[target.format]
    if target.precision not in kind.precisions:
        message = f"there is no {target.precision}"
        raise BudgetError(message)
    if kind.extra is not None:
        kind.extra.require()
    plan = enforce(costs, target, parse_budget(budget, "latency"), scores, silent, "")

    def write(name: str, network: torch.nn.Module) -> Artifact:
        path = folder / f"{target.name}-{name}{kind.suffix}"
        example, real = costs.inputs[0], costs.calibration and costs.calibration[0]
        return isolated.write(target.format, network, example, path, target.precision, costs.export, real)

    slim = cut(costs.network, costs.structure, plan.keep)
    return Pair(dense=write("dense", costs.network), slim=write("slim", slim), found=plan.chosen.ratio)


def interleaved(pairs: list[Pair], runtimes: list[str]) -> list[tuple[list[float], list[float]]]:
    """Every runtime's (dense, slim) samples in ms, all from one interleaved run."""
    models = [
        entry(one, runtime) for made, runtime in zip(pairs, runtimes, strict=True) for one in (made.dense, made.slim)
    ]
    spec = {"mode": "bench", "models": models, "threads": 1, "runs": RUNS, "warmup": WARMUP}
    answer = RUNNERS["local"](SCRIPT, {**spec, "min_s": 1.0, "max_runs": 1000}, TIMEOUT_S)
    samples = answer["samples_ms"]
    return list(zip(samples[::2], samples[1::2], strict=True))


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("network", "format", "speed-up", "slim ms", "dense ms", "of asked", "slim MB", "dense MB")
    for row in rows:
        table.add_row(
            row["network"].rpartition(":")[2], row["format"], f"{row['speed_up']:.2f}x", f"{row['slim_ms']:.3f}",
            f"{row['dense_ms']:.3f}", f"{row['of_asked']:.2f}", f"{row['slim_bytes'] / 1e6:.2f}",
            f"{row['dense_bytes'] / 1e6:.2f}",
        )  # fmt: skip
    Console().print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=NETWORKS)
    parser.add_argument("--formats", default="onnx,ort,litert,executorch,ncnn,openvino")
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "int8"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
