"""How much of a network's accuracy comes back with few examples, and what each part of the retrainer adds to it.

    python benchmarks/recovery.py --data ROOT [--network resnet56] [--point 50%] [--shots 10,50,500] [--seeds 1]
                                  [--search-steps 400] [--ablate] [--inner]

ROOT (or DEPLOY_PRUNE_DATA) holds CIFAR-10, and the dense network's weights as for cifar_resnet.py. The network is cut
to POINT of its MACs by a search on all training images, then retrained with so many images of each class of the same
task, with the defaults of a recipe's `retrain`. --ablate: again with each of those defaults switched off, one at a
time. Accuracy on the whole test set, mean and 95% interval over seeds (which draw the images). Searches and rows
that --rows has under the same conditions are not made again. --full: 20 passes of search, for a GPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import _results
import torch
from _cifar import load
from _methods import Bench, search
from cifar_resnet import few
from rich.console import Console
from rich.table import Table
from torch import nn

from deploy_prune import cost
from deploy_prune.budget.choose import choose
from deploy_prune.data.loaders import batches
from deploy_prune.recipe.parts import RetrainPart
from deploy_prune.retrain.episodes import interval
from deploy_prune.retrain.features import Match, match
from deploy_prune.retrain.fewshot import adapt
from deploy_prune.search.methods import values
from deploy_prune.surgery.cut import cut
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training.batchnorm import reestimate

IN_NAMES: Final = {"rows", "seeds", "shots", "only", "ablate", "data", "weights"}
"""Arguments that are in a row's name, or count by what is found there."""
WITHOUT: Final[dict[str, dict[str, Any]]] = {
    "all defaults": {},
    "no distillation": {"distill": 0.0, "features": 0.0},
    "no features": {"features": 0.0},
    "no logits of the teacher": {"distill": 0.0},
    "running batch-norm statistics": {"batchnorm": "running"},
    "frozen batch-norm statistics": {"batchnorm": "freeze"},
    "re-estimated batch-norm statistics": {"batchnorm": "reestimate"},
    "one rate for all layers": {"first_layer_lr": 1.0},
    "layer-wise rates": {"first_layer_lr": 0.1},
    "no average of weights": {"ema": None},
    "average of weights": {"ema": 0.98},
    "mixup": {"mix": "mixup"},
    "cutmix": {"mix": "cutmix"},
}


def main() -> None:
    """Search, cut, retrain, and write benchmarks/results/recovery.json."""
    arguments = parse()
    if arguments.data is None:
        print("skipped: say where CIFAR-10 is, with --data ROOT or DEPLOY_PRUNE_DATA")
        return
    with TemporaryDirectory() as scratch:
        bench = load(arguments, Path(scratch))
        dense = bench.score(bench.network)
        slim, matched = slimmed(bench, arguments)
        cut_accuracy = bench.score(slim)
        print(f"{arguments.network}: dense {dense:.2%}, after the cut {cut_accuracy:.2%}", flush=True)
        rows = make(bench, slim, matched, arguments)
    figures = summarise(rows)
    show(figures, dense)
    _results.write(
        f"recovery_{arguments.network}", {"network": arguments.network, "point": arguments.point, "dense": dense,
        "cut": cut_accuracy, "figures": figures}, search_steps=bench.search_steps, precision=bench.precision,
        test_images=len(bench.examples.source_test), inner=arguments.inner, retrain=arguments.retrain,
    )  # fmt: skip


def slimmed(bench: Bench, arguments: argparse.Namespace) -> tuple[nn.Module, Match]:
    """The cut network, with the weights that the search left and batch norm measured anew, and its match."""
    searched = IN_NAMES | {"retrain"}
    kept = _results.kept_file(arguments.rows, _results.conditions(arguments, searched, bench), "search")
    share, model = float(arguments.point.rstrip("%")) / 100, cost.macs(bench.structure)
    if not kept.exists():
        found = search(bench, arguments.method, 0, "macs", share)
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state": found.state, "scores": found.scores}, kept)
    found_again = torch.load(kept, weights_only=True)
    scores = values(arguments.method, found_again["scores"], model)
    keep = choose(scores, bench.structure, model, share * model(bench.structure.dense_counts), 1, 2)
    trained = copy.deepcopy(bench.network)
    trained.load_state_dict(found_again["state"])
    slim = cut(trained, bench.structure, keep).to(memory_format=torch.channels_last)
    plain = replace(bench.examples.source_train, augment="none")
    reestimate(slim, batches(plain, bench.batch, 0))
    return slim, match(bench.structure, keep)


def make(bench: Bench, slim: nn.Module, matched: Match, arguments: argparse.Namespace) -> dict[str, float]:
    """Every row that --rows doesn't have, keyed "SHOTS, WITHOUT, SEED"."""
    under = _results.conditions(arguments, IN_NAMES, bench)
    rows: dict[str, float] = _results.kept(arguments.rows, under)
    default, variants = RetrainPart(), ["all defaults"]
    if arguments.ablate:
        variants += [n for n, change in WITHOUT.items() if default.model_copy(update=change) != default]
    if arguments.only:
        variants = arguments.only.split(",")
    for seed in range(arguments.seeds):
        for shots in map(int, arguments.shots.split(",")):
            for variant in variants:
                name = f"{shots}, {variant}, {seed}"
                if name not in rows:
                    part = default.model_copy(update=WITHOUT[variant] | arguments.retrain)
                    rows[name] = retrained(bench, slim, matched, shots, seed, part)
                    _results.keep(arguments.rows, under, rows)
                    print(name, f"{rows[name]:.2%}", flush=True)
    return rows


def retrained(bench: Bench, slim: nn.Module, matched: Match, shots: int, seed: int, part: RetrainPart) -> float:
    """Test accuracy after retraining with so many images a class."""
    network = copy.deepcopy(slim)
    examples = few(bench.examples.source_train, shots, seed)
    adapt(
        network, examples, CLASSIFIER, part, teacher=bench.network, session=bench.session(seed),
        match=matched,
    )  # fmt: skip
    return bench.score(network)


def summarise(rows: dict[str, float]) -> dict[str, dict[str, float]]:
    """Mean and half the 95% interval over seeds (None of one), keyed "SHOTS, WITHOUT"."""
    gathered: dict[str, list[float]] = {}
    for name, value in rows.items():
        gathered.setdefault(name.rpartition(", ")[0], []).append(value)
    return {
        name: dict(zip(("mean", "interval"), interval(values), strict=True)) | {"n": len(values)}
        for name, values in gathered.items()
    }


def show(figures: dict[str, dict[str, float]], dense: float) -> None:
    table = Table("images a class, retraining", "accuracy", "below dense", "seeds")
    for name, found in figures.items():
        half = "" if found["interval"] is None else f" ± {found['interval']:.2%}"
        table.add_row(name, f"{found['mean']:.2%}{half}", f"{100 * (dense - found['mean']):.2f}", str(found["n"]))
    Console().print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DEPLOY_PRUNE_DATA"))
    parser.add_argument("--weights", type=Path, help="default: ROOT/weights/cifar10_NETWORK.safetensors")
    parser.add_argument("--network", default="resnet56")
    parser.add_argument("--method", default="gate")
    parser.add_argument("--point", default="50%")
    parser.add_argument("--shots", default="10,50,500")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--search-steps", type=int, default=400)
    parser.add_argument("--inner", action="store_true", help="keep the channels that skip connections share")
    parser.add_argument("--ablate", action="store_true", help="also without each default")
    parser.add_argument("--only", help="these variants alone, by name")
    parser.add_argument("--retrain", type=json.loads, default={}, help="changes to the defaults, as JSON")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rows", type=Path, default=Path("runs/recovery.json"))
    arguments = parser.parse_args()
    arguments.steps, arguments.image_size, arguments.train_steps = 0, 32, 0
    return arguments


if __name__ == "__main__":
    main()
