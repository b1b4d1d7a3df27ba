"""`deploy-prune export`: write a finished run's bundles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.api import load
from deploy_prune.architecture import json_file
from deploy_prune.bundle import write
from deploy_prune.bundle.meaning import NO_DECODING, Meaning
from deploy_prune.bundle.write import Bundle, Contents
from deploy_prune.data.boxes import BoxExamples
from deploy_prune.data.examples import ClassExamples, spread
from deploy_prune.data.masks import MaskExamples
from deploy_prune.data.splits import TransferData
from deploy_prune.device.targets import load_targets
from deploy_prune.errors import ExportError, RunFolderError, of_kind, perhaps
from deploy_prune.export.artifact import flatten
from deploy_prune.families import Decode, RawForm, raw_form
from deploy_prune.networks import build, weights
from deploy_prune.recipe.data import at_size
from deploy_prune.recipe.parts import ModelPart, Recipe, parse_budget
from deploy_prune.report.latency import sentence
from deploy_prune.report.row import Row
from deploy_prune.report.take import BUNDLES, bundle_place
from deploy_prune.run import stages, stored_recipe
from deploy_prune.run.context import example_of
from deploy_prune.run.folder import RunFolder, read_json, sha256
from deploy_prune.run.trust import trusted
from deploy_prune.system.strict_json import shown
from deploy_prune.tasks import task_named
from deploy_prune.types import Artifact

SAMPLES: Final = 8
NOISE_SAMPLES: Final = 16
"""In int8, where there is noise to tell from faults."""
LEAST_SAMPLES: Final = 2
MAX_VALUES: Final = 2**25
"""Of an array of the sample: fewer images are taken where they or the outputs are large."""
Pictures = ClassExamples | BoxExamples | MaskExamples


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """A finished run."""

    folder: RunFolder
    recipe: Recipe
    rows: tuple[Row, ...]
    provenance: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """The bundles that were written, and the failed rows that have none."""

    bundles: tuple[Bundle, ...]
    left_out: tuple[Row, ...]


def bundles(
    run: Path, target: str, budget: str | None = None, out: Path | None = None, trust: bool = False
) -> Delivery:
    """Write the bundle of one budget, or of each budget that was met.

    Args:
        run: the run folder.
        target: one of the run's.
        budget: as in the recipe, or "dense"; None: every budget whose row didn't fail, the dense network left out.
        out: with a budget the bundle's folder, else the folder of bundles; default: RUN-TARGET-BUDGET in "bundles".
        trust: build networks whose source is ``module:callable`` too.

    Raises:
        RunFolderError: the run isn't finished, was changed, or has no such row; the message has those that there are.
        DeployPruneError: the row failed, and why, or all rows did (of the class of the first one's error); as
            ``bundle.write``; the data set isn't there; the network can't be built.
    """
    finished = _finished(run, trust)
    rows = _rows(finished, target, budget)
    written = []
    for row in (row for row in rows if row.status != "failed"):
        examples = _examples(finished.recipe, row)
        in_folder = bundle_place(finished.recipe.name, row.target, row.budget, out or BUNDLES)
        place = in_folder if out is None or budget is None else out
        written.append(write.write(_contents(finished, row, examples, trust), place))
    return Delivery(bundles=tuple(written), left_out=tuple(row for row in rows if row.status == "failed"))


def _examples(recipe: Recipe, row: Row) -> TransferData:
    """At the row's input size."""
    part = recipe.data if row.image_size is None else at_size(recipe.data, row.image_size)
    return task_named(recipe.task).load(part, recipe.seed)


def _finished(run: Path, trust: bool) -> Finished:
    folder = RunFolder(path=run)
    provenance_file, recipe_file = run / "provenance.json", run / "recipe.yaml"
    if not provenance_file.is_file():
        message = f"{run} is not finished: run `deploy-prune recipe` with its recipe again to resume."
        raise RunFolderError(message)
    provenance = read_json(provenance_file)
    if not isinstance(provenance, dict) or not isinstance(provenance.get("files"), dict):
        message = f"{provenance_file} was not written by this program: run the recipe again."
        raise RunFolderError(message)
    if sha256(recipe_file) != provenance.get("recipe_sha256"):
        message = f"{recipe_file} is not the recipe that {run} was made with: run the recipe again."
        raise RunFolderError(message)
    recipe = trusted(stored_recipe.load(run), recipe_file, trust)
    return Finished(folder=folder, recipe=recipe, rows=folder.read_results(), provenance=provenance)


def _rows(finished: Finished, target: str, budget: str | None) -> list[Row]:
    """The rows that are asked for, one of which at least didn't fail."""
    here = [row for row in finished.rows if row.target == target]
    path = finished.folder.path
    if not here:
        known = list(dict.fromkeys(row.target for row in finished.rows))
        message = f"{path} has nothing for the target {target!r}; it has {', '.join(known)}.{perhaps(target, known)}"
        raise RunFolderError(message)
    if budget is None:
        chosen = [row for row in here if row.budget != "dense"]
    else:
        wanted = _same(budget, finished.recipe)
        chosen = [row for row in here if _same(row.budget, finished.recipe) == wanted]
    if not chosen:
        there = ", ".join(repr(row.budget) for row in here)
        message = f"{path} has no budget {budget!r} for {target}; it has {there}."
        raise RunFolderError(message)
    failed = [row for row in chosen if row.status == "failed"]
    if len(failed) == len(chosen):
        message = f"There is nothing to export: {target} {failed[0].budget} failed in {path}: {failed[0].error}"
        raise of_kind(failed[0].error_kind)(message)
    return chosen


def _same(budget: str, recipe: Recipe) -> object:
    """What two ways to write one budget have in common."""
    if budget == "dense":
        return budget
    parsed = parse_budget(budget, recipe.metric)
    return parsed.metric, parsed.limit, parsed.relative


def _contents(finished: Finished, row: Row, examples: TransferData, trust: bool) -> Contents:
    folder, recipe = finished.folder, finished.recipe
    place = _place(row, recipe)
    _refuse_changed(finished, place)
    artifact = stages.artifact_of(folder, place)
    return contents(
        _network(finished, row, place, examples, trust), artifact, examples, recipe, recipe.model,
        about={"run": recipe.name, "target": row.target, "budget": row.budget},
        parity=folder.read_json(f"{place}/parity.json"),
        latency={"in_words": sentence(row), "row": asdict(row), "latency": _latency(folder, place)},
        provenance={"run": _of_the_run(finished)},
    )  # fmt: skip


def contents(
    network: nn.Module, artifact: Artifact, examples: TransferData, recipe: Recipe, model: ModelPart,
    **told: Mapping[str, Any],
) -> Contents:  # fmt: skip
    """What a bundle is made of.

    Args:
        network: what the artifact was made of, in eval mode.
        artifact: the file or folder.
        examples: its sample is of their test part.
        recipe: that the network was trained by.
        model: what builds the dense network.
        told: ``about``, ``parity``, ``latency`` and ``provenance`` of `Contents`.

    Raises:
        ExportError: the network's inputs aren't images.
    """
    test = examples.target_test
    if not isinstance(test, Pictures):
        message = f"A bundle is of a network whose inputs are images; this one's task is {recipe.task}."
        raise ExportError(message)
    count = NOISE_SAMPLES if artifact.precision == "int8" else SAMPLES
    images, inputs = _sample(test, min(count, _affordable(network, test)))
    names = examples.target_names
    provenance = {"seed": recipe.seed, "recipe": recipe.model_dump(mode="json"), **told.pop("provenance")}
    return Contents(
        artifact=artifact, network=network, images=images, inputs=inputs, mean=tuple(test.mean.tolist()),
        std=tuple(test.std.tolist()), labels=names or tuple(map(str, examples.target_classes)),
        are_names=names is not None, fit="cut" if isinstance(test, ClassExamples) else test.frame.fit,
        meaning=_meaning(model, examples), provenance=provenance, **told,
    )  # fmt: skip


def _place(row: Row, recipe: Recipe) -> str:
    """The row's folder in the run folder.

    Raises:
        RunFolderError: the row is of no target and budget of the recipe.
    """
    targets = [t for t in load_targets(recipe.targets, recipe.precision) if t.name == row.target]
    budgets = [b for b in recipe.budgets_of(row.target) if b.text == row.budget]
    if not targets or (row.budget != "dense" and not budgets):
        message = f"results.json has {shown(row.target)} {shown(row.budget)}, which its recipe.yaml doesn't have."
        raise RunFolderError(message)
    return f"dense/{row.target}" if row.budget == "dense" else stages.place_of(targets[0], budgets[0])


def _refuse_changed(finished: Finished, place: str) -> None:
    """What a bundle is made of must be what the run wrote."""
    parts = (f"{place}/", "dense/adapted.safetensors" if place.startswith("dense/") else f"{place}/")
    path, sums = finished.folder.path, finished.provenance["files"]
    for name in sorted(name for name in sums if name.startswith(parts)):
        if not (path / name).is_file() or sha256(path / name) != sums[name]:
            message = f"{path / name} is missing or was changed after the run; run the recipe again to write it again."
            raise RunFolderError(message)


def _network(finished: Finished, row: Row, place: str, examples: TransferData, trust: bool) -> nn.Module:
    """What the artifact was made of, in eval mode."""
    folder, part = finished.folder, finished.recipe.model
    if row.budget != "dense":
        return load.load(folder.path / place, trust=trust)
    json_file.require_trust(part, trust)
    network = _form(part, examples).network
    weights.load_state(network, folder.read_tensors("dense/adapted.safetensors"))
    return network.eval()


def _form(model: ModelPart, examples: TransferData) -> RawForm:
    """The dense network, with new weights, and what stands around it."""
    return raw_form(build.build_network(model, examples.num_target), example_of(examples))


def _meaning(model: ModelPart, examples: TransferData) -> Meaning:
    """What the outputs say. Code of the user's own is run: it was trusted, for the network was built of it, too."""
    test = examples.target_test
    if isinstance(test, ClassExamples):
        return NO_DECODING
    decode = _form(model, examples).decode
    if isinstance(test, MaskExamples) and decode is None:
        return Meaning(kind="pixels", decode=Decode(program="decode_pixels", settings={"size": list(test.size)}))
    if isinstance(test, BoxExamples) and isinstance(decode, Decode):
        return Meaning(kind="boxes", decode=decode)
    return Meaning(kind="outputs")


def _affordable(network: nn.Module, examples: Pictures) -> int:
    """How many images a sample can have."""
    (x,) = examples.take(torch.tensor([0])).inputs
    with torch.no_grad():
        largest = max(y.numel() for y in (x, *flatten(network(x))))
    return max(LEAST_SAMPLES, MAX_VALUES // largest)


def _sample(examples: Pictures, count: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, C, H, W], spread over the examples' classes, and what the network takes for them."""
    chosen = spread(examples.strata, count)
    images = (examples.pixels(chosen) * 255).round().clamp(0, 255).to(torch.uint8)
    return images, examples.normalise(images.float() / 255)


def _latency(folder: RunFolder, place: str) -> Any:
    """What was measured (raw samples in ms) or predicted; None for a dense network that was not measured."""
    name = f"{place}/latency.json"
    return folder.read_json(name) if (folder.path / name).is_file() else None


def _of_the_run(finished: Finished) -> dict[str, Any]:
    """The run's own provenance; its list of files is not this bundle's."""
    return {key: value for key, value in finished.provenance.items() if key != "files"}
