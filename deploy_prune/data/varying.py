"""How pictures are varied together with their boxes or masks, by torchvision.transforms.v2.

Each example is varied from a seed of its own: what comes of it depends neither on the other examples of the batch nor
on who takes it. A crop is taken from the picture at its own size, before it is made the network's input; colours are
changed afterwards, in the picture and not in what is around it; then about every second one is mirrored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from deploy_prune.data.pictures import Array
from deploy_prune.networks.libraries import import_torchvision

CROPS: Final = frozenset({"flip_crop", "flip_crop_colour", "mosaic"})
COLOURS: Final = frozenset({"flip_crop_colour", "mosaic"})
JITTER: Final = 0.4
TRIES: Final = 50
"""For a crop that overlaps an object as much as was drawn (arXiv 1512.02325); then another overlap is drawn."""
CROP_AREA: Final = (0.3, 1.0)
CROP_ASPECT: Final = (3 / 4, 4 / 3)
"""Of crops with masks: their share of the picture's area, and their aspect against the picture's."""
Target = dict[str, Any]


def seeds(num: int, generator: torch.Generator) -> list[int]:
    """A seed for each of so many examples."""
    found: list[int] = torch.randint(2**62, (num,), generator=generator).tolist()
    return found


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global random numbers on the CPU start from this seed, and are afterwards as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@cache
def v2() -> ModuleType:
    """torchvision.transforms.v2."""
    import_torchvision()
    from torchvision.transforms import v2 as found

    return found  # type: ignore[no-any-return]


@cache
def tv_tensors() -> ModuleType:
    """torchvision.tv_tensors."""
    import_torchvision()
    from torchvision import tv_tensors as found

    return found  # type: ignore[no-any-return]


def cropped_boxes(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """A crop of an image [C, H, W] with some object's middle in it, or the whole (Liu et al., arXiv 1512.02325).

    Objects whose box has its middle outside are left out, others cut off at the crop's edge.
    """
    size = image.shape[1], image.shape[2]
    wrapped = _wrapped(target, size)
    if "keypoints" in target:
        wrapped["places"] = tv_tensors().KeyPoints(target["keypoints"][..., :2], canvas_size=size)
    cropped, found = _iou_crop()(tv_tensors().Image(image), wrapped)
    if "keypoints" in target:
        places = found.pop("places").as_subclass(Tensor)
        found["keypoints"] = torch.cat([places, target["keypoints"][..., 2:]], -1)
    return cropped.as_subclass(Tensor), whole_boxes(found, (cropped.shape[1], cropped.shape[2]))


@cache
def _iou_crop() -> Any:
    """Torchvision's RandomIoUCrop, whose tries are made all at once: one after the other they take 5 ms a picture."""

    class IoUCrop(v2().RandomIoUCrop):  # type: ignore[misc]
        def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
            boxes = next(x for x in flat_inputs if isinstance(x, tv_tensors().BoundingBoxes))
            height, width = boxes.canvas_size
            while (least := self.options[int(torch.randint(len(self.options), ()))]) < 1:
                scale = self.min_scale + (self.max_scale - self.min_scale) * torch.rand(TRIES, 2).numpy()
                sides = (scale * [width, height]).astype(int)
                start = (([width, height] - sides) * torch.rand(TRIES, 2).numpy()).astype(int)
                crops = np.concatenate([start, start + sides], 1)
                inside = _middles(boxes.numpy(), crops) & self._whole(sides)[:, None]
                good = (_overlaps(boxes.numpy(), crops) >= least) & inside
                if good.any():
                    first = int(good.any(1).argmax())
                    (left, top), (wide, high) = start[first].tolist(), sides[first].tolist()
                    here = torch.tensor(inside[first])
                    return {"top": top, "left": left, "height": high, "width": wide, "is_within_crop_area": here}
            return {}

        def _whole(self, sides: Array) -> Array:
            """Bool [T]: of some area, and of an aspect that is allowed."""
            wide, high = sides.T
            low, most = self.min_aspect_ratio, self.max_aspect_ratio
            found: Array = (wide > 0) & (high > 0) & (low * high <= wide) & (wide <= most * high)
            return found

    return IoUCrop()


def _middles(boxes: Array, crops: Array) -> Array:
    """Bool [T, N]: whether the middles of boxes [N, 4] are within crops [T, 4]."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    left, top, right, bottom = crops[:, :, None].transpose(1, 0, 2)
    found: Array = (left < x) & (x < right) & (top < y) & (y < bottom)
    return found


def _overlaps(boxes: Array, crops: Array) -> Array:
    """Intersection over union [T, N] of crops [T, 4] and boxes [N, 4]."""
    low, high = (
        choose(boxes[None, :, part], crops[:, None, part])
        for choose, part in ((np.maximum, slice(0, 2)), (np.minimum, slice(2, 4)))
    )
    common = np.clip(high - low, 0, None).prod(2)
    areas = [(b[:, 2:] - b[:, :2]).astype(np.float64).prod(1) for b in (boxes, crops)]
    found: Array = common / np.maximum(areas[0][None] + areas[1][:, None] - common, 1e-9)
    return found


def whole_boxes(target: Target, size: tuple[int, int]) -> Target:
    """Boxes cut off at the edge of an image of H, W; those of less than a pixel's width or height left out."""
    wrapped = v2().ClampBoundingBoxes()(_wrapped(target, size))
    others = [key for key in ("labels", "keypoints") if key in target]
    found = v2().SanitizeBoundingBoxes(labels_getter=lambda them: tuple(them[key] for key in others))(wrapped)
    plain = {key: value.as_subclass(Tensor) for key, value in found.items()}
    return plain | ({"keypoints": seen(plain["keypoints"], size)} if "keypoints" in plain else {})


def seen(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Key points [N, K, 3] (x, y, seen), those outside of an image of H, W as not seen."""
    x, y = points[..., 0], points[..., 1]
    inside = (x >= 0) & (y >= 0) & (x <= size[1]) & (y <= size[0])
    return points * torch.stack([torch.ones_like(x), torch.ones_like(x), inside], -1)


def _wrapped(target: Target, size: tuple[int, int]) -> Target:
    """A target as v2 knows it: what it is of, an image of H, W."""
    kinds = tv_tensors()
    boxes = kinds.BoundingBoxes(target["boxes"].as_subclass(Tensor), format="XYXY", canvas_size=size)
    masks = {"masks": kinds.Mask(target["masks"])} if "masks" in target else {}
    return target | {"boxes": boxes} | masks


def of_mask(mask: Tensor) -> Any:
    """A mask [H, W], as v2 knows it."""
    return tv_tensors().Mask(mask)


def cropped_mask(image: Array, mask: Array) -> tuple[Array, Array]:
    """The same crop of a picture [H, W, C] and its mask [H, W], as CROP_AREA and CROP_ASPECT say."""
    own = image.shape[1] / image.shape[0]
    kind = v2().RandomResizedCrop((1, 1), scale=CROP_AREA, ratio=(CROP_ASPECT[0] * own, CROP_ASPECT[1] * own))
    crop = kind.make_params([of_mask(torch.empty(mask.shape))])
    rows, columns = slice(crop["top"], crop["top"] + crop["height"]), slice(crop["left"], crop["left"] + crop["width"])
    return image[rows, columns], mask[rows, columns]


def coloured(image: Tensor) -> Tensor:
    """Brightness, contrast and saturation of an image uint8 [C, H, W] by factors in 0.6..1.4, in a random order."""
    found: Tensor = v2().ColorJitter(JITTER, JITTER, JITTER)(image)
    return found


def mirrored(image: Tensor, target: Target, points: Sequence[int] | None = None) -> tuple[Tensor, Target]:
    """Mirrored from left to right, or not, with equal chances. ``points``: which key point each one then is."""
    if torch.rand(()) < 0.5:
        return image, target
    size = image.shape[1], image.shape[2]
    flip = v2().functional.horizontal_flip
    wrapped = _wrapped(target, size)
    found = {key: flip(wrapped[key]).as_subclass(Tensor) for key in wrapped.keys() & {"boxes", "masks"}}
    if "keypoints" in target and points is not None:
        moved = target["keypoints"] * torch.tensor([-1.0, 1, 1]) + torch.tensor([float(size[1]), 0, 0])
        found["keypoints"] = moved[:, list(points)]
    return flip(image), target | found


def mirrored_mask(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """An image [C, H, W] and its mask [H, W] mirrored from left to right, or not, with equal chances."""
    found = v2().RandomHorizontalFlip(0.5)(tv_tensors().Image(image), of_mask(mask))
    return found[0].as_subclass(Tensor), found[1].as_subclass(Tensor)
