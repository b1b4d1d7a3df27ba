"""Export from Python: any network, one call."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from deploy_prune.errors import DeployPruneError, ExportError, perhaps
from deploy_prune.export import FORMATS, isolated
from deploy_prune.export.artifact import require
from deploy_prune.export.parity import can_run, check_parity
from deploy_prune.recipe import ExportPart
from deploy_prune.shell import remove
from deploy_prune.types import Artifact

EXAMPLES: Final = 64
"""At most so many inputs are compared."""
RANDOM: Final = 8
"""So many batches of random inputs, where no real ones are given."""


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
        format: a format's name, as in edge_targets/*.yaml.
        precision: "fp32", "fp16" or "int8", as far as the format has it; inputs and outputs stay float32.
        path: the file or folder, with the format's suffix; it appears only when complete, and is removed if it fails
            the check.
        calibration: real inputs [N, C, H, W], normalised as in training: int8 is calibrated on them, and the artifact
            is compared with the network on the first 64. Default: random inputs, and no int8.
        part: limits and options; default: a recipe's.

    Raises:
        ExportError: there is no such format or precision, or it can't be written.
        MissingDependencyError: the format's packages aren't installed; with the pip command.
        ParityError: the artifact doesn't compute what the network does.
        MeasurementError: its runtime can't run it.
    """
    if format not in FORMATS:
        message = f"There is no format {format!r}; known: {', '.join(FORMATS)}.{perhaps(format, FORMATS)}"
        raise ExportError(message)
    require(format, FORMATS[format], precision)
    path, batch = Path(path), len(example)
    artifact = isolated.write(format, model, example, path, precision, part or ExportPart(), calibration)
    if not can_run(artifact):
        return artifact
    inputs = torch.randn(RANDOM * batch, *example.shape[1:]) if calibration is None else calibration[:EXAMPLES]
    try:
        check_parity(model, artifact, inputs[: len(inputs) - len(inputs) % batch])
    except DeployPruneError:
        remove(path)
        raise
    return artifact
