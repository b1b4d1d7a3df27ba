"""Export from Python: any network, one call."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from deploy_prune.api.load import load
from deploy_prune.architecture import json_file
from deploy_prune.data import splits
from deploy_prune.data.examples import spread
from deploy_prune.device.targets import load_target
from deploy_prune.errors import DeployPruneError, ExportError, RunFolderError, perhaps
from deploy_prune.export import FORMATS, isolated
from deploy_prune.export.artifact import require
from deploy_prune.export.parity import UncheckedWarning, can_run, check_parity, compare_contents, unchecked
from deploy_prune.networks.copies import copied, is_wrapped
from deploy_prune.networks.unchanged import unchanged
from deploy_prune.recipe.parts import ExportPart, Recipe
from deploy_prune.run import stages
from deploy_prune.run.proof import calibration_inputs
from deploy_prune.run.trust import found_recipe
from deploy_prune.system.outputs import require_artifact_place
from deploy_prune.system.shell import remove
from deploy_prune.types import Artifact

EXAMPLES: Final = 64
"""At most so many inputs are compared."""
RANDOM: Final = 8
"""So many batches of random inputs, where no real ones are given."""
SEED: Final = 0
"""Of those: the same call gives the same verdict."""


def export_network(
    model: nn.Module,
    example: Tensor,
    format: str = "onnx",
    precision: str = "fp32",
    *,
    path: str | Path,
    calibration: Tensor | None = None,
    part: ExportPart | None = None,
) -> Artifact:
    """Write any network's artifact in any format, and compare it with the network in its own runtime.

    If an artifact can't be run here, its ``unchecked`` has the reason and an `UncheckedWarning` is given. If its
    contents can be read, they are compared instead.

    Args:
        model: any module that torch.export can trace, also compiled or in DataParallel. It is exported in eval mode.
            Afterwards it is as it was, to the bit and in all that its modules keep.
        example: float32 [B, C, H, W]. It fixes the artifact's input shape.
        format: a format's name, such as "onnx".
        precision: "fp32", "fp16" or "int8", if the format has it. Inputs and outputs stay float32.
        path: the file or folder to write, with the format's suffix. It appears only when it is complete, and is removed
            if it fails the comparison.
        calibration: real inputs [N, C, H, W], normalised as in training. int8 needs them. The artifact is compared with
            the network on 64 of them. Default: random inputs, and no int8.
        part: limits and options. Default: those of a recipe.

    Raises:
        ExportError: there is no such format or precision, or the artifact can't be written.
        MissingDependencyError: the format's packages aren't installed. The message has the pip command.
        ParityError: the artifact doesn't compute what the network computes.
        MeasurementError: its runtime can't run it.
        RunFolderError: something else would be replaced, or the place can't be written to.
    """
    if format not in FORMATS:
        message = f"There is no format {format!r}; known: {', '.join(FORMATS)}.{perhaps(format, FORMATS)}"
        raise ExportError(message)
    require(format, FORMATS[format], precision)
    path, batch = Path(path), len(example)
    require_artifact_place(path)
    inputs = _inputs(example, calibration)
    with unchanged(model), torch.random.fork_rng(devices=[]):
        network = copied(model) if is_wrapped(model) else model
        artifact = isolated.write(format, network, example, path, precision, part or ExportPart(), calibration)
        try:
            if can_run(artifact):
                check_parity(network, artifact, inputs[: len(inputs) - len(inputs) % batch])
                return artifact
            compare_contents(network, artifact, inputs)
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


def export_saved(source: Path, target: str, out: Path, trust: bool = False) -> Artifact:
    """Write the artifact of a slim network (source and trust as for ``load``) for a target, checked on random inputs.

    ``unchecked`` says why, where it can't be run here.

    Below fp32 the run's own data is needed: the artifact is calibrated and checked on that.

    Raises:
        DeployPruneError: as ``load``; the target is unknown; the artifact can't be written or isn't equal.
    """
    chosen = load_target(target)
    require_artifact_place(out)
    if not source.exists():
        message = f"There is no {source}; give a run's TARGET/BUDGET folder or an architecture.json."
        raise RunFolderError(message)
    network = load(source, trust=trust)
    described = json_file.load(source / "architecture.json" if source.is_dir() else source)
    place = source.resolve() if source.is_dir() else source.resolve().parent
    files = [place.parent.parent / "recipe.yaml", place / "transfer.yaml"]
    recipe = next((found_recipe(file, trust) for file in files if file.is_file()), None)
    part = Recipe.model_fields["export"].default if recipe is None else recipe.export
    generator = torch.Generator().manual_seed(0)  # the same call gives the same verdict
    inputs = torch.randn(stages.PROOF_EXAMPLES, *described.input_shape[1:], generator=generator)
    calibration = None
    if chosen.precision != "fp32" and recipe is not None:
        inputs = calibration = calibration_inputs(splits.load(recipe.data, recipe.seed), part)
    example = torch.zeros(described.input_shape)
    artifact = isolated.write(chosen.format, network, example, out, chosen.precision, part, calibration)
    try:
        if can_run(artifact):
            check_parity(network, artifact, inputs)
            return artifact
        compare_contents(network, artifact, inputs)
    except DeployPruneError:
        remove(out)
        raise
    return replace(artifact, unchecked=unchecked(artifact))
