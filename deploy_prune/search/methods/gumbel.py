"""Subnetworks by Gumbel-Softmax, with Smart Rescale (ASLP): arXiv 2202.12986.

Dupont, Alaoui, Sahbi, Lebois: "Extracting Effective Subnetworks with Gumbel-Softmax", ICIP 2022.

One logit m a unit. Only the difference of the two classes' logits matters, so they are (m, 0) and p = sigmoid(m):

    searching:   z = first entry of GumbelSoftmax((m, 0), tau, hard),   w_eff = s z w
    afterwards:  kept are the units of highest m,                       w_eff = s w

Forward z is 0 or 1, backward the soft sample's derivative. s is one learned scalar per weight (Smart Rescale). In the
paper weights stay at their random initial values (``weights: frozen``), units are single weights (``unit: weight``) and
nothing has a price. A gate on a channel is the same relaxation, and what surgery can remove; there the cost is that of
the expected gates sigmoid(m), see `relaxed`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from deploy_prune.search.frame import SearchJob, read_options
from deploy_prune.search.relaxed import Relaxation, RelaxedOptions, learn_gates
from deploy_prune.search.subnetwork import learn_masks
from deploy_prune.types import SearchResult


class GumbelOptions(RelaxedOptions):
    """Options of `gumbel`, beside those of all differentiable methods."""

    unit: Literal["channel", "weight"] = Field(
        default="channel", description="What a gate is for: a channel, or (as in the paper) a single weight."
    )
    start: Annotated[float, Field(ge=-20, le=20)] = Field(
        default=4.0,
        description="m of every unit at first. The paper's 0 leaves out every second unit, 4 one in 55.",
    )
    tau: Annotated[float, Field(gt=0, le=100)] = Field(default=1.0, description="Temperature of the soft sample.")
    rescale: bool = Field(default=True, description="Learn one scale for each weight tensor (Smart Rescale).")
    lr_scale: Annotated[float, Field(gt=0, le=100)] = Field(default=1e-3, description="Learning rate of these scales.")
    signed: bool = Field(
        default=False,
        description="With unit: weight, replace weights by their sign times their tensor's standard deviation.",
    )


def gumbel_gate(m: Tensor, tau: float) -> Tensor:
    """A sample z of {0, 1} with P(z = 1) = sigmoid(m), any shape; its derivative is the soft sample's.

    Gumbel variables differ by a logistic one, so one draw a unit is enough (Maddison et al., arXiv 1611.00712).
    """
    uniform = torch.rand_like(m).clamp_(torch.finfo(m.dtype).tiny, 1 - torch.finfo(m.dtype).eps)
    soft = torch.sigmoid((m + torch.logit(uniform)) / tau)
    return (soft > 0.5).to(m.dtype) + (soft - soft.detach())


def gumbel(job: SearchJob) -> SearchResult:
    """Gates by hard Gumbel-Softmax samples; see `learn_gates` and, for ``unit: weight``, `learn_masks`.

    Raises:
        RecipeError: an option is unknown or has a bad value.
        TrainingError: the loss is not finite.
    """
    options = read_options(GumbelOptions, job.config)
    relaxation = Relaxation(
        sample=lambda m_N: gumbel_gate(m_N, options.tau),
        expected=torch.sigmoid,
        start=options.start,
        rescale=options.lr_scale if options.rescale else None,
    )
    if options.unit == "weight":
        return learn_masks(job, options, relaxation, signed=options.signed)
    return learn_gates(job, options, relaxation)
