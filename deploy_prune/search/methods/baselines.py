"""The methods that every comparison includes. None of them trains; the weights come back as they were given.

All but Taylor rank channels, by a number that is comparable between groups. Taylor's number is a value as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import torch
from accelerate.utils import send_to_device
from pydantic import Field
from torch import Tensor, nn

from deploy_prune.errors import RecipeError
from deploy_prune.networks.copies import copied
from deploy_prune.networks.tensors import moved, tensors_held
from deploy_prune.recipe.parts import Part
from deploy_prune.search.frame import NoOptions, SearchJob, read_options
from deploy_prune.search.gated_network import gated
from deploy_prune.types import Axis, ChannelGroup, Scores, SearchResult

Tensors = dict[str, Tensor]


class MagnitudeOptions(Part):
    """Options of `magnitude`."""

    over: Literal["members", "consumers"] = Field(
        default="members",
        description="Which weights count. members: all weights of the channel. consumers: only those that read it.",
    )


class BnScaleOptions(Part):
    """Options of `bn_scale`."""

    without_norm: Literal["error", "magnitude"] = Field(
        default="error", description="What to do with groups that no norm scales: fail, or score them by magnitude."
    )


class TaylorOptions(Part):
    """Options of `taylor`."""

    num_batches: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=20, description="Number of batches that the gradient is computed on."
    )


def uniform(job: SearchJob) -> SearchResult:
    """The same share of every group, its channels of smallest L1 norm first (Li et al., arXiv 1608.08710).

    A unit ranks by its place in its own group, 1/C to 1. The norm is over all weights (not vectors) of the members.
    """
    read_options(NoOptions, job.config)
    tensors = tensors_held(job.network)

    def ranks(group: ChannelGroup) -> Tensor:
        order = _norm(tensors, group, _matrices(tensors, group.members), power=1).argsort(stable=True)
        return order.argsort().add(1) / group.channels

    return _ranked(job, ranks)


def random(job: SearchJob) -> SearchResult:
    """Channels drawn by lot, all groups alike: every unit ranks by a number drawn from [0, 1)."""
    read_options(NoOptions, job.config)
    lot = torch.Generator().manual_seed(job.session.seed)
    return _ranked(job, lambda group: torch.rand(group.channels, generator=lot))


def magnitude(job: SearchJob) -> SearchResult:
    """L2 norm of a unit's weights over the group's members, over the group's mean (DepGraph, arXiv 2301.12900).

    ``over: consumers`` takes only the weights that read the unit. Departs from DepGraph in leaving vectors (biases,
    norms) out, whose scale says nothing about the channel.
    """
    options = read_options(MagnitudeOptions, job.config)
    tensors = tensors_held(job.network)
    return _ranked(job, lambda group: relative_norm(tensors, group, options.over))


def bn_scale(job: SearchJob) -> SearchResult:
    """Mean |gamma| of the norms that scale the group (Network Slimming, arXiv 1708.06519, without its L1 training).

    A group that no norm scales is an error, or, with ``without_norm: magnitude``, ranks by its relative L2 norm (see
    `magnitude`) times the mean |gamma| of the groups that have one.

    Raises:
        RecipeError: a group has no norm and the option does not say what to do; or no group has one.
    """
    options = read_options(BnScaleOptions, job.config)
    tensors = tensors_held(job.network)
    norms = {layer.tensor for layer in job.structure.layers if layer.kind == "norm"}
    scales = {group.name: [x for x in group.members if x.tensor in norms] for group in job.structure.groups}
    known = {
        g.name: _norm(tensors, g, scales[g.name], 1) / len(scales[g.name])
        for g in job.structure.groups
        if scales[g.name]
    }
    bare = [group.name for group in job.structure.groups if group.name not in known]
    if bare and (options.without_norm == "error" or not known):
        way_out = ", or set search.options.without_norm: magnitude" if known else ""
        message = (
            f"search.method bn_scale can't score {', '.join(bare[:3])}{' and others' if len(bare) > 3 else ''}: "
            f"no norm scales these channels; take another method, skip them (prune.skip){way_out}."
        )
        raise RecipeError(message)
    typical = torch.cat(list(known.values())).mean() if known else torch.ones(())

    def scale(group: ChannelGroup) -> Tensor:
        return known[group.name] if group.name in known else relative_norm(tensors, group, "members") * typical

    return _ranked(job, scale)


def taylor(job: SearchJob) -> SearchResult:
    """First-order estimate of the loss that each unit saves (Molchanov et al., arXiv 1906.10771).

    With a gate a = 1 on the weights W that read the unit, dL/da = sum(dL/dW * W): the score is the mean over
    ``num_batches`` batches of |dL/da|, in the task's unit of loss. In eval mode: statistics and dropout rest.
    """
    options = read_options(TaylorOptions, job.config)
    device = job.session.accelerator.device
    network = moved(copied(job.network), device).eval().requires_grad_(False)
    gating = gated(network, job.structure, job.config.batch_size)
    sums = {g.name: torch.zeros(g.channels, device=device) for g in job.structure.groups}
    for step in range(options.num_batches):
        gates = {name: torch.ones_like(total, requires_grad=True) for name, total in sums.items()}
        loss = job.loss(gating.forward(gates), send_to_device(next(job.batches), device))
        for name, gradient in zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True):
            sums[name] += gradient.abs()
        job.session.progress("taylor", step + 1, options.num_batches, loss=loss.item())
    scores = {name: (total / options.num_batches).cpu() for name, total in sums.items()}
    return SearchResult(scores=scores, state=state_of(job.network), trace=())


def _ranked(job: SearchJob, rank: Callable[[ChannelGroup], Tensor]) -> SearchResult:
    """The result of a method that ranks each group's units by ``rank(group)``, [C]."""
    ranks: Scores = {group.name: rank(group) for group in job.structure.groups}
    return SearchResult(scores=ranks, state=state_of(job.network), trace=())


def state_of(network: nn.Module) -> Tensors:
    """Its state dict, as tensors of their own in the processor's memory."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _matrices(tensors: Tensors, axes: Iterable[Axis]) -> list[Axis]:
    """The axes of weights proper: not of biases, norms and their statistics, nor of constants in the network's code."""
    return [axis for axis in axes if axis.tensor in tensors and tensors[axis.tensor].dim() > 1]


def relative_norm(tensors: Tensors, group: ChannelGroup, over: Literal["members", "consumers"]) -> Tensor:
    """The L2 norm of a unit's weights over the group's mean (see `magnitude`): float64[C]."""
    norm_C = _norm(tensors, group, _matrices(tensors, group.members if over == "members" else group.consumers), power=2)
    return norm_C / norm_C.mean().clamp(min=torch.finfo(norm_C.dtype).tiny)


def _norm(tensors: Tensors, group: ChannelGroup, axes: Iterable[Axis], power: int) -> Tensor:
    """The L1 or L2 norm of all coordinates of a unit, over these axes: float64[C]."""
    total_C = torch.zeros(group.channels, dtype=torch.float64)
    for axis in axes:
        per_coordinate_L = (
            tensors[axis.tensor]
            .detach()
            .cpu()
            .abs()
            .double()
            .pow(power)
            .movedim(axis.axis, 0)
            .reshape(len(axis.unit_of), -1)
            .sum(1)
        )
        here = axis.unit_of >= 0
        total_C.index_add_(0, axis.unit_of[here], per_coordinate_L[here])
    return total_C.pow(1 / power)
