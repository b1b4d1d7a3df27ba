"""From the recipe to a network: its builder, its weights, its input. Nothing is ever downloaded or unpickled."""

from __future__ import annotations

import importlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.checkpoints import Taken, read_all, read_for
from deploy_prune.errors import ModelError, perhaps
from deploy_prune.networks.cifar_resnet import CifarResNet
from deploy_prune.networks.conv import ConvNet
from deploy_prune.plugins import import_callable
from deploy_prune.recipe import DataPart, ModelPart
from deploy_prune.vision import import_timm, import_torchvision

Builder = Callable[..., Any]

BUILT_IN: Final[dict[str, Builder]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in (20, 32, 44, 56, 110)},
    **{f"conv{depth}": partial(ConvNet, depth) for depth in (2, 4, 6)},
}

_DOWNLOADS = ("weights", "weights_backbone", "pretrained", "pretrained_backbone", "pretrained_cfg", "checkpoint_path")


def build(part: ModelPart, num_classes: int) -> nn.Module:
    """The network with fresh weights, drawn from torch's global generator, in the mode its builder leaves it in.

    Raises:
        ModelError: unknown source or name, an argument that isn't allowed, or the builder failed.
        MissingDependencyError: timm is asked for and not installed.
    """
    if "num_classes" in part.args:
        message = "model.args: num_classes follows from the classes in `data`; remove it."
        raise ModelError(message)
    builder = _builder(part)
    _require_num_classes(builder, part.source)
    try:
        network = builder(num_classes=num_classes, **part.args)
    except Exception as error:
        message = f"model.source: {part.source!r} can't be built with num_classes={num_classes} and model.args "
        message += f"{part.args}: {type(error).__name__}: {error}"
        raise ModelError(message) from error
    if not isinstance(network, nn.Module):
        message = f"model.source: {part.source!r} returned {type(network).__name__}, not a torch.nn.Module."
        raise ModelError(message)
    return network


def head_tensors(part: ModelPart, num_classes: int) -> frozenset[str]:
    """State-dict names of ``build(part, num_classes)`` whose shape depends on the number of classes.

    Leaves torch's global generator as it was. Raises what `build` raises.
    """
    with torch.random.fork_rng(devices=[]):
        here, there = (_shapes(part, n) for n in (num_classes, num_classes + 1))
    return frozenset(name for name, shape in here.items() if there.get(name) != shape)


def example_input(data: DataPart, batch: int = 1) -> Tensor:
    """Zeros of the network's input shape, float32 [batch, C, S, S]."""
    return torch.zeros(batch, data.channels, data.image_size, data.image_size)


def load_weights(network: nn.Module, path: Path, key: str | None = None, fresh: Collection[str] = ()) -> Taken:
    """Copy a file's tensors into the network: a .safetensors file, or what torch.save wrote; nothing in it is run.

    Which of its tensors are the network's: `checkpoints`. Floats of another width are cast. ``num_batches_tracked`` may
    be missing.

    Args:
        network: what the tensors are copied into; unchanged where they don't fit.
        path: the file.
        key: the entry to take, where several fit (``model.weights_key``).
        fresh: tensors that stay as they are, and need not be in the file (``model.head: new``).

    Raises:
        WeightsError: missing, damaged, pickled code, or not this network's; the first tensor that differs is named.
    """
    state, taken = read_for(network.state_dict(), path, key, fresh)
    load_state(network, state, strict=False)
    return taken


def load_given(network: nn.Module, part: ModelPart, num_classes: int) -> Taken | None:
    """The recipe's weights, copied into a network of this part; None where there are none.

    With ``head: new`` the layers whose size follows from the number of classes stay as they are.

    Raises:
        WeightsError: as `load_weights`.
    """
    if part.weights is None:
        return None
    fresh = head_tensors(part, num_classes) if part.head == "new" else frozenset[str]()
    return load_weights(network, Path(part.weights), part.weights_key, fresh)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file.

    Raises:
        WeightsError: missing, damaged, or pickled code.
    """
    return read_all(path)


def load_state(network: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """``load_state_dict`` of tensors that bear no versions: they are taken for this definition's, never an older one's.

    Some modules rebuild themselves for tensors without a version (torchvision's MNASNet its first layers).
    """
    versioned = OrderedDict(state)
    versioned._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(versioned, strict=strict)


def _builder(part: ModelPart) -> Builder:
    prefix, colon, name = part.source.partition(":")
    if not colon and prefix in BUILT_IN:
        return BUILT_IN[prefix]
    if not colon:
        message = f"model.source: there is no built-in network {part.source!r}.{_nearest(part.source)}"
        raise ModelError(message)
    if prefix in {"torchvision", "timm"}:
        _refuse_downloads(part)
        return _torchvision_builder(name) if prefix == "torchvision" else _timm_builder(name)
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
    return partial(builder, **without)


def _timm_builder(name: str) -> Builder:
    timm = import_timm()
    if not timm.is_model(name):
        message = f"model.source: timm has no network {name!r}.{perhaps(name, timm.list_models())}"
        raise ModelError(message)
    return partial(timm.create_model, name, pretrained=False)


def _refuse_downloads(part: ModelPart) -> None:
    for key in _DOWNLOADS:
        if key in part.args:
            message = (
                f"model.args: {key} would fetch weights; nothing is downloaded: give a local file as model.weights."
            )
            raise ModelError(message)


def _require_num_classes(builder: Builder, source: str) -> None:
    parameters = inspect.signature(builder).parameters
    if "num_classes" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    message = f"model.source: the builder of {source!r} takes no argument num_classes; add it, it sets the head's size."
    raise ModelError(message)


def _nearest(name: str) -> str:
    """A hint at a built-in network, or at torchvision's of that name."""
    names = import_torchvision().models.list_models()
    if name in names:
        return f" Write 'torchvision:{name}'."
    return perhaps(name, BUILT_IN) or perhaps(f"torchvision:{name}", [f"torchvision:{n}" for n in names])


def _shapes(part: ModelPart, num_classes: int) -> dict[str, torch.Size]:
    """Built without memory where the builder allows it (some compute with their tensors)."""
    try:
        with torch.device("meta"):
            network = build(part, num_classes)
    except ModelError:
        network = build(part, num_classes)
    return {name: tensor.shape for name, tensor in network.state_dict().items()}
