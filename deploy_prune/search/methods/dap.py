"""Differentiable architecture pruning (DAP): Colombo, Gao, arXiv 2107.03375 and its precursor 2009.05346.

Complexity-penalised subset selection, averaged over weights, so that the structure doesn't lean on one set of them:

    A* = argmin over A in {0, 1}^n of E_W[ loss(F(x; A W)) ] + gamma sum_i c_i A_i

by the two-temperature relaxation, with t_h << t_s: near-binary gates forward, a soft derivative backward:

    a = sigmoid(theta / t_h),   theta <- theta - eta dJ/da sigmoid'(theta / t_s) / t_s

As both derivatives are positive, the update is a descent direction of J(theta) at the forward gates.
Reconstructed from the abstract and the precursor: objective and step are not checked against the paper's body. Departs
from it in how the complexity enters (a price instead of gamma, see `relaxed`) and in the optimizer (Adam).
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from deploy_prune.search.frame import SearchJob, read_options
from deploy_prune.search.relaxed import Relaxation, RelaxedOptions, gate_rate, learn_gates
from deploy_prune.types import SearchResult


class DapOptions(RelaxedOptions):
    """Options of `dap`, beside those of all differentiable methods; ``weights: resample`` is the paper's."""

    hard: Annotated[float, Field(gt=0, le=10)] = Field(
        default=0.0005,
        description="Temperature t_h of the forward sigmoid, as a share of how far the learning rate can move theta in "
        "all steps. If it is larger, gates stay half open, and the trained weights fit neither choice.",
    )
    soft: Annotated[float, Field(gt=0, le=10)] = Field(
        default=0.25, description="Temperature t_s of the backward sigmoid, in the same unit."
    )
    start: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.1, description="theta of every unit at first (open: above 0), in the same unit."
    )


class _TwoTemperatures(torch.autograd.Function):
    """Forward sigmoid(theta / t_h); backward sigmoid'(theta / t_s) / t_s."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, hard: float, soft: float) -> Tensor:
        ctx.save_for_backward(theta)
        ctx.soft = soft
        return torch.sigmoid(theta / hard)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (theta,) = ctx.saved_tensors
        open_share = torch.sigmoid(theta / ctx.soft)
        return gradient * open_share * (1 - open_share) / ctx.soft, None, None


def two_temperatures(theta: Tensor, hard: float, soft: float) -> Tensor:
    """sigmoid(theta / hard), any shape, whose derivative is sigmoid'(theta / soft) / soft."""
    result: Tensor = _TwoTemperatures.apply(theta, hard, soft)  # type: ignore[no-untyped-call]
    return result


def dap(job: SearchJob) -> SearchResult:
    """Gates by the two-temperature relaxation; see `learn_gates` for what comes back.

    Raises:
        RecipeError: an option is unknown or has a bad value.
        TrainingError: the loss is not finite.
    """
    options = read_options(DapOptions, job.config)
    reach = max(1, job.config.steps) * gate_rate(job.config)
    return learn_gates(
        job,
        options,
        Relaxation(
            sample=lambda theta_N: two_temperatures(theta_N, options.hard * reach, options.soft * reach),
            start=options.start * reach,
        ),
    )
