"""The trainable gate (TGF), AAAI 2020, arXiv 1904.10921.

Kim, Park, Jung, Choe: "Plug-in, Trainable Gate for Streamlining Arbitrary Neural Networks".

    TG_M(w; g) = b(w) + s_M(w) g(w),   b(w) = 1[w > 0],   s_M(w) = (M w - floor(M w)) / M

The sawtooth s_M has slope 1 almost everywhere and height 1/M: the value is b(w) + O(1/M), the derivative g(w) + O(1/M).
Here M is infinite: the value is the step, the derivative is g, exactly. Weights and gates are trained together, the
weights from where they are, the gates from open.

Departs from the paper in how the target enters (there lambda * (tau - rho)^2 with a lambda to tune; see `relaxed`), and
in that the gates have an optimizer of their own (Adam).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from deploy_prune.search.frame import SearchJob, read_options
from deploy_prune.search.relaxed import Relaxation, RelaxedOptions, gate_rate, learn_gates
from deploy_prune.types import SearchResult

Shape = Literal["constant", "sigmoid"]


class GateOptions(RelaxedOptions):
    """Options of `gate`, beside those of all differentiable methods."""

    derivative: Shape = Field(
        default="constant", description="The gate's derivative g: 1 (constant), or that of a sigmoid."
    )
    start: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.1,
        description="w of every gate at first (open: above 0), as a share of how far the learning rate can move it in "
        "all steps.",
    )


class _TrainableGate(torch.autograd.Function):
    """Forward b(w) = 1[w > 0]; backward g(w)."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, shape: Shape) -> Tensor:
        ctx.save_for_backward(w)
        ctx.shape = shape
        return (w > 0).to(w.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (w,) = ctx.saved_tensors
        return gradient * derivative(w, ctx.shape), None


def derivative(w: Tensor, shape: Shape) -> Tensor:
    """g(w), elementwise: 1, or sigmoid(w) (1 - sigmoid(w)); arXiv 1904.10921, section "Differentiability"."""
    if shape == "constant":
        return torch.ones_like(w)
    open_share = torch.sigmoid(w)
    return open_share * (1 - open_share)


def trainable_gate(w: Tensor, shape: Shape) -> Tensor:
    """b(w) = 1[w > 0], any shape, with derivative g(w): the limit of TG_M(w; g) for M -> infinity."""
    result: Tensor = _TrainableGate.apply(w, shape)  # type: ignore[no-untyped-call]
    return result


def gate(job: SearchJob) -> SearchResult:
    """Weights and trainable gates learned together; see `learn_gates` for what comes back.

    Raises:
        RecipeError: an option is unknown or has a bad value.
        TrainingError: the loss is not finite.
    """
    options = read_options(GateOptions, job.config)
    return learn_gates(
        job,
        options,
        Relaxation(
            sample=lambda w_N: trainable_gate(w_N, options.derivative),
            start=options.start * max(1, job.config.steps) * gate_rate(job.config),
        ),
    )
