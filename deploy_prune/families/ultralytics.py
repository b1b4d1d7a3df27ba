"""Ultralytics' detectors of boxes, masks and keypoints: raw maps, its own losses, the decoding in numpy.

The package is AGPL-3.0 and an extra. It is imported nowhere here: a network of it brings it along. B batch, N boxes of
a picture, n boxes of all pictures, H W height and width of the input, h w of the masks' prototypes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy_prune.errors import DataError
from deploy_prune.families import confidence
from deploy_prune.families.raw_form import Decode, Family, Inputs, RawForm, is_a

_HEADS: Final[dict[str, tuple[str, ...]]] = {
    "Detect": ("cv2", "cv3"), "v10Detect": ("cv2", "cv3"), "Segment": ("cv2", "cv3", "cv4"),
    "Pose": ("cv2", "cv3", "cv4"),
}  # fmt: skip
"""A head's class -> its branches, one layer a scale: distances to a box's edges, classes, and what else it gives."""
_ONE: Final = "one2one_"
"""Before a branch's name: that of the head which gives each object one box and needs no suppression (YOLOv10, YOLO26).
The other one is only there to train, and isn't in the raw form."""
_OF_HEAD: Final = ("stride", "nc", "reg_max", "kpt_shape")
_SETTINGS: Final = {"least_score": 0.01, "candidates": 3000, "overlap": 0.7, "most_boxes": 100}


class Maps(nn.Module):
    """A head's layers and nothing after them: features of each scale -> maps, scale by scale; prototypes last.

    Names of weights are the head's own.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.f, self.i = head.f, head.i  # where Ultralytics' loop over layers takes its input from
        before = _ONE if _is_one_to_one(head) else ""
        self.branches = tuple(before + name for name in _HEADS[type(head).__name__])
        for name in self.branches:
            self.add_module(name, getattr(head, name))
        self.proto: nn.Module | None = getattr(head, "proto", None)

    def forward(self, x: list[Tensor]) -> tuple[Tensor, ...]:
        """[B, channels, h, w] of each scale -> the branches' maps [B, ..., h, w], for each scale."""
        maps = [getattr(self, name)[scale](features) for scale, features in enumerate(x) for name in self.branches]
        return (*maps, *(() if self.proto is None else (self.proto(x[0]),)))


class Loss:
    """Ultralytics' own loss of raw maps, a mean over the batch.

    It keeps what the loss asks of the dense network and its head, not the network. What it makes is kept by device.
    """

    def __init__(self, network: Any) -> None:
        head = network.model[-1]
        self.branches = len(_HEADS[type(head).__name__])
        self.more = {"Segment": "mask_coefficient", "Pose": "kpts"}.get(type(head).__name__)
        self.make: Callable[[Any], Any] = type(network).init_criterion
        self.one_to_one = _is_one_to_one(head)
        flag = {"one2one_cv2": True} if self.one_to_one else {}
        self.head = SimpleNamespace(**{n: getattr(head, n) for n in _OF_HEAD if hasattr(head, n)}, **flag)
        self.network = {n: getattr(network, n, None) for n in ("class_weights", "kpt_oks_sigmas")}
        self.args = _arguments(getattr(network, "args", None))
        self.criteria: dict[torch.device, Any] = {}

    def __call__(self, outputs: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Of maps [B, ..., h, w] and B targets: a scalar."""
        found = self._named(outputs)
        first = outputs[0]
        size = [float(self.head.stride[0]) * side for side in first.shape[2:]]
        batch = _batch(targets, size, self.more, found.get("proto"))
        loss, _ = self._criterion(first.device).loss({**found, "feats": self._first_branch(outputs)}, batch)
        total: Tensor = loss.sum()
        return total / len(targets)

    def distance(self, student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float) -> Tensor:
        """Of maps [B, ..., h, w]: classes everywhere, all else where the teacher's best class is likely.

        Classes are no shares of a whole, so the temperature is for the edges' distributions.
        """
        own = {key: x.float().flatten(2).transpose(1, 2) for key, x in self._named(student).items()}  # [B, A, channels]
        told = {key: x.detach().float().flatten(2).transpose(1, 2) for key, x in self._named(teacher).items()}
        sure = told["scores"].amax(2).sigmoid()
        terms = [confidence.of_yes_or_no(own["scores"], told["scores"], sure)]
        if (bins := self.head.reg_max) > 1:
            mine, theirs = (x["boxes"].unflatten(2, (4, bins)).flatten(1, 2) for x in (own, told))
            terms.append(confidence.of_shares(mine, theirs, sure.repeat_interleave(4, 1), temperature))
        else:
            terms.append(confidence.of_numbers(own["boxes"], told["boxes"], sure))
        if self.more is not None:
            terms.append(confidence.of_numbers(own[self.more], told[self.more], sure))
        if "proto" in told:
            everywhere = torch.ones_like(told["proto"][..., 0])
            terms.append(confidence.of_numbers(own["proto"], told["proto"], everywhere))
        return torch.stack(terms).sum()

    def _first_branch(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Of each scale a map, whose shape is looked at."""
        return list(outputs[: self.branches * len(self.head.stride) : self.branches])

    def _named(self, outputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """What Ultralytics calls them, of all scales together: [B, channels, A]; prototypes [B, channels, h, w]."""
        masks = self.more == "mask_coefficient"
        maps = outputs[:-1] if masks else outputs
        names = ("boxes", "scores") if self.more is None else ("boxes", "scores", self.more)
        found = {name: _flat(maps[kind :: self.branches]) for kind, name in enumerate(names)}
        return {**found, "proto": outputs[-1]} if masks else found

    def _criterion(self, device: torch.device) -> Any:
        if device not in self.criteria:
            head = copy(self.head)
            head.stride = head.stride.to(device)
            parameters = [torch.empty(0, device=device)]
            like = SimpleNamespace(model=[head], args=self.args, parameters=lambda: iter(parameters), **self.network)
            made = self.make(like)
            made = made.one2one if self.one_to_one else made
            made.overlap = False  # masks are given object by object
            self.criteria[device] = made
        return self.criteria[device]


def _batch(
    targets: Sequence[Mapping[str, Tensor]], size: Sequence[float], more: str | None, prototypes: Tensor | None
) -> dict[str, Tensor]:
    """Targets as Ultralytics has them: of all pictures' n boxes centres and sides in shares of the input's, and whose.

    Raises:
        DataError: a network of masks or keypoints is to be trained on boxes alone.
    """
    height, width = size
    counts = torch.tensor([len(target["labels"]) for target in targets])
    boxes = torch.cat([target["boxes"] for target in targets])
    whole = boxes.new_tensor([width, height, width, height])
    middle, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    batch = {
        "batch_idx": torch.arange(len(targets)).repeat_interleave(counts).to(boxes),
        "cls": torch.cat([target["labels"] for target in targets]).to(boxes),
        "bboxes": torch.cat([middle, sides], 1) / whole,
    }
    if prototypes is not None:
        masks = torch.cat(_of_all(targets, "masks"))[:, None].float()
        small = F.interpolate(masks, prototypes.shape[2:], mode="area") if len(masks) else masks
        batch["masks"] = (small[:, 0] > 0.5).float()
    elif more == "kpts":
        batch["keypoints"] = torch.cat(_of_all(targets, "keypoints")) / boxes.new_tensor([width, height, 1])
    return batch


def _of_all(targets: Sequence[Mapping[str, Tensor]], key: str) -> list[Tensor]:
    if any(key not in target for target in targets):
        message = (
            f"this network gives {key}, but the data that trains it has boxes alone: give data with {key}, or take "
        )
        message += "a network that gives boxes alone."
        raise DataError(message)
    return [target[key] for target in targets]


def _flat(maps: Sequence[Tensor]) -> Tensor:
    """[B, channels, places of all scales]."""
    return torch.cat([x.flatten(2) for x in maps], 2)


def _arguments(given: Any) -> Any:
    """The weights of the loss's terms: Ultralytics' defaults, and what the network was trained with."""
    known = vars(import_module("ultralytics.cfg").get_cfg())
    return SimpleNamespace(**(known | dict(given if isinstance(given, Mapping) else vars(given or SimpleNamespace()))))


def _is_one_to_one(head: nn.Module) -> bool:
    return getattr(head, f"{_ONE}cv2", None) is not None


def _owns(network: Any) -> bool:
    if not is_a(network, "ultralytics.nn.tasks.DetectionModel"):
        return False
    head = type(network.model[-1])
    return head.__module__ == "ultralytics.nn.modules.head" and head.__name__ in _HEADS


def _raw(network: Any, inputs: Inputs) -> RawForm:
    head, last = network.model[-1], str(len(network.model) - 1)
    bare = _with_modules(network, model=_with_modules(network.model, **{last: Maps(head)}))
    settings = {
        **_SETTINGS,
        **({"overlap": None} if _is_one_to_one(head) else {}),
        "size": list(inputs[0].shape[2:]),
        "strides": [int(stride) for stride in head.stride],
        "bins": head.reg_max,
        "masks": type(head).__name__ == "Segment",
        "keypoints": list(head.kpt_shape) if type(head).__name__ == "Pose" else None,
    }
    loss, decode = Loss(network), Decode(program="decode_yolo", settings=settings)
    return RawForm(network=bare, loss=loss, decode=decode, distance=loss.distance)


def _with_modules(network: Any, **modules: nn.Module) -> Any:
    """The same network with other modules in these places; all others, and the weights, are the given one's."""
    made = copy(network)
    made._modules = {**network._modules, **modules}
    return made


FAMILIES: Final = (Family(owns=_owns, raw=_raw),)
