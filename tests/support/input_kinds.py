"""Small networks, one for each kind of input that a network may have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn


class Of(nn.Module):
    """A network of a function and its layers."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


class Named(nn.Module):
    """Two inputs by name, one of them a mask, and a dataclass of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(50, 16), nn.Linear(16, 5)

    def forward(self, tokens: Tensor, mask: Tensor) -> Any:
        x = self.words(tokens) * mask.unsqueeze(-1)
        return Found(scores=self.head(x.mean(1)), more={"mean": x.mean(1)})


@dataclass
class Found:
    """What ``Named`` gives."""

    scores: Tensor
    more: dict[str, Tensor]


def _volume() -> nn.Module:
    pooled = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5))
    return nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU(), *pooled)


def _audio() -> nn.Module:
    return nn.Sequential(nn.Conv1d(1, 8, 9, 4), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5))


def _tokens() -> nn.Module:
    return Of(lambda s, x: s.head(s.words(x).mean(1)), words=nn.Embedding(50, 16), head=nn.Linear(16, 5))


def _two() -> nn.Module:
    layers = {"a": nn.Conv2d(3, 8, 3), "b": nn.Linear(4, 8), "head": nn.Linear(8, 5)}
    return Of(lambda s, x, y: s.head(s.a(x).mean((2, 3)) + s.b(y)), **layers)


def _series() -> nn.Module:
    return Of(lambda s, x: s.head(s.t(x)[0][:, -1]), t=nn.LSTM(7, 16, batch_first=True), head=nn.Linear(16, 5))


def _words(kind: torch.dtype) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, 50, (16, 12), dtype=kind)


def _normal(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(16, *shape)


def audio_network(num_classes: int = 5) -> nn.Module:
    """As a user's own function builds it, for [B, 1, 400]."""
    return nn.Sequential(*_audio()[:-1], nn.Linear(8, num_classes))


def two_inputs_network() -> nn.Module:
    """For [B, 3, 8, 8] and [B, 4]; its builder takes no number of classes."""
    return _two()


def tokens_network() -> nn.Module:
    """For int64 [B, L] below 50."""
    return _tokens()


KINDS: Final[dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]]] = {
    "vector": (lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5)), _normal(16)),
    "audio": (_audio, _normal(1, 400)),
    "series": (_series, _normal(24, 7)),
    "volume": (_volume, _normal(1, 8, 12, 12)),
    "tokens": (_tokens, _words(torch.int64)),
    "tokens32": (_tokens, _words(torch.int32)),
    "two": (_two, lambda: (torch.randn(16, 3, 8, 8), torch.randn(16, 4))),
    "named": (Named, lambda: {"tokens": _words(torch.int64)(), "mask": torch.rand(16, 12) > 0.3}),
    "half": (lambda: _two().bfloat16(), lambda: (torch.randn(16, 3, 8, 8).bfloat16(), torch.randn(16, 4).bfloat16())),
}
"""Kind -> what makes the network, and what makes 16 examples of its inputs."""


def first(given: Any) -> Any:
    """The first example, as the inputs are given."""
    if isinstance(given, dict):
        return {name: x[:1] for name, x in given.items()}
    return tuple(x[:1] for x in given) if isinstance(given, tuple) else given[:1]
