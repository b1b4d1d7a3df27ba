"""A network with an oblong input and three outputs, and how far from them a file's outputs are, in decibels."""

from __future__ import annotations

import numpy
import torch
from export_networks import payload
from torch import Tensor, nn

EXAMPLE = torch.zeros(1, 3, 16, 12)
HALF_DB = {"litert": 55.0, "executorch": 50.0}
"""Signal to noise in fp16: LiteRT rounds weights to 11 bits, ExecuTorch computes in them, too."""


class Net(nn.Module):
    """Strided shortcut, depthwise, hard swish, a norm over channels, dropout, and three outputs in a nested dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.mix, self.layer_norm = nn.Conv2d(8, 16, 1), nn.LayerNorm(16)
        self.drop, self.head, self.other = nn.Dropout(0.5), nn.Linear(16, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, object]:
        x = nn.functional.hardswish(self.norm(self.stem(x)))
        x = self.mix(self.depth(x) + x[:, :, ::2, ::2]).relu()
        y = self.head(self.drop(self.layer_norm(x.mean((2, 3)))))
        return {"scores": y, "more": [self.other(y), x]}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = Net()
    made.norm.running_mean.normal_(0, 0.2)
    made.norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(made.head.bias, 0.5, 1.0)
    return made.eval()


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 16, 12, generator=torch.Generator().manual_seed(seed))


def calibration() -> Tensor:
    return images(32, seed=2)


def reference(net: nn.Module, x: Tensor) -> list[numpy.ndarray]:
    """What the network makes of it: its outputs in order."""
    with torch.no_grad():
        found = net(x)
    return [y.numpy() for y in (found["scores"], *found["more"])]


def found_in(name: str, artifact, x: Tensor) -> list[numpy.ndarray]:
    """What the runtime makes of it, one input at a time."""
    model = payload(name).Model(str(artifact.path), 1, artifact.layout)
    parts = []
    for one in x:
        model.feed(one[None].numpy())
        parts.append([y.copy() for y in model.run()])
    return [numpy.concatenate(column) for column in zip(*parts, strict=True)]


def least_db(name: str, precision: str) -> float:
    """Signal to noise that a file has at least: fp32 errs in its sums, int8 in 8-bit activations."""
    return {"fp32": 100.0, "fp16": HALF_DB[name], "int8": 20.0}[precision]


def noise_db(expected: numpy.ndarray, found: numpy.ndarray) -> float:
    error = ((expected.astype(float) - found) ** 2).sum()
    return 10 * float(numpy.log10((expected.astype(float) ** 2).sum() / max(error, 1e-30)))
