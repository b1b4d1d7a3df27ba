"""Trial cuts: groups whose cut doesn't run, or isn't equal to masking, are left whole, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from deploy_prune.errors import SurgeryError
from deploy_prune.networks.unchanged import unchanged
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.surgery.applied import with_whole
from deploy_prune.surgery.finite import require_finite
from deploy_prune.surgery.groups import with_blueprint
from deploy_prune.surgery.limits import LimitError
from deploy_prune.surgery.trial import BrokenError, GatesOf, Outcome, Trial
from deploy_prune.surgery.uneven import uneven
from deploy_prune.surgery.verify import TOLERANCE
from deploy_prune.surgery.visible_copy import in_type, redrawn
from deploy_prune.types import ChannelGroup, Structure, Whole

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
        SurgeryError: no group can be cut, with the place in the network's code; a limit of time or memory was reached.
        VerificationError: the network's output isn't finite.
    """
    _require_sound(network, inputs)
    trials = Trials(network=network, inputs=inputs, gates_of=gates_of)
    if not structure.groups or (failure := trials.failure(structure, structure.groups)) is None:
        return structure
    choices = [(structure, failure)]
    try:
        graph = with_blueprint(network, inputs, prune)
    except LimitError:
        raise
    except SurgeryError as error:
        neither = f" Cutting its exported graph instead isn't possible: {error}"
    else:
        found = trials.failure(graph, graph.groups) if graph.groups else None
        if graph.groups and found is None:
            return graph
        neither = f" Cutting its exported graph instead: {found.why}." if found is not None else ""
        choices += [(graph, found)] if found is not None else []
    most = max((sound(trials, c, why, c.groups) for c, why in choices), key=_num_channels)
    if not most.groups:
        message = f"No channel of the network can be cut: {failure.why}.{neither}"
        message += " Let the code take sizes from tensors." if failure.breaks else ""
        raise SurgeryError(message)
    return most


def _require_sound(network: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Run the network once.

    Raises:
        SurgeryError: it makes parameters while it runs.
        VerificationError: its output isn't finite.
    """
    with unchanged(network), torch.no_grad():
        network.eval()
        before = {name for name, _ in network.named_parameters()}
        require_finite(network(*inputs), "", network, network, inputs)
        if made := sorted({name for name, _ in network.named_parameters()} - before):
            message = f"The network makes {made[0]} in its first forward; call it on an example once, then prune it."
            raise SurgeryError(message)


def _num_channels(structure: Structure) -> int:
    return sum(g.channels * g.period for g in structure.groups)


def sound(trials: Trials, structure: Structure, failure: Failure, doubted: Sequence[ChannelGroup]) -> Structure:
    """The structure with those of the doubted groups that can be cut together with the others; the rest whole.

    First those are left out whose cut doesn't run, which is seen in half of the time; then those whose cut is wrong.
    """
    names = {group.name for group in doubted}
    certain = [group for group in structure.groups if group.name not in names]
    kept, reasons = list(doubted), dict[str, str]()
    found: Failure | None = failure
    for fails in (trials.breaks, trials.failure):
        if found is None or (fails == trials.breaks and not found.breaks):
            continue
        kept, bad = _narrow(kept, found, partial(_with, fails, structure, certain))
        reasons |= bad
        found = trials.failure(structure, [*certain, *kept]) if kept else None
    return without(structure, reasons)


def _with(
    fails: Callable[[Structure, Sequence[ChannelGroup]], Failure | None],
    structure: Structure,
    certain: Sequence[ChannelGroup],
    groups: Sequence[ChannelGroup],
) -> Failure | None:
    return fails(structure, [*certain, *groups])


def _narrow(
    groups: list[ChannelGroup], failure: Failure, fails: Callable[[Sequence[ChannelGroup]], Failure | None]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Those of some groups that don't fail together, and why the others do: the sets that fail are divided."""
    sound: list[ChannelGroup] = []
    reasons: dict[str, str] = {}
    open_sets = [(groups, failure)]
    while open_sets:
        given, why = open_sets.pop()
        if why.blind.issuperset(g.name for g in given):
            reasons |= {g.name: _unseen([g.name]) for g in given}
            continue
        if len(given) == 1:
            reasons[given[0].name] = why.why
            continue
        first, second = _parts(given, why)
        if (failed := fails([*sound, *first])) is None:
            sound += first
            open_sets.append((second, why))  # with what is sound now, it is the set that fails
            continue
        if (other := fails([*sound, *second])) is None:
            sound += second
        else:
            open_sets.append((second, other))
        open_sets.append((first, failed))
    return sound, reasons


def _parts(groups: list[ChannelGroup], failure: Failure) -> tuple[list[ChannelGroup], list[ChannelGroup]]:
    """Two parts of groups that fail together: those that can't be the cause and the others, or two halves."""
    inside = [g for g in groups if g.name in failure.blind or failure.is_in(g)]
    if 0 < len(inside) < len(groups):
        return [g for g in groups if g not in inside], inside
    half = len(groups) // 2
    return groups[:half], groups[half:]


def _unseen(names: Sequence[str]) -> str:
    return f"no trial shows whether its cut is right: the output doesn't depend on {', '.join(names)}"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why groups can't be cut together.

    ``breaks``: the cut network doesn't run. ``module``: the one whose code failed then; "" if that isn't known.
    ``blind``: groups that no trial shows.
    """

    why: str
    breaks: bool = False
    module: str = ""
    blind: frozenset[str] = frozenset()

    def is_in(self, group: ChannelGroup) -> bool:
        """Whether the module that failed has a tensor of the group."""
        return bool(self.module) and any(f"{a.tensor}.".startswith(f"{self.module}.") for a in group.members)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trials:
    """Trials of one network, on copies with other weights: a cut is right or wrong whatever they are.

    The network's own weights may hide it.
    """

    network: nn.Module
    inputs: Sequence[Tensor]
    gates_of: GatesOf
    _kept: dict[tuple[int, torch.dtype | None], tuple[nn.Module, list[Tensor]]] = field(default_factory=dict)

    def failure(self, structure: Structure, groups: Sequence[ChannelGroup]) -> Failure | None:
        """What goes wrong if these groups are cut, unevenly (see ``uneven``); None if it is shown that nothing does."""
        blind = frozenset(g.name for g in groups)
        cuts = self._cuts(structure, groups)
        for trial in cuts:
            try:
                outcome = trial.run(*self._copy(SEEDS[0], None))
            except BrokenError as error:
                return Failure(why=str(error), breaks=True, module=error.module)
            if not outcome.difference <= TOLERANCE:
                blind = frozenset(trial.keep)
                break
            blind &= outcome.blind
        return self._look_closer(cuts, blind) if blind else None

    def breaks(self, structure: Structure, groups: Sequence[ChannelGroup]) -> Failure | None:
        """The same, only of whether the cut networks run."""
        try:
            for trial in self._cuts(structure, groups):
                trial.require_runs(*self._copy(SEEDS[0], None))
        except BrokenError as error:
            return Failure(why=str(error), breaks=True, module=error.module)
        return None

    def _cuts(self, structure: Structure, groups: Sequence[ChannelGroup]) -> list[Trial]:
        return [Trial(structure=structure, keep=keep, gates_of=self.gates_of) for keep in uneven(groups)]

    def _look_closer(self, cuts: Sequence[Trial], blind: frozenset[str]) -> Failure | None:
        for trial in cuts:
            for outcome in self._outcomes(trial):
                if outcome.difference > TOLERANCE:
                    return Failure(why=f"cut and masked outputs differ by {outcome.difference:.1e}")
                blind &= outcome.blind
                if not blind:
                    break
        if not blind:
            return None
        return Failure(why=_unseen(sorted(blind)), blind=blind)

    def _outcomes(self, trial: Trial) -> Iterator[Outcome]:
        """Trials in float64 where the network can be run so, with several weights; also of what only training has.

        What can't be run here, could before: that says something of the precision or the mode, not of the cut.
        """
        for seed in SEEDS:
            for dtype in (torch.float64, None):
                other, given = self._copy(seed, dtype)
                try:
                    yield trial.run(other, given, thorough=True)
                except BrokenError:
                    continue
                with suppress(BrokenError):
                    yield trial.run(other, given, thorough=True, training=True)
                break

    def _copy(self, seed: int, dtype: torch.dtype | None) -> tuple[nn.Module, list[Tensor]]:
        """A copy with the weights of a seed, and its inputs; the last one is kept, and no other."""
        if (seed, dtype) not in self._kept:
            self._kept.clear()
            self._kept[seed, dtype] = redrawn(self.network, self.inputs, seed, dtype), in_type(self.inputs, dtype)
        return self._kept[seed, dtype]


def without(structure: Structure, reasons: dict[str, str]) -> Structure:
    """The structure with these groups left whole; layers count their channels as fixed."""
    channels = {g.name: g.channels for g in structure.groups}
    whole = tuple(Whole(name=n, channels=channels[n], reason=why) for n, why in reasons.items())
    gone = {name: channels[name] for name in reasons}
    layers = tuple(
        replace(with_whole(layer, gone), branches=tuple(b for b in layer.branches if b not in gone))
        for layer in structure.layers
    )
    groups = tuple(g for g in structure.groups if g.name not in reasons)
    return replace(structure, groups=groups, layers=layers, whole=structure.whole + whole)
