"""A mask on every single weight: the subnetworks of arXiv 2202.12986, which no surgery can remove but zeros can show.

Legend: C units of one group, A coordinates of one axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD

from deploy_prune.networks.copies import copied
from deploy_prune.networks.tensors import moved
from deploy_prune.search.frame import SearchJob
from deploy_prune.search.relaxed import Relaxation, RelaxedOptions, redraw, weight_optimizers
from deploy_prune.training.loop import fit, set_seed
from deploy_prune.types import Scores, SearchResult, Structure

MOMENTUM = 0.9  # of logits and scales; the paper's
RATE = 50.0  # of logits; the paper's


def learn_masks(job: SearchJob, options: RelaxedOptions, relaxation: Relaxation, *, signed: bool) -> SearchResult:
    """Learn a logit for every weight of two or more axes, by SGD at ``lr_gates``, by default the paper's 50.

    Returns the weights times their scale where m >= 0 and zeros elsewhere; as ranks the share of weights left among
    those that read a unit, so that units whose every weight is off go first; and the trace, a row
    a step: ``loss`` and ``kept`` (the share of weights that are on).

    Raises:
        TrainingError: the loss is not finite.
    """
    set_seed(job.session.seed)
    network = moved(copied(job.network), job.session.accelerator.device).train()
    network.requires_grad_(requires_grad=options.weights == "joint")
    masked = MaskedNetwork(network, relaxation)
    if signed:
        masked.sign_weights()

    def loss(batch: Any) -> Tensor:
        if options.weights == "resample":
            redraw(network)
        task_loss = job.loss(masked, batch)
        masked.losses.append(float(task_loss.detach()))
        return task_loss

    optimizers, schedulers = weight_optimizers(network, options, job.config)
    optimizers.append(SGD(masked.logits.values(), lr=job.config.lr_gates or RATE, momentum=MOMENTUM))
    if relaxation.rescale is not None:
        optimizers.append(SGD(masked.scales.values(), lr=relaxation.rescale, momentum=MOMENTUM))
    fit(
        loss, job.batches, optimizers, session=job.session, steps=job.config.steps, work="search",
        schedulers=schedulers, trained=[network, masked],
    )  # fmt: skip
    state = {name: tensor.detach().cpu().clone() for name, tensor in masked.extract().items()}
    return SearchResult(scores=shares_left(job.structure, state), state=state, trace=tuple(masked.trace))


class MaskedNetwork:
    """A network whose every weight of two or more axes is sampled on or off at each call, and scaled.

    ``trace``: of the search so far. ``losses``: of the batches of the step under way.
    """

    def __init__(self, network: nn.Module, relaxation: Relaxation) -> None:
        self.network, self.relaxation = network, relaxation
        self.weights = {name: weight for name, weight in network.named_parameters() if weight.dim() > 1}
        self.logits = {n: nn.Parameter(torch.full_like(w, relaxation.start)) for n, w in self.weights.items()}
        self.scales = {
            n: nn.Parameter(torch.ones_like(w[(0,) * w.dim()]), requires_grad=relaxation.rescale is not None)
            for n, w in self.weights.items()
        }
        self.trace: list[Mapping[str, float]] = []
        self.losses: list[float] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output with a fresh sample of all masks."""
        sample = self.relaxation.sample
        weights = {n: self.scales[n] * sample(self.logits[n]) * w for n, w in self.weights.items()}
        return functional_call(self.network, weights, args, kwargs)

    @torch.no_grad()
    def sign_weights(self) -> None:
        """Signed constants: every weight becomes its sign times its tensor's standard deviation."""
        for weight in self.weights.values():
            weight.copy_(weight.sign() * weight.std())

    @torch.no_grad()
    def kept(self) -> float:
        """The share of weights that are on: m >= 0."""
        on = sum(int((m >= 0).sum()) for m in self.logits.values())
        return on / sum(m.numel() for m in self.logits.values())

    def figures(self) -> list[float]:
        """The task's loss."""
        return [sum(self.losses) / len(self.losses)]

    def close(self, figures: Sequence[float]) -> None:
        """Note the step."""
        self.trace.append({"step": len(self.trace) + 1, "loss": figures[0], "kept": self.kept()})
        self.losses = []

    def state_dict(self) -> dict[str, Any]:
        """All but the network's."""
        logits, scales = ({n: x.detach() for n, x in kind.items()} for kind in (self.logits, self.scales))
        return {"logits": logits, "scales": scales, "trace": self.trace}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for name in self.weights:
            self.logits[name].copy_(state["logits"][name])
            self.scales[name].copy_(state["scales"][name])
        self.trace = state["trace"]

    @torch.no_grad()
    def extract(self) -> dict[str, Tensor]:
        """The state dict of the subnetwork: s w where m >= 0 (a tie is kept), 0 elsewhere."""
        on = {n: self.scales[n] * (self.logits[n] >= 0) * w for n, w in self.weights.items()}
        return {**self.network.state_dict(), **on}


def shares_left(structure: Structure, state: Mapping[str, Tensor]) -> Scores:
    """Per unit, the share of non-zero entries among the weights that read it: float32[C] per group."""
    shares: Scores = {}
    for group in structure.groups:
        left_C, total_C = torch.zeros(group.channels), torch.zeros(group.channels)
        for axis in group.consumers:
            on_A = (state[axis.tensor] != 0).movedim(axis.axis, 0).reshape(len(axis.unit_of), -1)
            mine = axis.unit_of >= 0
            left_C.index_add_(0, axis.unit_of[mine], on_A[mine].sum(1).float())
            total_C.index_add_(0, axis.unit_of[mine], torch.full((int(mine.sum()),), float(on_A.shape[1])))
        shares[group.name] = left_C / total_C.clamp(min=1)
    return shares
