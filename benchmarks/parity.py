"""Every format in every precision, on dense and slim networks: does the artifact compute what torch does?

    python benchmarks/parity.py [--networks NAME:SIZE@RATE,...] [--formats onnx,ort,...] [--steps 150] [--rows FILE]

Each network is trained on scikit-learn's digits (RATE is its learning rate), cut to half of its MACs, tuned and
exported; its artifact is run on 256 test images in its own runtime and compared with torch: the largest difference
relative to the largest output, and the share of images with the same first answer. Core ML's runs on Apple's systems
only; its contents are compared instead. A format whose package isn't installed is left out, and named. Rows that --rows
has are not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _results
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from deploy_prune import device
from deploy_prune.api.prune import prune
from deploy_prune.data import splits
from deploy_prune.errors import DeployPruneError
from deploy_prune.export import FORMATS, isolated
from deploy_prune.export.artifact import eval_mode
from deploy_prune.export.noise import agreement
from deploy_prune.export.parity import can_run, check_parity, compare_contents
from deploy_prune.networks import build
from deploy_prune.recipe.parts import DataPart, ExportPart, ModelPart, TrainPart
from deploy_prune.tasks.classification import CLASSIFIER
from deploy_prune.training.loop import Session, make_accelerator, network_score, train_network
from deploy_prune.types import silent

NETWORKS = (
    "torchvision:mobilenet_v2:64@0.05,torchvision:mobilenet_v3_small:64@0.05,resnet20:32@0.05,"
    "torchvision:resnet18:64@0.05,torchvision:efficientnet_b0:64@0.01,timm:vit_tiny_patch16_224:64@0.01"
)
IMAGES = 256
CUTS = ("dense", "50%")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A trained network, and the images that it is judged by, [256, 3, size, size]."""

    name: str
    network: nn.Module
    images: Tensor
    calibration: Tensor
    accuracy: float


def main() -> None:
    """Every row, then the table."""
    arguments = parse()
    under = _results.conditions(arguments, {"networks", "formats", "rows"})
    rows: dict[str, Any] = _results.kept(arguments.rows, under)
    made_in = list(kinds(arguments.formats.split(",")))
    for told in arguments.networks.split(","):
        named, _, rate = told.rpartition("@")
        source, _, size = named.rpartition(":")
        network = source.rpartition(":")[2]
        if all(f"{network} {cut} {format} {precision}" in rows for cut in CUTS for format, precision in made_in):
            continue
        for subject in subjects(source, int(size), float(rate), arguments):
            for format, precision in made_in:
                name = f"{subject.name} {format} {precision}"
                if name not in rows:
                    rows[name] = row(subject, format, precision)
                    _results.keep(arguments.rows, under, rows)
                    print(name, rows[name], flush=True)
    show(rows)
    _results.write("parity", {"rows": rows}, n=IMAGES, steps=arguments.steps)


def kinds(formats: list[str]) -> Iterator[tuple[str, str]]:
    """Each (format, precision) whose packages are here."""
    for name in formats:
        kind = FORMATS[name]
        try:
            if kind.extra is not None:
                kind.extra.require()
        except DeployPruneError as error:
            print(f"left out: {name}. {error}", flush=True)
            continue
        yield from ((name, precision) for precision in kind.precisions)


def subjects(source: str, size: int, rate: float, arguments: argparse.Namespace) -> Iterator[Subject]:
    """The dense network and the slim one, both trained."""
    name = source.rpartition(":")[2]
    part = DataPart(source="digits", image_size=size)
    examples = splits.load(part, 0)
    args = {"img_size": size} if source.startswith("timm:vit") else {}
    torch.manual_seed(0)
    network = build.build_network(ModelPart(source=source, args=args), examples.num_source)
    session = Session(accelerator=make_accelerator("cpu", "no"), seed=0, progress=silent)
    train = examples.source_train
    (images,) = examples.source_test.take(torch.arange(IMAGES)).inputs
    (calibration,) = train.take(torch.arange(ExportPart().calibration_examples)).inputs

    def trained(kind: str, network: nn.Module, steps: int, lr: float) -> Subject:
        train_network(
            network, train, CLASSIFIER, TrainPart(steps=steps, batch_size=32, lr=lr), session=session, work="train"
        )
        found = network_score(network, examples.source_test, CLASSIFIER)
        return Subject(name=f"{name} {kind}", network=network, images=images, calibration=calibration, accuracy=found)

    yield trained(CUTS[0], network, arguments.steps, rate)
    slim = prune(network, images[:8], lambda forward, batch: forward(batch).sum(), [images[:8]], method="uniform")[0]
    yield trained(CUTS[1], slim.network, arguments.steps // 2, rate / 2)


def row(subject: Subject, format: str, precision: str) -> dict[str, Any]:
    """How far the artifact is from the network, and whether the checks let it pass."""
    kind, part = FORMATS[format], ExportPart()
    found: dict[str, Any] = {"accuracy_torch": subject.accuracy}
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"a{kind.suffix}"
        try:
            artifact = isolated.write(
                format, subject.network, subject.images[:1], path, precision, part, subject.calibration
            )
            found["bytes"] = artifact.size_bytes
            if not can_run(artifact) or kind.runtime == "coreml":
                return {
                    **found,
                    "compared": "contents",
                    **(compare_contents(subject.network, artifact, subject.images) or {}),
                }
            outputs = device.run(artifact, subject.images, str(kind.runtime))[0]
            with eval_mode(subject.network), torch.no_grad():
                expected = subject.network(subject.images)
            found["max_rel"] = float((outputs - expected).abs().max() / expected.abs().max())
            found["agreement"] = agreement(expected, outputs)
            parity = check_parity(subject.network, artifact, subject.images)
            return {**found, "compared": "outputs", "tolerance": parity.tolerance, "snr_db": parity.snr_db}
        except DeployPruneError as error:
            return {**found, "error": f"{type(error).__name__}: {str(error).replace(folder, '')}"}


def show(rows: dict[str, Any]) -> None:
    table = Table("network", "", "format", "precision", "off by", "allowed", "agree", "MB", "")
    for name, found in rows.items():
        off, allowed = found.get("max_rel"), found.get("tolerance")
        table.add_row(
            *name.split(" "), "" if off is None else f"{off:.1e}", "" if allowed is None else f"{allowed:.1e}",
            f"{found['agreement']:.1%}" if "agreement" in found else found.get("compared", ""),
            f"{found['bytes'] / 1e6:.2f}" if "bytes" in found else "", found.get("error", "")[:60],
        )  # fmt: skip
    Console().print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=NETWORKS)
    parser.add_argument("--formats", default=",".join(name for name in FORMATS if name != "tensorrt"))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rows", type=Path, default=Path("runs/parity.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
