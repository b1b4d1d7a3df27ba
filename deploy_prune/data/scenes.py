"""Scenes of handwritten digits, drawn here: pictures whose boxes and masks are known exactly, without a download.

scikit-learn's digits (8 x 8 pixels), scaled 1 to 2 times, 2 to 5 of them on a grey field of 64 x 96 with clutter:
strokes and torn pieces of digits. No two overlap. Digits of the scenes to score on are in none to train on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from PIL import Image

from deploy_prune.data.pictures import Array

HEIGHT, WIDTH = 64, 96
NUM_TRAIN: Final = 640
NUM_TEST: Final = 160
NAMES: Final = tuple("0123456789")
INK: Final = 0.25
"""A pixel with more ink is the digit's: 0 is none, 1 full."""
_TEST_SHARE: Final = 0.2
_GAP: Final = 1  # pixels between two digits
_TRIES: Final = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A picture uint8 [H, W, 1], its boxes float32 [N, 4], digits int64 [N], and which pixels are whose.

    ``owners``: uint8 [H, W], 0 for the field, 1 + the number of a box for its digit.
    """

    image: Array
    boxes: Array
    digits: Array
    owners: Array

    @property
    def classes(self) -> Array:
        """uint8 [H, W]: 0 for the field, 1 + the digit."""
        return np.concatenate([[0], self.digits + 1]).astype(np.uint8)[self.owners]


@cache
def draw(seed: int = 0) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Scenes to train and to score on, the same for the same seed."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    ink, labels = digits.images / 16, digits.target
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(ink))
    cut = round(_TEST_SHARE * len(ink))
    test, train = order[:cut], order[cut:]
    made = [
        tuple(_scene(ink[pool], labels[pool], generator) for _ in range(num))
        for pool, num in ((train, NUM_TRAIN), (test, NUM_TEST))
    ]
    return made[0], made[1]


def _scene(ink: Array, labels: Array, generator: np.random.Generator) -> Scene:
    """One picture of some of these digits, ink [M, 8, 8] in 0..1."""
    field = _field(ink, generator)
    owners = np.zeros((HEIGHT, WIDTH), np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    digits = []
    for _ in range(int(generator.integers(2, 6))):
        number = int(generator.integers(len(ink)))
        digit = _scaled(ink[number], float(generator.uniform(1, 2)))
        place = _free(owners, digit.shape, generator)
        if place is None:
            continue
        top, left = place
        high, wide = digit.shape
        part = np.s_[top : top + high, left : left + wide]
        bright = generator.uniform(0.75, 1.0)
        field[part] += digit * (bright - field[part])
        rows, columns = np.nonzero(digit > INK)
        owners[part][rows, columns] = len(boxes) + 1
        boxes.append((left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1))
        digits.append(labels[number])
    image = np.rint(255 * np.clip(field + generator.normal(0, 0.02, field.shape), 0, 1)).astype(np.uint8)
    return Scene(
        image=image[..., None], boxes=np.array(boxes, np.float32).reshape(-1, 4), digits=np.array(digits, np.int64),
        owners=owners,
    )  # fmt: skip


def _field(ink: Array, generator: np.random.Generator) -> Array:
    """Grey float [H, W] in 0..1, unevenly lit, with clutter that is darker than the digits."""
    ramp = np.linspace(-1, 1, WIDTH)[None] * generator.uniform(-0.08, 0.08)
    field: Array = generator.uniform(0.25, 0.45) + np.repeat(ramp, HEIGHT, 0)
    for _ in range(int(generator.integers(3, 8))):
        if generator.random() < 0.5:
            piece = _torn(ink[int(generator.integers(len(ink)))], generator)
        else:
            piece = np.ones((1, int(generator.integers(4, 16))))
            piece = piece.T if generator.random() < 0.5 else piece
        top, left = (int(generator.integers(a - b + 1)) for a, b in zip(field.shape, piece.shape, strict=True))
        field[top : top + piece.shape[0], left : left + piece.shape[1]] += generator.uniform(-0.2, 0.2) * piece
    return field


def _torn(digit: Array, generator: np.random.Generator) -> Array:
    """A piece of 4 x 4 pixels of a digit, scaled."""
    top, left = generator.integers(5, size=2)
    return _scaled(digit[top : top + 4, left : left + 4], float(generator.uniform(1, 2)))


def _scaled(ink: Array, scale: float) -> Array:
    side = round(len(ink) * scale)
    image = Image.fromarray(ink.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float64)


def _free(owners: Array, shape: tuple[int, ...], generator: np.random.Generator) -> tuple[int, int] | None:
    """Top and left of a place where no other digit is near; None if none is hit upon."""
    high, wide = shape
    for _ in range(_TRIES):
        top, left = int(generator.integers(HEIGHT - high + 1)), int(generator.integers(WIDTH - wide + 1))
        near: Any = owners[max(0, top - _GAP) : top + high + _GAP, max(0, left - _GAP) : left + wide + _GAP]
        if not near.any():
            return top, left
    return None
