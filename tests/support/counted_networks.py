"""Small networks that multiply in every way there is, each with an input of four examples."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
weight_norm = nn.utils.parametrizations.weight_norm


def upsampler(rank: int, groups: int, outputs: int = 8) -> nn.Module:
    """A transposed convolution between two plain ones."""
    plain, transposed = CONVOLUTIONS[rank - 1], TRANSPOSED[rank - 1]
    up = transposed(8, outputs, 2, stride=2, groups=groups)
    return nn.Sequential(plain(3, 8, 3, padding=1), nn.ReLU(), up, nn.ReLU(), plain(outputs, 4, 1))


class Attention(nn.Module):
    """Four heads of four over tokens; ``how``: by torch's operator, by two products, or across channels (XCiT)."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.qkv, self.last = how, nn.Linear(8, 16), nn.Linear(16, 48), nn.Linear(16, 8)

    def forward(self, x_BTC: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x_BTC).relu()).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        if self.how == "operator":
            y = functional.scaled_dot_product_attention(q, k, v)
        elif self.how == "products":
            y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        else:
            q, k = (functional.normalize(x.transpose(-1, -2), dim=-1) for x in (q, k))
            y = ((q @ k.transpose(-1, -2)).softmax(-1) @ v.transpose(-1, -2)).transpose(-1, -2)
        return self.last(y.transpose(1, 2).flatten(2))


class Experts(nn.Module):
    """All experts in two tensors [E, I, O], mixed by a router."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.inner = nn.Linear(16, 4), nn.Parameter(torch.randn(4, 16, 24) * 0.2)
        self.outer = nn.Parameter(torch.randn(4, 24, 16) * 0.2)

    def forward(self, x_BTC: Tensor) -> Tensor:
        shares = self.router(x_BTC).softmax(-1).permute(2, 0, 1)[..., None]
        tokens = x_BTC.reshape(1, -1, x_BTC.shape[-1]).expand(4, -1, -1)
        y = torch.bmm(torch.bmm(tokens, self.inner).relu(), self.outer)
        return x_BTC + (y.view(4, *x_BTC.shape) * shares).sum(0)


class Blocks(nn.Module):
    """Two block-diagonal layers, by einsum or bmm: [G, I, O] each."""

    def __init__(self, einsum: bool) -> None:
        super().__init__()
        self.first, self.last, self.einsum = nn.Linear(8, 16), nn.Linear(24, 5), einsum
        self.a, self.b = nn.Parameter(torch.randn(4, 4, 10) * 0.3), nn.Parameter(torch.randn(4, 10, 6) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).unflatten(-1, (4, 4))
        if self.einsum:
            y = torch.einsum("bgi,gio->bgo", torch.einsum("bgi,gio->bgo", x, self.a).relu(), self.b)
        else:
            y = torch.bmm(torch.bmm(x.transpose(0, 1), self.a).relu(), self.b).transpose(0, 1)
        return self.last(y.flatten(1))


class Rare(nn.Module):
    """Weights in tensordot, inner, bilinear and addbmm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bilinear, self.last = nn.Linear(8, 16), nn.Bilinear(10, 16, 9), nn.Linear(9, 4)
        self.a, self.b = nn.Parameter(torch.randn(16, 12) * 0.3), nn.Parameter(torch.randn(10, 12) * 0.3)
        self.c = nn.Parameter(torch.randn(6, 9, 9) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        y = self.bilinear(torch.inner(torch.tensordot(x, self.a, dims=1).relu(), self.b).relu(), x)
        return self.last(torch.addbmm(y[:, 0], y.transpose(0, 1), self.c))


class Mixer(nn.Module):
    """A layer over tokens, for each channel anew."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)
        self.tokens = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.tokens(x.transpose(1, 2)).transpose(1, 2))


class NonLocal(nn.Module):
    """Every place of an image looks at every other; and the products of two maps' channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)
        self.value, self.other, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 12, 1), nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        a, b, v, w = (layer(x).flatten(2) for layer in (self.left, self.right, self.value, self.other))
        seen = torch.bmm(v, torch.bmm(a.transpose(1, 2), b).softmax(-1).transpose(1, 2))
        return self.head(torch.bmm(seen, w.transpose(1, 2)).flatten(1))


class Recurrent(nn.Module):
    """Two layers in both directions between a convolution and a classifier."""

    def __init__(self, kind: type[nn.RNNBase], **options: int) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 3)
        self.layers = kind(8, 6, num_layers=2, bidirectional=True, batch_first=True, **options)
        width = 2 * options.get("proj_size", 6)
        self.head = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x).transpose(1, 2))[0])


class Cells(nn.Module):
    """Recurrent cells, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(4, 8), nn.LSTMCell(8, 6), nn.GRUCell(6, 5)
        self.three, self.head = nn.RNNCell(5, 5), nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        state = self.one(self.stem(x[:, 0]))
        state = self.one(self.stem(x[:, 1]), state)
        return self.head(self.three(self.two(state[0])))


class Tokens(nn.Module):
    """An embedding whose width a residual sum shares; bare parameters, and the table read once more at the end."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(50, 16), nn.Parameter(torch.randn(1, 7, 16))
        self.inner, self.outer, self.scale = nn.Linear(16, 24), nn.Linear(24, 16), nn.Parameter(torch.rand(16))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 50, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x) + self.places
        return self.head(self.norm(x + self.scale * self.outer(self.inner(x).relu())).mean(1))


class Computed(nn.Module):
    """Layers over a table, once for all examples, and over a grid for each; one kernel that all channels share."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.kernel = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 4, 1),
            nn.Parameter(torch.randn(1, 1, 3, 3)),
        )
        self.of_grid = nn.Conv2d(3, 8, 1)
        self.table = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 4))
        self.register_buffer("places", torch.randn(9, 2))

    def forward(self, x: Tensor) -> Tensor:
        grid = torch.ones(len(x), 3, *x.shape[2:], device=x.device).cumsum(2)
        x = self.stem(x) + self.of_grid(grid)
        x = functional.conv2d(x, self.kernel.expand(x.shape[1], 1, 3, 3), groups=x.shape[1])
        return self.head(x) + self.table(self.places).mean(0)[:, None, None]


def images() -> Tensor:
    """Images of 8 x 8."""
    return torch.randn(4, 3, 8, 8)


def sequences() -> Tensor:
    """Six tokens of eight."""
    return torch.randn(4, 6, 8)


def signals() -> Tensor:
    """Three channels of twelve."""
    return torch.randn(4, 3, 12)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    **{
        f"up{rank}d_{groups}": (lambda r=rank, g=groups: upsampler(r, g), lambda r=rank: torch.randn(4, 3, *[6] * r))
        for rank in (1, 2, 3)
        for groups in (1, 2, 8)
    },
    "up_wider": (lambda: upsampler(2, 8, 16), images),
    "up_narrower": (lambda: upsampler(2, 2, 4), images),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 16, 3, groups=2),
                                      nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)), images),
    "volumes": (lambda: nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.Conv3d(8, 8, 3, groups=8),
                                      nn.Conv3d(8, 4, 1)), lambda: torch.randn(4, 3, 6, 6, 6)),
    "experts": (lambda: nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), Experts(), nn.LayerNorm(16), Experts(),
                                      nn.Linear(16, 5)), sequences),
    "blocks_bmm": (lambda: Blocks(einsum=False), lambda: torch.randn(4, 8)),
    "blocks_einsum": (lambda: Blocks(einsum=True), lambda: torch.randn(4, 8)),
    "mixer": (Mixer, sequences),
    "rare": (Rare, sequences),
    "non_local": (NonLocal, images),
    "lstm": (lambda: Recurrent(nn.LSTM), signals),
    "lstm_projected": (lambda: Recurrent(nn.LSTM, proj_size=3), signals),
    "gru": (lambda: Recurrent(nn.GRU), signals),
    "rnn": (lambda: Recurrent(nn.RNN), signals),
    "cells": (Cells, lambda: torch.randn(4, 2, 4)),
    "tokens": (lambda: Tokens(tied=False), lambda: torch.randint(0, 50, (4, 7))),
    "tied": (lambda: Tokens(tied=True), lambda: torch.randint(0, 50, (4, 7))),
    "computed": (Computed, images),
    "weight_norm_old": (lambda: nn.Sequential(nn.utils.weight_norm(nn.Conv1d(3, 8, 3)), nn.ReLU(),
                                              nn.utils.weight_norm(nn.Conv1d(8, 8, 3)), nn.Conv1d(8, 5, 1)), signals),
    # cut as graphs
    "attention": (lambda: Attention("operator"), sequences),
    "attention_products": (lambda: Attention("products"), sequences),
    "attention_channels": (lambda: Attention("channels"), sequences),
    "transformer": (lambda: nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
                                          nn.Linear(16, 4)), sequences),
    "weight_norm": (lambda: nn.Sequential(weight_norm(nn.Conv1d(3, 8, 3)), nn.ReLU(), weight_norm(nn.Conv1d(8, 8, 3)),
                                          nn.Conv1d(8, 5, 1)), signals),
}  # fmt: skip
AS_GRAPHS = frozenset({"attention", "attention_products", "attention_channels", "transformer", "weight_norm"})


def make(name: str) -> tuple[nn.Module, Tensor]:
    """A network in eval mode and its input."""
    network, inputs = NETWORKS[name]
    torch.manual_seed(0)
    return network().eval(), inputs()
