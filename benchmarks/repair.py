"""What computing the weights anew after a cut gives back, with no training and with a little.

    python benchmarks/repair.py --data ROOT [--network resnet20] [--methods uniform,magnitude,taylor,obs,gate]
                                [--point 2.57x] [--tuned 0,25,100,400] [--shots 10] [--seeds 1]

ROOT (or DEPLOY_PRUNE_DATA) holds CIFAR-10, and the dense network's weights as for cifar_resnet.py. The network is cut
to POINT, then retrained with so many images of each class for so many steps, with the defaults of a recipe's
`retrain`, each time from the weights as they were cut (batch norms measured anew) and from repaired ones. Only the
images that retraining has are looked at by the repair. Accuracy on the whole test set. Rows that --rows has under the
same conditions are not made again.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import _results
from _cifar import load
from _methods import Bench, ours
from cifar_resnet import few
from rich.console import Console
from rich.table import Table

from deploy_prune.recipe.parts import RetrainPart
from deploy_prune.retrain.features import match
from deploy_prune.retrain.fewshot import adapt
from deploy_prune.tasks.classification import CLASSIFIER

IN_NAMES: Final = {"rows", "seeds", "methods", "tuned", "data", "weights"}
"""Arguments that are in a row's name, or count by what is found there."""


def main() -> None:
    """Make every row, then the table and benchmarks/results/repair_NETWORK.json."""
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
    _results.write(
        f"repair_{arguments.network}", {"network": arguments.network, "dense": dense, "figures": figures},
        search_steps=bench.search_steps, test_images=len(bench.examples.source_test), precision=bench.precision,
        point=arguments.point, shots=arguments.shots,
    )  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DEPLOY_PRUNE_DATA"))
    parser.add_argument("--weights", type=Path, help="default: ROOT/weights/cifar10_NETWORK.safetensors")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--methods", default="uniform,magnitude,taylor,obs,gate")
    parser.add_argument("--point", default="2.57x")
    parser.add_argument("--tuned", default="0,25,100,400", help="numbers of retraining steps")
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--search-steps", type=int, default=250)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=Path, default=Path("runs/repair.json"))
    parser.set_defaults(
        train_steps=0, steps=0, inner=False, image_size=32, batch=128, retrain={}, precision="bf16", full=False
    )  # fmt: skip
    return parser.parse_args()


def make(bench: Bench, arguments: argparse.Namespace) -> dict[str, float]:
    """Test accuracy, keyed "method steps cut|repaired seed"."""
    under = _results.conditions(arguments, IN_NAMES, bench)
    rows: dict[str, float] = _results.kept(arguments.rows, under)
    for seed in range(arguments.seeds):
        examples = few(bench.examples.source_train, arguments.shots, seed)
        for method in arguments.methods.split(","):
            names = {
                (steps, repair): f"{method} {steps} {'repaired' if repair else 'cut'} {seed}"
                for steps in map(int, arguments.tuned.split(","))
                for repair in (False, True)
            }
            if all(name in rows for name in names.values()):
                continue
            slim, keep = ours(bench, method, seed, [arguments.point])(arguments.point)
            for (steps, repair), name in names.items():
                if name in rows:
                    continue
                network, started = copy.deepcopy(slim), time.perf_counter()
                part = RetrainPart(steps=steps, batch_size=64, repair=repair)
                adapt(
                    network, examples, CLASSIFIER, part, teacher=bench.network, session=bench.session(seed),
                    match=match(bench.structure, keep),
                )  # fmt: skip
                seconds = time.perf_counter() - started
                rows[name] = bench.score(network)
                _results.keep(arguments.rows, under, rows)
                print(name, f"{rows[name]:.2%} {seconds:.0f} s", flush=True)
    return rows


def summarise(rows: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Means over seeds, keyed "method steps"."""
    gathered: dict[str, dict[str, list[float]]] = {}
    for name, accuracy in rows.items():
        method, steps, kind, _ = name.split()
        gathered.setdefault(f"{method} {steps}", {}).setdefault(kind, []).append(accuracy)
    return {
        name: {kind: statistics.mean(found) for kind, found in by_kind.items()}
        | {"n": min(len(found) for found in by_kind.values())}
        for name, by_kind in gathered.items()
    }


def show(figures: dict[str, dict[str, Any]]) -> None:
    """A row for each method and number of steps."""
    table = Table("method", "steps", "from the cut", "from the repair", "seeds")
    for name, found in figures.items():
        method, steps = name.split()
        table.add_row(method, steps, f"{found['cut']:.1%}", f"{found['repaired']:.1%}", str(found["n"]))
    Console().print(table)


if __name__ == "__main__":
    main()
