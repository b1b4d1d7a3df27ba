"""How the methods of a benchmark cut a network, each from the same dense one: ours, and torch-pruning's own pruners."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import nn

from deploy_prune.budget.candidates import CandidateCosts
from deploy_prune.budget.choose import choose
from deploy_prune.budget.depth import Start, by_rank, by_trial, choose_depth, fixed_counts
from deploy_prune.budget.loop import enforce
from deploy_prune.cost import macs
from deploy_prune.data.loaders import batches
from deploy_prune.data.splits import TransferData
from deploy_prune.device.targets import load_target
from deploy_prune.errors import BudgetError
from deploy_prune.export import onnx
from deploy_prune.latency.steady import measure_steadily
from deploy_prune.recipe.parts import ExportPart, PrunePart, SourceSearchPart
from deploy_prune.retrain.distill import taught
from deploy_prune.retrain.repair import some_inputs
from deploy_prune.run import judge
from deploy_prune.search.frame import SearchGoal, SearchJob
from deploy_prune.search.gated_network import gates_of
from deploy_prune.search.methods import METHODS, values
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.try_branches import add_branches
from deploy_prune.tasks import Objective
from deploy_prune.training.loop import Session, make_accelerator, network_score
from deploy_prune.types import Budget, Counts, Keep, Metric, Scores, SearchResult, Structure, Target, silent

LEARNED: Final = ("dap", "gate", "gumbel")
DEPTH: Final = "_depth"
"""Ends the name of a learned method whose branches may go, too."""
TRIES: Final = 200
"""Steps of torch-pruning's pruners from dense to 5%."""
PRUNERS: Final = {
    "tp_group_norm": ("GroupNormPruner", "GroupMagnitudeImportance"),
    "tp_bn_scale": ("BNScalePruner", "BNScaleImportance"),
}

Cutter = Callable[[str], tuple[nn.Module, Keep]]
"""The slim network at a point, and what it kept."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all rows share."""

    network: nn.Module
    structure: Structure
    examples: TransferData
    objective: Objective
    costs: CandidateCosts
    steps: int
    search_steps: int
    search_part: SourceSearchPart
    """A recipe's search, of the task's defaults; the method and the steps are others."""
    batch: int
    device: str
    precision: str
    retrain: Mapping[str, Any]
    """Changes to a recipe's defaults of retraining."""
    starts: dict[str, Start] = field(default_factory=dict)
    """Whose weights the slim network of a point begins with, where that was chosen."""
    by_trial: list[str] = field(default_factory=list)
    """The branches, in the order in which the dense network misses them least."""

    def session(self, seed: int) -> Session:
        """Where training runs, and its randomness."""
        return Session(accelerator=make_accelerator(self.device, self.precision), seed=seed, progress=silent)

    def score(self, network: nn.Module) -> float:
        """On the whole test set, in the precision of training."""
        accelerator = make_accelerator(self.device, self.precision)
        with accelerator.autocast():
            return network_score(network, self.examples.source_test, self.objective, accelerator=accelerator)


def share(point: str) -> float:
    """Of the dense cost: "2.1x" -> 1 / 2.1, "50%" -> 0.5."""
    return 1 / float(point[:-1]) if point.endswith("x") else float(point[:-1]) / 100


def ours(bench: Bench, method: str, seed: int, points: list[str]) -> Cutter:
    """One search for the smallest of the points of one metric, and what it keeps at each. ``bench``: `for_method`."""
    found: dict[str, SearchResult] = {}
    method = method.removesuffix(DEPTH)

    def at(point: str) -> tuple[nn.Module, Keep]:
        metric: Metric = "macs" if point.endswith("x") else "latency"
        if metric not in found:
            alike = [p for p in points if p.endswith("x") == point.endswith("x")]
            found[metric] = search(bench, method, seed, metric, min(map(share, alike)))
        result = found[metric]
        trained = copy.deepcopy(bench.network)
        trained.load_state_dict(result.state)
        target = load_target("host")
        target = replace(target, granularity=1) if metric == "macs" else target
        budget = Budget(text=point, metric=metric, limit=share(point), relative=True)
        model = bench.costs.cost(target, metric)
        scores = values(method, result.scores, model)
        start, fixed = depth_of(bench, trained, target, budget, result.scores, scores, seed)
        if metric == "macs":
            limit = share(point) * model(bench.structure.dense_counts)
            keep = choose(scores, bench.structure, model, limit, 1, 2, fixed)
        else:
            keep = enforce(bench.costs, target, budget, scores, silent, point, fixed).keep
        bench.starts[point] = start
        return cut(trained if start == "search" else bench.network, bench.structure, keep), keep

    return at


def for_method(bench: Bench, method: str) -> Bench:
    """The same, with the network's branches as groups where the method may take them."""
    if not method.endswith(DEPTH):
        return bench
    costs, trials = bench.costs, tuple(torch.randn(4, *x.shape[1:]) for x in bench.costs.inputs)
    part = PrunePart(depth=True)
    structure = add_branches(costs.network, bench.structure, trials, gates_of, part)
    return replace(bench, structure=structure, costs=replace(costs, structure=structure), starts={})


def depth_of(
    bench: Bench, trained: nn.Module, target: Target, budget: Budget, ranks: Scores, scores: Scores, seed: int
) -> tuple[Start, Counts]:
    """Whose weights to begin with and which branches go, as a recipe chooses: by the loss on training examples."""
    if not bench.structure.branches:
        return "search", {}
    stream = batches(bench.examples.source_train, bench.batch, seed)
    inputs = some_inputs(stream, judge.EXAMPLES)
    held_out = [next(stream) for _ in range(-(-judge.EXAMPLES // bench.batch))]
    device = bench.session(seed).accelerator.device
    dense = copy.deepcopy(bench.network)
    networks: dict[Start, nn.Module] = {"search": trained, "dense": dense}
    judges = {
        start: judge.by_loss(one, dense, bench.structure, inputs, held_out, bench.objective.batch_loss, device)
        for start, one in networks.items()
    }
    if not bench.by_trial:
        bench.by_trial.extend(by_trial(bench.structure, macs(bench.structure), judges["dense"], silent))
    orders = {"search": by_rank(ranks, bench.structure), "trial": bench.by_trial}
    chosen = choose_depth(bench.costs, target, budget, ranks, scores, orders, judges, silent)
    print(f"  {budget.text}: {chosen}", flush=True)
    return chosen.start, fixed_counts(bench.structure, chosen.gone)


def search(bench: Bench, method: str, seed: int, metric: Any, limit: float) -> SearchResult:
    """Search with the dense network as teacher, as a recipe does."""
    model = bench.costs.cost(load_target("host"), metric)
    config = bench.search_part.model_copy(update={"method": method, "steps": bench.search_steps})
    session = bench.session(seed)
    teacher = copy.deepcopy(bench.network).to(session.accelerator.device).eval()
    loss = taught(bench.objective, teacher, config.distill, config.temperature)
    job = SearchJob(
        network=bench.network, structure=bench.structure, loss=loss,
        batches=batches(bench.examples.source_train, bench.batch, seed),
        goal=SearchGoal(cost=model, limit=limit * model(bench.structure.dense_counts)), config=config, session=session,
    )  # fmt: skip
    return METHODS[method](job)


def measured(bench: Bench, network: nn.Module) -> float:
    """Latency of the exported network over the dense one's, interleaved."""
    target, part = load_target("host"), bench.costs.measure
    with TemporaryDirectory() as folder:
        pair = [
            onnx.write(one, bench.costs.inputs[0], Path(folder) / f"{i}.onnx", "fp32", ExportPart())
            for i, one in enumerate((bench.network, network))
        ]
        dense, slim = measure_steadily(target, pair, part.runs, part.warmup)
    return slim.p50_ms / dense.p50_ms


def theirs(bench: Bench, pruner: str, importance: str) -> Cutter:
    """torch-pruning's own pruner, global ranking, stopped at the first step that is within the point.

    For latency, channels are rounded to this machine's granularity, as its option has it, and the step is found by
    bisection with measurements of the exported network.
    """
    import torch_pruning as tp

    example = bench.costs.inputs[0]
    target = load_target("host")
    dense_macs, _ = tp.utils.count_ops_and_params(bench.network, example)
    members = {axis for group in bench.structure.groups for axis in group.members if axis.axis == 0}
    cuttable = {axis.tensor.removesuffix(".weight") for axis in members}  # layers whose outputs a group has

    def stepped(steps: int, round_to: int | None) -> nn.Module:
        network = numbered(copy.deepcopy(bench.network))
        layers = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        kept = [m for name, m in layers if name not in cuttable]
        made = getattr(tp.pruner, pruner)(
            network, example, importance=getattr(tp.importance, importance)(), global_pruning=True,
            pruning_ratio=0.95, iterative_steps=TRIES, ignored_layers=kept, round_to=round_to,
        )  # fmt: skip
        for _ in range(steps):
            made.step()
        return network

    def within(network: nn.Module, point: str) -> bool:
        if point.endswith("x"):
            return tp.utils.count_ops_and_params(network, example)[0] <= share(point) * dense_macs
        return measured(bench, network) <= share(point) * (1 + bench.costs.measure.tolerance)

    def at(point: str) -> tuple[nn.Module, Keep]:
        round_to = None if point.endswith("x") else bench.costs.granule(target)
        low, high = 0, TRIES
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if within(stepped(middle, round_to), point) else (middle, high)
        network = stepped(high, round_to)
        if not within(network, point):
            message = f"{pruner} can't reach {point}."
            raise BudgetError(message)
        return network, read_numbers(network, bench)

    return at


def numbered(network: nn.Module) -> nn.Module:
    """Channels are numbered in batch norms' running means, so that it can be read afterwards which ones stayed."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.arange(module.num_features))
    return network


def read_numbers(network: nn.Module, bench: Bench) -> Keep:
    """What stayed of each group; the running means become the dense network's again."""
    state = bench.network.state_dict()
    kept: dict[str, torch.Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            tensor = f"{name}.running_mean"
            kept[tensor] = module.running_mean.long()
            module.running_mean.copy_(state[tensor][kept[tensor]])
    keep: Keep = {}
    for group in bench.structure.groups:
        axis = next(a for a in group.members if a.tensor in kept)
        keep[group.name] = torch.zeros(group.channels, dtype=torch.bool)
        keep[group.name][axis.unit_of[kept[axis.tensor]]] = True
    return keep
