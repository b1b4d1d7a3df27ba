"""What transcendental activations cost on this machine's CPU: networks with SiLU or GELU beside the same with ReLU.

    python benchmarks/activations.py [--formats onnx,onnx:int8,ncnn,litert] [--networks NAME,...] [--runs N]

Every activation of a network is replaced, and the variants are timed in one interleaved run on one thread. Weights are
random: latency doesn't depend on them. From the median ratio to ReLU follows how many multiply-accumulates take as long
as the function of one element, with the traffic and the start of the operator taken off: what
``predict.FUNCTION`` is to be judged by. These are first guessed, as in _calibrate.py; the machine's speed cancels out.
Hardswish has no function: its figure says how much is operators that the runtime doesn't fuse.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import _calibrate
import _results
import numpy
import torch
from _calibrate import Calibration, Features
from torch import Tensor, nn

from deploy_prune.device.targets import load_target
from deploy_prune.export import FORMATS
from deploy_prune.latency.measure import measure
from deploy_prune.latency.ops import list_ops
from deploy_prune.latency.paired import paired_ratio
from deploy_prune.networks import build
from deploy_prune.networks.libraries import import_timm
from deploy_prune.recipe.parts import ExportPart, ModelPart
from deploy_prune.surgery.trace import trace
from deploy_prune.types import Target

ACTIVATIONS: Final[dict[str, Callable[[], nn.Module]]] = {
    "relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "hardswish": nn.Hardswish,
}  # fmt: skip
NETWORKS: Final = "timm:efficientnet_b0,timm:tf_efficientnetv2_b0,torchvision:resnet18"
FORMATS_ASKED: Final = "onnx,onnx:int8,ncnn,litert"
WINOGRAD: Final = {"ncnn": 2.0}
"""How much faster 3x3 convolutions are, by runtime; 1 for all others: they have no such kernel on x86."""
GRANULE: Final = 8
SIZE: Final = 224
FIRST: Final = Calibration(
    gmacs_per_s=1.0,
    matmul_gmacs_per_s=1.0,
    gelements_per_s=_calibrate.FIRST_ELEMENTS,
    overhead_ms=1e3 * _calibrate.FIRST_OVERHEAD["cpu"],
    network_ms=1e3 * _calibrate.FIRST_NETWORK["cpu"],
)
"""A device of the first guesses, with 1e9 MACs a second."""


def replaced(network: nn.Module, make: Callable[[], nn.Module]) -> nn.Module:
    """A copy with these activations instead of its own."""
    swish = import_timm().layers.Swish
    changed = copy.deepcopy(network)
    for module in changed.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.SiLU | swish):
                setattr(module, name, make())
    return changed


def macs_of_a_function(ratio: float, plain: Features, other: Features) -> float:
    """How many MACs a function takes, where the network with functions takes ``ratio`` times as long as the plain one.

    ``plain``, ``other``: what the networks without and with functions ask.
    """
    fused = replace(other, gfunctions=numpy.zeros_like(other.gfunctions))
    without, rest = (_calibrate.predict_ms(FIRST, f, _calibrate.LAST, "cpu") for f in (plain, fused))
    return (ratio * without - rest) / 1e3 / float(other.gfunctions.sum())


def network_rows(source: str, formats: Sequence[str], runs: int) -> list[dict[str, Any]]:
    """A row a runtime and activation."""
    x_BCHW = torch.randn(1, 3, SIZE, SIZE)
    network = build.build_network(ModelPart(source=source), 1000).eval()
    variants = {name: replaced(network, make) for name, make in ACTIVATIONS.items()}
    ops = {name: list_ops(trace(variant, (x_BCHW,), 300)) for name, variant in variants.items()}
    rows = []
    for told in formats:
        format, _, precision = told.partition(":")
        ratios = measured(variants, x_BCHW, load_target("host"), format, precision or "fp32", runs)
        asked = {name: _calibrate.features(o, GRANULE, WINOGRAD.get(format, 1.0)) for name, o in ops.items()}
        for name, figures in ratios.items():
            row = {"network": source.partition(":")[2], "format": told, "activation": name, **figures}
            if functions := float(asked[name].gfunctions.sum() - asked["relu"].gfunctions.sum()):
                row["mfunctions"] = round(1e3 * functions, 2)
                row["macs"] = round(macs_of_a_function(figures["ratio"], asked["relu"], asked[name]), 1)
            rows.append(row)
            print(row, flush=True)
    return rows


def measured(
    variants: dict[str, nn.Module], x_BCHW: Tensor, host: Target, format: str, precision: str, runs: int
) -> dict[str, dict[str, float]]:
    """The ratio of each activation's latency to ReLU's, and the 95% interval of its median."""
    target = replace(host, format=format, runtime=str(FORMATS[format].runtime))
    with TemporaryDirectory() as folder:
        real = torch.randn(8, *x_BCHW.shape[1:]) if precision == "int8" else None
        artifacts = [
            FORMATS[format].write(
                v, x_BCHW, Path(folder) / f"{name}{FORMATS[format].suffix}", precision, ExportPart(), real
            )
            for name, v in variants.items()
        ]
        plain, *others = measure(target, artifacts, runs=runs, warmup=5, min_s=3.0)
    found = {}
    for name, latency in zip(list(variants)[1:], others, strict=True):
        r = paired_ratio(latency, plain)
        found[name] = {"ratio": round(r.median, 3), "low": round(r.low, 3), "high": round(r.high, 3)}
    return found


def main() -> None:
    """Every network in every runtime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=NETWORKS)
    parser.add_argument("--formats", default=FORMATS_ASKED)
    parser.add_argument("--runs", type=int, default=60)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    formats = arguments.formats.split(",")
    rows = [row for source in arguments.networks.split(",") for row in network_rows(source, formats, arguments.runs)]
    medians = {
        f"{format} {name}": round(
            median(r["macs"] for r in rows if (r["format"], r["activation"]) == (format, name)), 1
        )
        for format in formats
        for name in ("silu", "gelu")
    }
    print(medians)
    _results.write("activations", {"rows": rows, "median_macs": medians}, n=arguments.runs)


if __name__ == "__main__":
    main()
