"""Build a recipe's network, with its weights and its input. Nothing is downloaded here, nothing unpickled."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.errors import DataError, ModelError, perhaps
from deploy_prune.networks import ultralytics
from deploy_prune.networks.cifar_resnet import CifarResNet
from deploy_prune.networks.conv import ConvNet
from deploy_prune.networks.grid_detector import GridDetector
from deploy_prune.networks.libraries import import_timm, import_torchvision
from deploy_prune.networks.unet import UNet
from deploy_prune.recipe.data import MAX_SIZE, MIN_SIZE
from deploy_prune.recipe.parts import LIBRARIES, DataPart, ModelPart
from deploy_prune.system.plugins import import_callable

Builder = Callable[..., Any]

_CLASSIFIERS: Final[dict[str, Builder]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in (20, 32, 44, 56, 110)},
    **{f"conv{depth}": partial(ConvNet, depth) for depth in (2, 4, 6)},
}
BUILT_IN: Final[dict[str, Builder]] = {**_CLASSIFIERS, "grid_detector": GridDetector, "unet": UNet}

BUILT_IN_SIZE: Final = 32
"""Pixels: the built-in classifiers are those of CIFAR (He et al., arXiv 1512.03385, section 4.2) and their like."""
_DETECTORS: Final = "torchvision.models.detection."
_DOWNLOADS = ("weights", "weights_backbone", "pretrained", "pretrained_backbone", "pretrained_cfg", "checkpoint_path")


def build_network(part: ModelPart, num_classes: int) -> nn.Module:
    """The network with fresh weights, drawn from torch's global generator, in the mode its builder leaves it in.

    ``num_classes``: of the data, without a class for what is none of them; 0: the builder is not told of any.

    Raises:
        ModelError: unknown source or name, an argument that isn't allowed, or the builder failed.
        MissingDependencyError: timm is asked for and not installed.
    """
    if num_classes and "num_classes" in part.args:
        message = "model.args: num_classes follows from the classes in `data`; remove it."
        raise ModelError(message)
    builder = _builder(part)
    classes = {"num_classes": num_classes} if num_classes else {}
    if classes and not _takes_classes(builder):
        message = f"model.source: the builder of {part.source!r} takes no argument num_classes; add it, it sets the "
        message += "head's size."
        raise ModelError(message)
    try:
        network = builder(**classes, **part.args)
    except Exception as error:
        message = f"model.source: {part.source!r} can't be built with num_classes={num_classes} and model.args "
        message += f"{part.args}: {type(error).__name__}: {error}"
        raise ModelError(message) from error
    if not isinstance(network, nn.Module):
        message = f"model.source: {part.source!r} returned {type(network).__name__}, not a torch.nn.Module."
        raise ModelError(message)
    return network


def takes_classes(part: ModelPart) -> bool:
    """Whether the function that builds the network takes the number of classes. Raises what `build_network` raises."""
    return _takes_classes(_builder(part))


def head_tensors(
    part: ModelPart, num_classes: int, form: Callable[[nn.Module], nn.Module] | None = None
) -> frozenset[str]:
    """State-dict names of ``build_network(part, num_classes)`` whose shape depends on the number of classes.

    ``form``: what is made of the network, if the names are that one's. Leaves torch's global generator as it was.
    Raises what `build` raises.
    """
    if not num_classes:
        return frozenset()
    with torch.random.fork_rng(devices=[]):
        here, there = (_shapes(part, n, form) for n in (num_classes, num_classes + 1))
    return frozenset(name for name, shape in here.items() if there.get(name) != shape)


def example_input(data: DataPart, batch: int = 1) -> Tensor:
    """Zeros of the network's input shape, float32 [batch, C, H, W].

    Raises:
        DataError: ``data.image_size`` is not given, nor found yet (see `preprocessing`).
    """
    if data.size is None:
        message = "data.image_size: it must be given here, as the network's input."
        raise DataError(message)
    return torch.zeros(batch, data.channels, *data.size)


@dataclass(frozen=True, kw_only=True)
class OwnInput:
    """A network's own configuration of its input: side in pixels, mean and std per channel of values in 0..1.

    None where it doesn't say. ``source``: whose configuration, in words.
    """

    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    source: str = ""


def own_input(part: ModelPart, num_classes: int) -> OwnInput:
    """The input that the network's own configuration describes.

    A built-in classifier's is 32 pixels; the other built-in networks take any. Ultralytics' see values in 0..1. Else
    the size is the one that the network was built for, where it has one of the attributes ``image_size``, ``img_size``
    (its own, its ``config``'s or its ``patch_embed``'s); then, as mean and std, that of its ``pretrained_cfg`` or
    ``default_cfg`` (timm's names), of its ``transform`` (torchvision's detectors; the size only where it is a fixed
    one), then of the transforms of torchvision's default weights. Leaves torch's global generator as it was. Raises
    what `build` raises.
    """
    prefix, colon, name = part.source.partition(":")
    if not colon:
        size = BUILT_IN_SIZE if prefix in _CLASSIFIERS else None
        return OwnInput(size=size, source=f"the built-in {part.source}")
    if prefix == "ultralytics":
        channels = part.args.get("ch", 3)
        return OwnInput(mean=(0.0,) * channels, std=(1.0,) * channels, source="Ultralytics' training")
    with torch.random.fork_rng(devices=[]):
        network = _skeleton(part, num_classes)
    says = _configured(network)
    if says == OwnInput():
        says = _transformed(network)
    if says == OwnInput() and prefix == "torchvision":
        says = _transforms(name)
    size = _built_for(network) or says.size
    library = f"{prefix}'s" if prefix in LIBRARIES else "the network's own"
    return OwnInput(size=size, mean=says.mean, std=says.std, source=f"{library} configuration of {name}")


def _built_for(network: nn.Module) -> int | None:
    """The side of the square images that a network says it was built for."""
    for owner in (network, getattr(network, "config", None), getattr(network, "patch_embed", None)):
        for name in ("image_size", "img_size"):
            if (side := _side(getattr(owner, name, None))) is not None:
                return side
    return None


def _configured(network: nn.Module) -> OwnInput:
    """By timm's convention: a mapping with input_size (C, H, W), mean and std."""
    found = next(
        (c for n in ("pretrained_cfg", "default_cfg") if isinstance(c := getattr(network, n, None), Mapping)), {}
    )
    return OwnInput(size=_side(found.get("input_size")), mean=_values(found.get("mean")), std=_values(found.get("std")))


def _transformed(network: nn.Module) -> OwnInput:
    """By the transform that a detector of torchvision brings along, and that its raw form goes without."""
    found = getattr(network, "transform", None)
    mean, std = (_values(getattr(found, name, None)) for name in ("image_mean", "image_std"))
    return OwnInput(size=_side(getattr(found, "fixed_size", None)), mean=mean, std=std)


def _transforms(name: str) -> OwnInput:
    """Of the default weights that torchvision has for a network; nothing is downloaded."""
    default = getattr(importlib.import_module("torchvision.models").get_model_weights(name), "DEFAULT", None)
    found = default.transforms() if default is not None else None
    mean, std = (_values(getattr(found, key, None)) for key in ("mean", "std"))
    return OwnInput(size=_side(getattr(found, "crop_size", None)), mean=mean, std=std)


def _side(found: object) -> int | None:
    """S of S, (S,), (S, S) or (C, S, S); None of anything else."""
    sides = {*found[-2:]} if isinstance(found, list | tuple) else {found}
    side = sides.pop() if len(sides) == 1 else None
    return side if type(side) is int and MIN_SIZE <= side <= MAX_SIZE else None


def _values(found: object) -> tuple[float, ...] | None:
    return tuple(map(float, found)) if isinstance(found, list | tuple) else None


def _builder(part: ModelPart) -> Builder:
    prefix, colon, name = part.source.partition(":")
    if not colon and prefix in BUILT_IN:
        return BUILT_IN[prefix]
    if not colon:
        message = f"model.source: there is no built-in network {part.source!r}.{_nearest(part.source)}"
        raise ModelError(message)
    if prefix in LIBRARIES:
        _refuse_downloads(part)
        return _LIBRARY_BUILDERS[prefix](name)
    return import_callable(part.source, "model.source", ModelError)


def _torchvision_builder(name: str) -> Builder:
    import_torchvision()
    models = importlib.import_module("torchvision.models")
    names = models.list_models()
    if name not in names:
        message = f"model.source: torchvision has no network {name!r}.{perhaps(name, names)}"
        raise ModelError(message)
    builder = models.get_model_builder(name)
    without = {key: None for key in ("weights", "weights_backbone") if key in inspect.signature(builder).parameters}
    built = partial(builder, **without)
    return partial(_with_background, built) if builder.__module__.startswith(_DETECTORS) else built


def _with_background(builder: Builder, num_classes: int = 0, **args: Any) -> Any:
    """A detector of torchvision, which counts what is none of the classes as one of them."""
    return builder(num_classes=num_classes + 1, **args) if num_classes else builder(**args)


def _timm_builder(name: str) -> Builder:
    timm = import_timm()
    if not timm.is_model(name):
        message = f"model.source: timm has no network {name!r}.{perhaps(name, timm.list_models())}"
        raise ModelError(message)
    return partial(timm.create_model, name, pretrained=False)


_LIBRARY_BUILDERS: Final[dict[str, Callable[[str], Builder]]] = {
    "torchvision": _torchvision_builder, "timm": _timm_builder, "ultralytics": ultralytics.builder,
}  # fmt: skip


def _refuse_downloads(part: ModelPart) -> None:
    for key in _DOWNLOADS:
        if key in part.args:
            message = (
                f"model.args: {key} would fetch weights: write model.weights: default, or a file of your own there."
            )
            raise ModelError(message)


def _takes_classes(builder: Builder) -> bool:
    parameters = inspect.signature(builder).parameters
    return "num_classes" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _nearest(name: str) -> str:
    """A hint at a built-in network, or at torchvision's of that name."""
    names = import_torchvision().models.list_models()
    if name in names:
        return f" Write 'torchvision:{name}'."
    return perhaps(name, BUILT_IN) or perhaps(f"torchvision:{name}", [f"torchvision:{n}" for n in names])


def _shapes(part: ModelPart, num_classes: int, form: Callable[[nn.Module], nn.Module] | None) -> dict[str, torch.Size]:
    network = build_network(part, num_classes) if form else _skeleton(part, num_classes)
    return {name: tensor.shape for name, tensor in (form(network) if form else network).state_dict().items()}


def _skeleton(part: ModelPart, num_classes: int) -> nn.Module:
    """Built without memory where the builder allows it (some compute with their tensors)."""
    try:
        with torch.device("meta"):
            return build_network(part, num_classes)
    except ModelError:
        return build_network(part, num_classes)
