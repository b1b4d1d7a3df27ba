"""Export from Python: any network, one call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from deploy_prune.api.load import load
from deploy_prune.architecture import json_file
from deploy_prune.data.examples import spread
from deploy_prune.device.targets import load_target
from deploy_prune.errors import DeployPruneError, ExportError, RunFolderError, perhaps
from deploy_prune.export import FORMATS, isolated
from deploy_prune.export.artifact import require
from deploy_prune.export.examples import drawn, zeros
from deploy_prune.export.inputs import (
    Given,
    as_float32,
    as_given,
    called_in_order,
    count,
    float32,
    random_like,
    require_inputs,
    several,
)
from deploy_prune.export.parity import UncheckedWarning, can_run, check_parity, compare_contents, unchecked
from deploy_prune.networks.copies import copied, is_wrapped
from deploy_prune.networks.unchanged import unchanged
from deploy_prune.recipe.parts import ExportPart, Recipe
from deploy_prune.run import stages
from deploy_prune.run.proof import calibration_inputs
from deploy_prune.run.saved import at_its_size, recipe_file
from deploy_prune.run.trust import found_recipe
from deploy_prune.system.outputs import require_artifact_place
from deploy_prune.system.shell import remove
from deploy_prune.tasks import task_named
from deploy_prune.types import Artifact, Input

EXAMPLES: Final = 64
"""At most so many inputs are compared."""
RANDOM: Final = 8
"""So many batches of random inputs, where no real ones are given."""
SEED: Final = 0
"""Of those: the same call gives the same verdict."""


def export_network(
    model: nn.Module,
    example: Given,
    format: str = "onnx",
    precision: str = "fp32",
    *,
    path: str | Path,
    calibration: Given | None = None,
    part: ExportPart | None = None,
) -> Artifact:
    """Write any network's artifact in any format, and compare it with the network in its own runtime.

    If an artifact can't be run here, its ``unchecked`` has the reason and an `UncheckedWarning` is given. If its
    contents can be read, they are compared instead.

    Args:
        model: any module that torch.export can trace, also compiled or in DataParallel. It is exported in eval mode.
            Afterwards it is as it was, to the bit and in all that its modules keep.
        example: a tensor [B, ...]; a tuple of several, as the network takes them in order; or a dict of several, by the
            names of the network's arguments. It fixes the artifact's input shapes. What each format takes is in
            docs/formats.md.
        format: a format's name, such as "onnx".
        precision: "fp32", "fp16" or "int8", if the format has it. Inputs and outputs stay float32.
        path: the file or folder to write, with the format's suffix. It appears only when it is complete, and is removed
            if it fails the comparison.
        calibration: real inputs [N, ...], given as ``example``, normalised as in training. int8 needs them. The
            artifact is compared with the network on 64 of them. Default: random inputs, and no int8.
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
    require_inputs(format, example)
    path = Path(path)
    require_artifact_place(path)
    inputs = _inputs(example, calibration)
    real = None if calibration is None else as_given(_in_order(example, calibration))
    with unchanged(model), torch.random.fork_rng(devices=[]):
        network, sentence = as_float32(copied(model) if is_wrapped(model) else model)
        network = called_in_order(network, example)
        given = as_given(float32(example))
        artifact = isolated.write(format, network, given, path, precision, part or ExportPart(), real)
        was_run = _compared(network, artifact, as_given(inputs))
    if sentence is not None:
        warnings.warn(sentence, ConvertedWarning, stacklevel=3)
    if was_run:
        return artifact
    reason = unchecked(artifact)
    warnings.warn(f"{path} was not compared with the network: {reason}.", UncheckedWarning, stacklevel=3)
    return replace(artifact, unchecked=reason)


def _compared(network: nn.Module, artifact: Artifact, inputs: Given) -> bool:
    """Compare an artifact with its network; whether it was run, not only read. One that fails is removed."""
    try:
        if can_run(artifact):
            check_parity(network, artifact, inputs)
            return True
        compare_contents(network, artifact, inputs)
    except DeployPruneError:
        remove(artifact.path)
        raise
    return False


class ConvertedWarning(UserWarning):
    """The network's weights weren't float32, and were turned into it."""


def _in_order(example: Given, calibration: Given) -> tuple[Tensor, ...]:
    """Calibration inputs in the example's order.

    Raises:
        ExportError: they are not of the example's names, number, types or shapes.
    """
    if isinstance(example, Mapping) and isinstance(calibration, Mapping) and set(example) == set(calibration):
        calibration = {name: calibration[name] for name in example}
    given, wanted = float32(calibration), float32(example)
    alike = len(given) == len(wanted) and isinstance(example, Mapping) == isinstance(calibration, Mapping)
    if not alike or any((a.shape[1:], a.dtype) != (b.shape[1:], b.dtype) for a, b in zip(given, wanted, strict=True)):
        message = "The calibration inputs must be given as the example is: the same number, names, types and shapes."
        raise ExportError(message)
    return given


def _inputs(example: Given, calibration: Given | None) -> tuple[Tensor, ...]:
    """What to compare on: real inputs [N, ...], spread over all that are given, or random ones, always the same."""
    generator = torch.Generator().manual_seed(SEED)
    if calibration is None:
        return float32(random_like(example, RANDOM, generator))
    real, shapes = _in_order(example, calibration), [x.shape for x in several(example)]
    runs = count(real, shapes)
    chosen = spread(torch.zeros(runs), max(1, EXAMPLES // shapes[0][0])) if runs else torch.zeros(0, dtype=torch.int64)
    every = zip(real, shapes, strict=True)
    return tuple(x[: runs * s[0]].unflatten(0, (runs, s[0]))[chosen].flatten(0, 1) if runs else x for x, s in every)


def export_saved(source: Path, target: str, out: Path, trust: bool = False, inputs: Sequence[Input] = ()) -> Artifact:
    """Write the artifact of a slim network (source and trust as for ``load``) for a target, checked on random inputs.

    ``unchecked`` says why, where it can't be run here.

    Below fp32 the run's own data is needed: the artifact is calibrated and checked on that. ``inputs``: an example of
    each of the network's inputs, for a file of another size; default: as the architecture was made for.

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
    file = recipe_file(source if source.is_dir() else source.parent)
    recipe = None if file is None else at_its_size(found_recipe(file, trust), described)
    part = Recipe.model_fields["export"].default if recipe is None else recipe.export
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        real = drawn(inputs or described.inputs, network, stages.PROOF_EXAMPLES)
    example = as_given(zeros(inputs or described.inputs))
    network, calibration = called_in_order(network, example), None
    if chosen.precision != "fp32" and recipe is not None and not inputs:
        data = task_named(recipe.task).load(recipe.data, recipe.seed)
        real = calibration = calibration_inputs(data, part.calibration_examples)
    artifact = isolated.write(chosen.format, network, example, out, chosen.precision, part, calibration)
    if _compared(network, artifact, real):
        return artifact
    return replace(artifact, unchecked=unchecked(artifact))
