"""What detection.py and segmentation.py share: one dense network, and what every method leaves of it at every point."""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import _results
import torch
from _methods import LEARNED, PRUNERS, Bench, Cutter, measured, ours, theirs
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from deploy_prune.budget.candidates import CandidateCosts, identity_of
from deploy_prune.data.loaders import batches
from deploy_prune.errors import BudgetError
from deploy_prune.families import raw_form
from deploy_prune.recipe.parts import MeasurePart, ModelPart, PrunePart, RetrainPart, SourceSearchPart, TrainPart
from deploy_prune.retrain.features import Match, match
from deploy_prune.retrain.fewshot import adapt
from deploy_prune.run.trained import as_if_trained
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.try_groups import keep_cuttable
from deploy_prune.tasks import Objective, Task
from deploy_prune.training.batchnorm import reestimate
from deploy_prune.training.loop import Session, make_accelerator, train_network
from deploy_prune.types import silent

METHODS: Final = (*LEARNED, "uniform", "magnitude", "tp_group_norm")
POINTS: Final = ("75%", "50%", "35%")
IN_NAMES: Final = {"rows", "seeds", "methods", "points", "data"}
"""Arguments that are in a row's name, or count by what is found there."""
RUNS: Final = 60
"""Timed inferences of a candidate and of the dense network, and of the finished one, in each measurement."""
MEASURED: Final = 3
"""Measurements of a finished network, of which the median counts."""
DENSE: Final = "dense"
"""The row of the dense network, trained on for as many steps as a slim one."""

Row = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is cut: ``network`` is made for so many classes; the others are parts of a recipe.

    ``validation``: a place in the data's folder -> what stands there where the validation part is judged by.
    """

    name: str
    task: Task
    network: Callable[[int], nn.Module]
    data: Any
    train: TrainPart
    search: SourceSearchPart
    retrain: RetrainPart = RetrainPart()
    validation: Mapping[str, str]


def run(kind: Kind, arguments: argparse.Namespace, **told: Any) -> None:
    """Train the dense network, make every row, and write benchmarks/results/NAME.json."""
    with TemporaryDirectory() as scratch:
        bench = load(kind, arguments, Path(scratch))
        dense = bench.score(bench.network)
        print(f"dense: {kind.task.score.name} {dense:.2%}", flush=True)
        rows = make(bench, arguments)
    figures = summarise(rows)
    show(figures, kind.task.score.name)
    if arguments.validate:
        return
    _results.write(
        kind.name, {"name": kind.name, "dense": dense, "figures": figures}, score=kind.task.score.name,
        steps=bench.steps, search_steps=bench.search_steps, train_steps=kind.train.steps, batch=bench.batch,
        image_size=kind.data.image_size, train_pictures=len(bench.examples.source_train),
        test_pictures=len(bench.examples.source_test), groups=len(bench.structure.groups), **told,
    )  # fmt: skip


def load(kind: Kind, arguments: argparse.Namespace, scratch: Path) -> Bench:
    """The data, and the dense network in its raw form, trained once and kept beside the rows."""
    examples = kind.task.load(judged_on_validation(kind, scratch) if arguments.validate else kind.data, 0)
    torch.manual_seed(0)
    network = kind.network(examples.num_source)
    inputs = examples.source_test.take(torch.arange(4)).inputs
    form = raw_form(network, inputs)
    objective = Objective(task=kind.task, form=form)
    structure = groups_of(as_if_trained(copy.deepcopy(form.network)), inputs)
    session = Session(accelerator=make_accelerator(arguments.device, "no"), seed=0, progress=silent)
    train_once(form.network, examples, objective, (kind, arguments, session))
    costs = CandidateCosts(
        network=form.network, structure=structure, inputs=tuple(x[:1] for x in inputs), scratch=scratch,
        identity=identity_of(ModelPart(source=f"_{kind.name}:network")), measure=MeasurePart(runs=RUNS, warmup=10),
    )  # fmt: skip
    return Bench(
        network=form.network.to(memory_format=torch.channels_last), structure=structure, examples=examples,
        objective=objective, costs=costs, steps=arguments.steps, search_steps=arguments.search_steps,
        search_part=kind.search, batch=arguments.batch, device=arguments.device, precision="no",
        retrain=kind.retrain.model_dump() | arguments.retrain,
    )  # fmt: skip


def judged_on_validation(kind: Kind, scratch: Path) -> Any:
    """The data with its validation part where the test part is: for choosing settings."""
    there, root = Path(kind.data.root).resolve(), scratch / "validation"
    for place, of in kind.validation.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(there / of)
    return kind.data.model_copy(update={"root": str(root)})


def groups_of(network: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """The channel groups that can be cut."""
    part = PrunePart()
    structure = find_groups(network, tuple(x[:1] for x in inputs), part)
    return keep_cuttable(network, structure, tuple(inputs), gates_of, part)


def train_once(
    network: nn.Module, examples: Any, objective: Objective, how: tuple[Kind, argparse.Namespace, Session]
) -> None:
    """Train the dense network, or take the weights that --rows has of the same training."""
    kind, arguments, session = how
    searched = IN_NAMES | {"steps", "search_steps", "retrain", "validate"}
    under = _results.conditions(arguments, searched, data=[examples.source_train.digest], train=vars(kind.train))
    kept = _results.kept_file(arguments.rows, under, "dense")
    if not kept.exists():
        train_network(network, examples.source_train, objective, kind.train, session=session, work="train")
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), kept)
    network.load_state_dict(torch.load(kept, weights_only=True))


def make(bench: Bench, arguments: argparse.Namespace) -> dict[str, Row]:
    """Every row that --rows doesn't have, keyed "METHOD POINT SEED". A seed's rows are complete before the next's."""
    under = _results.conditions(arguments, IN_NAMES, bench)
    rows: dict[str, Row] = _results.kept(arguments.rows, under)
    points, same = arguments.points.split(","), cache(lambda method: cutter(bench, method, 0, points))
    for seed in range(arguments.seeds):
        for method in (DENSE, *arguments.methods.split(",")):
            at = cutter(bench, method, seed, points) if method in LEARNED else same(method)
            for point in ["100%"] if method == DENSE else points:
                name = f"{method} {point} {seed}"
                if name in rows:
                    continue
                began = time.perf_counter()
                try:
                    rows[name] = row(bench, at, method, point, seed)
                except BudgetError as error:
                    print(name, error, flush=True)
                    continue
                _results.keep(arguments.rows, under, rows)
                took = f"{time.perf_counter() - began:.0f} s"
                print(name, {k: round(v, 4) for k, v in rows[name].items()}, took, flush=True)
    return rows


def cutter(bench: Bench, method: str, seed: int, points: list[str]) -> Cutter:
    """The slim network of each point, made once."""
    if method == DENSE:
        keep = {group.name: torch.ones(group.channels, dtype=torch.bool) for group in bench.structure.groups}
        return lambda point: (copy.deepcopy(bench.network), keep)
    return cache(theirs(bench, *PRUNERS[method]) if method in PRUNERS else ours(bench, method, seed, points))


def row(bench: Bench, at: Cutter, method: str, point: str, seed: int) -> Row:
    """Score after the cut (batch norm measured anew, as after training) and retrained; MACs aren't compared."""
    made, keep = at(point)
    slim = copy.deepcopy(made).to(memory_format=torch.channels_last)
    reestimate(slim, batches(bench.examples.source_train, bench.batch, seed))
    found = {"cut": bench.score(slim)}
    found["latency"] = statistics.median(measured(bench, slim) for _ in range(MEASURED))
    found["params"] = sum(p.numel() for p in slim.parameters())
    steps = bench.steps - (bench.search_steps if method in LEARNED else 0)
    return found | {"retrained": retrained(bench, slim, match(bench.structure, keep), steps, seed)}


def retrained(bench: Bench, slim: nn.Module, matched: Match, steps: int, seed: int) -> float:
    """Test score after training with the dense network as teacher, as a recipe does by default."""
    part = RetrainPart(**{**bench.retrain, "steps": steps, "batch_size": bench.batch})
    adapt(
        slim, bench.examples.source_train, bench.objective, part, teacher=bench.network, session=bench.session(seed),
        match=matched,
    )  # fmt: skip
    return bench.score(slim)


def summarise(rows: dict[str, Row]) -> dict[str, dict[str, Any]]:
    """Means over seeds and their standard errors, keyed "METHOD POINT"."""
    by_name: dict[str, list[Row]] = {}
    for name, found in rows.items():
        by_name.setdefault(name.rpartition(" ")[0], []).append(found)
    return {
        name: {key: statistics.mean(one[key] for one in many) for key in many[0]}
        | {"n": len(many), "standard_error": {key: error([one[key] for one in many]) for key in ("cut", "retrained")}}
        for name, many in by_name.items()
    }


def error(values: Sequence[float]) -> float | None:
    """Standard error of the mean over seeds; None of one."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def show(figures: dict[str, dict[str, Any]], score: str) -> None:
    table = Table("method, point", f"{score} after the cut", "retrained", "latency", "n")
    for name, found in figures.items():
        cells = [f"{found[key]:.1%}{within(found['standard_error'][key])}" for key in ("cut", "retrained")]
        table.add_row(name, *cells, f"{found['latency']:.1%}", str(found["n"]))
    Console().print(table)


def within(standard_error: float | None) -> str:
    return "" if standard_error is None else f" ± {standard_error:.1%}"


def parse(description: str | None, folder: str, image_size: tuple[int, int], **defaults: int) -> argparse.Namespace:
    """Arguments. ``folder``: what --data ROOT holds. ``defaults``: of steps, search_steps, train_steps and batch."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DEPLOY_PRUNE_DATA"), help=f"holds {folder}/")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--points", default=",".join(POINTS))
    parser.add_argument("--seeds", type=int, default=3)
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--image-size", type=int, nargs=2, default=[*image_size], metavar=("H", "W"))
    parser.add_argument("--validate", action="store_true", help="judge on the validation part; nothing is written")
    parser.add_argument("--retrain", type=json.loads, default={}, help="changes to a recipe's defaults, as JSON")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=Path, default=Path(f"runs/{folder}.json"))
    return parser.parse_args()
