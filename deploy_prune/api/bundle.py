"""A bundle from Python: of any network whose inputs are images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploy_prune.api.export import export_network
from deploy_prune.bundle import write
from deploy_prune.bundle.meaning import NO_DECODING, Meaning
from deploy_prune.bundle.write import RESIZES, Bundle, Contents
from deploy_prune.device.targets import load_target
from deploy_prune.errors import ExportError
from deploy_prune.export import FORMATS
from deploy_prune.latency.steady import measure_steadily
from deploy_prune.networks.copies import copied
from deploy_prune.recipe.parts import MeasurePart
from deploy_prune.run.folder import PACKAGES, versions
from deploy_prune.system.guard import scratch
from deploy_prune.types import Artifact, Target


def export_bundle(
    network: nn.Module,
    images: Tensor,
    out: str | Path,
    *,
    target: str = "host",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    labels: Sequence[str] | None = None,
    fit: str = "cut",
) -> Bundle:
    """Write a network's artifact for a target, and a bundle of it: the same as ``deploy-prune export`` of a run.

    The artifact is compared with the network in its own runtime, here and again in the bundle. Where the target is
    attached, its latency is measured. Example: ``export_bundle(pruned.network, images, "bundles/mine", target="host",
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), labels=names)``.

    Args:
        network: takes float32 [B, C, H, W], (image / 255 - mean) / std; of ``prune``, or any other. It stays as it is.
        images: uint8 [N, C, H, W], real pictures of the network's size. The first 8 (of int8: 16) are the bundle's
            sample; in int8 the artifact is calibrated on all of them, and some hundred are better than a few.
        out: the bundle's folder; beside it OUT.zip. An earlier bundle is replaced.
        target: a name that ``deploy-prune targets`` lists, with format and precision as in "pixel-8@litert:int8".
        mean: what was subtracted in training, per channel, of values in 0..1.
        std: what was divided by.
        labels: the names of the outputs, where the network's only output is a score for each class. None: the bundle
            says that its outputs are to be decoded elsewhere.
        fit: how a picture of another size becomes an input: cut, letterbox or stretch.

    Raises:
        ExportError: images, labels, mean or std aren't as above; or the artifact can't be written.
        ParityError: the artifact doesn't compute what the network does.
        DeployPruneError: as `export_network`; target or runtime don't work.
    """
    chosen = load_target(target)
    _require_images(images, mean, std, fit)
    shape = (1, -1, 1, 1)
    inputs = (images.float() / 255 - torch.tensor(tuple(mean)).view(shape)) / torch.tensor(tuple(std)).view(shape)
    plain = copied(network).cpu().eval()
    count = 16 if chosen.precision == "int8" else 8
    with scratch() as folder:
        path = folder / f"model{FORMATS[chosen.format].suffix}"
        artifact = export_network(
            plain, inputs[:1], chosen.format, chosen.precision, path=path, calibration=inputs
        )  # fmt: skip
        told = Contents(
            about={"run": Path(out).name, "target": chosen.name, "budget": "from Python"}, artifact=artifact,
            network=plain, images=images[:count], inputs=inputs[:count], mean=tuple(mean), std=tuple(std),
            labels=tuple(labels or ()), are_names=labels is not None, fit=fit,
            meaning=NO_DECODING if labels is not None else Meaning(kind="outputs"),
            parity={"unchecked": artifact.unchecked}, latency=latency_of(artifact, chosen, MeasurePart()),
            provenance={"versions": versions(PACKAGES)},
        )  # fmt: skip
        return write.write(told, Path(out))


def latency_of(artifact: Artifact, target: Target, part: MeasurePart) -> Mapping[str, Any]:
    """What a bundle's latency.json says: raw samples in ms, where the target is attached; else that it isn't known."""
    if target.runner is None:
        return {"in_words": None, "row": None, "latency": None}
    (latency,) = measure_steadily(target, [artifact], part.runs, part.warmup)
    words = f"{latency.p50_ms:.4g} ms (p50, measured on {latency.measured_on})"
    return {"in_words": words, "row": None, "latency": {**asdict(latency), "p50_ms": latency.p50_ms}}


def _require_images(images: Tensor, mean: Sequence[float], std: Sequence[float], fit: str) -> None:
    """Refuse what is no sample.

    Raises:
        ExportError: what is wrong, and what it should be.
    """
    problem = None
    if images.dtype != torch.uint8 or images.dim() != 4 or len(images) < 2:
        problem = f"images: they are {images.dtype} {list(images.shape)}; give uint8 [N, C, H, W], two at least"
    elif len(mean) != images.shape[1] or len(std) != images.shape[1]:
        problem = f"mean and std: {len(mean)} and {len(std)} values for {images.shape[1]} channels"
    elif not all(value > 0 for value in std):
        problem = "std: each value must be above 0"
    elif fit not in RESIZES:
        problem = f"fit: {fit!r}; give {', '.join(RESIZES)}"
    if problem:
        message = f"{problem}."
        raise ExportError(message)
