"""What can be done with a finished run: load its networks, measure them again, export them for other targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from deploy_prune import data, road
from deploy_prune.checked import calibration_inputs
from deploy_prune.device import RUNTIMES
from deploy_prune.device.address import parse
from deploy_prune.errors import DeployPruneError, RunFolderError, TargetError
from deploy_prune.export import isolated
from deploy_prune.export.parity import can_run, check_parity
from deploy_prune.latency.steady import measure_steadily
from deploy_prune.latency.targets import load_target
from deploy_prune.recipe import Recipe
from deploy_prune.recipe_file import load as load_recipe
from deploy_prune.road import place_of
from deploy_prune.runfolder import RunFolder, load_tensors
from deploy_prune.shell import remove
from deploy_prune.surgery import architecture
from deploy_prune.timing import with_latency
from deploy_prune.types import Artifact, Row, Target


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


def bench(run_folder: Path, runs: int, device: str | None = None) -> tuple[Row, ...]:
    """Measure a run's artifacts again; rows of targets without a device come back as they were.

    ``device``: measure there instead (``local``, ``ssh://...``, ``adb://...``), all targets that have a runtime for it.

    Raises:
        RunFolderError: there is no finished run.
        TargetError: ``device`` is no device's name, or no target of the run can be measured there.
        MeasurementError: an artifact can't be measured.
    """
    folder = RunFolder(path=run_folder)
    rows = folder.read_results()
    recipe = load_recipe(str(run_folder / "recipe.yaml"))
    targets = {target.name: target for target in map(load_target, recipe.targets)}
    if device is not None:
        targets = _moved(targets, device)
    return tuple(_measured_again(folder, rows, recipe, targets, runs))


def _moved(targets: Mapping[str, Target], device: str) -> dict[str, Target]:
    """The targets, on another device where their runtime is one that we can start there."""
    parse(device)
    if not any(target.runtime in RUNTIMES for target in targets.values()):
        known = ", ".join(sorted({target.runtime for target in targets.values()}))
        message = (
            f"Nothing of this run can be measured on {device}: its runtimes are {known}, not {', '.join(RUNTIMES)}."
        )
        raise TargetError(message)
    return {k: replace(t, runner=device) if t.runtime in RUNTIMES else t for k, t in targets.items()}


def _measured_again(
    folder: RunFolder, rows: Sequence[Row], recipe: Recipe, targets: Mapping[str, Target], runs: int
) -> Iterator[Row]:
    budgets = {b.text: b for b in recipe.parsed_budgets}
    for row in rows:
        if row.target not in targets or row.budget not in {"dense", *budgets}:
            message = (
                f"{folder.path} has no results of its recipe.yaml ({row.target} {row.budget}); run the recipe again."
            )
            raise RunFolderError(message)
        target = targets[row.target]
        if target.runner is None or row.status == "failed":
            yield row
            continue
        dense = road.artifact_of(folder, f"dense/{target.name}")
        budget = budgets.get(row.budget)
        slim = dense if budget is None else road.artifact_of(folder, place_of(target, budget))
        beside, latency = measure_steadily(target, [dense, slim], runs, recipe.measure.warmup)
        yield with_latency(row, budget, latency, beside)


def export(source: Path, target: str, out: Path, trust: bool = False) -> Artifact:
    """Write the artifact of a slim network (source and trust as for ``load``) for a target, checked on random inputs.

    Below fp32 the run's own data is needed: the artifact is calibrated and checked on that.

    Raises:
        DeployPruneError: as ``load``; the target is unknown; the artifact can't be written or isn't equal.
    """
    chosen = load_target(target)
    if not source.exists():
        message = f"There is no {source}; give a run's TARGET/BUDGET folder or an architecture.json."
        raise RunFolderError(message)
    network = load(source, trust=trust)
    described = architecture.load(source / "architecture.json" if source.is_dir() else source)
    place = source.resolve() if source.is_dir() else source.resolve().parent
    recipe_file = place.parent.parent / "recipe.yaml"
    recipe = load_recipe(str(recipe_file)) if recipe_file.is_file() else None
    part = Recipe.model_fields["export"].default if recipe is None else recipe.export
    inputs, calibration = torch.randn(road.PROOF_EXAMPLES, *described.input_shape[1:]), None
    if chosen.precision != "fp32" and recipe is not None:
        inputs = calibration = calibration_inputs(data.load(recipe.data, recipe.seed), part)
    example = torch.zeros(described.input_shape)
    artifact = isolated.write(chosen.format, network, example, out, chosen.precision, part, calibration)
    try:
        if can_run(artifact):
            check_parity(network, artifact, inputs)
    except DeployPruneError:
        remove(out)
        raise
    return artifact
