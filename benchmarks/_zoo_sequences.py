"""Networks of the zoo for sound, speech, text, series and tables: small, but wired as their papers say.

Inputs are of every kind: waves [B, 1, T], spectra [B, F, T], series [B, T, C], tokens int64[B, T], several at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]
Entry = tuple[Callable[[], nn.Module], Callable[[int], Inputs]]
"""What makes a network, and inputs for so many examples."""


def wave(i: int, o: int, k: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """1-D convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv1d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm1d(o), nn.ReLU()
    )  # fmt: skip


class M5(nn.Module):
    """Dai et al., arXiv 1610.00087: convolutions on raw sound [B, 1, T]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (1, width, width, 2 * width, 2 * width)
        pairs = zip(widths, widths[1:], (80, 3, 3, 3), (16, 1, 1, 1), strict=False)
        self.body = nn.Sequential(*[m for i, o, k, s in pairs for m in (wave(i, o, k, s), nn.MaxPool1d(4))])
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(-1))


class KeywordSpotter(nn.Module):
    """DS-CNN (Zhang et al., arXiv 1711.07128): depthwise separable convolutions on a spectrum [B, 1, T, F]."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(1, width, (10, 4), 2, (5, 1), bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        for _ in range(3):
            for k, groups in ((3, width), (1, 1)):
                layers += [nn.Conv2d(width, width, k, padding=k // 2, groups=groups), nn.BatchNorm2d(width), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class QuartzNet(nn.Module):
    """Kriman et al., arXiv 1910.10261: residual blocks of separable 1-D convolutions, letters for every step."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.start = wave(40, width, 11, 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(wave(width, width, k, groups=width), nn.Conv1d(width, width, 1), nn.BatchNorm1d(width))
            for k in (11, 13, 15)
        )
        self.ends = nn.ModuleList(nn.Sequential(nn.Conv1d(width, width, 1), nn.BatchNorm1d(width)) for _ in range(3))
        self.head = nn.Conv1d(width, 29, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for block, end in zip(self.blocks, self.ends, strict=True):
            x = (block(x) + end(x)).relu()
        return self.head(x).log_softmax(1)


class GlobalNorm(nn.Module):
    """Layer norm over channels and time (Luo and Mesgarani, arXiv 1809.07454, equation 15)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1, width, 1)), nn.Parameter(torch.zeros(1, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2), keepdim=True)
        return self.weight * (x - mean) / ((x - mean).square().mean((1, 2), keepdim=True) + 1e-8).sqrt() + self.bias


class ConvTasNet(nn.Module):
    """Luo and Mesgarani, arXiv 1809.07454: masks on a learned basis separate two voices of a wave [B, 1, T]."""

    def __init__(self, basis: int = 64, width: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.encode, self.decode = nn.Conv1d(1, basis, 16, 8), nn.ConvTranspose1d(basis, 1, 16, 8)
        self.start = nn.Sequential(GlobalNorm(basis), nn.Conv1d(basis, width, 1))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width, hidden, 1), nn.PReLU(), GlobalNorm(hidden),
                nn.Conv1d(hidden, hidden, 3, padding=2**d, dilation=2**d, groups=hidden), nn.PReLU(),
                GlobalNorm(hidden), nn.Conv1d(hidden, width, 1),
            )
            for d in range(3)
        )  # fmt: skip
        self.masks = nn.Sequential(nn.PReLU(), nn.Conv1d(width, 2 * basis, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        coded = self.encode(x).relu()
        y = self.start(coded)
        for block in self.blocks:
            y = y + block(y)
        return torch.cat([self.decode(coded * mask) for mask in self.masks(y).chunk(2, 1)], 1)


class Demucs(nn.Module):
    """Defossez et al., arXiv 1911.13254: a U-Net on waves with gated units and a recurrent layer in the middle."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        i = 1
        for level in range(depth):
            o = width * 2**level
            self.down.append(nn.Sequential(nn.Conv1d(i, o, 8, 4, 2), nn.ReLU(), nn.Conv1d(o, 2 * o, 1), nn.GLU(1)))
            last: list[nn.Module] = [nn.ReLU()] if level else []
            self.up.insert(
                0,
                nn.Sequential(nn.Conv1d(o, 2 * o, 3, padding=1), nn.GLU(1), nn.ConvTranspose1d(o, i, 8, 4, 2), *last),
            )
            i = o
        self.middle = nn.LSTM(i, i, 2, bidirectional=True, batch_first=True)
        self.merge = nn.Linear(2 * i, i)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
        x = self.merge(self.middle(x.transpose(1, 2))[0]).transpose(1, 2)
        for level in self.up:
            x = level(x + skips.pop())
        return x


class WaveNet(nn.Module):
    """van den Oord et al., arXiv 1609.03499: dilated causal convolutions with gates; residuals and skips."""

    def __init__(self, width: int = 32, skip: int = 48, depth: int = 5) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, width, 1)
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**d) for d in range(depth))
        self.residuals = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(depth))
        self.skips = nn.ModuleList(nn.Conv1d(width, skip, 1) for _ in range(depth))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(skip, skip, 1), nn.ReLU(), nn.Conv1d(skip, 32, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.start(x), torch.zeros(())
        for gate, residual, skip in zip(self.gates, self.residuals, self.skips, strict=True):
            value, opened = gate(F.pad(x, (int(gate.dilation[0]), 0))).chunk(2, 1)
            y = value.tanh() * opened.sigmoid()
            total, x = total + skip(y), x + residual(y)
        return self.head(total)


class SpeakerNet(nn.Module):
    """An x-vector (Snyder et al., ICASSP 2018): dilated convolutions, mean and deviation over time, an embedding."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.frames = nn.Sequential(
            *[m for i, d in ((24, 1), (width, 2), (width, 3)) for m in (
                nn.Conv1d(i, width, 3, dilation=d), nn.ReLU(), nn.BatchNorm1d(width))]
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(2 * width, 48), nn.ReLU(), nn.Linear(48, 16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.frames(x)
        return F.normalize(self.head(torch.cat([y.mean(2), y.std(2)], 1)))


class TextReader(nn.Module):
    """CRNN (Shi et al., arXiv 1507.05717): convolutions on a line of text, then recurrent layers over its columns."""

    def __init__(self, recurrent: type[nn.LSTM | nn.GRU] = nn.LSTM, hidden: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, o, pool in ((1, 16, (2, 2)), (16, 32, (2, 2)), (32, 64, (2, 1)), (64, 64, (4, 1))):
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(pool)]
        self.body = nn.Sequential(*layers)
        self.recurrent = recurrent(64, hidden, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, 37)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(self.body(x).squeeze(2).transpose(1, 2))[0])


class TemporalNet(nn.Module):
    """TCN (Bai et al., arXiv 1803.01271): weight-normed causal convolutions over a series [B, C, T]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        normed = nn.utils.parametrizations.weight_norm
        pairs = [(6, 1), (width, 2), (width, 4)]
        self.first = nn.ModuleList(normed(nn.Conv1d(i, width, 3, dilation=d)) for i, d in pairs)
        self.second = nn.ModuleList(normed(nn.Conv1d(width, width, 3, dilation=d)) for _, d in pairs)
        self.short = nn.ModuleList([nn.Conv1d(6, width, 1), nn.Identity(), nn.Identity()])
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        for first, second, short in zip(self.first, self.second, self.short, strict=True):
            y = x
            for conv in (first, second):
                y = conv(F.pad(y, (2 * int(conv.dilation[0]), 0))).relu()
            x = (y + short(x)).relu()
        return self.head(x[:, :, -1])


class NBeats(nn.Module):
    """Oreshkin et al., arXiv 1905.10437: stacked blocks that subtract what they explain of a series [B, T]."""

    def __init__(self, steps: int = 48, ahead: int = 12, width: int = 64) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(steps, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                          nn.Linear(width, steps + ahead))
            for _ in range(3)
        )  # fmt: skip
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        ahead = torch.zeros(())
        for block in self.blocks:
            made = block(x)
            x, ahead = x - made[:, : self.steps], ahead + made[:, self.steps :]
        return ahead


class PatchTransformer(nn.Module):
    """PatchTST (Nie et al., arXiv 2211.14730): every channel's patches of a series [B, T, C] through one encoder."""

    def __init__(self, width: int = 32, patch: int = 8, patches: int = 11) -> None:
        super().__init__()
        self.patch = patch
        self.embed, self.places = nn.Linear(patch, width), nn.Parameter(torch.randn(patches, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width * patches, 6)

    def forward(self, x: Tensor) -> Tensor:
        b, _, c = x.shape
        patches = x.transpose(1, 2).unfold(2, self.patch, self.patch // 2).flatten(0, 1)
        made = self.encoder(self.embed(patches) + self.places)
        return self.head(made.flatten(1)).view(b, c, -1)


class Activity(nn.Module):
    """Human activity from sensors [B, T, C]: convolutions and a GRU (Ordonez and Roggen, Sensors 2016)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(wave(9, width, 5), wave(width, width, 5), wave(width, width, 5))
        self.recurrent, self.head = nn.GRU(width, 32, batch_first=True), nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(self.body(x.transpose(1, 2)).transpose(1, 2))[0][:, -1])


class TextCnn(nn.Module):
    """Kim, arXiv 1408.5882: convolutions of several lengths over tokens int64[B, T], the largest of each."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 24)
        self.convs = nn.ModuleList(nn.Conv1d(24, width, k) for k in (3, 4, 5))
        self.head = nn.Linear(3 * width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens).transpose(1, 2)
        return self.head(torch.cat([conv(x).relu().amax(2) for conv in self.convs], 1))


class Tagger(nn.Module):
    """A recurrent tagger of tokens int64[B, T]: embedding, two directions, a label for each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.recurrent = nn.Embedding(100, 32), nn.LSTM(32, 32, bidirectional=True, batch_first=True)
        self.head = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 9))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embed(tokens))[0])


class Experts(nn.Module):
    """A mixture of experts in stacked weights [E, I, O] (Shazeer et al., arXiv 1701.06538, all experts run)."""

    def __init__(self, width: int = 32, hidden: int = 64, experts: int = 4) -> None:
        super().__init__()
        self.norm, self.router = nn.LayerNorm(width), nn.Linear(width, experts)
        self.first = nn.Parameter(torch.randn(experts, width, hidden) * width**-0.5)
        self.second = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        hidden = torch.einsum("btd,edh->ebth", y, self.first).relu()
        made = torch.einsum("ebth,ehd->ebtd", hidden, self.second)
        return x + torch.einsum("ebtd,bte->btd", made, self.router(y).softmax(-1))


class ExpertText(nn.Module):
    """Tokens through two layers of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(100, 32), nn.Sequential(Experts(), Experts())
        self.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 5))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(tokens)).mean(1))


class DeepFm(nn.Module):
    """Guo et al., arXiv 1703.04247: categories int64[B, F] and numbers [B, N]; pairs of embeddings and a deep part."""

    def __init__(self, fields: int = 6, width: int = 16, hidden: int = 64) -> None:
        super().__init__()
        self.embed, self.linear, self.numbers = nn.Embedding(200, width), nn.Embedding(200, 1), nn.Linear(8, width)
        self.deep = nn.Sequential(
            nn.Linear((fields + 1) * width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 1),
        )  # fmt: skip

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        parts = torch.cat([self.embed(categories), self.numbers(numbers)[:, None]], 1)
        pairs = 0.5 * (parts.sum(1).square() - parts.square().sum(1)).sum(1, keepdim=True)
        return self.linear(categories).sum(1) + pairs + self.deep(parts.flatten(1))


class TwoTowers(nn.Module):
    """A recommender's two towers (Yi et al., RecSys 2019): user and item, their product is the score."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.user = nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, 16))
        self.item = nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 16))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (F.normalize(self.user(user)) * F.normalize(self.item(item))).sum(1)


class TableNet(nn.Module):
    """A residual network for tables [B, C] (Gorishniy et al., arXiv 2106.11959)."""

    def __init__(self, width: int = 48, hidden: int = 96) -> None:
        super().__init__()
        self.start = nn.Linear(14, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
            for _ in range(3)
        )
        self.head = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def tokens(n: int, length: int = 12) -> Tensor:
    """int64[n, length]."""
    return torch.randint(0, 90, (n, length))


SEQUENCES: Final[dict[str, Entry]] = {
    "m5": (M5, lambda n: (torch.randn(n, 1, 8000),)),
    "keyword_spotter": (KeywordSpotter, lambda n: (torch.randn(n, 1, 49, 10),)),
    "quartznet": (QuartzNet, lambda n: (torch.randn(n, 40, 96),)),
    "conv_tasnet": (ConvTasNet, lambda n: (torch.randn(n, 1, 800),)),
    "demucs": (Demucs, lambda n: (torch.randn(n, 1, 1024),)),
    "wavenet": (WaveNet, lambda n: (torch.randn(n, 1, 200),)),
    "speaker": (SpeakerNet, lambda n: (torch.randn(n, 24, 100),)),
    "text_reader": (TextReader, lambda n: (torch.rand(n, 1, 32, 64),)),
    "temporal": (TemporalNet, lambda n: (torch.randn(n, 6, 40),)),
    "nbeats": (NBeats, lambda n: (torch.randn(n, 48),)),
    "patch_transformer": (PatchTransformer, lambda n: (torch.randn(n, 48, 3),)),
    "activity": (Activity, lambda n: (torch.randn(n, 64, 9),)),
    "text_cnn": (TextCnn, lambda n: (tokens(n),)),
    "tagger": (Tagger, lambda n: (tokens(n),)),
    "experts": (ExpertText, lambda n: (tokens(n),)),
    "deepfm": (DeepFm, lambda n: (tokens(n, 6), torch.randn(n, 8))),
    "two_towers": (TwoTowers, lambda n: (torch.randn(n, 20), torch.randn(n, 12))),
    "table": (TableNet, lambda n: (torch.randn(n, 14),)),
}
