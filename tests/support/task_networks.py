"""Four tasks, small enough to learn in seconds: each a network, its loss, and batches made on the spot.

Dimension letters: B batch, C channels, H W height and width, L tokens, D width of an embedding, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

Batch = tuple[Tensor, ...]


Draw = Callable[[torch.Generator, int], Batch]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A task: ``draw(generator, num)`` makes a batch, whose first ``num_inputs`` tensors are the network's.

    ``held_out``: the same of examples that ``draw`` never gives; None where every draw is new.
    ``lr`` of training with Adam, ``search_lr`` of the weights while searching; ``min_channels`` of every group.
    """

    network: Callable[[], nn.Module]
    loss: Callable[[Callable[..., Any], Batch], Tensor]
    draw: Draw
    held_out: Draw | None = None
    num_inputs: int = 1
    batch_size: int = 32
    lr: float = 4e-3
    search_lr: float = 0.02
    min_channels: int = 1

    def batches(self, seed: int) -> Iterator[Batch]:
        """Endless, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.draw(generator, self.batch_size)

    def test_batches(self, num_batches: int = 4) -> list[Batch]:
        """What no network was trained on."""
        generator = torch.Generator().manual_seed(2**31)
        return [(self.held_out or self.draw)(generator, 128) for _ in range(num_batches)]


# --- classifier: digits under noise ---


def classifier() -> nn.Module:
    """[B, 1, 8, 8] -> logits [B, 10]."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


DIGITS = load_digits()


def draw_digits(first: int, end: int) -> Draw:
    """Some of the handwritten digits, under so much noise that no network is sure."""
    x_all, y_all = torch.from_numpy(DIGITS.images).float() / 8 - 1, torch.from_numpy(DIGITS.target)

    def draw(generator: torch.Generator, num: int) -> Batch:
        chosen = torch.randint(first, end, (num,), generator=generator)
        x = x_all[chosen, None]
        return x + 0.8 * torch.randn(x.shape, generator=generator), y_all[chosen]

    return draw


def classify(forward: Callable[..., Any], batch: Batch) -> Tensor:
    """Cross entropy."""
    return F.cross_entropy(forward(batch[0]), batch[1])


# --- style transfer: Johnson et al., arXiv 1603.08155 ---


class Padded(nn.Sequential):
    """Reflection padding, convolution, instance norm."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__(
            nn.ReflectionPad2d(size // 2),
            nn.Conv2d(inputs, outputs, size, stride),
            nn.InstanceNorm2d(outputs, affine=True),
        )


class Residual(nn.Module):
    """X + two convolutions of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = Padded(width, width, 3), Padded(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class StyleTransfer(nn.Module):
    """[B, 3, H, W] -> the same, in another style."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [Padded(3, width, 5), Padded(width, 2 * width, 3, 2), Padded(2 * width, 4 * width, 3, 2)]
        )
        self.body = nn.Sequential(*(Residual(4 * width) for _ in range(2)))
        self.up = nn.ModuleList([Padded(4 * width, 2 * width, 3), Padded(2 * width, width, 3)])
        self.out = nn.Sequential(nn.ReflectionPad2d(2), nn.Conv2d(width, 3, 5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.down:
            x = F.relu(layer(x))
        x = self.body(x)
        for layer in self.up:
            x = F.relu(layer(F.interpolate(x, scale_factor=2, mode="nearest")))
        return torch.sigmoid(self.out(x))


def clouds(generator: torch.Generator, num: int, size: int, channels: int) -> Tensor:
    """[B, C, size, size]: random pictures, a little smooth."""
    return 2 * F.avg_pool2d(torch.randn(num, channels, size + 2, size + 2, generator=generator), 3, 1)


class Features(nn.Module):
    """What style and content are measured with: fixed random convolutions (they need no training: arXiv 1606.04801)."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.layers = nn.ModuleList([nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3, stride=2)])
        for weight in self.parameters():
            weight.requires_grad_(requires_grad=False)
            weight.copy_(torch.randn(weight.shape, generator=generator) / max(1, weight[0].numel()) ** 0.5)

    def forward(self, x: Tensor) -> list[Tensor]:
        made = []
        for layer in self.layers:
            x = F.relu(layer(x))
            made.append(x)
        return made


FEATURES = Features()
STRIPES = (
    torch.sin(torch.arange(16.0) * 1.3).expand(1, 3, 16, 16) * torch.tensor([0.5, 0.3, 0.1]).view(1, 3, 1, 1) + 0.5
)


def gram(x_BCHW: Tensor) -> Tensor:
    """[B, C, C]: how features go together; the style."""
    x_BCN = x_BCHW.flatten(2)
    return x_BCN @ x_BCN.mT / x_BCN.shape[2]


def restyle(forward: Callable[..., Any], batch: Batch) -> Tensor:
    """The content of the picture, the style of stripes."""
    made, content = FEATURES(forward(batch[0])), FEATURES(batch[0])
    style = FEATURES(STRIPES.to(batch[0].device))
    pairs = zip(made, style, strict=True)
    return 3 * F.mse_loss(made[-1], content[-1]) + sum(
        F.mse_loss(gram(a), gram(b).expand(len(a), -1, -1)) for a, b in pairs
    )


# --- optical flow: PWC-Net, arXiv 1709.02371 ---


class Flow(nn.Module):
    """Two images [B, 1, H, W] each -> their flow at half and at full size, [B, 2, H / 2, W / 2] and [B, 2, H, W]."""

    def __init__(self, width: int = 8, reach: int = 1) -> None:
        super().__init__()
        self.reach = reach
        levels = ((1, width, 1), (width, 2 * width, 2))
        self.pyramid = nn.ModuleList([nn.Sequential(self._block(i, o, s), self._block(o, o)) for i, o, s in levels])
        taps = (2 * reach + 1) ** 2
        self.coarse, self.fine = self._decoder(taps + 2 * width), self._decoder(taps + width + 2)

    def _decoder(self, inputs: int) -> nn.Sequential:
        return nn.Sequential(self._block(inputs, 48), self._block(48, 32), nn.Conv2d(32, 2, 3, padding=1))

    @staticmethod
    def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.LeakyReLU(0.1))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        a_full, b_full = self.pyramid[0](first), self.pyramid[0](second)
        a_half, b_half = self.pyramid[1](a_full), self.pyramid[1](b_full)
        half = self.coarse(torch.cat([self.correlation(a_half, b_half), a_half], 1))
        up = 2 * F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False)
        matched = self.correlation(a_full, self.warp(b_full, up))
        return half, up + self.fine(torch.cat([matched, a_full, up], 1))

    def correlation(self, a: Tensor, b: Tensor) -> Tensor:
        """[B, (2 reach + 1)^2, H, W]: mean product over channels with every shift of b."""
        r, (h, w) = self.reach, a.shape[-2:]
        padded = F.pad(b, (r, r, r, r))
        shifts = [(y, x) for y in range(2 * r + 1) for x in range(2 * r + 1)]
        return F.leaky_relu(torch.stack([(a * padded[:, :, y : y + h, x : x + w]).sum(1) for y, x in shifts], 1), 0.1)

    @staticmethod
    def warp(x: Tensor, flow: Tensor) -> Tensor:
        """X where the flow points to."""
        h, w = x.shape[-2:]
        rows = torch.arange(h, dtype=x.dtype, device=x.device).view(1, h, 1) + flow[:, 1]
        columns = torch.arange(w, dtype=x.dtype, device=x.device).view(1, 1, w) + flow[:, 0]
        grid = torch.stack([2 * columns / (w - 1) - 1, 2 * rows / (h - 1) - 1], -1)
        return F.grid_sample(x, grid, align_corners=True)


def draw_shifts(generator: torch.Generator, num: int, size: int = 16, most: int = 2) -> Batch:
    """Two windows on one picture, and by how many pixels [B, 2] (x, y) the second, a noisy one, lies off."""
    picture = clouds(generator, num, size + 2 * most, 1)
    shift = torch.randint(-most, most + 1, (num, 2), generator=generator)
    windows = [
        picture[i, :, most + y : most + y + size, most + x : most + x + size] for i, (x, y) in enumerate(shift.tolist())
    ]
    second = torch.stack(windows)
    second = second + 0.6 * torch.randn(second.shape, generator=generator)
    return picture[:, :, most : most + size, most : most + size], second, -shift.float()


def end_point_error(forward: Callable[..., Any], batch: Batch) -> Tensor:
    """Mean distance in pixels at full size, and half as much of it at half size."""
    half, full = forward(*batch[:2])
    truth = batch[2][:, :, None, None]
    return (full - truth).norm(dim=1).mean() + 0.5 * (half - truth / 2).norm(dim=1).mean()


# --- translation: Vaswani et al., arXiv 1706.03762 ---

WORDS, LENGTH, START = 12, 8, 0


class Translator(nn.Module):
    """Source [B, L] and what is written so far [B, L] -> logits [B, L, V]."""

    def __init__(self, width: int = 32, heads: int = 4, hidden: int = 64) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(WORDS, width), nn.Embedding(WORDS, width)
        self.places = nn.Parameter(torch.randn(LENGTH, width) * 0.3)
        self.transformer = nn.Transformer(width, heads, 1, 1, hidden, dropout=0.0, batch_first=True)
        self.out = nn.Linear(width, WORDS)

    def forward(self, source: Tensor, written: Tensor) -> Tensor:
        length = written.shape[1]
        causal = torch.full((length, length), -torch.inf, device=written.device).triu(1)
        x, y = self.source(source) + self.places, self.target(written) + self.places
        return self.out(self.transformer(x, y, tgt_mask=causal, tgt_is_causal=True))


def draw_sentences(generator: torch.Generator, num: int) -> Batch:
    """Sentences, what is written so far, and their translation: backwards, with every tenth word misheard."""
    source = torch.randint(1, WORDS, (num, LENGTH), generator=generator)
    noise = torch.randint(1, WORDS, source.shape, generator=generator)
    meant = source.flip(1)
    target = torch.where(torch.rand(source.shape, generator=generator) < 0.1, noise, meant)
    return source, F.pad(target[:, :-1], (1, 0), value=START), target


def translate(forward: Callable[..., Any], batch: Batch) -> Tensor:
    """Cross entropy of the next word."""
    return F.cross_entropy(forward(*batch[:2]).flatten(0, 1), batch[2].flatten())


EXAMPLES = {
    "classifier": Example(
        network=classifier, loss=classify, draw=draw_digits(0, 1400), held_out=draw_digits(1400, len(DIGITS.target))
    ),
    "style": Example(
        network=StyleTransfer,
        loss=restyle,
        draw=lambda g, n: (torch.sigmoid(clouds(g, n, 16, 3)),),
        batch_size=8,
        lr=6e-3,
    ),
    "flow": Example(
        network=Flow,
        loss=end_point_error,
        draw=draw_shifts,
        num_inputs=2,
        batch_size=16,
        lr=2e-3,
        search_lr=0.01,
        min_channels=8,
    ),
    "translation": Example(network=Translator, loss=translate, draw=draw_sentences, num_inputs=2),
}
