"""YOLO11n cut to half of its measured latency in ONNX Runtime, ncnn and LiteRT, from Python.

    python benchmarks/yolo_latency.py [--network yolo11n] [--size 320] [--formats onnx,ncnn,litert] [--budget 50%]

The network is Ultralytics' as it is built by name, with random weights (latency doesn't depend on them), in its raw
form. `deploy_prune.prune` meets the budget in each runtime on this machine, one thread: it finds the groups and the
granularity, makes a latency table, and cuts, exports and times candidates beside the dense network. Scores are the
weights' magnitudes.

Then the finished network is written, and timed once more beside the dense one and beside a network that has the same
share of every group and most nearly the same MACs, in turns. No choice depends on that: it is ``share`` in the rows,
and ``error`` is how far it is from what was asked. Aim: within 3%. Needs the extra `ultralytics`, which is AGPL-3.0.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import _results
import torch
from _scores import first, uniform

import deploy_prune
from deploy_prune import cost
from deploy_prune.api.prune import Pruned
from deploy_prune.device.targets import load_target
from deploy_prune.export import FORMATS, isolated
from deploy_prune.families import RawForm, raw_form
from deploy_prune.latency.paired import paired_ratio
from deploy_prune.latency.steady import measure_steadily
from deploy_prune.networks.build import build_network
from deploy_prune.recipe.parts import ExportPart, ModelPart
from deploy_prune.surgery.cut import cut
from deploy_prune.training.loop import Session, make_accelerator
from deploy_prune.types import Artifact, Target

CLASSES: Final = 80


def main() -> None:
    """Every runtime in turn."""
    arguments = parse()
    torch.manual_seed(0)
    example = torch.randn(2, 3, arguments.size, arguments.size)
    network = build_network(ModelPart(source=f"ultralytics:{arguments.network}"), CLASSES)
    form = raw_form(network, (example,))
    rows: dict[str, Any] = {}
    for format in arguments.formats.split(","):
        with TemporaryDirectory() as folder:
            os.environ["DEPLOY_PRUNE_CACHE"] = str(Path(folder) / "cache")
            rows[format] = row(form, example, target_of(format), arguments, Path(folder))
        print(format, {key: round(x, 4) if isinstance(x, float) else x for key, x in rows[format].items()}, flush=True)
        figures = {"rows": rows, "worst": max(abs(each["error"]) for each in rows.values())}
        told = {"network": arguments.network, "size": arguments.size, "budget": arguments.budget, "n": arguments.runs}
        _results.write("yolo_latency", figures, **told)


def target_of(format: str) -> Target:
    """This machine with another runtime."""
    return replace(load_target("host"), name=f"host-{format}", format=format, runtime=str(FORMATS[format].runtime))


def row(
    form: RawForm, example: torch.Tensor, target: Target, arguments: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """What was asked, what the loop and the last measurement found, and uniform pruning's latency over ours."""
    began = time.perf_counter()
    (found,) = deploy_prune.prune(
        form, example, lambda forward, batch: forward(batch)[0].mean(), [example], budget=arguments.budget,
        target=target, method="magnitude", runs=arguments.runs,
        session=Session(accelerator=make_accelerator("cpu"), seed=0),
    )  # fmt: skip
    seconds = time.perf_counter() - began
    macs, dense = cost.macs(found.structure), found.structure.dense_counts
    even = uniform(found.structure, found.macs)
    plain = cut(form.network, found.structure, first(found.structure, even))
    networks = {"dense": form.network, "slim": found.network, "uniform": plain}
    artifacts = [written(module, example, target, folder, name) for name, module in networks.items()]
    whole, slim, beside = measure_steadily(target, artifacts, arguments.runs, 10)
    ratio, asked = paired_ratio(beside, slim), found.budget.limit
    return {
        "asked": asked, "share": slim.p50_ms / whole.p50_ms, "error": slim.p50_ms / whole.p50_ms / asked - 1,
        "in_the_loop": found.plan.chosen.observed / found.plan.chosen.dense, "looks": len(found.plan.candidates),
        "macs": found.macs / found.dense_macs, "uniform_macs": macs(even) / macs(dense),
        "uniform_over_ours": ratio.median, "interval": [ratio.low, ratio.high], "dense_ms": whole.p50_ms,
        "slim_ms": slim.p50_ms, "uniform_ms": beside.p50_ms, "samples": len(slim.samples_ms),
        "disturbed": slim.disturbed, "groups": len(found.structure.groups), "proof": proof(found),
        "seconds": round(seconds, 1),
    }  # fmt: skip


def proof(found: Pruned) -> float:
    """How far the slim network is from the masked one, relative."""
    return float(found.proof.difference)


def written(module: torch.nn.Module, example: torch.Tensor, target: Target, folder: Path, name: str) -> Artifact:
    path = folder / f"{name}{FORMATS[target.format].suffix}"
    return isolated.write(target.format, module, example[:1], path, target.precision, ExportPart())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="yolo11n")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--formats", default="onnx,ncnn,litert")
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--runs", type=int, default=60)
    return parser.parse_args()


if __name__ == "__main__":
    main()
