"""Subnetworks of random weights on CIFAR-10: Gumbel-Softmax with and without Smart Rescale, supermask, edge-popup.

    python benchmarks/aslp_conv.py --data ROOT [--network conv2] [--methods ...] [--epochs 3] [--images 10000] [--full]

ROOT (or DEPLOY_PRUNE_DATA) holds CIFAR-10. Weights and biases stay as they were drawn; only masks (and scales) are
learned, with the published hyper-parameters (arXiv 2202.12986: SGD, learning rate 50 for logits, 1e-3 for scales, batch
256). Accuracy on the whole test set after every epoch, of the subnetwork that would be extracted then. Reduced by
default to fewer images and epochs; --full is all images and 100 epochs, for a GPU. Curves that --rows has are not made
again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _results
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD

from deploy_prune.data import splits
from deploy_prune.data.examples import ClassExamples
from deploy_prune.data.loaders import batches
from deploy_prune.networks import build
from deploy_prune.recipe.parts import DataPart, ModelPart
from deploy_prune.search.methods.gumbel import gumbel_gate
from deploy_prune.search.relaxed import Relaxation
from deploy_prune.search.subnetwork import MOMENTUM, MaskedNetwork
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training.loop import Session, fit, make_accelerator, network_score, set_seed

BATCH = 256


class _StraightThrough(torch.autograd.Function):
    """A given forward value, the gradient of another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, carrier: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def supermask(m: Tensor) -> Tensor:
    """Bernoulli(sigmoid(m)), straight through, over the share that is on: Zhou et al., arXiv 1905.01067.

    Sampled when it is evaluated, too, as there.
    """
    p = torch.sigmoid(m)
    mask: Tensor = _StraightThrough.apply(torch.bernoulli(p.detach()), p)
    return mask * (mask.numel() / mask.detach().sum().clamp(min=1))


def edge_popup(score: Tensor) -> Tensor:
    """The half of a layer with the largest |score|, straight through: Ramanujan et al., arXiv 1911.13299."""
    half = score.detach().abs().flatten().kthvalue(score.numel() // 2).values
    mask: Tensor = _StraightThrough.apply((score.detach().abs() > half).to(score.dtype), score.abs())
    return mask


def kept_by_sign(m: Tensor) -> Tensor:
    """What stays afterwards: m >= 0."""
    return (m >= 0).to(m.dtype)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to learn masks: the gates of a step, those of the extracted subnetwork, start and learning rates.

    ``glorot``: weights are drawn as Glorot and Bengio do (normal), half the variance of Kaiming's. Supermasks need it:
    scaled up by the share that is on, Kaiming's weights give outputs so large that learning only silences them (at
    rates of 1 and 50 it stayed at chance).
    """

    sample: Callable[[Tensor], Tensor]
    extract: Callable[[Tensor], Tensor]
    lr: float
    rescale: float | None = None
    random_start: bool = False
    glorot: bool = False


CONTENDERS = {
    "gumbel": Contender(sample=lambda m: gumbel_gate(m, 1.0), extract=kept_by_sign, lr=50.0, rescale=1e-3),
    "gumbel without rescale": Contender(sample=lambda m: gumbel_gate(m, 1.0), extract=kept_by_sign, lr=50.0),
    "supermask": Contender(sample=supermask, extract=supermask, lr=100.0, glorot=True),
    "edge-popup": Contender(sample=edge_popup, extract=edge_popup, lr=0.1, random_start=True),
}


def learn(
    network: nn.Module, contender: Contender, train: ClassExamples, test: ClassExamples, epochs: int, precision: str
) -> list[float]:
    """Test accuracy of the extracted subnetwork after each epoch."""
    session = Session(accelerator=make_accelerator("auto", precision), seed=0)
    network = network.to(session.accelerator.device).train().requires_grad_(requires_grad=False)
    if contender.glorot:
        for weight in network.parameters():
            if weight.dim() > 1:
                nn.init.xavier_normal_(weight)
    masked = MaskedNetwork(network, Relaxation(sample=contender.sample, start=0.0, rescale=contender.rescale))
    if contender.random_start:
        for score in masked.logits.values():
            nn.init.kaiming_uniform_(score.data, a=5**0.5)
    optimizers: list[torch.optim.Optimizer] = [SGD(masked.logits.values(), lr=contender.lr, momentum=MOMENTUM)]
    if contender.rescale is not None:
        optimizers.append(SGD(masked.scales.values(), lr=contender.rescale, momentum=MOMENTUM))
    stream, curve = batches(train, BATCH, 0), list[float]()
    for _ in range(epochs):
        fit(
            lambda batch: CLASSIFIER.batch_loss(masked, batch), stream, optimizers, session=session,
            steps=len(train) // BATCH, work="learn masks",
        )  # fmt: skip
        curve.append(network_score(_Extracted(masked, contender.extract), test, CLASSIFIER))
    return curve


class _Extracted(nn.Module):
    """The subnetwork as it would be taken now."""

    def __init__(self, masked: MaskedNetwork, extract: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = masked.network
        with torch.no_grad():
            self.tensors = {
                name: masked.scales[name] * extract(masked.logits[name]) * weight
                for name, weight in masked.weights.items()
            }

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = functional_call(self.network, self.tensors, (x,))
        return logits


def main() -> None:
    """Learn every curve and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DEPLOY_PRUNE_DATA"))
    parser.add_argument("--network", default="conv2")
    parser.add_argument("--methods", default=",".join(CONTENDERS))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rows", type=Path, default=Path("runs/aslp.json"))
    arguments = parser.parse_args()
    if arguments.data is None:
        print("skipped: say where CIFAR-10 is, with --data ROOT or DEPLOY_PRUNE_DATA")
        return
    found = splits.load(DataPart(source="cifar10", root=str(arguments.data), image_size=32, augment="none"), 0)
    train, test = found.source_train, found.source_test
    epochs, images = (100, len(train)) if arguments.full else (arguments.epochs, min(arguments.images, len(train)))
    assert isinstance(train, ClassExamples)
    assert isinstance(test, ClassExamples)
    train = train.subset(torch.arange(images))
    names = arguments.methods.split(",")
    digests = [found.source_train.digest, found.source_test.digest]
    under = _results.conditions(arguments, {"data", "methods", "rows"}, data=digests)
    rows: dict[str, list[float]] = _results.kept(arguments.rows, under)
    for name in (n for n in names if n not in rows):
        set_seed(0)
        network = build.build_network(ModelPart(source=arguments.network), 10)
        rows[name] = learn(network, CONTENDERS[name], train, test, epochs, arguments.precision)
        _results.keep(arguments.rows, under, rows)
        print(name, [f"{a:.1%}" for a in rows[name]], flush=True)
    curves = {name: rows[name] for name in names}
    table = Table("method", *(f"epoch {i + 1}" for i in range(epochs)))
    for name, curve in curves.items():
        table.add_row(name, *(f"{a:.1%}" for a in curve))
    Console().print(table)
    _results.write(
        f"aslp_{arguments.network}",
        {"curves": curves, "network": arguments.network},
        epochs=epochs,
        n=len(train),
        test_images=len(test),
        seeds=1,
    )


if __name__ == "__main__":
    main()
