"""Try the groups for real: those whose cut doesn't run, or isn't equal to masking, are left whole, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from deploy_prune.errors import SurgeryError
from deploy_prune.recipe import PrunePart
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.graph import with_blueprint
from deploy_prune.surgery.trace import evaluating
from deploy_prune.surgery.verify import GatesOn, relative_difference
from deploy_prune.types import ChannelGroup, Keep, Structure, Whole

TOLERANCE: Final = 1e-3
"""A wrong cut differs by far more, rounding in float32 by far less."""

GatesOf = Callable[[Structure], GatesOn]
"""How to turn on the gates of a structure."""


def settle(
    network: nn.Module, structure: Structure, inputs: Sequence[Tensor], gates_of: GatesOf, prune: PrunePart
) -> Structure:
    """A structure in which every group is proven to be cuttable, together with the others.

    Python code may have sizes written in it that no look at the graph shows; a trial cut does. Then the slim network
    is the exported graph with its sizes recomputed, if that can cut more than the network's own modules.

    Raises:
        SurgeryError: groups that can be cut one by one can't be cut together.
    """
    if not structure.groups or _failure(network, structure, structure.groups, inputs, gates_of) is None:
        return structure
    choices = [structure]
    try:
        choices.append(with_blueprint(network, inputs, prune))
    except SurgeryError as error:
        reason = str(error)
    else:
        reason = ""
        if _failure(network, choices[1], choices[1].groups, inputs, gates_of) is None:
            return choices[1]
    settled = max((_sound(network, c, inputs, gates_of) for c in choices), key=_num_channels)
    if (why := _failure(network, settled, settled.groups, inputs, gates_of)) is not None:
        message = f"The network's groups can be cut one by one but not together: {why}. {reason} Limit prune.only."
        raise SurgeryError(message)
    return settled


def _num_channels(structure: Structure) -> int:
    return sum(g.channels * g.period for g in structure.groups)


def _sound(network: nn.Module, structure: Structure, inputs: Sequence[Tensor], gates_of: GatesOf) -> Structure:
    """The structure with the groups that can be cut alone; the others whole."""
    failures = {g.name: _failure(network, structure, [g], inputs, gates_of) for g in structure.groups}
    return without(structure, {name: why for name, why in failures.items() if why is not None})


def _failure(
    network: nn.Module,
    structure: Structure,
    groups: Sequence[ChannelGroup],
    inputs: Sequence[Tensor],
    gates_of: GatesOf,
) -> str | None:
    """Why cutting half the units of these groups, in no regular pattern, goes wrong, or None if it doesn't."""
    generator = torch.Generator().manual_seed(0)
    keep: Keep = {g.name: torch.randperm(g.channels, generator=generator) < max(1, g.channels // 2) for g in groups}
    gates = {
        g.name: keep.get(g.name, torch.ones(g.channels, dtype=torch.bool)).to(inputs[0].device, inputs[0].dtype)
        for g in structure.groups
    }
    with evaluating(network), torch.no_grad():
        try:
            slim = cut(network, structure, keep)
            output = slim.eval()(*inputs)
        except Exception as error:  # noqa: BLE001  whatever the network's own code raises
            first = (str(error).strip().splitlines() or [""])[0]
            return f"the network's code has sizes written in it ({type(error).__name__}: {first[:120]})"
        difference = relative_difference(gates_of(structure)(network, gates)(*inputs), output)
    return None if difference <= TOLERANCE else f"cut and masked outputs differ by {difference:.1e}"


def without(structure: Structure, reasons: dict[str, str]) -> Structure:
    """The structure with these groups left whole; layers count their channels as fixed."""
    channels = {g.name: g.channels for g in structure.groups}
    whole = tuple(Whole(name=n, channels=channels[n], reason=why) for n, why in reasons.items())
    layers = []
    for layer in structure.layers:
        widths = {}
        for side in ("inputs", "outputs"):
            width = getattr(layer, side)
            gone = {g: per for g, per in width.per_unit.items() if g in reasons}
            fixed = width.fixed + sum(per * channels[g] for g, per in gone.items())
            left = {g: per for g, per in width.per_unit.items() if g not in reasons}
            widths[side] = replace(width, fixed=fixed, per_unit=left)
        layers.append(replace(layer, **widths))
    groups = tuple(g for g in structure.groups if g.name not in reasons)
    return replace(structure, groups=groups, layers=tuple(layers), whole=structure.whole + whole)
