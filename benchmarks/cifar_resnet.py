"""CIFAR networks cut to MACs and latency budgets: learned masks against baselines, after the cut and after tuning.

    python benchmarks/cifar_resnet.py --data ROOT [--weights FILE] [--network resnet20] [--methods ...] [--seeds 1]
                                      [--points 2.1x,2.57x,50%] [--steps 400] [--search-steps 200] [--full]

ROOT (or DEPLOY_PRUNE_DATA) holds CIFAR-10 as cifar10.npz or its usual batches; FILE is the dense network's state dict,
by default ROOT/weights/cifar10_NETWORK.safetensors. Without one (--train-steps) the dense network is trained first. A
point is a speed-up in MACs (2.1x) or a share of the dense latency that the exported network is measured to have on this
machine (50%). All methods have the same number of training steps in all, from the same teacher: what a search takes is
taken from its tuning. Tuning is with 10 and with 50 images a class, for a fifth of the steps, and with everything.
--full is the papers' protocol (100 epochs), for a GPU. tp_group_norm and tp_bn_scale are torch-pruning's own pruners.
Rows that --rows has are not made again. On a CPU training runs in bfloat16 where --precision says so.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _results
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from deploy_prune import cost, data, models
from deploy_prune.data import Examples, batches
from deploy_prune.enforce import enforce
from deploy_prune.errors import BudgetError
from deploy_prune.export import onnx
from deploy_prune.latency.steady import measure_steadily
from deploy_prune.latency.targets import load_target
from deploy_prune.recipe import (
    DataPart,
    ExportPart,
    ModelPart,
    PrunePart,
    Recipe,
    RetrainPart,
    SourceSearchPart,
    TrainPart,
    parse_budget,
)
from deploy_prune.retrain.batchnorm import reestimate
from deploy_prune.retrain.distill import taught
from deploy_prune.retrain.fewshot import adapt
from deploy_prune.search import METHODS, SearchGoal, SearchJob, choose, gates_of
from deploy_prune.shell import write_text
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.graph import find_groups
from deploy_prune.surgery.settle import settle
from deploy_prune.training import Session, accuracy, make_accelerator, train_classifier
from deploy_prune.types import SearchResult, Structure, silent
from deploy_prune.workbench import Workbench

LEARNED = ("dap", "gate", "gumbel")
PRUNERS = {
    "tp_group_norm": ("GroupNormPruner", "GroupMagnitudeImportance"),
    "tp_bn_scale": ("BNScalePruner", "BNScaleImportance"),
}
SHOTS = (10, 50, None)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
EPOCH_STEPS = 391  # of 128 images
TRIES = 200  # steps of torch-pruning's pruners from dense to 5%

Cutter = Callable[[str], nn.Module]
"""The slim network at a point."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all rows share."""

    network: nn.Module
    structure: Structure
    examples: data.TransferData
    workbench: Workbench
    steps: int
    search_steps: int
    device: str
    precision: str

    def session(self, seed: int) -> Session:
        """Where training runs, and its randomness."""
        return Session(accelerator=make_accelerator(self.device, self.precision), seed=seed, progress=silent)

    def accuracy(self, network: nn.Module) -> float:
        """On the whole test set, in the precision of training."""
        accelerator = make_accelerator(self.device, self.precision)
        with accelerator.autocast():
            return accuracy(network, self.examples.source_test, accelerator=accelerator)


def load(arguments: argparse.Namespace, scratch: Path) -> Bench:
    """The dense network and the data."""
    part = DataPart(source="cifar10", root=str(arguments.data), mean=MEAN, std=STD, augment="shift_flip", image_size=32)
    examples = data.load(part, 0)
    torch.manual_seed(0)
    network = models.build(ModelPart(source=arguments.network), 10)
    if arguments.train_steps:
        train(network, examples, arguments)
    else:
        name = f"cifar10_{arguments.network}.safetensors"
        models.load_weights(network, arguments.weights or Path(arguments.data) / "weights" / name)
    example = models.example_input(part, 2)
    structure = find_groups(network, (example[:1],), PrunePart())
    structure = settle(network, structure, (torch.randn_like(example),), gates_of, PrunePart())
    steps, search_steps = arguments.steps, arguments.search_steps
    if arguments.full:
        steps, search_steps = 100 * EPOCH_STEPS, 20 * EPOCH_STEPS
    recipe = Recipe(name="cifar", model=ModelPart(source=arguments.network), data=part, targets=["host"])
    bench = Workbench(network=network, structure=structure, example=example[:1], recipe=recipe, scratch=scratch)
    return Bench(
        network=network.to(memory_format=torch.channels_last), structure=structure, examples=examples, workbench=bench,
        steps=steps, search_steps=search_steps, device=arguments.device, precision=arguments.precision,
    )  # fmt: skip


def train(network: nn.Module, examples: data.TransferData, arguments: argparse.Namespace) -> None:
    """The dense network from scratch, kept beside the rows."""
    kept = arguments.rows.with_suffix(".pt")
    if not kept.exists():
        session = Session(accelerator=make_accelerator(arguments.device, arguments.precision), seed=0, progress=silent)
        part = TrainPart(steps=arguments.train_steps, batch_size=128, lr=0.1)
        train_classifier(network, examples.source_train, part, session=session, augment="shift_flip")
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), kept)
    models.load_weights(network, kept)


def ours(bench: Bench, method: str, seed: int, points: list[str]) -> Cutter:
    """One search for the smallest of the points of one metric, and what it keeps at each."""
    found: dict[str, SearchResult] = {}

    def at(point: str) -> nn.Module:
        metric = "macs" if point.endswith("x") else "latency"
        if metric not in found:
            alike = [p for p in points if p.endswith("x") == point.endswith("x")]
            found[metric] = search(bench, method, seed, metric, min(map(share, alike)))
        result = found[metric]
        trained = copy.deepcopy(bench.network)
        trained.load_state_dict(result.state)
        if metric == "macs":
            model = cost.macs(bench.structure)
            keep = choose(
                result.scores, bench.structure, model, share(point) * model(bench.structure.dense_counts), 1, 2
            )
        else:
            budget = parse_budget(point, "latency")
            keep = enforce(bench.workbench, load_target("host"), budget, result.scores, silent, point).keep
        return cut(trained, bench.structure, keep)

    return at


def share(point: str) -> float:
    """Of the dense cost: "2.1x" -> 1 / 2.1, "50%" -> 0.5."""
    return 1 / float(point[:-1]) if point.endswith("x") else float(point[:-1]) / 100


def search(bench: Bench, method: str, seed: int, metric: Any, limit: float) -> SearchResult:
    """Search with the dense network as teacher, as a recipe does."""
    model = bench.workbench.cost(load_target("host"), metric)
    config = SourceSearchPart(method=method, steps=bench.search_steps, batch_size=128)
    session = bench.session(seed)
    teacher = copy.deepcopy(bench.network).to(session.accelerator.device).eval()
    job = SearchJob(
        network=bench.network, structure=bench.structure, task=taught(teacher, config.distill, config.temperature),
        batches=batches(bench.examples.source_train, 128, seed, "shift_flip"),
        goal=SearchGoal(cost=model, limit=limit * model(bench.structure.dense_counts)), config=config, session=session,
    )  # fmt: skip
    return METHODS[method](job)


def theirs(bench: Bench, pruner: str, importance: str) -> Cutter:
    """torch-pruning's own pruner, global ranking, stopped at the first step that is within the point.

    For latency, channels are rounded to this machine's granularity, as its option has it, and the step is found by
    bisection with measurements of the exported network.
    """
    import torch_pruning as tp

    example = torch.zeros(1, 3, 32, 32)
    target = load_target("host")
    dense_macs, _ = tp.utils.count_ops_and_params(bench.network, example)

    def stepped(steps: int, round_to: int | None) -> nn.Module:
        network = copy.deepcopy(bench.network)
        heads = [m for m in network.modules() if isinstance(m, nn.Linear)]
        made = getattr(tp.pruner, pruner)(
            network, example, importance=getattr(tp.importance, importance)(), global_pruning=True,
            pruning_ratio=0.95, iterative_steps=TRIES, ignored_layers=heads, round_to=round_to,
        )  # fmt: skip
        for _ in range(steps):
            made.step()
        return network

    def within(network: nn.Module, point: str) -> bool:
        if point.endswith("x"):
            return tp.utils.count_ops_and_params(network, example)[0] <= share(point) * dense_macs
        return measured(bench, network) <= share(point) * (1 + bench.workbench.recipe.measure.tolerance)

    def at(point: str) -> nn.Module:
        round_to = None if point.endswith("x") else bench.workbench.granule(target)
        low, high = 0, TRIES
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if within(stepped(middle, round_to), point) else (middle, high)
        network = stepped(high, round_to)
        if not within(network, point):
            message = f"{pruner} can't reach {point}."
            raise BudgetError(message)
        return network

    return at


def measured(bench: Bench, network: nn.Module) -> float:
    """Latency of the exported network over the dense one's, interleaved."""
    target, part = load_target("host"), bench.workbench.recipe.measure
    with TemporaryDirectory() as folder:
        pair = [
            onnx.write(one, bench.workbench.example, Path(folder) / f"{i}.onnx", "fp32", ExportPart())
            for i, one in enumerate((bench.network, network))
        ]
        dense, slim = measure_steadily(target, pair, part.runs, part.warmup)
    return slim.p50_ms / dense.p50_ms


def tuned(bench: Bench, slim: nn.Module, examples: Examples, steps: int, seed: int) -> float:
    """Test accuracy after training with the dense network as teacher."""
    network = copy.deepcopy(slim)
    part = RetrainPart(steps=steps, batch_size=min(128, len(examples)), lr=0.002)
    adapt(network, examples, part, teacher=bench.network, session=bench.session(seed), augment="shift_flip")
    return bench.accuracy(network)


def few(examples: Examples, shots: int | None, seed: int) -> Examples:
    """So many examples of each class, the same for every method; None: all."""
    if shots is None:
        return examples
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    labels = examples.labels[order]
    chosen = torch.cat([order[labels == c][:shots] for c in labels.unique()])
    return replace(examples, images=examples.images[chosen], labels=examples.labels[chosen])


def row(bench: Bench, slim: nn.Module, seed: int, spent: int, point: str) -> dict[str, Any]:
    """Straight after the cut (batch norm measured anew, for every method), and tuned with 10, 50 and all images."""
    stream = batches(bench.examples.source_train, 128, seed, "none")
    slim = slim.to(memory_format=torch.channels_last)
    reestimate(slim, stream, 8)
    found: dict[str, Any] = {"cut": bench.accuracy(slim)}
    found["params"] = sum(p.numel() for p in slim.parameters())
    if not point.endswith("x"):
        found["latency"] = measured(bench, slim)
    for shots in SHOTS:
        steps = bench.steps - spent if shots is None else bench.steps // 5
        examples = few(bench.examples.source_train, shots, seed)
        found["all" if shots is None else f"{shots} a class"] = tuned(bench, slim, examples, steps, seed)
    return found


def main() -> None:
    """Make every row, then the table."""
    arguments = parse()
    if arguments.data is None:
        print("skipped: say where CIFAR-10 is, with --data ROOT or DEPLOY_PRUNE_DATA")
        return
    with TemporaryDirectory() as scratch:
        bench = load(arguments, Path(scratch))
        dense = bench.accuracy(bench.network)
        print(f"{arguments.network}: dense {dense:.2%}", flush=True)
        rows = make(bench, arguments)
    figures = summarise(rows)
    show(figures)
    _results.write(
        f"cifar_{arguments.network.rpartition(':')[2]}",
        {"network": arguments.network, "dense": dense, "figures": figures}, steps=bench.steps,
        search_steps=bench.search_steps, test_images=len(bench.examples.source_test), precision=bench.precision,
    )  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DEPLOY_PRUNE_DATA"))
    parser.add_argument("--weights", type=Path, help="default: ROOT/weights/cifar10_NETWORK.safetensors")
    parser.add_argument("--train-steps", type=int, default=0, help="train the dense network; default: it has weights")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument(
        "--methods", default=",".join([*LEARNED, "uniform", "magnitude", "bn_scale", "taylor", *PRUNERS])
    )
    parser.add_argument("--points", default="2.1x,2.57x")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--search-steps", type=int, default=200)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rows", type=Path, default=Path("runs/cifar_resnet.json"))
    return parser.parse_args()


def make(bench: Bench, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every row that --rows doesn't have, keyed "network method point seed"."""
    rows: dict[str, dict[str, Any]] = json.loads(arguments.rows.read_text()) if arguments.rows.exists() else {}
    points = arguments.points.split(",")
    for seed in range(arguments.seeds):
        for method in arguments.methods.split(","):
            at = theirs(bench, *PRUNERS[method]) if method in PRUNERS else ours(bench, method, seed, points)
            for point in points:
                name = f"{arguments.network} {method} {point} {seed}"
                if name in rows:
                    continue
                started = time.perf_counter()
                try:
                    slim = at(point)
                except BudgetError as error:
                    print(name, error, flush=True)
                    continue
                cut_s = round(time.perf_counter() - started, 1)
                spent = bench.search_steps if method in LEARNED else 0
                rows[name] = {**row(bench, slim, seed, spent, point), "cut_s": cut_s}
                write_text(arguments.rows, json.dumps(rows, indent=1) + "\n")
                print(name, {k: round(v, 4) for k, v in rows[name].items()}, flush=True)
    return rows


def summarise(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means over seeds and their standard errors (of one seed: the test set's), keyed "method point"."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for name, found in rows.items():
        _, method, point, _ = name.split(" ")
        by_name.setdefault(f"{method} {point}", []).append(found)
    return {
        name: {key: statistics.mean(one[key] for one in many) for key in many[0]}
        | {"n": len(many), "standard_error": {key: error([one[key] for one in many]) for key in TUNED}}
        for name, many in by_name.items()
    }


TUNED = ("cut", "10 a class", "50 a class", "all")


def error(values: list[float], test_images: int = 10_000) -> float:
    """Of the mean over seeds; of a single value, that of a share of so many test images."""
    if len(values) > 1:
        return statistics.stdev(values) / len(values) ** 0.5
    return (values[0] * (1 - values[0]) / test_images) ** 0.5


def show(figures: dict[str, dict[str, Any]]) -> None:
    table = Table("method, point", *TUNED, "n")
    for name, found in figures.items():
        cells = (f"{found[c]:.1%} ± {found['standard_error'][c]:.1%}" for c in TUNED)
        table.add_row(name, *cells, str(found["n"]))
    Console().print(table)


if __name__ == "__main__":
    main()
