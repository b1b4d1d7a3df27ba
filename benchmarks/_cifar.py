"""What the rows of cifar_resnet.py share: the dense network and the data."""

from __future__ import annotations

import argparse
from pathlib import Path

import _results
import torch
from _methods import Bench
from safetensors.torch import load_file
from torch import nn

from deploy_prune.budget.candidates import CandidateCosts, identity_of
from deploy_prune.data import splits
from deploy_prune.errors import WeightsError
from deploy_prune.networks import build, weights
from deploy_prune.recipe.parts import DataPart, ModelPart, PrunePart, SourceSearchPart, TrainPart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.try_groups import keep_cuttable
from deploy_prune.system.shell import digest
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training.loop import Session, make_accelerator, train_network
from deploy_prune.types import silent

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
IMAGES = 50_000
FULL = (100, 20)  # epochs in all, and the search's, of the papers' protocol


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
        objective=CLASSIFIER, steps=steps, search_steps=search_steps,
        search_part=SourceSearchPart(batch_size=arguments.batch), batch=arguments.batch, device=arguments.device,
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
