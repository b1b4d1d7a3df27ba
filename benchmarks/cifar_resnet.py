"""CIFAR networks cut to MACs and latency budgets: learned masks against baselines, after the cut and after tuning.

    python benchmarks/cifar_resnet.py --data ROOT [--weights FILE] [--network resnet20] [--methods ...] [--seeds 1]
                                      [--points 2.1x,2.57x,50%] [--steps 600] [--search-steps 250] [--inner]

ROOT (or DEPLOY_PRUNE_DATA) holds CIFAR-10 as cifar10.npz or its usual batches; FILE is the dense network's state dict,
by default ROOT/weights/cifar10_NETWORK.safetensors. With --train-steps the dense network is trained first, from scratch
or from FILE, another task's. A point is a speed-up in MACs (2.1x), or the share of the dense latency that the exported
network is measured to have on this machine (50%). All methods have the same number of training steps in all, from the
same teacher: what a search takes is taken from its tuning. Tuning is with 10 and with 50 images a class, for a fifth of
the steps, and with everything; "repaired" is without training, by the 10 images a class alone. A learned method whose
name ends in _depth may take whole blocks, too. --inner leaves the channels that skip connections share as they are, for
every method. --full is the papers' protocol (100 epochs), for a GPU. tp_group_norm and tp_bn_scale are torch-pruning's
own pruners. Rows that --rows has under the same conditions are not made again. On a CPU training runs in bfloat16 where
--precision says so.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _results
import torch
from _cifar import load
from _methods import DEPTH, LEARNED, PRUNERS, Bench, for_method, measured, ours, theirs
from rich.console import Console
from rich.table import Table
from torch import nn

from deploy_prune.data.examples import ClassExamples
from deploy_prune.data.loaders import batches
from deploy_prune.errors import BudgetError
from deploy_prune.recipe.parts import RetrainPart
from deploy_prune.retrain.features import Match, match
from deploy_prune.retrain.fewshot import adapt
from deploy_prune.retrain.repair import repair, some_inputs
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training.batchnorm import reestimate
from deploy_prune.types import Keep

SHOTS = (10, 50, None)
IN_NAMES = {"rows", "seeds", "methods", "data", "weights"}
"""Arguments that are in a row's name, or count by what is found there. The smallest point is what a search is for."""


def tuned(
    bench: Bench, slim: nn.Module, matched: Match, examples: ClassExamples, steps: int, seed: int, point: str
) -> float:
    """Test accuracy after training with the dense network as teacher, as a recipe does by default."""
    network = copy.deepcopy(slim)
    repair = True if bench.starts.get(point) == "dense" else None
    part = RetrainPart(steps=steps, batch_size=min(bench.batch, len(examples)), hold_out=0.0, repair=repair)
    part = part.model_copy(update=bench.retrain)
    adapt(
        network, examples, CLASSIFIER, part, teacher=bench.network, session=bench.session(seed),
        match=matched,
    )  # fmt: skip
    return bench.score(network)


def few(examples: Any, shots: int | None, seed: int) -> ClassExamples:
    """So many examples of each class, the same for every method; None: all."""
    if shots is None:
        return examples
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    labels = examples.labels[order]
    chosen = torch.cat([order[labels == c][:shots] for c in labels.unique()])
    return replace(examples, images=examples.images[chosen], labels=examples.labels[chosen])


def row(bench: Bench, made: tuple[nn.Module, Keep], seed: int, spent: int, point: str) -> dict[str, Any]:
    """Straight after the cut (batch norm measured anew, for every method), repaired, and tuned with 10, 50 and all."""
    stream = batches(replace(bench.examples.source_train, augment="none"), bench.batch, seed)
    slim, matched = made[0].to(memory_format=torch.channels_last), match(bench.structure, made[1])
    repaired = copy.deepcopy(slim)
    reestimate(slim, stream)
    found: dict[str, Any] = {"cut": bench.score(slim)}
    unlabelled = replace(few(bench.examples.source_train, SHOTS[0], seed), augment="none")
    repair(repaired, copy.deepcopy(bench.network), matched, some_inputs(batches(unlabelled, bench.batch, seed)))
    found["repaired"] = bench.score(repaired)
    found["params"] = sum(p.numel() for p in slim.parameters())
    if not point.endswith("x"):
        found["latency"] = measured(bench, slim)
    for shots in SHOTS:
        steps = bench.steps - spent if shots is None else bench.steps // 5
        examples = few(bench.examples.source_train, shots, seed)
        found["all" if shots is None else f"{shots} a class"] = tuned(
            bench, slim, matched, examples, steps, seed, point
        )
    return found


def main() -> None:
    """Make every row, then the table."""
    arguments = parse()
    if arguments.data is None:
        print("skipped: say where CIFAR-10 is, with --data ROOT or DEPLOY_PRUNE_DATA")
        return
    with TemporaryDirectory() as scratch:
        bench = load(arguments, Path(scratch))
        dense = bench.score(bench.network)
        print(f"{arguments.network}: dense {dense:.2%}", flush=True)
        rows = make(bench, arguments)
    figures = summarise(rows)
    show(figures)
    of_latency = all(point.endswith("%") for point in arguments.points.split(","))
    _results.write(
        f"cifar_{'latency_' if of_latency else ''}{arguments.network.rpartition(':')[2]}",
        {"network": arguments.network, "dense": dense, "figures": figures, "out_of_reach": out_of_reach(rows)},
        steps=bench.steps,
        search_steps=bench.search_steps, test_images=len(bench.examples.source_test), precision=bench.precision,
        batch=bench.batch, image_size=arguments.image_size, inner=arguments.inner, retrain=bench.retrain,
    )  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DEPLOY_PRUNE_DATA"))
    parser.add_argument("--weights", type=Path, help="default: ROOT/weights/cifar10_NETWORK.safetensors")
    parser.add_argument("--train-steps", type=int, default=0, help="train the dense network; default: don't")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument(
        "--methods", default=",".join([*LEARNED, "uniform", "magnitude", "bn_scale", "taylor", *PRUNERS])
    )
    parser.add_argument("--points", default="2.1x,2.57x")
    parser.add_argument("--inner", action="store_true", help="keep the channels that skip connections share")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--search-steps", type=int, default=250)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--retrain", type=json.loads, default={}, help="changes to a recipe's defaults, as JSON")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rows", type=Path, default=Path("runs/cifar_resnet.json"))
    return parser.parse_args()


def make(bench: Bench, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every row that --rows doesn't have, keyed "network method point seed"."""
    under = _results.conditions(arguments, IN_NAMES, bench)
    rows: dict[str, dict[str, Any]] = _results.kept(arguments.rows, under)
    points = arguments.points.split(",")
    for seed in range(arguments.seeds):
        for method in arguments.methods.split(","):
            mine = for_method(bench, method)
            at = theirs(bench, *PRUNERS[method]) if method in PRUNERS else ours(mine, method, seed, points)
            for point in points:
                name = f"{arguments.network} {method} {point} {seed}"
                if name in rows:
                    continue
                started = time.perf_counter()
                try:
                    made = at(point)
                except BudgetError as error:
                    rows[name] = {"out_of_reach": str(error)}
                    _results.keep(arguments.rows, under, rows)
                    print(name, error, flush=True)
                    continue
                cut_s = round(time.perf_counter() - started, 1)
                spent = bench.search_steps if method.removesuffix(DEPTH) in LEARNED else 0
                rows[name] = {**row(mine, made, seed, spent, point), "cut_s": cut_s}
                _results.keep(arguments.rows, under, rows)
                print(name, {k: round(v, 4) for k, v in rows[name].items()}, flush=True)
    return rows


def summarise(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means over seeds and their standard errors (of one seed: the test set's), keyed "method point".

    Points that a method can't reach are left out.
    """
    by_name: dict[str, list[dict[str, Any]]] = {}
    for name, found in rows.items():
        _, method, point, _ = name.split(" ")
        if "out_of_reach" in found:
            continue
        by_name.setdefault(f"{method} {point}", []).append(found)
    return {
        name: {key: statistics.mean(one[key] for one in many) for key in many[0]}
        | {"n": len(many), "standard_error": {key: error([one[key] for one in many]) for key in TUNED}}
        for name, many in by_name.items()
    }


def out_of_reach(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Each "method point" that can't be reached."""
    return sorted({" ".join(name.split(" ")[1:3]) for name, found in rows.items() if "out_of_reach" in found})


TUNED = ("cut", "repaired", "10 a class", "50 a class", "all")


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
