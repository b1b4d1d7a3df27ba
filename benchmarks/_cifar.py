"""What the rows of cifar_resnet.py share: the dense network, the data, latency, and torch-pruning's own pruners."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _results
import torch
from safetensors.torch import load_file
from torch import nn

from deploy_prune.budget.candidates import CandidateCosts, identity_of
from deploy_prune.data import splits
from deploy_prune.device.targets import load_target
from deploy_prune.errors import BudgetError, WeightsError
from deploy_prune.export import onnx
from deploy_prune.latency.steady import measure_steadily
from deploy_prune.networks import build, weights
from deploy_prune.recipe.parts import DataPart, ExportPart, ModelPart, PrunePart, TrainPart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.try_groups import keep_cuttable
from deploy_prune.system.shell import digest
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training.loop import Session, make_accelerator, network_score, train_network
from deploy_prune.types import Keep, Structure, silent

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
IMAGES = 50_000
FULL = (100, 20)  # epochs in all, and the search's, of the papers' protocol
TRIES = 200  # steps of torch-pruning's pruners from dense to 5%
PRUNERS = {
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
    examples: splits.TransferData
    costs: CandidateCosts
    steps: int
    search_steps: int
    batch: int
    device: str
    precision: str
    retrain: Mapping[str, Any]
    """Changes to a recipe's defaults of retraining."""

    def session(self, seed: int) -> Session:
        """Where training runs, and its randomness."""
        return Session(accelerator=make_accelerator(self.device, self.precision), seed=seed, progress=silent)

    def accuracy(self, network: nn.Module) -> float:
        """On the whole test set, in the precision of training."""
        accelerator = make_accelerator(self.device, self.precision)
        with accelerator.autocast():
            return network_score(network, self.examples.source_test, CLASSIFIER, accelerator=accelerator)


def load(arguments: argparse.Namespace, scratch: Path) -> Bench:
    """The dense network and the data."""
    given = getattr(arguments, "source", None)
    source = DataPart(
        source="npz" if given else "cifar10",
        root=str(given or arguments.data),
        mean=MEAN,
        std=STD,
        augment="shift_flip",
        image_size=arguments.image_size,
    )
    examples = splits.load(source, 0)
    torch.manual_seed(0)
    network = build.build_network(ModelPart(source=arguments.network), examples.num_source)
    if arguments.train_steps:
        train(network, examples, arguments)
    else:
        name = f"cifar10_{arguments.network}.safetensors"
        weights.load_weights(network, arguments.weights or Path(arguments.data) / "weights" / name)
    example = build.example_input(source, 2)
    part = PrunePart()
    structure = find_groups(network, (example[:1],), part)
    if arguments.inner:
        part = PrunePart(skip=[group.name for group in structure.groups if len(group.consumers) > 1])
        structure = find_groups(network, (example[:1],), part)
    structure = keep_cuttable(network, structure, (torch.randn_like(example),), gates_of, part)
    steps, search_steps = arguments.steps, arguments.search_steps
    if arguments.full:
        steps, search_steps = (epochs * IMAGES // arguments.batch for epochs in FULL)
    costs = CandidateCosts(
        network=network, structure=structure, inputs=(example[:1],), scratch=scratch, prune=part,
        identity=identity_of(ModelPart(source=arguments.network)),
    )  # fmt: skip
    return Bench(
        network=network.to(memory_format=torch.channels_last), structure=structure, examples=examples, costs=costs,
        steps=steps, search_steps=search_steps, batch=arguments.batch, device=arguments.device,
        precision=arguments.precision, retrain=arguments.retrain,
    )  # fmt: skip


def train(network: nn.Module, examples: splits.TransferData, arguments: argparse.Namespace) -> None:
    """The dense network from scratch, or from the weights of another task, kept beside the rows."""
    in_names = {"rows", "seeds", "methods", "data", "source", "target", "weights", "points", "steps", "search_steps"}
    begun = None if arguments.weights is None else digest(arguments.weights)
    under = _results.conditions(
        arguments, in_names | {"retrain", "episodes", "shots", "weights_from", "ways", "name", "inner"},
        data=[examples.source_train.digest], weights=begun,
    )  # fmt: skip
    kept = _results.kept_file(arguments.rows, under, "dense")
    if not kept.exists():
        session = Session(accelerator=make_accelerator(arguments.device, arguments.precision), seed=0, progress=silent)
        lr = 0.1
        if arguments.weights is not None:
            lr = 0.02
            inherit(network, arguments.weights)
        part = TrainPart(steps=arguments.train_steps, batch_size=arguments.batch, lr=lr)
        train_network(network, examples.source_train, CLASSIFIER, part, session=session, work="train")
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), kept)
    weights.load_weights(network, kept)


def inherit(network: nn.Module, path: Path) -> None:
    """Copy the tensors of another task's network: all but the last layer's, which has other classes."""
    head = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    state = {name: tensor.float() for name, tensor in load_file(path).items() if not name.startswith(f"{head}.")}
    missing, unexpected = network.load_state_dict(state, strict=False)
    unfilled = [name for name in missing if not name.startswith(f"{head}.") and "num_batches_tracked" not in name]
    if unfilled or unexpected:
        message = f"{path} isn't this network's: {[*unfilled, *unexpected][0]}"
        raise WeightsError(message)


def share(point: str) -> float:
    """Of the dense cost: "2.1x" -> 1 / 2.1, "50%" -> 0.5."""
    return 1 / float(point[:-1]) if point.endswith("x") else float(point[:-1]) / 100


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
