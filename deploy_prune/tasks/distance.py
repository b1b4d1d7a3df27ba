"""How far a student's outputs are from its teacher's, for tasks that have no distance of their own.

B batch, C channels; S student, T teacher.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from deploy_prune.errors import ModelError

_LEAST_SHARE = 1e-3
"""Of the output's mean variance: what a channel's is at least, so that one that hardly varies doesn't drown others."""


def relative(student: Any, teacher: Any, temperature: float = 1.0) -> Tensor:
    """Squared distance over the teacher's variance, per output channel: a scalar, the mean over channels and outputs.

    0 where both agree, and about 1 for a student that gives the teacher's mean everywhere, whatever the outputs' units.
    Channels are a map's dimension 1; of a sequence [B, C, L] or [B, L, C] the shorter one (coordinates of anchors,
    classes of queries). ``temperature`` has no meaning here.

    Raises:
        ModelError: student and teacher give outputs of different shapes, or none of floating point.
    """
    pairs = [(s, t.detach()) for s, t in zip(*(floating(x) for x in (student, teacher)), strict=False)]
    shapes = [[tuple(x.shape) for x in floating(outputs)] for outputs in (student, teacher)]
    if not pairs or shapes[0] != shapes[1]:
        message = f"outputs of shapes {shapes[0]} can't be compared with a teacher's of shapes {shapes[1]}; they must "
        message += "be the same, and of floating point."
        raise ModelError(message)
    return torch.stack([_one(s, t) for s, t in pairs]).mean()


def divergence(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of logits [B, C, ...]: a scalar, the mean over B and places.

    Hinton, Vinyals, Dean, arXiv 1503.02531; T^2 keeps the gradients' size apart from T (section 2).
    """
    # T^2 sum_c t_T (log t_T - log s_T)
    apart = F.kl_div(
        F.log_softmax(student_BC / temperature, dim=1),
        F.log_softmax(teacher_BC.detach() / temperature, dim=1),
        reduction="none",
        log_target=True,
    )
    return temperature**2 * apart.sum(1).mean()


def floating(outputs: Any) -> list[Tensor]:
    """The floating-point tensors among a network's outputs, in their order."""
    return [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.is_floating_point()]


def _one(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = (_by_channel(x) for x in (student, teacher))
    variance_C = teacher.var(1, correction=0)
    least = _LEAST_SHARE * variance_C.mean()
    if not least > 0:  # a constant, or one example of one value a channel
        return (student - teacher).square().mean()
    return ((student - teacher).square().mean(1) / variance_C.clamp(min=least)).mean()


def _by_channel(x: Tensor) -> Tensor:
    """[C, values]."""
    if x.dim() < 2:
        return x.reshape(1, -1)
    channels = 2 if x.dim() == 3 and x.shape[2] < x.shape[1] else 1
    return x.movedim(channels, 0).flatten(1)
