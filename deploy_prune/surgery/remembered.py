"""A network's groups, found once per definition: finding them takes seconds, reading them back milliseconds.

Kept as JSON in the cache folder, under all that they depend on. Not kept are structures that cut the exported graph,
and those of networks whose definition can't be digested.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploy_prune.recipe.parts import PrunePart
from deploy_prune.surgery.fingerprint import definition
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.trial import GatesOf
from deploy_prune.surgery.try_branches import add_branches
from deploy_prune.surgery.try_groups import keep_cuttable
from deploy_prune.system.cache import kept_json, store_json
from deploy_prune.types import Axis, ChannelGroup, Layer, Structure, Whole, Width
from deploy_prune.version import __version__

KIND = "groups"
"""The folder within the cache."""


def groups_of(network: nn.Module, example: Tensor | Sequence[Tensor], prune: PrunePart) -> Structure:
    """``groups.find_groups``, remembered. ``example``: [B, ...], or one for each of several inputs.

    Raises:
        SurgeryError: the network can't be traced, or not within the limits; nothing is remembered then.
    """
    examples = (example,) if isinstance(example, Tensor) else tuple(example)
    return _remembered(network, examples, prune, "traced", lambda: find_groups(network, examples, prune))


def cuttable_groups(
    network: nn.Module, example: Sequence[Tensor], trials: Sequence[Tensor], prune: PrunePart, gates_of: GatesOf
) -> Structure:
    """The groups of ``groups_of`` that ``try_groups.keep_cuttable`` leaves, remembered, and the branches that can go.

    Args:
        network: any module that torch.export can trace.
        example: inputs to trace with, each [1, ...].
        trials: real inputs, each [B, ...], on which cuts are tried.
        prune: which groups may be pruned.
        gates_of: how to turn gates on.

    Raises:
        SurgeryError: the network can't be traced, or its groups can't be cut together, or a limit of time or memory
            was reached: then nothing is remembered.
        VerificationError: the network's output isn't finite.
    """

    def find() -> Structure:
        return keep_cuttable(network, groups_of(network, example, prune), trials, gates_of, prune)

    structure = _remembered(network, (*example, *trials), prune, "settled", find)
    return add_branches(network, structure, trials, gates_of, prune) if prune.depth else structure


def _remembered(
    network: nn.Module, inputs: Sequence[Tensor], prune: PrunePart, how: str, find: Callable[[], Structure]
) -> Structure:
    digest = definition(network)
    if digest is None:
        return find()
    key = {
        "definition": digest,
        "how": how,
        "inputs": [[str(x.dtype), *x.shape] for x in inputs],
        "prune": prune.model_dump(exclude={"trace_timeout_s", "depth"}),
        "default_dtype": str(torch.get_default_dtype()),
        "versions": [__version__, own_code(), torch.__version__, platform.python_version()],
    }
    kept = _opened(kept_json(KIND, key))
    if kept is not None:
        return kept
    structure = find()
    if structure.blueprint is None:
        with suppress(OSError):  # a cache that can't be written only costs time
            store_json(KIND, key, _sealed(structure))
    return structure


@cache
def own_code() -> str:
    """A digest of this package's source: another way to find groups finds others."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _sealed(structure: Structure) -> dict[str, str]:
    text = dumps(structure)
    return {"structure": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _opened(value: Any) -> Structure | None:
    """The structure of a cache entry; None if there is none, or it is damaged."""
    if not isinstance(value, dict) or not isinstance(value.get("structure"), str):
        return None
    if hashlib.sha256(value["structure"].encode("utf-8", "replace")).hexdigest() != value.get("sha256"):
        return None
    return loads(value["structure"])


def dumps(structure: Structure) -> str:
    """A structure without a blueprint as JSON."""
    plain = {
        "groups": [
            {
                "name": g.name, "channels": g.channels, "period": g.period,
                "members": [[a.tensor, a.axis, _units(a.unit_of)] for a in g.members],
                "consumers": [[a.tensor, a.axis] for a in g.consumers],
                "statistics": [[*place, _units(unit_of)] for place, unit_of in g.statistics.items()],
            }
            for g in structure.groups
        ],
        "layers": [asdict(layer) for layer in structure.layers],
        "whole": [asdict(whole) for whole in structure.whole],
        "mixing": structure.mixing,
    }  # fmt: skip
    return json.dumps(plain, separators=(",", ":"))


def loads(text: str) -> Structure:
    """The structure that ``dumps`` wrote."""
    raw = json.loads(text)
    return Structure(
        groups=tuple(_group(g) for g in raw["groups"]),
        layers=tuple(_layer(layer) for layer in raw["layers"]),
        whole=tuple(Whole(**whole) for whole in raw["whole"]),
        mixing=tuple(raw["mixing"]),
    )


def _layer(raw: dict[str, Any]) -> Layer:
    inputs, outputs, *repeats = (Width(**width) for width in (raw["inputs"], raw["outputs"], *raw["repeats"]))
    widths = {"inputs": inputs, "outputs": outputs, "repeats": tuple(repeats)}
    return Layer(**{**raw, **widths, "branches": tuple(raw["branches"])})


def _group(raw: dict[str, Any]) -> ChannelGroup:
    members = {(name, axis): Axis(tensor=name, axis=axis, unit_of=_read(units)) for name, axis, units in raw["members"]}
    return ChannelGroup(
        name=raw["name"], channels=raw["channels"], period=raw["period"], members=tuple(members.values()),
        consumers=tuple(members[name, axis] for name, axis in raw["consumers"]),
        statistics={(module, *place): _read(units) for module, *place, units in raw["statistics"]},
    )  # fmt: skip


def _units(unit_of: Tensor) -> int | list[int]:
    """int64[L] as a list; 0, 1, ..., L - 1 as L."""
    length = len(unit_of)
    return length if torch.equal(unit_of, torch.arange(length)) else unit_of.tolist()


def _read(units: int | list[int]) -> Tensor:
    return torch.arange(units) if isinstance(units, int) else torch.tensor(units, dtype=torch.int64)
