"""How pictures are varied together with their boxes or masks, by torchvision.transforms.v2.

Each example is varied from a seed of its own: what comes of it depends neither on the other examples of the batch nor
on who takes it. A crop is taken from the picture at its own size, before it is made the network's input; colours are
changed afterwards, in the picture and not in what is around it; then about every second one is mirrored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from deploy_prune.data.pictures import Array
from deploy_prune.networks.libraries import import_torchvision

CROPS: Final = frozenset({"flip_crop", "flip_crop_colour", "mosaic"})
COLOURS: Final = frozenset({"flip_crop_colour", "mosaic"})
JITTER: Final = 0.4
CROP_AREA: Final = (0.3, 1.0)
CROP_ASPECT: Final = (3 / 4, 4 / 3)
"""Of crops with masks: their share of the picture's area, and their aspect against the picture's."""
Target = dict[str, Any]


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


def of_boxes(boxes: Tensor, size: tuple[int, int]) -> Any:
    """Boxes [N, 4] (left, top, right, bottom) of a picture of H, W, as v2 knows them."""
    kind = tv_tensors().BoundingBoxes
    return kind(boxes, format="XYXY", canvas_size=size)


def cropped_boxes(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """A crop of an image [C, H, W] with some object's middle in it, or the whole (Liu et al., arXiv 1512.02325).

    Boxes whose middle is outside are left out, others cut off at the crop's edge.
    """
    found: tuple[Tensor, Target] = v2().RandomIoUCrop()(tv_tensors().Image(image), target)
    return found[0], whole_boxes(found[1])


def whole_boxes(target: Target) -> Target:
    """Boxes cut off at the image's edge; those of less than a pixel's width or height left out, for want of content."""
    found: Target = v2().SanitizeBoundingBoxes()(v2().ClampBoundingBoxes()(target))
    return found


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


def mirrored(image: Tensor, target: Any) -> tuple[Tensor, Any]:
    """Mirrored from left to right, or not, with equal chances."""
    found: tuple[Tensor, Any] = v2().RandomHorizontalFlip(0.5)(tv_tensors().Image(image), target)
    return found
