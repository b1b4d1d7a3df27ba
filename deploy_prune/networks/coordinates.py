"""Which coordinates of a network's tensors go with the units that a mask drops."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from deploy_prune.types import Keep, Structure

Lost = dict[tuple[str, int], Tensor]
"""(tensor name, axis) -> the coordinates that go."""


def lost_coordinates(structure: Structure, keep: Keep) -> Lost:
    """The coordinates of every tensor axis that go, in the dense network's numbering, ascending."""
    lost: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for group in structure.groups:
        mask = keep.get(group.name)
        if mask is None or bool(mask.all()):
            continue
        goes = torch.cat([~mask.cpu(), torch.zeros(1, dtype=torch.bool)])  # unit -1, "not of this group", is the last
        for member in group.members:
            lost[member.tensor, member.axis].append(goes[member.unit_of].nonzero().flatten())
    return {key: torch.cat(parts).unique() if len(parts) > 1 else parts[0] for key, parts in lost.items()}
