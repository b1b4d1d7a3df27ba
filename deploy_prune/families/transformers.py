"""Networks of the transformers library, whatever they are for, and loss and decoding of its DETR-like detectors.

The library isn't imported here. A network returns its outputs in an object of its own; its raw form returns those
tensors that are its results, as a tuple, or the one there is: class logits, boxes, masks.

A detector's boxes (DETR, Deformable DETR, RT-DETR, D-FINE and their like) are centre, width and height as shares of the
input, one for each query. Its loss is its own, which matches queries and boxes. Where that also judges the decoder's
earlier layers or the encoder's choice of queries (``config.auxiliary_loss``), and the network returns what they say,
this is part of the raw form, after the boxes: without it the layers that choose the queries are not trained. It costs
next to nothing to compute, and the decoding ignores it.

B batch, Q queries, C classes, H W height and width of the network's input, N boxes of a picture.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.families.raw_form import Decode, Family, Inputs, RawForm, is_a
from deploy_prune.networks.unchanged import unchanged

RESULTS: Final = ("logits", "pred_boxes", "pred_masks", "class_queries_logits", "masks_queries_logits")
"""The library's names of what a network is used for."""
JUDGED: Final = {
    "outputs_class": "intermediate_logits",
    "outputs_coord": "intermediate_reference_points",
    "enc_topk_logits": "enc_topk_logits",
    "enc_topk_bboxes": "enc_topk_bboxes",
    "predicted_corners": "intermediate_predicted_corners",
    "initial_reference_points": "initial_reference_points",
}
"""What a detector's loss may judge beside the results: its argument's name -> the output's."""


class Results(nn.Module):
    """A network's outputs of these names: a tensor where there is one, else a tuple."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs, each [B, ...]; the inputs are the network's, in order."""
        made = self.model(*inputs, return_dict=True)
        found = tuple(made[name] for name in self.names)
        return found if len(found) > 1 else found[0]


def _raw(model: Any, inputs: Inputs) -> RawForm:
    device = next(model.parameters()).device
    with unchanged(model), torch.no_grad():
        made = model.eval()(*[x[:1].to(device) for x in inputs], return_dict=True)
    there = {name: x for name, x in made.items() if isinstance(x, Tensor)}
    names = tuple(name for name in RESULTS if name in there) or tuple(there)[:1]
    if names[:2] != ("logits", "pred_boxes"):
        return RawForm(network=Results(model, names))
    loss_function, size = model.loss_function, (inputs[0].shape[-2], inputs[0].shape[-1])
    judged = _judged(model.config, loss_function, there)
    loss = partial(_loss, loss_function, _config(model.config, judged), size, (*names, *judged.values()), judged)
    settings = {
        "size": list(size),
        "scores": "softmax" if there["logits"].shape[-1] > model.config.num_labels else "sigmoid",
        "most_boxes": there["logits"].shape[1],
    }
    decode = Decode(program="decode_detr", settings=settings)
    return RawForm(network=Results(model, (*names, *judged.values())), loss=loss, decode=decode)


def _judged(config: Any, loss: Callable[..., Any], there: Mapping[str, Tensor]) -> dict[str, str]:
    """Of JUDGED, what this network returns and this loss takes."""
    takes = inspect.signature(loss).parameters
    return {a: name for a, name in JUDGED.items() if config.auxiliary_loss and a in takes and name in there}


def _config(config: Any, judged: Mapping[str, str]) -> Any:
    """For the loss: as it is, but without the judgement of layers whose outputs aren't there."""
    config = copy.copy(config)
    config.auxiliary_loss = "outputs_class" in judged
    return config


def _loss(
    loss_function: Callable[..., Any], config: Any, size: tuple[int, int], names: Sequence[str],
    judged: Mapping[str, str], outputs: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]],
) -> Tensor:  # fmt: skip
    """The detector's own loss of its outputs, for boxes in pixels."""
    made, device = dict(zip(names, outputs, strict=True)), outputs[0].device
    labels = [
        {"class_labels": t["labels"].to(device), "boxes": as_shares(t["boxes"].to(device), size)} for t in targets
    ]
    others = {argument: made[name] for argument, name in judged.items()}
    total: Tensor = loss_function(made["logits"], labels, device, made["pred_boxes"], config, **others)[0]
    return total


def as_shares(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Centre, width and height [N, 4] as shares of an input of H, W pixels, of boxes left, top, right, bottom in it."""
    height, width = size
    corners = boxes / boxes.new_tensor([width, height, width, height])
    return torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)


FAMILIES: Final = (Family(owns=partial(is_a, name="transformers.modeling_utils.PreTrainedModel"), raw=_raw),)
