"""Trial cuts: groups whose cut doesn't run, or isn't equal to masking, are left whole, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from deploy_prune.errors import SurgeryError
from deploy_prune.networks.unchanged import unchanged
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.surgery.applied import with_whole
from deploy_prune.surgery.finite import require_finite
from deploy_prune.surgery.groups import with_blueprint
from deploy_prune.surgery.trace import LimitError
from deploy_prune.surgery.trial import BrokenError, GatesOf, Outcome, Trial
from deploy_prune.surgery.verify import TOLERANCE
from deploy_prune.surgery.visible_copy import in_type, redrawn
from deploy_prune.types import ChannelGroup, Keep, Structure, Whole

SEEDS: Final = (0, 1, 2)
"""Draws of weights, before a group is given up that no trial shows."""


def keep_cuttable(
    network: nn.Module, structure: Structure, inputs: Sequence[Tensor], gates_of: GatesOf, prune: PrunePart
) -> Structure:
    """A structure in which every group is proven to be cuttable, together with the others.

    Python code may have sizes written in it that no look at the graph shows; a trial cut does. Then the slim network
    is the exported graph with its sizes recomputed, if that can cut more than the network's own modules.

    A group that no trial shows in the output, whatever the weights are, is left whole too.

    Raises:
        SurgeryError: groups that can be cut one by one can't be cut together; a limit of time or memory was reached.
        VerificationError: the network's output isn't finite.
    """
    with unchanged(network), torch.no_grad():
        network.eval()
        require_finite(network(*inputs), "", network, network, inputs)
    if not structure.groups or _failure(network, structure, structure.groups, inputs, gates_of) is None:
        return structure
    choices = [structure]
    try:
        choices.append(with_blueprint(network, inputs, prune))
    except LimitError:
        raise
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
    """Why cutting half the units of these groups, in no regular pattern, goes wrong, or None if it is shown not to.

    Tried is a copy with other weights: a cut is right or wrong whatever they are, and the network's own may hide it.
    """
    generator = torch.Generator().manual_seed(0)
    keep: Keep = {g.name: torch.randperm(g.channels, generator=generator) < max(1, g.channels // 2) for g in groups}
    trial = Trial(structure=structure, keep=keep, gates_of=gates_of)
    try:
        outcome = trial.run(redrawn(network, inputs, SEEDS[0]), inputs)
    except BrokenError as error:
        return str(error)
    if outcome.difference <= TOLERANCE and not outcome.blind:
        return None
    blind = frozenset(keep)
    for outcome in _closer_looks(trial, network, inputs):
        if outcome.difference > TOLERANCE:
            return f"cut and masked outputs differ by {outcome.difference:.1e}"
        blind &= outcome.blind
        if not blind:
            return None
    return f"no trial shows whether its cut is right: the output doesn't depend on {', '.join(sorted(blind))}"


def _closer_looks(trial: Trial, network: nn.Module, inputs: Sequence[Tensor]) -> Iterator[Outcome]:
    """Trials in float64 where the network can be run so, with several weights; also of what only training has.

    What can't be run here, could before: that says something of the precision or the mode, not of the cut.
    """
    for seed in SEEDS:
        for dtype in (torch.float64, None):
            other, given = redrawn(network, inputs, seed, dtype), in_type(inputs, dtype)
            try:
                yield trial.run(other, given, thorough=True)
            except BrokenError:
                continue
            with suppress(BrokenError):
                yield trial.run(other, given, thorough=True, training=True)
            break


def without(structure: Structure, reasons: dict[str, str]) -> Structure:
    """The structure with these groups left whole; layers count their channels as fixed."""
    channels = {g.name: g.channels for g in structure.groups}
    whole = tuple(Whole(name=n, channels=channels[n], reason=why) for n, why in reasons.items())
    gone = {name: channels[name] for name in reasons}
    layers = tuple(with_whole(layer, gone) for layer in structure.layers)
    groups = tuple(g for g in structure.groups if g.name not in reasons)
    return replace(structure, groups=groups, layers=layers, whole=structure.whole + whole)
