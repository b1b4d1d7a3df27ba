"""`deploy-prune show`: an architecture's layers and what they cost. No weights are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import torch
from torch import nn

from deploy_prune import cost
from deploy_prune.architecture import json_file
from deploy_prune.architecture.json_file import Architecture
from deploy_prune.budget.candidates import CandidateCosts, identity_of
from deploy_prune.commands.given_inputs import or_own
from deploy_prune.cost import CostModel
from deploy_prune.device.targets import load_target
from deploy_prune.errors import RunFolderError
from deploy_prune.export.examples import zeros
from deploy_prune.report.row import Row
from deploy_prune.report.show import Cost, GroupLine, LayerLine, Overview
from deploy_prune.run.folder import RunFolder
from deploy_prune.run.trained import as_if_trained
from deploy_prune.surgery.try_groups import without
from deploy_prune.system.guard import scratch
from deploy_prune.types import Counts, Input, Layer, Structure


def overview(path: Path, target: str | None = None, trust: bool = False, inputs: Sequence[Input] = ()) -> Overview:
    """Channels and costs of an architecture, dense and slim.

    Args:
        path: an architecture.json, or a run's TARGET/BUDGET folder.
        target: a target whose latency is predicted: by its roofline, or, where it is attached, by a latency table that
            is measured now unless it was before.
        trust: build networks whose source is ``module:callable`` too. That imports and calls what the file names.
        inputs: an example of each of the network's inputs, [1, ...]; without any, as the file has them.

    Raises:
        ArchitectureError: the file is damaged, needs ``trust``, or doesn't fit the network's definition.
        RunFolderError: there is no architecture at the path.
        TargetError: there is no such target.
    """
    device = None if target is None else load_target(target)
    described = json_file.load(architecture_file(path))
    with torch.random.fork_rng(devices=[]):
        dense = as_if_trained(json_file.dense_network(described, trust))
    inputs = or_own(inputs, described)
    structure = json_file.structure_of(described, dense, example=zeros(inputs))
    others = [g.name for g in structure.groups if g.name not in described.keep]
    structure = without(structure, dict.fromkeys(others, "the architecture keeps it whole"))
    counts = _kept(described, structure)
    latency: CostModel | None = None
    if device is not None:
        with scratch() as folder:
            costs = CandidateCosts(
                network=dense, structure=structure, inputs=zeros(inputs), identity=identity_of(described.model),
                scratch=folder,
            )  # fmt: skip
            latency = costs.cost(device, "latency")
    macs = cost.macs(structure)
    return Overview(
        source=described.model.source,
        num_classes=described.num_classes,
        inputs=tuple(inputs),
        form=described.form,
        target=None if device is None else device.name,
        layers=tuple(_line(layer, macs, latency, structure.dense_counts, counts) for layer in priced(structure)),
        groups=tuple(
            GroupLine(name=g.name, channels=g.channels, kept=counts[g.name], period=g.period) for g in structure.groups
        ),
        macs=_both(macs, structure.dense_counts, counts),
        params=_params(described, dense),
        latency=None if latency is None else _both(latency, structure.dense_counts, counts),
        results=_results(path),
    )


def architecture_file(path: Path) -> Path:
    """The architecture.json at a path, or in the folder at it.

    Raises:
        RunFolderError: there is none; the message names those below the path.
    """
    file = path / "architecture.json" if path.is_dir() else path
    if file.exists():
        return file
    below = sorted(str(found.parent) for found in path.glob("*/*/architecture.json")) if path.is_dir() else []
    hint = f"; there are {', '.join(below)}" if below else ""
    message = f"There is no {file}; give a run's TARGET/BUDGET folder or an architecture.json{hint}."
    raise RunFolderError(message)


def _results(path: Path) -> Row | None:
    """The row of a run's TARGET/BUDGET folder, if the run has come so far."""
    place = path.resolve() if path.is_dir() else path.resolve().parent
    folder = RunFolder(path=place.parent.parent)
    if not (folder.path / "results.json").is_file():
        return None
    rows = {f"{row.target}/{row.budget.replace('/', '_')}": row for row in folder.read_results()}
    return rows.get(f"{place.parent.name}/{place.name}")


def priced(structure: Structure) -> list[Layer]:
    """The layers that multiply: convolutions and matrix products."""
    return [layer for layer in structure.layers if layer.taps]


def _kept(described: Architecture, structure: Structure) -> Counts:
    return structure.dense_counts | {name: int(mask.sum()) for name, mask in described.keep.items()}


def _line(layer: Layer, macs: CostModel, latency: CostModel | None, dense: Counts, slim: Counts) -> LayerLine:
    return LayerLine(
        name=layer.name,
        kind=layer.kind,
        inputs=(layer.inputs.at(dense), layer.inputs.at(slim)),
        outputs=(layer.outputs.at(dense), layer.outputs.at(slim)),
        macs=_both(_part(macs, layer), dense, slim),
        latency=None if latency is None else _both(_part(latency, layer), dense, slim),
    )


def _part(model: CostModel, layer: Layer) -> CostModel:
    """One layer's part of a cost."""
    return replace(model, layers=tuple(c for c in model.layers if c.layer is layer), constant=0.0)


def _both(model: CostModel, dense: Counts, slim: Counts) -> Cost:
    return Cost(dense=model(dense), slim=model(slim))


def _params(described: Architecture, dense: nn.Module) -> Cost:
    """Parameters by the file's shapes."""
    shapes = [described.shapes[name] for name, _ in dense.named_parameters()]
    return Cost(dense=sum(prod(d) for d, _ in shapes), slim=sum(prod(s) for _, s in shapes if s is not None))
