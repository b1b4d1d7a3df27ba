"""Tasks of one's own, as a user writes them: a sound's class, a number from two inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from deploy_prune import Drawn, Score, Task, task_data


class Tones(torch.utils.data.Dataset[Any]):
    """Sounds [1, 128] of three pitches, with noise."""

    def __init__(self, num: int, first: int) -> None:
        self.num, self.first = num, first

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = index % 3
        lot = torch.Generator().manual_seed(self.first + index)
        phase, noise = torch.rand(1, generator=lot) * 6, torch.randn(1, 128, generator=lot)
        return (torch.arange(128) * (0.2 + 0.3 * label) + phase).sin()[None] + 0.3 * noise, label


def sound(num_classes: int, width: int = 16) -> nn.Module:
    """Three 1-D convolutions and a classifier."""
    layers: list[nn.Module] = []
    for i, o in ((1, width), (width, width), (width, 2 * width)):
        layers += [nn.Conv1d(i, o, 9, 2, 4, bias=False), nn.BatchNorm1d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * width, num_classes))


def right(pairs: Any) -> float:
    found = [(outputs.argmax(1) == labels).float() for outputs, labels in pairs]
    return float(torch.cat(found).mean())


def tones() -> Task:
    return Task(
        score=Score(name="tones right"), loss=F.cross_entropy, judge=right,
        load=lambda part, seed: task_data(Tones(part.args.get("examples", 60), 0), Tones(30, 10_000), num_classes=3),
    )  # fmt: skip


DRAWN: list[Any] = []
"""What `drawn` was asked to draw: which examples, and what a network gives for them."""


def drawn() -> Task:
    """The same, with pictures: a row of pixels a sound."""

    def draw(data: Any, places: Tensor, outputs: Any) -> list[Drawn]:
        DRAWN.append((places, outputs))
        sounds, pitches = data.target_test.take(places)
        pitches = pitches if outputs is None else outputs.argmax(1)
        rows = ((sounds[0].clamp(-1, 1) + 1) * 127).byte().numpy()
        return [
            Drawn(picture=Image.fromarray(row), found=(("#1f77b4", f"pitch {pitch}"),))
            for row, pitch in zip(rows, pitches.tolist(), strict=True)
        ]

    return replace(tones(), draw=draw)


class Shift(nn.Module):
    """How far the second picture [1, 8, 12] is moved against the first: [B, 2]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(2 * width, width, 3, padding=1)
        self.head = nn.Linear(width * 24, 2)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        both = torch.cat([self.one(before).relu(), self.one(after).relu()], 1)
        return self.head(F.max_pool2d(self.two(both).relu(), 2).flatten(1))


def moved(num: int, first: int) -> list[Any]:
    found = []
    for index in range(num):
        lot = torch.Generator().manual_seed(first + index)
        picture, (dy, dx) = torch.rand(1, 8, 12, generator=lot), torch.randint(-1, 2, (2,), generator=lot).tolist()
        found.append(((picture, picture.roll((dy, dx), (1, 2))), torch.tensor([float(dx), float(dy)])))
    return found


def error(pairs: Any) -> float:
    return float(torch.cat([(outputs - real).norm(dim=1) for outputs, real in pairs]).mean())


SHIFTS = Task(
    score=Score(name="end-point error", unit="px", higher=False), loss=F.mse_loss, judge=error,
    load=lambda part, seed: task_data(moved(64, 0), moved(32, 10_000)),
)  # fmt: skip


def unpaired() -> Task:
    return Task(
        score=Score(name="none"), loss=F.mse_loss, judge=error, load=lambda part, seed: task_data([1, 2, 3], [4])
    )
