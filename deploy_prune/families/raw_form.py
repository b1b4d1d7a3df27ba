"""The raw form of a network: what is traced, cut, trained and exported, and what stands after it.

B batch, N boxes of a picture, C classes, H W height and width of the network's input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Prediction = dict[str, np.ndarray[Any, Any]]
"""Of one picture: boxes float32 [N, 4] (left, top, right, bottom in pixels of the network's input), scores float32 [N]
(0 to 1, falling), labels int64 [N] (0 to C - 1); masks bool [N, H, W] and keypoints float32 [N, K, 3] where there
are any."""
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Decode:
    """What makes predictions of raw outputs: a program of device/payload, which a bundle takes along, and its settings.

    ``program``: the module's name; it has ``decode(outputs, settings) -> list of Prediction`` and needs numpy alone.
    ``settings``: what it needs to know, such as anchors and thresholds, in JSON's types.
    """

    program: str
    settings: Mapping[str, Any]

    def __call__(self, outputs: Any) -> list[Prediction]:
        """Predictions, one a picture, of outputs (tensors or arrays, nested as they like, [B, ...])."""
        module = import_module(f"deploy_prune.device.payload.{self.program}")
        arrays = [x.detach().float().cpu().numpy() if isinstance(x, Tensor) else x for x in tree_leaves(outputs)]
        found: list[Prediction] = module.decode(arrays, dict(self.settings))
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class RawForm:
    """A network as it is traced, cut, trained and exported, and what stands after it.

    ``network``: tensors in, a tensor or a tuple of tensors out, the same in training and in evaluation mode. ``loss``:
    (outputs, targets) -> scalar, the family's own; it also takes a slim network's outputs. None: the task's loss is
    taken. ``decode``: None where outputs are judged as they are. ``distance``: (outputs, a teacher's, temperature) ->
    scalar. None: the task's is taken.
    """

    network: nn.Module
    loss: Callable[[Any, Any], Tensor] | None = None
    decode: Callable[[Any], Any] | None = None
    distance: Callable[[Any, Any, float], Tensor] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """One line of FAMILIES. ``owns``: whether a network is of it. ``raw``: its raw form, for inputs of these shapes."""

    owns: Callable[[nn.Module], bool]
    raw: Callable[[nn.Module, Inputs], RawForm]


def is_a(network: nn.Module, name: str) -> bool:
    """Whether a network's class, or one that it is derived from, has this full name; its library isn't imported."""
    return any(f"{kind.__module__}.{kind.__qualname__}" == name for kind in type(network).__mro__)
