"""Feature matching: a layer should read the same as in the teacher (hints, Romero et al., arXiv 1412.6550).

A slim network's channels are channels of the dense one, so the kept channels select the teacher's, and the two can be
compared as they are, without the paper's regressor. They are compared where a weight reads them, as gates act on
consumers: after norm and activation.

B batch, L channels that a weight reads in the dense network, K those of them that the slim network has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deploy_prune.types import Axis, Keep, Structure


@dataclass(frozen=True, kw_only=True, eq=False)
class Match:
    """How a slim network comes from its teacher: ``keep``, of the groups of ``structure``.

    ``kept``: where features can be compared: a weight's name -> bool[L], the channels of those that it read before
    that are still there.
    """

    structure: Structure
    keep: Keep
    kept: Mapping[str, Tensor]


def match(structure: Structure, keep: Keep) -> Match:
    """One place for each group: the first weight that reads its channels. Groups that aren't in ``keep`` are whole.

    Weights that went with a branch are no places.
    """
    gone = {tensor for b in structure.branches if b.name in keep and not keep[b.name].any() for tensor in b.vanishes}
    groups = [group for group in structure.groups if not group.is_branch]
    first: dict[tuple[str, int], Axis] = {}
    for group in groups:
        axis = next((axis for axis in group.consumers if axis.tensor not in gone), None)
        if axis is not None:
            first.setdefault((axis.tensor, axis.axis), axis)
    kept = {tensor: torch.ones(len(axis.unit_of), dtype=torch.bool) for (tensor, _), axis in first.items()}
    for group in groups:
        for axis in group.consumers:
            if (axis.tensor, axis.axis) in first and group.name in keep:
                mine = axis.unit_of >= 0
                kept[axis.tensor][mine] &= keep[group.name][axis.unit_of[mine]]
    return Match(structure=structure, keep=keep, kept=kept)


class Watch(TorchFunctionMode):
    """While it is entered, remembers what convolutions and linear layers of these weights read, the last time.

    ``read``: a weight's name -> [B, ..., L], channels last.
    """

    def __init__(self, network: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        plain = getattr(network, "_orig_mod", network)  # of a compiled one
        parameters = dict(plain.named_parameters(remove_duplicate=False))
        self.names = {id(parameters[name]): name for name in names if name in parameters}
        self.read: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Every call of torch, also those of an exported graph."""
        if len(args) > 1 and (name := self.names.get(id(args[1]))) is not None:
            self.read[name] = args[0] if args[1].dim() == 2 else args[0].movedim(1, -1)
        return func(*args, **(kwargs or {}))


def feature_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], match: Match) -> Tensor:
    """Mean over the places of |student - teacher's kept channels|^2 / |teacher's kept channels|^2, a scalar.

    Both map a weight's name to what it read: [B, ..., K] and [B, ..., L]. Relative, so that no layer counts more for
    having larger values. Places that a network didn't pass, or where a convolution's groups read only a part each, are
    left out; 0 if none is left.
    """
    parts: list[Tensor] = []
    for name, kept_L in match.kept.items():
        if name not in student or name not in teacher:
            continue
        told, found = teacher[name].float(), student[name].float()
        if told.shape[-1] != len(kept_L):
            continue
        told = told[..., kept_L.to(told.device)]
        if told.shape == found.shape:
            parts.append((found - told).square().mean() / told.square().mean().clamp(min=1e-12))
    return torch.stack(parts).mean() if parts else torch.zeros(())
