"""What can be done with a finished run: load its networks, export them for other targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from deploy_prune import data, road
from deploy_prune.checked import calibration_inputs
from deploy_prune.errors import DeployPruneError, RunFolderError
from deploy_prune.export import isolated
from deploy_prune.export.parity import can_run, check_parity, compare_contents, unchecked
from deploy_prune.latency.targets import load_target
from deploy_prune.outputs import require_artifact_place
from deploy_prune.recipe import Recipe
from deploy_prune.runfolder import load_tensors
from deploy_prune.shell import remove
from deploy_prune.surgery import architecture
from deploy_prune.trust import found_recipe
from deploy_prune.types import Artifact


def load(path: str | Path, *, trust: bool = False) -> nn.Module:
    """The slim network of a run's TARGET/BUDGET folder, with its weights, in eval mode. No pickle is involved.

    Args:
        path: a folder with architecture.json and weights.safetensors, or an architecture.json (then: fresh weights
            from torch's global generator).
        trust: build networks whose source is ``module:callable`` too. That imports and calls what the file names.

    Raises:
        ArchitectureError: the file is damaged, needs ``trust``, or doesn't fit the network's definition.
        RunFolderError: the weights are missing or damaged.
    """
    path = Path(path)
    file = path / "architecture.json" if path.is_dir() else path
    described = architecture.load(file)
    slim = architecture.build(described, architecture.dense_network(described, trust))
    if path.is_dir():
        architecture.load_weights(slim, load_tensors(path / "weights.safetensors"), path)
    return slim.eval()


def export(source: Path, target: str, out: Path, trust: bool = False) -> Artifact:
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
    described = architecture.load(source / "architecture.json" if source.is_dir() else source)
    place = source.resolve() if source.is_dir() else source.resolve().parent
    files = [place.parent.parent / "recipe.yaml", place / "transfer.yaml"]
    recipe = next((found_recipe(file, trust) for file in files if file.is_file()), None)
    part = Recipe.model_fields["export"].default if recipe is None else recipe.export
    generator = torch.Generator().manual_seed(0)  # the same call gives the same verdict
    inputs = torch.randn(road.PROOF_EXAMPLES, *described.input_shape[1:], generator=generator)
    calibration = None
    if chosen.precision != "fp32" and recipe is not None:
        inputs = calibration = calibration_inputs(data.load(recipe.data, recipe.seed), part)
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
