"""A task of one's own, as a user would write it: how high a tone is, from its sound."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy_prune.data.examples import Batch
from deploy_prune.data.splits import TransferData
from deploy_prune.tasks import Score, Task
from deploy_prune.tasks.distance import relative

LENGTH = 200


@dataclass(frozen=True)
class Tones:
    """Tones of a height in 0..1, under noise."""

    seeds: Tensor

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.seeds.numpy().tobytes()).hexdigest()

    @property
    def strata(self) -> Tensor:
        return torch.zeros(len(self), dtype=torch.int64)

    def take(self, indices: Tensor) -> Batch:
        made = [self._one(int(seed)) for seed in self.seeds[indices]]
        sounds, heights = zip(*made, strict=True)
        return Batch((torch.stack(sounds),), torch.stack(heights))

    def varied(self, indices: Tensor, generator: torch.Generator) -> Batch:
        return self.take(indices)

    def subset(self, indices: Tensor) -> Tones:
        return replace(self, seeds=self.seeds[indices])

    @staticmethod
    def _one(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        height = torch.rand(1, generator=generator)
        sound = torch.sin(torch.arange(LENGTH) * (0.1 + height)) + 0.1 * torch.randn(LENGTH, generator=generator)
        return sound[None], height


def load(part: Any, seed: int) -> TransferData:
    train, test = Tones(torch.arange(64)), Tones(torch.arange(64, 96))
    return TransferData(source_train=train, source_test=test, target_train=train, target_test=test)


def error(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The mean distance."""
    distances = torch.cat([(found - wanted).abs().flatten() for found, wanted in pairs])
    return float(distances.mean())


TASK = Task(
    score=Score(name="error", unit="", higher=False), load=load, loss=F.mse_loss, judge=error, distance=relative
)


def network() -> nn.Module:
    """[B, 1, 200] -> [B, 1]."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32)):
        layers += [nn.Conv1d(inputs, outputs, 9, 2), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 1))
