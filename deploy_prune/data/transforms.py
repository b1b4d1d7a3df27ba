"""Augmentation: one function for each kind, listed in AUGMENTS; and mixing of examples.

B batch, C channels, H W height and width. Images are float [B, C, H, W] in 0..1 and stay so. All that is random comes
from the generator (of the CPU) and is drawn for each image on its own: the same generator, the same images.

What is drawn depends on the images' shape alone, so that it can be drawn without them, by who leaves them to others.

These are of whole batches: torchvision's transforms, which vary pictures with boxes and masks (`data.varying`), take an
image at a time, and for 64 images of 8 x 8 pixels 3 to 14 ms instead of 0.1 to 0.6, half of a small network's step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deploy_prune.recipe.parts import Augment

Mix = Literal["mixup", "cutmix"]
Numbers = tuple[Tensor, ...]

LUMA: Final = (0.299, 0.587, 0.114)
"""What red, green and blue weigh in grey (ITU-R BT.601)."""

# "affine": the strongest distortions, at which handwriting stays the same character to the eye
MAX_TURN = 0.26  # radians, 15 degrees
MAX_SCALE = 0.2
MAX_SLANT = 0.2
MAX_MOVE = 0.2  # of half the size: up to a tenth of the image

# "crop_flip" and "crop_flip_colour"
MIN_AREA = 0.6  # of the image
MAX_ASPECT = 4 / 3  # of the crop's aspect to the image's, and one over it
MAX_JITTER = 0.4

# Both parameters of the beta distribution that shares are drawn from
MIXUP_ALPHA = 0.2  # arXiv 1710.09412, section 3.1: 0.1 to 0.4 on ImageNet
CUTMIX_ALPHA = 1.0  # arXiv 1905.04899, section 3.1: uniform


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A line of AUGMENTS: what is drawn for images of a shape (B, C, H, W), each [B, ...], and what is made of it."""

    draw: Callable[[Sequence[int], torch.Generator], Numbers]
    vary: Callable[..., Tensor]


def augmented(x_BCHW: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """The images varied in one of the ways of AUGMENTS: float [B, C, H, W] in 0..1, as they came."""
    return AUGMENTS[augment].vary(x_BCHW, *drawn(x_BCHW.shape, augment, generator))


def drawn(shape_BCHW: Sequence[int], augment: Augment, generator: torch.Generator) -> Numbers:
    """All that `augmented` draws for images of this shape."""
    return AUGMENTS[augment].draw(shape_BCHW, generator)


def _draw_none(shape_BCHW: Sequence[int], generator: torch.Generator) -> Numbers:
    return ()


def _none(x_BCHW: Tensor) -> Tensor:
    return x_BCHW


def _reach(height: int) -> int:
    """How far an image of this height is moved at most, in pixels."""
    return max(1, height // 8)


def _draw_shift(shape_BCHW: Sequence[int], generator: torch.Generator) -> Numbers:
    return (torch.randint(2 * _reach(shape_BCHW[2]) + 1, (shape_BCHW[0], 2), generator=generator),)


def _shift(x_BCHW: Tensor, moves_B2: Tensor) -> Tensor:
    """Each image moved by up to an eighth of its size, zeros coming in.

    He et al., arXiv 1512.03385, section 4.2: 4 of 32 pixels.
    """
    height, width = x_BCHW.shape[2:]
    padded = F.pad(x_BCHW, (_reach(height),) * 4)
    return torch.stack(
        [image[:, dy : dy + height, dx : dx + width] for image, (dy, dx) in zip(padded, moves_B2.tolist(), strict=True)]
    )


def _draw_shift_flip(shape_BCHW: Sequence[int], generator: torch.Generator) -> Numbers:
    return (*_draw_shift(shape_BCHW, generator), torch.rand(shape_BCHW[0], generator=generator))


def _shift_flip(x_BCHW: Tensor, moves_B2: Tensor, mirror_B: Tensor) -> Tensor:
    """As `_shift`, and about every second image mirrored."""
    x = _shift(x_BCHW, moves_B2)
    return torch.where((mirror_B < 0.5).view(-1, 1, 1, 1), x.flip(-1), x)


def _draw_affine(shape_BCHW: Sequence[int], generator: torch.Generator) -> Numbers:
    return (torch.rand(6, shape_BCHW[0], generator=generator).T,)


def _affine(x_BCHW: Tensor, places_B6: Tensor) -> Tensor:
    """Each image turned, scaled, slanted and moved a little, which suits handwriting; bilinear, zeros coming in."""
    turn, slant, wide, high, right, down = (places_B6 * 2 - 1).unbind(1)
    cos, sin = (turn * MAX_TURN).cos(), (turn * MAX_TURN).sin()
    wide, high, slant = 1 + MAX_SCALE * wide, 1 + MAX_SCALE * high, MAX_SLANT * slant
    # output position -> input position, in -1..1:  R(turn) [[wide, slant], [0, high]] p + move
    theta_B23 = torch.stack([
        torch.stack([cos * wide, cos * slant - sin * high, MAX_MOVE * right], 1),
        torch.stack([sin * wide, sin * slant + cos * high, MAX_MOVE * down], 1),
    ], 1)  # fmt: skip
    grid = F.affine_grid(theta_B23, list(x_BCHW.shape), align_corners=False)
    return F.grid_sample(x_BCHW, grid, align_corners=False)


def _draw_crop_flip(shape_BCHW: Sequence[int], generator: torch.Generator) -> Numbers:
    return (torch.rand(5, shape_BCHW[0], generator=generator).T,)


def _crop_flip(x_BCHW: Tensor, places_B5: Tensor) -> Tensor:
    """A crop of each image, scaled (bilinear) to the whole image's size, and about every second one mirrored.

    Szegedy et al., arXiv 1409.4842, section 6, with crops that keep most of the image: the area's share is uniform in
    0.6..1; the aspect, against the image's own, uniform in its logarithm in 3/4..4/3, as far as such a crop fits in;
    the place uniform.
    """
    area, aspect, right, down, mirror = places_B5.unbind(1)
    area = MIN_AREA + (1 - MIN_AREA) * area
    reach = (1 / area).clamp(max=MAX_ASPECT).log()  # beyond 1 / area, a side would be longer than the image's
    half = ((2 * aspect - 1) * reach / 2).exp()
    wide, high = (area.sqrt() * half).clamp(max=1), (area.sqrt() / half).clamp(max=1)  # shares of the sides
    side = torch.where(mirror < 0.5, -wide, wide)
    batch, _, height, width = x_BCHW.shape
    grid = torch.empty(batch, height, width, 2)
    grid[..., 0] = _places(width, side, (1 - wide) * (2 * right - 1))[:, None, :]
    grid[..., 1] = _places(height, high, (1 - high) * (2 * down - 1))[:, :, None]
    return F.grid_sample(x_BCHW, grid, padding_mode="border", align_corners=False)


def _places(size: int, scale_B: Tensor, move_B: Tensor) -> Tensor:
    """[B, size]: which place (-1..1) of an image's side comes to each of its pixels."""
    centres = (2 * torch.arange(size) + 1) / size - 1
    return scale_B[:, None] * centres + move_B[:, None]


def _draw_crop_flip_colour(shape_BCHW: Sequence[int], generator: torch.Generator) -> Numbers:
    crop, batch = _draw_crop_flip(shape_BCHW, generator), shape_BCHW[0]
    return (*crop, torch.rand(3, batch, generator=generator).T, torch.rand(3, batch, generator=generator).T)


def _crop_flip_colour(x_BCHW: Tensor, places_B5: Tensor, factors_B3: Tensor, order_B3: Tensor) -> Tensor:
    """As `_crop_flip`, then brightness, contrast and saturation by factors in 0.6..1.4, in an order of their own.

    As torchvision's ColorJitter(0.4, 0.4, 0.4): x -> factor x + (1 - factor) other, in 0..1, where other is black, the
    image's mean grey, or the image in grey. One channel has no saturation.
    """
    x = _crop_flip(x_BCHW, places_B5)
    factors_B3 = 1 + MAX_JITTER * (2 * factors_B3 - 1)
    for step in order_B3.argsort(1).T:
        for kind, other_of in enumerate((_black, _mean_grey, _grey)):
            chosen = (step == kind).nonzero().flatten()
            mine = x[chosen]
            factor = factors_B3[chosen, kind].view(-1, 1, 1, 1)
            x = x.index_copy(0, chosen, (factor * mine + (1 - factor) * other_of(mine)).clamp(0, 1))
    return x


def _black(x_BCHW: Tensor) -> Tensor:
    return torch.zeros_like(x_BCHW)


def _grey(x_BCHW: Tensor) -> Tensor:
    """[B, 1, H, W]; what has one channel is grey already."""
    if x_BCHW.shape[1] == 1:
        return x_BCHW
    return torch.einsum("bchw,c->bhw", x_BCHW, torch.tensor(LUMA))[:, None]


def _mean_grey(x_BCHW: Tensor) -> Tensor:
    """[B, 1, 1, 1]."""
    return _grey(x_BCHW).mean((1, 2, 3), keepdim=True)


AUGMENTS: Final[dict[Augment, Augmentation]] = {
    "none": Augmentation(draw=_draw_none, vary=_none),
    "shift": Augmentation(draw=_draw_shift, vary=_shift),
    "shift_flip": Augmentation(draw=_draw_shift_flip, vary=_shift_flip),
    "affine": Augmentation(draw=_draw_affine, vary=_affine),
    "crop_flip": Augmentation(draw=_draw_crop_flip, vary=_crop_flip),
    "crop_flip_colour": Augmentation(draw=_draw_crop_flip_colour, vary=_crop_flip_colour),
}


def mixed(
    x_BCHW: Tensor, labels_B: Tensor, num_classes: int, kind: Mix, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Each example mixed with another one of the batch, in shares that all of the batch have.

    "mixup" (Zhang et al., arXiv 1710.09412): x = share x_i + (1 - share) x_j, share ~ Beta(0.2, 0.2).
    "cutmix" (Yun et al., arXiv 1905.04899): a box of x_j in x_i, of 1 - share of the area before it is cut off at the
    image's edges, share ~ Beta(1, 1); the share is then taken anew, from the area that is left of x_i.
    Both: label = share y_i + (1 - share) y_j. j is a random order of the batch.

    Args:
        x_BCHW: float [B, C, H, W], normalised or not; it stays as it is.
        labels_B: int64 [B], 0 to num_classes - 1.
        num_classes: how many there are.
        kind: "mixup" or "cutmix".
        generator: of the CPU.

    Returns:
        The images [B, C, H, W] and soft labels, float32 [B, num_classes], which sum up to 1 for each example.
    """
    order, share, (rows, columns) = drawn_mix(x_BCHW.shape, kind, generator)
    if kind == "mixup":
        x = share * x_BCHW + (1 - share) * x_BCHW[order]
    else:
        height, width = x_BCHW.shape[2:]
        x = x_BCHW.clone()
        x[:, :, rows, columns] = x_BCHW[order, :, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    y = F.one_hot(labels_B, num_classes).float()
    return x, share * y + (1 - share) * y[order]


def drawn_mix(
    shape_BCHW: Sequence[int], kind: Mix, generator: torch.Generator
) -> tuple[Tensor, float, tuple[slice, slice]]:
    """All that `mixed` draws for images of this shape: an order int64 [B], a share, and a box (of "cutmix" only)."""
    order = torch.randperm(shape_BCHW[0], generator=generator)
    if kind == "mixup":
        return order, _beta(MIXUP_ALPHA, generator), (slice(0), slice(0))
    (_, _, height, width), share = shape_BCHW, _beta(CUTMIX_ALPHA, generator)
    return order, share, _box(height, width, share, generator)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A number of Beta(alpha, alpha). Torch's generators have none, so numpy's draws it, seeded by the generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def _box(height: int, width: int, share: float, generator: torch.Generator) -> tuple[slice, slice]:
    """Rows and columns of a box: sqrt(1 - share) of each side, about a uniform place, cut off at the edges."""
    found = []
    for side in (height, width):
        size = int(side * (1 - share) ** 0.5)
        start = int(torch.randint(side, (), generator=generator)) - size // 2
        found.append(slice(max(start, 0), min(start + size, side)))
    return found[0], found[1]
