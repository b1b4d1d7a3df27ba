"""What goes into the network: its size, its normalisation and the examples, each found once, with where it comes from.

    image size      the recipe; else the network's own configuration; else the one size that the images have
    normalisation   the recipe; else, with weights, the network's own configuration; else the source data's own
    shots           the recipe; else all examples where the classes stay the same, and 10 of each new class

Weights are tried under other normalisations, too: one that fits them much better is told, and never taken unasked.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.data.examples import ClassExamples
from deploy_prune.data.files import Files, measured
from deploy_prune.data.splits import TransferData
from deploy_prune.errors import DataError, DeployPruneError, WeightsError
from deploy_prune.networks import build, weights
from deploy_prune.networks.build import OwnInput
from deploy_prune.networks.published import fetch
from deploy_prune.recipe.data import as_sizes
from deploy_prune.recipe.parts import DataPart, Part, Recipe
from deploy_prune.tasks import task_named
from deploy_prune.tasks.classification import CLASSIFICATION
from deploy_prune.tasks.task import Task
from deploy_prune.training.loop import placed

IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and std that torchvision and most of timm train with."""
TRIED: Final = 256
"""Training examples that weights are tried on: cheap, and enough for differences of a few percent."""
STANDARD_ERRORS: Final = 3.0
"""A difference counts from here: by chance alone, one in 740 is as large (one side of a normal distribution)."""
OWN_UNSURE: Final = "the source data's own, for nothing says what the weights were trained with"
_BATCH: Final = 64
_LOG = logging.getLogger(__name__)

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Resolved:
    """A recipe whose data part leaves nothing open, its examples, and sentences that tell of both."""

    recipe: Recipe
    task: Task
    data: TransferData
    own: OwnInput
    summary: tuple[str, ...]


def resolve(recipe: Recipe) -> Resolved:
    """Find what the recipe leaves open, and load the examples.

    Raises:
        DataError: as the task's ``load``; or nothing says how large the input is.
        ModelError: the network can't be built.
        RecipeError: there is no such task.
        WeightsError: published weights can't be fetched, or don't fit.
    """
    task = task_named(recipe.task, recipe.score)
    if (published := fetch(recipe.model)) is not None:
        return _of_published(resolve(_with_file(recipe, published.path)), published.told)
    if "image_size" not in type(recipe.data).model_fields:
        examples = _loaded(recipe.data, recipe, task)
        shapes = ", ".join("x".join(map(str, x.shape[1:])) or "a number" for x in _first_inputs(examples))
        told = (f"Input: {shapes}.", *_told_of_examples(examples))
        return Resolved(recipe=recipe, task=task, data=examples, own=OwnInput(), summary=told)
    own, part, origin = _with_own_input(recipe)
    examples = _loaded(part, recipe, task)
    part = part.model_copy(update=_found_here(part, examples))
    channels = "the recipe" if "channels" in recipe.data.model_fields_set else "the default"
    (high, wide), *smaller = as_sizes(part.image_size)
    origins = f"(size: {origin['image_size']}; channels: {channels})"
    others = f" Also tried: {', '.join(f'{h} x {w}' for h, w in smaller)}." if smaller else ""
    summary = (
        f"Input: {part.channels} x {high} x {wide} pixels {origins}.{others}",
        f"Normalisation: mean {_shown(part.mean)} ({origin['mean']}), std {_shown(part.std)} ({origin['std']}).",
        *_told_of_examples(examples),
    )
    found = recipe.model_copy(update={"data": part})
    return Resolved(recipe=found, task=task, data=examples, own=own, summary=summary)


def _with_model(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})


def _with_file(recipe: Recipe, path: Path) -> Recipe:
    """The recipe with this weights file."""
    return _with_model(recipe, weights=str(path))


def _of_published(resolved: Resolved, told: str) -> Resolved:
    """With the class layers that published weights need, and with a sentence of which weights these are."""
    head, told = _head_that_fits(resolved), f"Weights: {told}."
    told += " Its class layers are of other classes; new ones are trained." if head == "new" else ""
    recipe = _with_model(resolved.recipe, head=head)
    return replace(resolved, recipe=recipe, summary=(*resolved.summary, told))


def _head_that_fits(found: Resolved) -> str:
    """``head``, as the recipe says, or as published weights for other classes need it.

    Raises:
        WeightsError: the weights don't fit, whatever the classes are.
    """
    model, num_classes = found.recipe.model, found.data.num_source
    if "head" in model.model_fields_set or not build.takes_classes(model):
        return model.head
    network = build.build_network(model, num_classes)
    try:
        weights.load_given(network, model, num_classes)
    except WeightsError:
        weights.load_given(network, model.model_copy(update={"head": "new"}), num_classes)
        return "new"
    return "keep"


def _loaded(part: Part, recipe: Recipe, task: Task) -> TransferData:
    """The task's examples.

    Raises:
        DataError: a task of the user's own fails, or loads something else.
    """
    try:
        found: object = task.load(part, recipe.seed)
    except DeployPruneError:
        raise
    except Exception as error:
        message = f"task: the load of {recipe.task!r} failed: {type(error).__name__}: {error}"
        raise DataError(message) from error
    if not isinstance(found, TransferData):
        message = f"task: the load of {recipe.task!r} gave {type(found).__name__}, not a deploy_prune.TransferData."
        raise DataError(message)
    return found


def _first_inputs(examples: TransferData) -> tuple[Tensor, ...]:
    return examples.source_train.take(torch.tensor([0])).inputs


def _with_own_input(recipe: Recipe) -> tuple[OwnInput, DataPart, dict[str, str]]:
    """The network's own configuration, the data part with what it says, and where size, mean and std come from."""
    own, part = _own_input(recipe), recipe.data
    origin = dict.fromkeys(("image_size", "mean", "std"), "the recipe")
    if part.image_size is None:
        origin["image_size"] = own.source if own.size else "the images' own"
        part = part.model_copy(update={"image_size": own.size})
    for key, values in (("mean", own.mean), ("std", own.std)):
        if getattr(part, key) is None:
            is_own = recipe.model.weights is not None and values is not None and len(values) == part.channels
            origin[key] = own.source if is_own else OWN_UNSURE if recipe.model.weights else "the source data's own"
            part = part.model_copy(update={key: list(values)}) if is_own and values else part
    return own, part, origin


def _found_here(part: DataPart, examples: TransferData) -> dict[str, Any]:
    """What the examples say where the part says nothing."""
    used: Any = examples.source_train
    high, wide = _first_inputs(examples)[0].shape[2:]
    several = len(as_sizes(part.image_size)) > 1
    return {
        "image_size": part.image_size if several else high if high == wide else [high, wide],
        "shots": examples.shots_a_class,
        "mean": part.mean or used.mean.tolist(), "std": part.std or used.std.tolist(),
    }  # fmt: skip


def _own_input(recipe: Recipe) -> OwnInput:
    """The network's own configuration, if there is anything to ask it."""
    part, weights = recipe.data, recipe.model.weights
    if part.image_size is not None and (not weights or (part.mean is not None and part.std is not None)):
        return OwnInput()
    return build.own_input(recipe.model, len(part.source_classes or (0, 1)))


def _told_of_examples(examples: TransferData) -> tuple[str, str]:
    """How many of how many are used for what, and what becomes of the dense network."""
    used, there, a_class = len(examples.target_train), examples.num_available, examples.shots_a_class
    learned = f"all {there}" if used == there else f"{used} of {there}"
    shots = "" if a_class is None else f", {a_class} a class"
    same = examples.same_task
    dense = "the original network, unchanged: the target task is the source's"
    if not same:
        dense = "the original network with new class layers, adapted with the same examples: the target's classes are "
        dense += "others, or in another order"
    return (
        f"Examples: search on {len(examples.source_train)}, retraining with {learned} training examples{shots}; "
        f"scored on {len(examples.target_test)} others.",
        f"Dense: {dense}.",
    )


def try_weights(resolved: Resolved, device: torch.device) -> tuple[str, ...]:
    """Load the recipe's weights, if it has any, and say what speaks against them, as `doubts`.

    Raises:
        WeightsError: they can't be read, or don't fit the network.
    """
    model = resolved.recipe.model
    if model.weights is None:
        return ()
    network = build.build_network(model, resolved.data.num_source)
    weights.load_given(network, model, resolved.data.num_source)
    if model.head == "new" or resolved.task is not CLASSIFICATION:
        return ()
    return doubts(network, resolved, device)


def doubts(network: nn.Module, resolved: Resolved, device: torch.device) -> tuple[str, ...]:
    """What speaks against the weights' being used as they were trained, which is logged; () if nothing does.

    The network (with its weights) is asked for ``TRIED`` training examples of the source task under the run's
    normalisation and some others. Two are compared by the examples that only one of them gets right: b and c are
    equally likely if neither is better, so that b - c has the standard error sqrt(b + c) (McNemar 1947).
    ``model.score`` is compared by the binomial error of a share.
    """
    examples, recipe = resolved.data.source_train, resolved.recipe
    assert isinstance(examples, ClassExamples)
    chosen = torch.linspace(0, len(examples) - 1, min(TRIED, len(examples))).round().long()
    pixels, labels = examples.pixels(chosen), examples.labels[chosen]
    here: Normalisation = (tuple(examples.mean.tolist()), tuple(examples.std.tolist()))
    with placed(network, device, training=False):
        ours = _right(network, pixels, labels, here, device)
        others = {
            name: (norm, _right(network, pixels, labels, norm, device))
            for name, norm in _candidates(examples, pixels, resolved.own).items()
            if not torch.allclose(torch.tensor(norm), torch.tensor(here), atol=1e-3)
        }
    found = []
    name, (norm, theirs) = max(others.items(), key=lambda item: int(item[1][1].sum()))
    better, worse = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
    if better - worse > STANDARD_ERRORS * sqrt(better + worse):
        found.append(
            f"model.weights: they score {_share(ours)} on {len(ours)} training examples as these are normalised here, "
            f"and {_share(theirs)} with {name}, more than {STANDARD_ERRORS:g} standard errors better. If they were "
            f"trained so, write data.mean: [{_shown(norm[0], ', ')}] and data.std: [{_shown(norm[1], ', ')}]."
        )
    said, score = recipe.model.score, float(ours.float().mean())
    if said is not None and is_short(said, score, len(ours)):
        found.append(
            f"model.score: the weights are said to score {said:.1%}, and score {score:.1%} on {len(ours)} training "
            "examples. Look at the order of the classes, data.image_size, data.mean and data.std."
        )
    for sentence in found:
        _LOG.warning("%s", sentence)
    return tuple(found)


def is_short(said: float, score: float, num_examples: int) -> bool:
    """Whether a score (0 to 1) on so many examples is further below what was said than chance explains."""
    return said - score > STANDARD_ERRORS * sqrt(said * (1 - said) / num_examples)


def _candidates(examples: ClassExamples, tried: Tensor, own: OwnInput) -> Mapping[str, Normalisation]:
    """Normalisations that networks are trained with, by name. ``tried``: the examples that are asked for, in 0..1."""
    channels = len(examples.mean)
    mean, std = measured(tried if isinstance(examples.images, Files) else examples.images)
    found: dict[str, Normalisation] = {
        "the values 0 to 1 as they are": ((0.0,) * channels, (1.0,) * channels),
        "values from -1 to 1": ((0.5,) * channels, (0.5,) * channels),
    }
    if bool((std > 0).all()):
        found["the data's own mean and std"] = (tuple(mean.tolist()), tuple(std.tolist()))
    if channels == len(IMAGENET[0]):
        found["ImageNet's mean and std"] = IMAGENET
    if own.mean is not None and own.std is not None and len(own.mean) == len(own.std) == channels:
        found[own.source] = (own.mean, own.std)
    return found


@torch.no_grad()
def _right(network: nn.Module, pixels: Tensor, labels: Tensor, norm: Normalisation, device: torch.device) -> Tensor:
    """bool[B]: which images (float [B, C, S, S] in 0..1) get their label (int64 [B]) as the highest output."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in norm)
    parts = zip(pixels.split(_BATCH), labels.split(_BATCH), strict=True)
    return torch.cat([network(((x - mean) / std).to(device)).argmax(1).cpu() == y for x, y in parts])


def _share(right: Tensor) -> str:
    return f"{float(right.float().mean()):.1%}"


def _shown(values: Sequence[float] | None, between: str = " ") -> str:
    return between.join(f"{value:.4g}" for value in values or ())
