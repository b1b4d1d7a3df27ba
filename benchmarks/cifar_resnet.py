"""CIFAR ResNets cut to MACs budgets: learned masks against baselines, after the cut and after tuning.

    python benchmarks/cifar_resnet.py --data ROOT [--weights FILE] [--network resnet20] [--methods ...] [--seeds 1]
                                      [--speedups 2.1,2.57,4] [--steps 500] [--search-steps 200] [--full]

ROOT (or DEPLOY_PRUNE_DATA) holds CIFAR-10 as cifar10.npz or its usual batches; FILE is the dense network's state dict.
All methods have the same number of training steps in all: what a search takes is taken from its tuning. Tuning is with
10 and with 50 images a class, for fewer steps, and with everything. --full is the papers' protocol (100 epochs), for a
GPU. tp_group_norm and tp_bn_scale are torch-pruning's own pruners. Rows that --rows has are not made again.
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
from typing import Any

import _results
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from deploy_prune import cost, data, models
from deploy_prune.data import Examples, batches
from deploy_prune.recipe import DataPart, ModelPart, PrunePart, RetrainPart, SearchPart
from deploy_prune.retrain.batchnorm import reestimate
from deploy_prune.retrain.fewshot import adapt
from deploy_prune.search import METHODS, SearchGoal, SearchJob, choose, gates_of
from deploy_prune.shell import write_text
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.graph import find_groups
from deploy_prune.surgery.settle import settle
from deploy_prune.training import Session, accuracy, classification, make_accelerator
from deploy_prune.types import Structure, silent

LEARNED = ("dap", "gate", "gumbel")
PRUNERS = {
    "tp_group_norm": ("GroupNormPruner", "GroupMagnitudeImportance"),
    "tp_bn_scale": ("BNScalePruner", "BNScaleImportance"),
}
SHOTS = (10, 50, None)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
EPOCH_STEPS = 391  # of 128 images


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all rows share."""

    network: nn.Module
    structure: Structure
    examples: data.TransferData
    steps: int
    search_steps: int
    device: str

    def session(self, seed: int) -> Session:
        """Where training runs, and its randomness."""
        return Session(accelerator=make_accelerator(self.device), seed=seed, progress=silent)


def load(arguments: argparse.Namespace) -> Bench:
    """The dense network and the data."""
    part = DataPart(source="cifar10", root=str(arguments.data), mean=MEAN, std=STD, augment="shift_flip", image_size=32)
    network = models.build(ModelPart(source=arguments.network), 10)
    default = Path(arguments.data) / "weights" / f"cifar10_{arguments.network}.safetensors"
    models.load_weights(network, arguments.weights or default)
    example = models.example_input(part, 2)
    structure = find_groups(network, (example[:1],), PrunePart())
    structure = settle(network, structure, (torch.randn_like(example),), gates_of, PrunePart())
    steps, search_steps = arguments.steps, arguments.search_steps
    if arguments.full:
        steps, search_steps = 100 * EPOCH_STEPS, 20 * EPOCH_STEPS
    return Bench(
        network=network, structure=structure, examples=data.load(part, 0), steps=steps, search_steps=search_steps,
        device=arguments.device,
    )  # fmt: skip


def ours(bench: Bench, method: str, seed: int, speedup: float) -> Callable[[float], nn.Module]:
    """One search, and what it keeps at each speed-up."""
    model = cost.macs(bench.structure)
    dense = model(bench.structure.dense_counts)
    job = SearchJob(
        network=bench.network, structure=bench.structure, task=classification,
        batches=batches(bench.examples.source_train, 128, seed, "shift_flip"),
        goal=SearchGoal(cost=model, limit=dense / speedup),
        config=SearchPart(method=method, steps=bench.search_steps, batch_size=128), session=bench.session(seed),
    )  # fmt: skip
    found = METHODS[method](job)
    trained = copy.deepcopy(bench.network)
    trained.load_state_dict(found.state)

    def at(asked: float) -> nn.Module:
        keep = choose(found.scores, bench.structure, model, dense / asked, 1, 2)
        return cut(trained, bench.structure, keep)

    return at


def theirs(bench: Bench, pruner: str, importance: str) -> Callable[[float], nn.Module]:
    """torch-pruning's own pruner, global ranking, its number of steps chosen so that the speed-up is met."""
    import torch_pruning as tp

    example = torch.zeros(1, 3, 32, 32)

    def at(asked: float) -> nn.Module:
        network = copy.deepcopy(bench.network)
        heads = [m for m in network.modules() if isinstance(m, nn.Linear)]
        made = getattr(tp.pruner, pruner)(
            network, example, importance=getattr(tp.importance, importance)(), global_pruning=True,
            pruning_ratio=0.95, iterative_steps=200, ignored_layers=heads,
        )  # fmt: skip
        dense, _ = tp.utils.count_ops_and_params(network, example)
        while tp.utils.count_ops_and_params(network, example)[0] > dense / asked:
            made.step()
        return network

    return at


def tuned(bench: Bench, slim: nn.Module, examples: Examples, steps: int, seed: int) -> float:
    """Test accuracy after training with the dense network as teacher."""
    network = copy.deepcopy(slim)
    part = RetrainPart(steps=steps, batch_size=min(128, len(examples)), lr=0.002)
    adapt(network, examples, part, teacher=bench.network, session=bench.session(seed), augment="shift_flip")
    return accuracy(network, bench.examples.source_test)


def few(examples: Examples, shots: int | None, seed: int) -> Examples:
    """So many examples of each class, the same for every method; None: all."""
    if shots is None:
        return examples
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    labels = examples.labels[order]
    chosen = torch.cat([order[labels == c][:shots] for c in labels.unique()])
    return replace(examples, images=examples.images[chosen], labels=examples.labels[chosen])


def row(bench: Bench, slim: nn.Module, seed: int, spent: int) -> dict[str, Any]:
    """Straight after the cut (batch norm measured anew, for every method), and tuned with 10, 50 and all images."""
    stream = batches(bench.examples.source_train, 128, seed, "none")
    reestimate(slim, stream, 8)
    found: dict[str, Any] = {"cut": accuracy(slim, bench.examples.source_test)}
    found["params"] = sum(p.numel() for p in slim.parameters())
    for shots in SHOTS:
        steps = bench.steps - spent if shots is None else bench.steps // 5
        examples = few(bench.examples.source_train, shots, seed)
        found["all" if shots is None else f"{shots} a class"] = tuned(bench, slim, examples, steps, seed)
    return found


def main() -> None:
    """Make every row, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DEPLOY_PRUNE_DATA"))
    parser.add_argument("--weights", type=Path, help="default: ROOT/weights/cifar10_NETWORK.safetensors")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument(
        "--methods", default=",".join([*LEARNED, "uniform", "magnitude", "bn_scale", "taylor", *PRUNERS])
    )
    parser.add_argument("--speedups", default="2.1,2.57,4")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--search-steps", type=int, default=200)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rows", type=Path, default=Path("runs/cifar_resnet.json"))
    arguments = parser.parse_args()
    if arguments.data is None:
        print("skipped: say where CIFAR-10 is, with --data ROOT or DEPLOY_PRUNE_DATA")
        return
    bench, rows = load(arguments), dict[str, dict[str, Any]]()
    if arguments.rows.exists():
        rows = json.loads(arguments.rows.read_text())
    speedups = [float(text) for text in arguments.speedups.split(",")]
    dense = accuracy(bench.network, bench.examples.source_test)
    print(f"{arguments.network}: dense {dense:.2%}", flush=True)
    for seed in range(arguments.seeds):
        for method in arguments.methods.split(","):
            names = {s: f"{arguments.network} {method} {s} {seed}" for s in speedups}
            if all(name in rows for name in names.values()):
                continue
            started = time.perf_counter()
            at = theirs(bench, *PRUNERS[method]) if method in PRUNERS else ours(bench, method, seed, max(speedups))
            search_s = time.perf_counter() - started
            spent = bench.search_steps if method in LEARNED else 0
            for speedup, name in names.items():
                rows[name] = {**row(bench, at(speedup), seed, spent), "search_s": round(search_s, 1)}
                write_text(arguments.rows, json.dumps(rows, indent=1) + "\n")
                print(name, {k: round(v, 4) for k, v in rows[name].items()}, flush=True)
    figures = summarise(rows)
    show(figures)
    _results.write(
        f"cifar_{arguments.network}", {"dense": dense, "figures": figures}, n=arguments.seeds, steps=bench.steps,
        search_steps=bench.search_steps, test_images=len(bench.examples.source_test),
    )  # fmt: skip


def summarise(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means over seeds, keyed by "method speed-up"."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for name, found in rows.items():
        _, method, speedup, _ = name.split(" ")
        by_name.setdefault(f"{method} {speedup}", []).append(found)
    return {name: {key: statistics.mean(one[key] for one in many) for key in many[0]} for name, many in by_name.items()}


def show(figures: dict[str, dict[str, Any]]) -> None:
    columns = ("cut", "10 a class", "50 a class", "all")
    table = Table("method, speed-up", *columns)
    for name, found in figures.items():
        table.add_row(name, *(f"{found[c]:.1%}" for c in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
