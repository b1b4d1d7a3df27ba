"""A network's branches as groups: those whose removal is proven to be equal to closing their gates."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import Tensor, nn

from deploy_prune.errors import SurgeryError
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.surgery.groups import with_blueprint
from deploy_prune.surgery.limits import LimitError
from deploy_prune.surgery.trial import GatesOf
from deploy_prune.surgery.try_groups import Trials, keep_cuttable, sound
from deploy_prune.types import Structure, Whole


def prunable(
    network: nn.Module, structure: Structure, inputs: Sequence[Tensor], gates_of: GatesOf, prune: PrunePart
) -> Structure:
    """What `try_groups.keep_cuttable` leaves of a structure, and its branches, if the recipe lets them go.

    Raises:
        SurgeryError, VerificationError: as `keep_cuttable`.
    """
    structure = keep_cuttable(network, structure, inputs, gates_of, prune)
    return add_branches(network, structure, inputs, gates_of, prune) if prune.depth else structure


def add_branches(
    network: nn.Module, structure: Structure, inputs: Sequence[Tensor], gates_of: GatesOf, prune: PrunePart
) -> Structure:
    """A structure with the branches that can go, proven together with its other groups.

    Args:
        network: the dense network.
        structure: its groups, all of which can be cut.
        inputs: real inputs, each [B, ...], on which cuts are tried.
        gates_of: how to turn gates on.
        prune: which of them may go.

    Raises:
        LimitError: a limit of time or memory was reached.
    """
    try:
        graph = structure if structure.blueprint is not None else with_blueprint(network, inputs, prune)
    except LimitError:
        raise
    except SurgeryError as error:
        why = f"branches go with the exported graph, and there is none: {error}"
        return replace(structure, whole=(*structure.whole, Whole(name="*:branch", channels=1, reason=why)))
    deep = as_groups(structure, graph, [b.name for b in graph.blueprint.branches if _may_go(b.name, prune)])
    if not deep.branches:
        return deep
    trials = Trials(network=network, inputs=inputs, gates_of=gates_of)
    failure = trials.failure(deep, deep.groups)
    return deep if failure is None else sound(trials, deep, failure, deep.branches)


def as_groups(structure: Structure, graph: Structure, names: Collection[str]) -> Structure:
    """The structure with those branches of the graph's blueprint as groups that have these names."""
    groups = tuple(b.group() for b in graph.blueprint.branches if b.name in names)
    layers = tuple(
        replace(layer, branches=tuple(b for b in graph.blueprint.lies_on.get(layer.name, ()) if b in names))
        for layer in structure.layers
    )
    return replace(structure, groups=(*structure.groups, *groups), layers=layers, blueprint=graph.blueprint)


def _may_go(name: str, prune: PrunePart) -> bool:
    if prune.only and not any(fnmatchcase(name, pattern) for pattern in prune.only):
        return False
    return not any(fnmatchcase(name, pattern) for pattern in prune.skip)
