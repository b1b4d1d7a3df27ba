"""Architectures found on plenty of source data, carried to new classes with K examples each.

    python benchmarks/transfer.py --data ROOT [--source NPZ] [--target NPZ] [--network resnet20] [--points 50%,25%]
                                  [--shots 1,5,10,50] [--ways 10] [--episodes 5] [--search-steps 300] [--inner] [--full]
                                  [--weights-from inherit,fresh] [--name transfer]

The source (default: ROOT's CIFAR-10) is what masks are learned on. An episode draws WAYS classes of the target
(default: ROOT's CIFAR-100) and K training images of each, the same for every method. Networks cut to POINT of MACs are
adapted to them with a recipe's defaults, from inherited weights or fresh ones, with the dense network, fine-tuned on
the same images, as teacher; all test images of the classes are the test. `magnitude, fresh` is the magnitude mask
re-initialised. Mean accuracy and 95% interval over episodes. Searches and rows that --rows has
under the same conditions are not made again.
--full: 20 passes of search and 20 episodes, for a GPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import _results
import torch
from _cifar import load
from _methods import LEARNED, Bench, search
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from deploy_prune import cost
from deploy_prune.budget.choose import choose
from deploy_prune.data import sources, splits
from deploy_prune.data.splits import TransferData
from deploy_prune.networks import build, weights
from deploy_prune.recipe.parts import DataPart, ModelPart, RetrainPart
from deploy_prune.retrain.episodes import interval
from deploy_prune.retrain.features import Match, match
from deploy_prune.retrain.fewshot import adapt, for_new_classes
from deploy_prune.search.methods import values
from deploy_prune.surgery.cut import cut
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training.loop import make_accelerator, network_score, set_seed
from deploy_prune.types import Keep

METHODS: Final = (*LEARNED, "magnitude", "random", "uniform")
FULL_EPISODES: Final = 20
IN_NAMES: Final = {
    "rows",
    "name",
    "episodes",
    "shots",
    "methods",
    "weights_from",
    "data",
    "source",
    "target",
    "weights",
}
"""Arguments that are in a row's name, or count by what is found there. The smallest point is what a search is for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What a method found on the source: masks per point, and the dense network's weights when it ended."""

    keep: Mapping[str, Keep]
    state: Mapping[str, Tensor]


def main() -> None:
    """Search once per method, adapt to every episode, and write benchmarks/results/transfer.json."""
    arguments = parse()
    if arguments.data is None and (arguments.source is None or arguments.target is None):
        print("skipped: say where CIFAR-10 and CIFAR-100 are, with --data ROOT or DEPLOY_PRUNE_DATA")
        return
    with TemporaryDirectory() as scratch:
        bench = load(arguments, Path(scratch))
        methods = arguments.methods.split(",")
        found = {method: searched(bench, method, arguments) for method in methods}
        rows = make(bench, found, arguments)
    figures = summarise(rows)
    show(figures, arguments)
    _results.write(
        arguments.name, {"network": arguments.network, "figures": figures}, search_steps=bench.search_steps,
        episodes=arguments.episodes, ways=arguments.ways, inner=arguments.inner, precision=bench.precision,
        retrain=arguments.retrain,
    )  # fmt: skip


def searched(bench: Bench, method: str, arguments: argparse.Namespace) -> Found:
    """One search for the smallest point, kept beside the rows, and what it keeps at each."""
    points = arguments.points.split(",")
    searched = IN_NAMES | {"ways", "retrain"}
    kept = _results.kept_file(arguments.rows, _results.conditions(arguments, searched, bench), method)
    shares, model = [float(p.rstrip("%")) / 100 for p in points], cost.macs(bench.structure)
    if not kept.exists():
        result = search(bench, method, 0, "macs", min(shares))
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state": result.state, "scores": result.scores}, kept)
    result = torch.load(kept, weights_only=True)
    dense, scores = model(bench.structure.dense_counts), values(method, result["scores"], model)
    keep = {
        point: choose(scores, bench.structure, model, share * dense, 1, 2)
        for point, share in zip(points, shares, strict=True)
    }
    return Found(keep=keep, state=result["state"])


def make(bench: Bench, found: Mapping[str, Found], arguments: argparse.Namespace) -> dict[str, float]:
    """Every row that --rows doesn't have, keyed "K, EPISODE, POINT, METHOD, INIT"."""
    target = _results.collection_digest(sources.read(target_part(bench, 1, arguments)))
    under = _results.conditions(arguments, IN_NAMES, bench, target=target)
    rows: dict[str, float] = _results.kept(arguments.rows, under)
    for episode in range(arguments.episodes):
        for shots in map(int, arguments.shots.split(",")):
            missing = [row for row in wanted(found, arguments) if f"{shots}, {episode}, {', '.join(row)}" not in rows]
            if not missing:
                continue
            task = Task(bench, splits.load(target_part(bench, shots, arguments), episode), episode, arguments)
            for row in missing:
                name = f"{shots}, {episode}, {', '.join(row)}"
                rows[name] = task.score(found, *row)
                print(name, f"{rows[name]:.1%}", flush=True)
                _results.keep(arguments.rows, under, rows)
    return rows


def wanted(found: Mapping[str, Found], arguments: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Point, method and init of an episode's rows."""
    for init in arguments.weights_from.split(","):
        yield "100%", "dense", init
        for point in arguments.points.split(","):
            for method in found:
                yield point, method, init


def target_part(bench: Bench, shots: int, arguments: argparse.Namespace) -> DataPart:
    """The target's examples: normalised as the source's, as its weights expect."""
    example: Any = bench.examples.source_train
    given = arguments.target
    return DataPart(
        source="npz" if given else "cifar100", root=str(given or arguments.data), image_size=arguments.image_size,
        shots=shots, ways=arguments.ways, augment="shift_flip", mean=example.mean.tolist(), std=example.std.tolist(),
    )  # fmt: skip


class Task:
    """One episode with K shots: its examples and its teacher."""

    def __init__(self, bench: Bench, examples: TransferData, episode: int, arguments: argparse.Namespace) -> None:
        self.bench, self.examples, self.episode = bench, examples, episode
        self.part = RetrainPart().model_copy(update=arguments.retrain)
        self.model = ModelPart(source=arguments.network)
        self.head = build.head_tensors(self.model, examples.num_target)
        self.dense = self.adapted(self.network(bench.network.state_dict()), None, None, "inherit")

    def network(self, state: Mapping[str, Tensor] | None) -> nn.Module:
        """The dense network for the episode's classes: new class layers, all else as in ``state``, or new, too."""
        set_seed(self.episode)
        network = build.build_network(self.model, self.examples.num_target)
        if state is not None:
            body = {name: tensor for name, tensor in state.items() if name not in self.head}
            weights.load_state(network, body, strict=False)
        return network

    def adapted(self, network: nn.Module, teacher: nn.Module | None, matched: Match | None, init: str) -> nn.Module:
        """Trained on the shots."""
        adapt(
            network.to(memory_format=torch.channels_last), self.examples.target_train, CLASSIFIER,
            for_new_classes(self.part.model_copy(update={"init": init})), teacher=teacher,
            session=self.bench.session(self.episode), match=matched,
        )  # fmt: skip
        return network

    def score(self, found: Mapping[str, Found], point: str, method: str, init: str) -> float:
        """Test accuracy of one row."""
        if method == "dense":
            dense = self.dense if init == "inherit" else self.adapted(self.network(None), None, None, init)
            return self.accuracy(dense)
        keep = found[method].keep[point]
        slim = cut(self.network(found[method].state if init == "inherit" else None), self.bench.structure, keep)
        teacher = copy.deepcopy(self.dense)
        return self.accuracy(self.adapted(slim, teacher, match(self.bench.structure, keep), init))

    def accuracy(self, network: nn.Module) -> float:
        """On the episode's test images, in the precision of training."""
        accelerator = make_accelerator(self.bench.device, self.bench.precision)
        with accelerator.autocast():
            return network_score(network, self.examples.target_test, CLASSIFIER, accelerator=accelerator)


def summarise(rows: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Mean, half its 95% interval and number of episodes, keyed "K, POINT, METHOD, INIT"."""
    gathered: dict[str, list[float]] = {}
    for name, value in rows.items():
        shots, _, *rest = name.split(", ")
        gathered.setdefault(", ".join([shots, *rest]), []).append(value)
    return {
        name: dict(zip(("mean", "interval"), interval(values), strict=True)) | {"n": len(values)}
        for name, values in gathered.items()
    }


def show(figures: Mapping[str, Mapping[str, Any]], arguments: argparse.Namespace) -> None:
    shots = arguments.shots.split(",")
    table = Table("MACs, method, weights", *(f"K = {k}" for k in shots))
    for name in dict.fromkeys(name.partition(", ")[2] for name in figures):
        cells = [figures.get(f"{k}, {name}") for k in shots]
        table.add_row(name, *("" if c is None else f"{c['mean']:.1%} ± {c['interval'] or 0:.1%}" for c in cells))
    Console().print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DEPLOY_PRUNE_DATA"))
    parser.add_argument("--source", type=Path, help="x_train, y_train, x_test, y_test; default: ROOT's CIFAR-10")
    parser.add_argument("--target", type=Path, help="the same; default: ROOT's CIFAR-100")
    parser.add_argument("--weights", type=Path, help="default: ROOT/weights/cifar10_NETWORK.safetensors")
    parser.add_argument("--train-steps", type=int, default=0, help="train the dense network; default: don't")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--points", default="50%,25%")
    parser.add_argument("--shots", default="1,5,10,50")
    parser.add_argument("--weights-from", default="inherit,fresh")
    parser.add_argument("--ways", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--search-steps", type=int, default=300)
    parser.add_argument("--inner", action="store_true", help="keep the channels that skip connections share")
    parser.add_argument("--retrain", type=json.loads, default={}, help="changes to a recipe's defaults, as JSON")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rows", type=Path, default=Path("runs/transfer.json"))
    parser.add_argument("--name", default="transfer", help="of the file in benchmarks/results")
    arguments = parser.parse_args()
    arguments.steps = 0
    arguments.episodes = FULL_EPISODES if arguments.full else arguments.episodes
    return arguments


if __name__ == "__main__":
    main()
