"""Export from Python: any network, one call."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from deploy_prune.data import spread
from deploy_prune.errors import DeployPruneError, ExportError, perhaps
from deploy_prune.export import FORMATS, isolated
from deploy_prune.export.artifact import require
from deploy_prune.export.parity import UncheckedWarning, can_run, check_parity, compare_contents, unchecked
from deploy_prune.outputs import require_artifact_place
from deploy_prune.recipe import ExportPart
from deploy_prune.shell import remove
from deploy_prune.types import Artifact

EXAMPLES: Final = 64
"""At most so many inputs are compared."""
RANDOM: Final = 8
"""So many batches of random inputs, where no real ones are given."""
SEED: Final = 0
"""Of those: the same call gives the same verdict."""


def export(
    model: nn.Module,
    example: Tensor,
    format: str = "onnx",
    precision: str = "fp32",
    *,
    path: str | Path,
    calibration: Tensor | None = None,
    part: ExportPart | None = None,
) -> Artifact:
    """Write any network's artifact in any format, and check it against the network in its own runtime.

    Args:
        model: any module that torch.export can trace; it is exported in eval mode and left as it was.
        example: float32 [B, C, H, W]; fixes the artifact's input shape.
        format: a format's name, such as "onnx".
        precision: "fp32", "fp16" or "int8", as far as the format has it; inputs and outputs stay float32.
        path: the file or folder, with the format's suffix; it appears only when complete, and is removed if it fails
            the check.
        calibration: real inputs [N, C, H, W], normalised as in training: int8 is calibrated on them, and the artifact
            is compared with the network on 64 of them, spread over all. Default: random inputs, and no int8.
        part: limits and options; default: a recipe's.

    An artifact that can't be run here has ``unchecked``, the reason, and an `UncheckedWarning` is given; where its
    contents can be read they are compared.

    Raises:
        ExportError: there is no such format or precision, or it can't be written.
        MissingDependencyError: the format's packages aren't installed; with the pip command.
        ParityError: the artifact doesn't compute what the network does.
        MeasurementError: its runtime can't run it.
        RunFolderError: something else would be replaced, or the place can't be written to.
    """
    if format not in FORMATS:
        message = f"There is no format {format!r}; known: {', '.join(FORMATS)}.{perhaps(format, FORMATS)}"
        raise ExportError(message)
    require(format, FORMATS[format], precision)
    path, batch = Path(path), len(example)
    require_artifact_place(path)
    artifact = isolated.write(format, model, example, path, precision, part or ExportPart(), calibration)
    inputs = _inputs(example, calibration)
    try:
        if can_run(artifact):
            check_parity(model, artifact, inputs[: len(inputs) - len(inputs) % batch])
            return artifact
        compare_contents(model, artifact, inputs)
    except DeployPruneError:
        remove(path)
        raise
    reason = unchecked(artifact)
    warnings.warn(f"{path} was not compared with the network: {reason}.", UncheckedWarning, stacklevel=3)
    return replace(artifact, unchecked=reason)


def _inputs(example: Tensor, calibration: Tensor | None) -> Tensor:
    """What to compare on: real inputs [N, C, H, W], spread over all that are given, or random ones, always the same."""
    if calibration is not None:
        return calibration[spread(torch.zeros(len(calibration)), EXAMPLES)]
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(RANDOM * len(example), *example.shape[1:], generator=generator)
