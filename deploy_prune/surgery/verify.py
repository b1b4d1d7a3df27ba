"""Prove a cut: the masked dense network and the cut one give the same output, and the comparison means something."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.errors import SurgeryError, VerificationError
from deploy_prune.networks.compare import relative_difference
from deploy_prune.networks.copies import copied
from deploy_prune.networks.tensors import moved, tensors_held
from deploy_prune.networks.tracing import told
from deploy_prune.networks.unchanged import unchanged
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.finite import require_finite
from deploy_prune.surgery.limits import require_enough
from deploy_prune.surgery.visible_copy import in_type
from deploy_prune.types import ChannelGroup, Forward, Keep, Structure

TOLERANCE: Final = 1e-5
"""Largest relative difference in float32 (about 100 units of its resolution, 1.2e-7)."""
TOLERANCE_FLOAT64: Final = 1e-9
"""The same in float64, which decides where float32's own noise is larger than the tolerance."""
MOVES: Final = 1e-4
"""An output that changes by less than this, relative, when the input does is blind to it: comparing proves nothing."""

GatesOn = Callable[[nn.Module, Mapping[str, Tensor]], Forward]
"""(network, gates) -> the network with its gates on."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A proven cut. All figures are max|a - b| / max|a| over all outputs and inputs.

    ``difference``: masked against cut. ``moved_by_input``: one input against another. ``moved_by_channel``: with and
    without one kept channel of every group (no groups: as by input). ``calibrated``: on a copy with batch-norm
    statistics of the inputs.
    """

    difference: float
    precision: str
    tolerance: float
    moved_by_input: float
    moved_by_channel: float
    num_inputs: int
    calibrated: bool = False


class _BlindError(VerificationError):
    """The comparison would prove nothing."""


def prove(
    network: nn.Module, structure: Structure, keep: Keep, inputs: Sequence[Tensor], gates_on: GatesOn
) -> Verification:
    """Cut a network and verify the cut (see ``verify``).

    A network whose batch-norm statistics are stale, because many channels are gone, may be blind to its input. Then the
    statistics of a copy are taken from the inputs, with the gates on, and that copy is cut and verified.

    Raises:
        SurgeryError, VerificationError: as ``cut`` and ``verify``.
    """
    try:
        return verify(network, cut(network, structure, keep), structure, keep, inputs, gates_on)
    except _BlindError:
        seeing = copied(network)
        _calibrate(seeing, gates_on(seeing, gates(structure, keep, inputs[0])), inputs)
        found = verify(seeing, cut(seeing, structure, keep), structure, keep, inputs, gates_on)
        return replace(found, calibrated=True)


def _calibrate(network: nn.Module, forward: Forward, inputs: Sequence[Tensor]) -> None:
    """Batch-norm statistics of these inputs, for the masked network."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        _run(forward, "masked", network, inputs)
    network.eval()


def verify(
    network: nn.Module, slim: nn.Module, structure: Structure, keep: Keep, inputs: Sequence[Tensor], gates_on: GatesOn
) -> Verification:
    """Compare the masked network with the cut one in eval mode. Both are left as they were.

    Args:
        network: the dense network, on the inputs' device.
        slim: its cut.
        structure: the groups.
        keep: group name -> bool[C], what the cut kept.
        inputs: one tensor [B, ...] per network input, real data, at least two different examples.
        gates_on: turns a network and gates (float[C] per group) into a callable.

    Raises:
        SurgeryError: one of them doesn't run; with the module, file and line.
        VerificationError: they differ by more than the tolerance, an output is not finite, or the output doesn't depend
            on input and channels.
    """
    with unchanged(network), unchanged(slim), torch.no_grad():
        network.eval()
        slim.eval()
        difference = _difference(network, slim, structure, keep, inputs, gates_on)
        precision, tolerance = "float32", TOLERANCE
        if difference > TOLERANCE:
            wide, wide_slim = moved(copied(network), torch.float64), moved(copied(slim), torch.float64)
            difference = _difference(wide, wide_slim, structure, keep, in_type(inputs, torch.float64), gates_on)
            precision, tolerance = "float64", TOLERANCE_FLOAT64
        if not difference <= tolerance:
            message = (
                f"The cut network's output differs from the masked one's by {difference:.1e} (relative, {precision}); "
                f"allowed is {tolerance:.0e}. Leave the group out with prune.skip and report the network."
            )
            raise VerificationError(message)
        by_input, by_channel = _sensitivity(network, structure, keep, inputs, gates_on)
    for distance, what in ((by_input, "its input"), (by_channel, "a kept channel of every group")):
        if not MOVES < distance < inf:
            message = (
                f"The comparison proves nothing: the masked network's output moves by only {distance:.1e} (relative) "
                f"when {what} changes. Is the network untrained, or are its batch-norm statistics not calibrated?"
            )
            raise _BlindError(message)
    return Verification(
        difference=difference, precision=precision, tolerance=tolerance, moved_by_input=by_input,
        moved_by_channel=by_channel, num_inputs=inputs[0].shape[0],
    )  # fmt: skip


def _difference(
    network: nn.Module, slim: nn.Module, structure: Structure, keep: Keep, inputs: Sequence[Tensor], gates_on: GatesOn
) -> float:
    forward = gates_on(network, gates(structure, keep, inputs[0]))
    masked, found = _run(forward, "masked", network, inputs), _run(slim, "cut", slim, inputs)
    require_finite(masked, "masked", network, forward, inputs)
    require_finite(found, "cut", slim, slim, inputs)
    return relative_difference(masked, found)


def _run(forward: Forward, which: str, network: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """A network's output.

    Raises:
        SurgeryError: its code fails; with the module, file and line.
    """
    try:
        return forward(*inputs)
    except Exception as error:  # whatever the network's own code raises
        require_enough(error, "Comparing the masked and the cut network")
        message = f"The {which} network doesn't run: {told(network, error)} Sizes are written in the code there: take "
        message += "them from tensors, or leave the module's groups out with prune.skip."
        raise SurgeryError(message) from error


def gates(structure: Structure, keep: Keep, like: Tensor) -> dict[str, Tensor]:
    """Group name -> 1 for every unit that stays, else 0, [C], where ``like`` is and in its type if that is real."""
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    return {
        g.name: keep.get(g.name, torch.ones(g.channels, dtype=torch.bool)).to(like.device, dtype)
        for g in structure.groups
    }


def _sensitivity(
    network: nn.Module, structure: Structure, keep: Keep, inputs: Sequence[Tensor], gates_on: GatesOn
) -> tuple[float, float]:
    opened = gates(structure, keep, inputs[0])
    forward = gates_on(network, opened)
    here = forward(*inputs)
    by_input = relative_difference(here, forward(*[x.flip(0) for x in inputs]))
    if not structure.groups:
        return by_input, by_input
    fewer = {g.name: without_strongest(network, g, opened[g.name]) for g in structure.groups}
    return by_input, relative_difference(here, gates_on(network, fewer)(*inputs))


def without_strongest(network: nn.Module, group: ChannelGroup, gate: Tensor) -> Tensor:
    """The gates [C] without the kept unit that is read most; where it is the only one, with a half of it.

    Those of a branch that is gone stay as they are.
    """
    if not bool((gate != 0).any()):
        return gate
    strength = _reading_strength(network, group.consumers) if group.consumers else torch.ones(group.channels)
    strongest = int(torch.where(gate.detach().cpu() != 0, strength, -1).argmax())
    fewer = gate.clone()
    fewer[strongest] = 0.0 if int((gate != 0).sum()) > 1 else 0.5
    return fewer


def _reading_strength(network: nn.Module, consumers: Sequence[Any]) -> Tensor:
    """float[C]: how much weight reads each unit."""
    tensors = tensors_held(network)
    total = torch.zeros(1)
    for member in consumers:
        weight = tensors[member.tensor].detach().abs().float().cpu()
        per_coordinate = weight.movedim(member.axis, 0).reshape(weight.shape[member.axis], -1).sum(1)
        units = int(member.unit_of.max()) + 1
        strength = torch.zeros(max(units, len(total)))
        strength[: len(total)] += total if len(total) > 1 else 0
        mine = member.unit_of >= 0
        total = strength.index_add(0, member.unit_of[mine], per_coordinate[mine])
    return total
