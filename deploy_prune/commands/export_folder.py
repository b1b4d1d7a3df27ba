"""`deploy-prune export --bundle`: the bundle of a slim network that belongs to no run, or for another target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from deploy_prune.api.bundle import latency_of
from deploy_prune.api.load import load
from deploy_prune.architecture import json_file
from deploy_prune.bundle import write
from deploy_prune.bundle.write import Bundle
from deploy_prune.commands.export import contents
from deploy_prune.data.splits import TransferData
from deploy_prune.device.targets import load_target
from deploy_prune.errors import ExportError, RunFolderError
from deploy_prune.export import FORMATS, isolated
from deploy_prune.export.artifact import require
from deploy_prune.families import raw_form
from deploy_prune.networks import build
from deploy_prune.recipe.parts import ModelPart, Recipe
from deploy_prune.report.take import BUNDLES, bundle_place
from deploy_prune.report.units import in_unit
from deploy_prune.run.context import example_of
from deploy_prune.run.folder import PACKAGES, versions
from deploy_prune.run.proof import calibration_inputs, prove_artifact
from deploy_prune.run.saved import ARCHITECTURE, WEIGHTS, at_its_size, recipe_file
from deploy_prune.run.stages import refuse_loss
from deploy_prune.run.trust import found_recipe
from deploy_prune.system.guard import scratch
from deploy_prune.system.shell import digest
from deploy_prune.tasks import Objective, task_named
from deploy_prune.training.loop import network_score
from deploy_prune.types import Artifact, Target


def folder_bundle(source: Path, target: str, out: Path | None = None, trust: bool = False) -> Bundle:
    """Write a slim network's artifact for a target, check it on the recipe's examples, and write its bundle.

    Args:
        source: a folder with architecture.json, weights and, in it or in the run that it is in, a recipe: as ``save``,
            ``deploy-prune transfer`` and runs leave it.
        target: any target; where one is attached, the artifact's latency is measured.
        out: the bundle's folder; default: NAME-TARGET in "bundles".
        trust: allow code of your own that architecture or recipe name.

    Raises:
        RunFolderError: there are no weights, or no recipe that says what the network's examples are.
        ExportError: the recipe's examples are of another kind, or of other classes, than the network.
        ParityError: the artifact doesn't compute what the network computes, or scores too much less.
        DeployPruneError: as ``load`` and ``bundle.write``; target, data set or runtime don't work.
    """
    recipe, described = _gathered(source, trust)
    chosen, network = load_target(target), load(source, trust=trust)
    require(chosen.format, FORMATS[chosen.format], chosen.precision)
    examples = task_named(recipe.task).load(recipe.data, recipe.seed)
    _require_its_classes(described, examples)
    with scratch() as folder:
        artifact = _written(network, chosen, recipe, examples, folder)
        parity = _proven(network, artifact, described.model, recipe, examples)
        about = contents(
            network, artifact, examples, recipe, described.model,
            about={"run": source.resolve().name, "target": chosen.name, "budget": _told(parity, recipe)},
            parity=parity, latency=latency_of(artifact, chosen, recipe.measure),
            provenance={"weights_sha256": digest(source / WEIGHTS), "versions": versions(PACKAGES)},
        )  # fmt: skip
        place = bundle_place(source.resolve().name, chosen.name, chosen.precision, BUNDLES)
        return write.write(about, out or place)


def _gathered(source: Path, trust: bool) -> tuple[Recipe, json_file.Architecture]:
    """The recipe, at the input size of the network, and the architecture."""
    if not (source / WEIGHTS).is_file() or not (source / ARCHITECTURE).is_file():
        message = f"{source} has no {ARCHITECTURE} and {WEIGHTS}, of which a bundle is made; give such a folder, as "
        message += "deploy_prune.save, `deploy-prune transfer` and runs (TARGET/BUDGET) write it."
        raise RunFolderError(message)
    file = recipe_file(source)
    if file is None:
        message = (
            f"{source} has no recipe, which says what the network's examples are: a bundle has some of them. Save "
        )
        message += "the network with like=FOLDER of the run or transfer that it came from, or leave out --bundle."
        raise RunFolderError(message)
    described = json_file.load(source / ARCHITECTURE)
    return at_its_size(found_recipe(file, trust), described), described


def _require_its_classes(described: json_file.Architecture, examples: TransferData) -> None:
    if described.num_classes not in (0, examples.num_target):
        message = f"The network has {described.num_classes} classes, and its recipe's examples {examples.num_target}."
        raise ExportError(message)


def _written(
    network: nn.Module, target: Target, recipe: Recipe, examples: TransferData, folder: Path
) -> Artifact:  # fmt: skip
    part = recipe.export
    inputs = calibration_inputs(examples, part.calibration_examples) if target.precision == "int8" else None
    path = folder / f"model{FORMATS[target.format].suffix}"
    return isolated.write(target.format, network, example_of(examples), path, target.precision, part, inputs)


def _proven(
    network: nn.Module, artifact: Artifact, model: ModelPart, recipe: Recipe, examples: TransferData
) -> dict[str, Any]:
    """What parity.json says, with the network's score."""
    form = raw_form(build.build_network(model, examples.num_target), example_of(examples))
    objective = Objective(task=task_named(recipe.task, recipe.score), form=form)
    told = prove_artifact(examples, network, artifact, objective)
    refuse_loss(str(artifact.path.name), told, recipe.export, objective.task.score)
    return {"score": network_score(network, examples.target_test, objective), **told}


def _told(parity: dict[str, Any], recipe: Recipe) -> str:
    """The score, in words."""
    score = task_named(recipe.task, recipe.score).score
    return f"{score.name} {in_unit(parity['score'], score.unit)}"
