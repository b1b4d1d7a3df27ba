"""Repair after a cut: weights that read what is left anew, by least squares, without labels and without training.

Layer by layer in the order in which they run, as channel pruning reconstructs feature maps (He et al., arXiv
1707.06168, section 3.2): a layer's new weights W give, from what it reads in the slim network (X, of layers that are
repaired already), as nearly as can be what it gives in the dense network (Y):

    W = argmin |Y - X W - 1 b|^2 + r |W - W0|^2        (W0: the weights as they were cut)

in closed form (ridge regression). b is the layer's bias, or the shift that a batch norm behind it takes away; where
there is neither, b is 0. Batch norms are measured on the same inputs on the way. Departs from the paper in r, which
keeps weights that few examples say nothing of as they were, and in that every layer is repaired whose inputs are no
longer those of the dense network, not only those that lost channels.

N examples, S places of a feature map, G a convolution's groups, K numbers that one output reads at a place, O outputs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from deploy_prune.data.examples import Batch
from deploy_prune.networks.coordinates import Lost, lost_coordinates
from deploy_prune.networks.weighted_calls import Call, WeightedCalls
from deploy_prune.retrain.features import Match
from deploy_prune.training.batchnorm import measured_anew
from deploy_prune.training.loop import device_of, placed

EXAMPLES: Final = 1024
"""Inputs that are looked at, at most. Tried with a ResNet-20: fewer are worse, more take longer than they bring."""
NUMBERS: Final = 2**24
"""Numbers that they may have in all: of colour pictures of 224 x 224 these are 111 inputs."""
PLACES: Final = 32
"""Of a feature map, drawn by lot for each example."""
RIDGE: Final = 0.1
"""r, as a share of the mean square of what a layer reads. Tried with a ResNet-20, by training images held out:
the best of 0.001 to 1 for few examples; for many, it and less are alike."""
AT_ONCE: Final = 32
"""Examples that the dense network is given at once."""


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """How many layers got new weights, from how many examples, and by how much: each layer's relative error.

    ``before`` and ``after``: the median over layers of ``|Y - what the slim one gives|^2 / |Y|^2``, means taken away.
    """

    layers: int
    examples: int
    before: float
    after: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Told:
    """What a layer of the dense network gives: outputs [N, S, O] of those that stay, at ``places`` int64[N, S].

    ``normed``: a batch norm is the first to read it.
    """

    outputs: Tensor
    places: Tensor
    normed: bool


@torch.no_grad()
def repair(slim: nn.Module, dense: nn.Module, match: Match, inputs: Sequence[Tensor]) -> Repaired:
    """Repair in place, so that the slim network's layers give what the dense one's do for these inputs.

    Both run in evaluation mode, and come back in the mode and on the device that they were in. What stays as it is: a
    layer that runs more than once in a forward pass, whose weight has several names, or whose input doesn't have the
    examples first (windows, sequences before examples); transposed convolutions, those in three dimensions, and the
    products inside torch's own attention.

    Args:
        slim: the network that was cut, with weights of any kind.
        dense: the network to be like.
        match: how the one comes from the other.
        inputs: of examples, each [N, ...]; `some_inputs` takes as many as are of use.
    """
    device = device_of(slim)
    inputs = [x.to(device) for x in inputs]
    with placed(slim, device, training=False), placed(dense, device, training=False):
        told = _told(dense, lost_coordinates(match.structure, match.keep), inputs)
        errors: list[tuple[float, float]] = []

        def mend(call: Call) -> None:
            if len(call.input) == len(inputs[0]) and (wanted := told.pop(call.name, None)) is not None:
                errors.append(_mend(call, wanted))

        with measured_anew(slim), WeightedCalls(slim, before=mend):
            slim(*inputs)
    before, after = torch.tensor(errors or [(0.0, 0.0)]).median(0).values.tolist()
    return Repaired(layers=len(errors), examples=len(inputs[0]), before=before, after=after)


def some_inputs(batches: Iterator[Batch], most: int = EXAMPLES) -> tuple[Tensor, ...]:
    """As many inputs of the next batches as are of use, each [N, ...]; at least one batch, and ``most`` at most."""
    taken = [next(batches).inputs]
    wanted = max(len(taken[0][0]), min(most, NUMBERS // sum(x[0].numel() for x in taken[0])))
    while sum(len(inputs[0]) for inputs in taken) < wanted:
        taken.append(next(batches).inputs)
    return tuple(torch.cat(parts)[:wanted] for parts in zip(*taken, strict=True))


def _told(dense: nn.Module, lost: Lost, inputs: Sequence[Tensor]) -> dict[str, _Told]:
    """What the dense network's layers give, by the weight's name."""
    places: dict[str, Tensor] = {}
    outputs: dict[str, list[Tensor]] = defaultdict(list)
    calls: Counter[str] = Counter()
    lot = torch.Generator().manual_seed(0)

    def note(call: Call, output: Tensor) -> None:
        calls[call.name] += 1
        made = call.made(output).float()
        if calls[call.name] > 1 + first // AT_ONCE or len(made) != len(inputs[0][first : first + AT_ONCE]):
            return
        if call.name not in places:
            places[call.name] = torch.rand(len(inputs[0]), made.shape[1], generator=lot).argsort(1)[:, :PLACES]
        stays = torch.ones(made.shape[2], dtype=torch.bool)
        stays[lost.get((call.name, 0), torch.zeros(0, dtype=torch.int64))] = False
        here = places[call.name][first : first + len(made)]
        outputs[call.name].append(_at(made, here)[..., stays.to(made.device)])

    with WeightedCalls(dense, after=note) as seen:
        for first in range(0, len(inputs[0]), AT_ONCE):
            dense(*(x[first : first + AT_ONCE] for x in inputs))
    passes = -(-len(inputs[0]) // AT_ONCE)
    return {
        name: _Told(outputs=torch.cat(parts), places=places[name], normed=name in seen.normed)
        for name, parts in outputs.items()
        if len(parts) == calls[name] == passes
    }


def _mend(call: Call, told: _Told) -> tuple[float, float]:
    """Give a layer its new weights; its relative error before and after."""
    parts = [
        _at(replace(call, input=some).rows(), here)
        for some, here in zip(call.input.split(AT_ONCE), told.places.split(AT_ONCE), strict=True)
    ]
    rows_MGK = torch.cat(parts).flatten(0, 1).float()
    wanted_MGO = told.outputs.flatten(0, 1).unflatten(1, (call.groups, -1))
    weight_GKO = call.matrix().float()
    if call.bias is not None or told.normed:
        mean_GK, mean_GO = rows_MGK.mean(0), wanted_MGO.mean(0)
        rows_MGK, wanted_MGO = rows_MGK - mean_GK, wanted_MGO - mean_GO
    missing_MGO = wanted_MGO - torch.einsum("mgk,gko->mgo", rows_MGK, weight_GKO)
    change_GKO = _ridge(rows_MGK, missing_MGO)
    weight_GKO += change_GKO
    call.set_matrix(weight_GKO)
    if call.bias is not None:
        call.bias.copy_((mean_GO - torch.einsum("gk,gko->go", mean_GK, weight_GKO)).flatten())
    left_MGO = missing_MGO - torch.einsum("mgk,gko->mgo", rows_MGK, change_GKO)
    scale = float(wanted_MGO.square().mean().clamp(min=torch.finfo(torch.float32).tiny))
    return float(missing_MGO.square().mean()) / scale, float(left_MGO.square().mean()) / scale


def _ridge(rows_MGK: Tensor, wanted_MGO: Tensor) -> Tensor:
    """Argmin ``|wanted - rows D|^2 + r |D|^2``, [G, K, O]; solved in double precision."""
    gram_GKK = torch.einsum("mgk,mgl->gkl", rows_MGK, rows_MGK).double().cpu()
    crossed_GKO = torch.einsum("mgk,mgo->gko", rows_MGK, wanted_MGO).double().cpu()
    diagonal_GK = gram_GKK.diagonal(dim1=1, dim2=2)
    diagonal_GK += RIDGE * diagonal_GK.mean(1, keepdim=True) + torch.finfo(torch.float32).tiny
    solved: Tensor = torch.linalg.solve(gram_GKK, crossed_GKO)
    return solved.to(rows_MGK)


def _at(made: Tensor, places: Tensor) -> Tensor:
    """[B, S, ...] at places int64[B, P]: [B, P, ...]."""
    return made[torch.arange(len(made))[:, None], places]
