"""How much worse the layers that read a channel get without it, once the weights that are left are fitted anew.

An optimal brain surgeon (Hassibi and Stork 1993) for whole channels, layer by layer (Kwon et al., arXiv 2204.09656;
Frantar and Alistarh, arXiv 2208.11580; Kurtic et al., arXiv 2302.04089). Nothing is trained, and no label is used. Of
a layer with inputs X (N rows) and weights W0, a set b of the inputs goes at the price

    E(b) = min_W |X (W - W0)|^2 / N + r |W - W0|^2, W_b = 0
         = tr(W0_b' (P_bb)^-1 W0_b),    P = (X'X / N + r)^-1

where means are taken away first (X - mean X) if the layer has a bias or a batch norm behind it, which takes a constant
up. A unit's price is the sum over the layers that read it, each over the root mean square ``|Y|`` of what it gives.
Units go one after another, the cheapest first; each is priced with those before it gone, and W and P are updated:

    W -= P_:b (P_bb)^-1 W_b        P -= P_:b (P_bb)^-1 P_b:

So of two channels that are alike one is cheap and the other is not. r keeps weights as they are that few examples say
nothing of, as in `retrain.repair`. Departs from the papers in the sum over layers, and in what is said at `WIDEST`,
`ROUNDS` and `PLACES`.

Tried with a ResNet-20, by training images held out: not over ``|Y|``, over its square, and with every unit priced as if
it went alone it is worse.

M rows, G a convolution's groups, K numbers that one output reads, O outputs, C units, A numbers of one unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Final, Literal

import torch
from accelerate.utils import send_to_device
from pydantic import Field
from torch import Tensor

from deploy_prune.errors import RecipeError
from deploy_prune.networks.copies import copied
from deploy_prune.networks.tensors import moved, tensors_held
from deploy_prune.networks.weighted_calls import Call, WeightedCalls
from deploy_prune.recipe.parts import Part
from deploy_prune.search.frame import SearchJob, read_options
from deploy_prune.search.methods.baselines import relative_norm, state_of
from deploy_prune.types import ChannelGroup, Scores, SearchResult

WIDEST: Final = 4608
"""Numbers that an output reads, at most, whose weights are fitted anew together (512 channels of 3 x 3). Of a wider
layer, blocks of so many are, each by itself, which overestimates the price: memory is K x WIDEST, not K x K."""
ROUNDS: Final = 128
"""Rounds in which a group's units go, at most: of more units, several go in one, priced as if each went alone."""
PLACES: Final = 32
"""Of a feature map, drawn by lot for each example."""
AT_ONCE: Final = 32
"""Examples whose rows are in memory at once."""
ROUNDING: Final = 1e-11
"""What r is at least, as a share of the mean square of what a layer reads before means are taken away."""
TINY: Final = 1e-30
"""What r and a layer's output squared are at least."""


class ObsOptions(Part):
    """Options of `obs`."""

    num_batches: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=20, description="Number of batches whose feature maps are looked at."
    )
    ridge: Annotated[float, Field(ge=1e-6, le=1e6)] = Field(
        default=0.1,
        description="How little weights may change, as a share of the mean square of what their layer reads.",
    )
    without_rows: Literal["error", "magnitude"] = Field(
        default="error",
        description="What to do with groups that no plain convolution or linear layer reads: fail, or score them by "
        "magnitude.",
    )


class _Moments:
    """Sums over the rows that a layer read so far, in blocks of K: [G, k, k] and [G, k].

    In double precision, which some accelerators lack: as means are taken away later, and little is added to what is
    singular, less would not do.
    """

    def __init__(self, call: Call) -> None:
        self.weight_GKO = call.matrix().double().cpu()
        self.taps = call.weight[0, 0].numel()
        self.width = max(1, WIDEST // self.taps) * self.taps
        shapes = [part.shape[:2] for part in self.weight_GKO.split(self.width, 1)]
        self.place = torch.device("cpu") if call.weight.device.type == "mps" else call.weight.device
        self.squares = [torch.zeros(g, k, k, dtype=torch.float64, device=self.place) for g, k in shapes]
        self.sums = [torch.zeros(g, k, dtype=torch.float64, device=self.place) for g, k in shapes]
        self.rows = 0
        self.shifted = call.bias is not None

    def add(self, call: Call, lot: torch.Generator) -> None:
        """Take in what the layer reads at some places of each example."""
        for some in call.input.split(AT_ONCE):
            rows_BSGK = replace(call, input=some).rows()
            if rows_BSGK.shape[1] > PLACES:
                places = torch.rand(rows_BSGK.shape[:2], generator=lot).argsort(1)[:, :PLACES].to(rows_BSGK.device)
                rows_BSGK = rows_BSGK[torch.arange(len(places), device=places.device)[:, None], places]
            rows_MGK = rows_BSGK.flatten(0, 1).to(self.place).double()
            self.rows += len(rows_MGK)
            for at, part in enumerate(rows_MGK.split(self.width, 2)):
                self.squares[at] += torch.einsum("mgk,mgl->gkl", part, part)
                self.sums[at] += part.sum(0)

    def surgeries(self, unit_of: Tensor, channels: int, ridge: float) -> list[_Surgery]:
        """One for each convolution's group and block. ``unit_of`` int64[inputs]: the unit of each channel, or -1."""
        blocks: list[tuple[Tensor, Tensor, Tensor, float]] = []
        weights, units = self.weight_GKO.split(self.width, 1), unit_of.repeat_interleave(self.taps).split(self.width)
        for square_Gkk, sum_Gk, weight_GkO, unit_k in zip(self.squares, self.sums, weights, units, strict=True):
            gram_Gkk, mean_Gk = square_Gkk.cpu() / self.rows, sum_Gk.cpu() / self.rows
            rounding = ROUNDING * float(gram_Gkk.diagonal(dim1=1, dim2=2).mean())
            if self.shifted:
                gram_Gkk -= mean_Gk[:, :, None] * mean_Gk[:, None]
            blocks += [(gram, weight, unit_k, rounding) for gram, weight in zip(gram_Gkk, weight_GkO, strict=True)]
        energy = sum(float((weight * (gram @ weight)).sum()) for gram, weight, _, _ in blocks)
        scale = max(energy, TINY) ** -0.5
        return [
            _Surgery(gram, weight, unit, channels, ridge * float(gram.diagonal().mean()) + rounding + TINY, scale)
            for gram, weight, unit, rounding in blocks
        ]


class _Surgery:
    """Units go from one layer (a convolution's group, a block) while the weights that stay are fitted anew."""

    def __init__(
        self, gram_KK: Tensor, weight_KO: Tensor, unit_K: Tensor, channels: int, ridge: float, scale: float
    ) -> None:
        eye_KK = torch.eye(len(gram_KK), dtype=gram_KK.dtype)
        self.inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(gram_KK + ridge * eye_KK))
        self.weight_KO = weight_KO * scale**0.5
        sizes_C = torch.bincount(unit_K[unit_K >= 0], minlength=channels)
        self.there_CA = torch.arange(max(1, int(sizes_C.max()))) < sizes_C[:, None]
        self.index_CA = torch.zeros(self.there_CA.shape, dtype=torch.int64)
        self.index_CA[self.there_CA] = unit_K.argsort(stable=True)[int((unit_K < 0).sum()) :]

    def prices(self) -> Tensor:
        """What it would cost if one more unit went: [C]; 0 of those that are gone."""
        block_CAA = self.inverse_KK[self.index_CA[:, :, None], self.index_CA[:, None]]
        both_CAA = self.there_CA[:, :, None] & self.there_CA[:, None]
        block_CAA = torch.where(both_CAA, block_CAA, torch.eye(self.there_CA.shape[1], dtype=block_CAA.dtype))
        weight_CAO = self.weight_KO[self.index_CA] * self.there_CA[:, :, None]
        price_C: Tensor = (weight_CAO * torch.linalg.solve(block_CAA, weight_CAO)).sum((1, 2))
        return price_C

    def remove(self, units: Tensor) -> None:
        """Let these units go, int64[...]."""
        gone = self.index_CA[units][self.there_CA[units]]
        if len(gone):
            solved_KB = torch.linalg.solve(self.inverse_KK[gone][:, gone], self.inverse_KK[gone]).T
            self.weight_KO -= solved_KB @ self.weight_KO[gone]
            self.inverse_KK -= solved_KB @ self.inverse_KK[gone]
        self.there_CA[units] = False


def obs(job: SearchJob) -> SearchResult:
    """Error of the layers that read a unit when it goes and they are fitted anew: ``E / |Y|``, in the outputs' unit.

    Inputs are those of ``num_batches`` batches in evaluation mode; memory for a layer's is bounded (`WIDEST`). Of a
    group, layers count that can be scored: plain convolutions in one or two dimensions and linear layers that read
    its channels.

    Raises:
        RecipeError: of a unit that is read, nothing that reads it can be scored, and ``without_rows`` doesn't say what
            to do; or no group can be scored.
    """
    options = read_options(ObsOptions, job.config)
    moments = _seen(job, options.num_batches)
    known: Scores = {}
    for group in job.structure.groups:
        if _is_scored(group, moments):
            found = [
                one
                for axis in group.consumers
                if axis.axis == 1 and axis.tensor in moments
                for one in moments[axis.tensor].surgeries(axis.unit_of, group.channels, options.ridge)
            ]
            known[group.name] = _one_by_one(found, group.channels)
    bare = [group.name for group in job.structure.groups if group.name not in known]
    if bare and (options.without_rows == "error" or not known):
        way_out = ", or set search.options.without_rows: magnitude" if known else ""
        message = (
            f"search.method obs can't score {', '.join(bare[:3])}{' and others' if len(bare) > 3 else ''}: no plain "
            f"convolution or linear layer reads these channels; take another method, skip them (prune.skip){way_out}."
        )
        raise RecipeError(message)
    tensors, typical = tensors_held(job.network), torch.cat([torch.ones(0), *known.values()]).mean()
    scores = {
        group.name: known[group.name] if group.name in known else relative_norm(tensors, group, "members") * typical
        for group in job.structure.groups
    }
    return SearchResult(scores=scores, state=state_of(job.network), trace=())


@torch.no_grad()
def _seen(job: SearchJob, num_batches: int) -> dict[str, _Moments]:
    """What every layer read that reads a group's channels, by its weight's name."""
    device = job.session.accelerator.device
    network = moved(copied(job.network), device).eval()
    wanted = {axis.tensor for group in job.structure.groups for axis in group.consumers}
    lot = torch.Generator().manual_seed(job.session.seed)
    moments: dict[str, _Moments] = {}

    def note(call: Call) -> None:
        if call.name in wanted:
            if call.name not in moments:
                moments[call.name] = _Moments(call)
            moments[call.name].add(call, lot)

    with WeightedCalls(network, before=note) as seen:
        for step in range(num_batches):
            loss = job.loss(network, send_to_device(next(job.batches), device))
            job.session.progress("obs", step + 1, num_batches, loss=loss.item())
    for name in seen.normed & {*moments}:
        moments[name].shifted = True
    return moments


def _is_scored(group: ChannelGroup, moments: dict[str, _Moments]) -> bool:
    """Whether of each unit that is read something that reads it can be scored."""
    read_C, scored_C = torch.zeros(2, group.channels, dtype=torch.bool)
    for axis in group.consumers:
        units = axis.unit_of[axis.unit_of >= 0]
        read_C[units] = True
        if axis.axis == 1 and axis.tensor in moments:
            scored_C[units] = True
    return bool((scored_C | ~read_C).all())


def _one_by_one(layers: Sequence[_Surgery], channels: int) -> Tensor:
    """The price of each unit when it is its turn, [C], never less than of one that went before."""
    scores_C, stays_C = torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.bool)
    at_once, price = -(-channels // ROUNDS), 0.0
    while bool(stays_C.any()):
        prices_C = sum((layer.prices() for layer in layers), torch.zeros(channels, dtype=torch.float64))
        prices_C[~stays_C] = torch.inf
        units = prices_C.argsort(stable=True)[: min(at_once, int(stays_C.sum()))]
        scores_C[units] = prices_C[units].clamp(min=price)
        price = float(scores_C[units].max())
        stays_C[units] = False
        for layer in layers:
            layer.remove(units)
    return scores_C
