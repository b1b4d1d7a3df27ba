"""Networks of the zoo that no library has in this form: one for each kind of wiring that is common elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy_prune.networks import build
from deploy_prune.recipe.parts import ModelPart


def conv(i: int, o: int, k: int = 3, stride: int = 1, act: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    return nn.Sequential(nn.Conv2d(i, o, k, stride, k // 2, bias=False), nn.BatchNorm2d(o), act())


class Bottleneck(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = conv(width, width), conv(width, width), shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """YOLOv8's block: split in two, a chain of bottlenecks, everything concatenated."""

    def __init__(self, i: int, o: int, depth: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        self.width = o // 2
        self.first, self.last = conv(i, o, 1), conv((2 + depth) * self.width, o, 1)
        self.blocks = nn.ModuleList(Bottleneck(self.width, shortcut) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).split((self.width, self.width), 1))
        parts.extend(block(parts[-1]) for block in self.blocks)
        return self.last(torch.cat(parts, 1))


class Pooled(nn.Module):
    """YOLO's fast spatial pyramid pooling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last, self.pool = conv(width, width // 2, 1), conv(2 * width, width, 1), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        parts.extend(self.pool(parts[-1]) for _ in range(3))
        return self.last(torch.cat(parts, 1))


class Yolo(nn.Module):
    """A C2f backbone, a neck that goes up and down again, and a box and a class head per scale."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 3, 2), conv(16, 32, 3, 2), C2f(32, 32), conv(32, 64, 3, 2), C2f(64, 64))
        self.down4 = nn.Sequential(conv(64, 128, 3, 2), C2f(128, 128, 2))
        self.down5 = nn.Sequential(conv(128, 256, 3, 2), C2f(256, 256), Pooled(256))
        self.up4, self.up3 = C2f(384, 128, 1, False), C2f(192, 64, 1, False)
        self.shrink3, self.shrink4 = conv(64, 64, 3, 2), conv(128, 128, 3, 2)
        self.out4, self.out5 = C2f(192, 128, 1, False), C2f(384, 256, 1, False)
        widths = (64, 128, 256)
        self.box = nn.ModuleList(nn.Sequential(conv(w, 64), conv(64, 64), nn.Conv2d(64, 64, 1)) for w in widths)
        self.kind = nn.ModuleList(nn.Sequential(conv(w, 64), conv(64, 64), nn.Conv2d(64, classes, 1)) for w in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        p3 = self.stem(x)
        p4 = self.down4(p3)
        p5 = self.down5(p4)
        n4 = self.up4(torch.cat([F.interpolate(p5, scale_factor=2.0), p4], 1))
        n3 = self.up3(torch.cat([F.interpolate(n4, scale_factor=2.0), p3], 1))
        n4 = self.out4(torch.cat([self.shrink3(n3), n4], 1))
        n5 = self.out5(torch.cat([self.shrink4(n4), p5], 1))
        return [torch.cat([b(n), k(n)], 1) for n, b, k in zip((n3, n4, n5), self.box, self.kind, strict=True)]


class UNet(nn.Module):
    """Ronneberger et al., arXiv 1505.04597, with batch norm."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (16, 32, 64, 128)
        pairs = list(zip((3, *widths), widths, strict=False))
        self.down = nn.ModuleList(nn.Sequential(conv(i, o, act=nn.ReLU), conv(o, o, act=nn.ReLU)) for i, o in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(o, i, 2, 2) for i, o in pairs[:0:-1])
        self.merge = nn.ModuleList(
            nn.Sequential(conv(2 * i, i, act=nn.ReLU), conv(i, i, act=nn.ReLU)) for i, _ in pairs[:0:-1]
        )
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)


def reflected(i: int, o: int, k: int, stride: int = 1) -> nn.Sequential:
    """Reflection padding, convolution, instance norm."""
    return nn.Sequential(nn.ReflectionPad2d(k // 2), nn.Conv2d(i, o, k, stride), nn.InstanceNorm2d(o, affine=True))


class Style(nn.Module):
    """Johnson et al., arXiv 1603.08155: image to image, instance norms, residual blocks, resize and convolve."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Sequential(
            reflected(3, 32, 9), nn.ReLU(), reflected(32, 64, 3, 2), nn.ReLU(), reflected(64, 128, 3, 2), nn.ReLU()
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(reflected(128, 128, 3), nn.ReLU(), reflected(128, 128, 3)) for _ in range(5)
        )
        self.up = nn.ModuleList([reflected(128, 64, 3), reflected(64, 32, 3)])
        self.end = nn.Sequential(nn.ReflectionPad2d(4), nn.Conv2d(32, 3, 9))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for block in self.blocks:
            x = x + block(x)
        for up in self.up:
            x = up(F.interpolate(x, scale_factor=2.0)).relu()
        return self.end(x)


def leaky(i: int, o: int, stride: int = 1) -> nn.Sequential:
    """Convolution and leaky ReLU."""
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.LeakyReLU(0.1))


class Flow(nn.Module):
    """PWC-Net's scheme (Sun et al., arXiv 1709.02371): pyramid, warp by the coarser flow, cost volume, estimator.

    The two images are the input and the input shifted.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64)
        self.pyramid = nn.ModuleList(
            nn.Sequential(leaky(i, o, 2), leaky(o, o), leaky(o, o)) for i, o in zip((3, *widths), widths, strict=False)
        )
        self.estimators = nn.ModuleList(
            nn.Sequential(leaky(25 + w + 2, 64), leaky(64, 48), leaky(48, 32), nn.Conv2d(32, 2, 3, padding=1))
            for w in widths[::-1]
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """One tensor per scale, the coarsest first."""
        made = []
        for stage in self.pyramid:
            x = stage(x)
            made.append(x)
        return made[::-1]

    @staticmethod
    def warp(x: Tensor, flow: Tensor) -> Tensor:
        """X taken from where the flow points to, in pixels."""
        b, _, h, w = x.shape
        rows, columns = torch.linspace(-1, 1, h), torch.linspace(-1, 1, w)
        grid = torch.stack([columns.expand(h, w), rows[:, None].expand(h, w)], -1).to(x)
        scale = torch.tensor([2 / (w - 1), 2 / (h - 1)]).to(x)
        return F.grid_sample(x, grid.expand(b, h, w, 2) + flow.permute(0, 2, 3, 1) * scale, align_corners=True)

    @staticmethod
    def costs(a: Tensor, b: Tensor, reach: int = 2) -> Tensor:
        """Correlation of a with b at every displacement up to ``reach``."""
        h, w = a.shape[2:]
        wide = F.pad(b, (reach,) * 4)
        span = range(2 * reach + 1)
        return torch.cat([(a * wide[:, :, i : i + h, j : j + w]).mean(1, keepdim=True) for i in span for j in span], 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.features(x), self.features(x.roll((2, 1), (2, 3)))
        flow = torch.zeros_like(first[0][:, :2])
        for a, b, estimator in zip(first, second, self.estimators, strict=True):
            if flow.shape[-1] != a.shape[-1]:
                flow = 2 * F.interpolate(flow, scale_factor=2.0, mode="bilinear")
            cost = F.leaky_relu(self.costs(a, self.warp(b, flow)), 0.1)
            flow = flow + estimator(torch.cat([cost, a, flow], 1))
        return flow


class SuperResolution(nn.Module):
    """EDSR's scheme (Lim et al., arXiv 1707.02921) with sub-pixel convolutions (arXiv 1609.05158)."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)) for _ in range(4)
        )
        self.up = nn.Sequential(*[
            layer for _ in range(2) for layer in (nn.Conv2d(32, 128, 3, padding=1), nn.PixelShuffle(2))
        ])  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        y = x
        for block in self.blocks:
            y = y + 0.1 * block(y)
        return self.end(self.up(x + y))


class Translator(nn.Module):
    """torch's encoder-decoder Transformer over tokens int64[B, T]; the target is the source, shifted."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(100, 32), nn.Parameter(torch.randn(1, 12, 32))
        self.transformer = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        source, target = self.embed(x) + self.places, self.embed(x.roll(1, 1)) + self.places
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.transformer(source, target, tgt_mask=mask))


class Reader(nn.Module):
    """A convolutional text reader: features of columns, a recurrent layer over them, a small classifier."""

    def __init__(self, recurrent: type[nn.LSTM | nn.GRU], classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 16, 3, 2), conv(16, 32, 3, 2), conv(32, 32))
        self.recurrent = recurrent(32, 24, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, classes))

    def forward(self, x: Tensor) -> Tensor:
        columns = self.features(x).mean(2).transpose(1, 2)
        return self.head(self.recurrent(columns)[0])


TEXT: Final = {"transformer"}
"""Networks that take tokens."""

OWN: Final[dict[str, Callable[[int], nn.Module]]] = {
    "transformer": Translator,
    "lstm": lambda classes: Reader(nn.LSTM, classes),
    "gru": lambda classes: Reader(nn.GRU, classes),
    "yolo_c2f": Yolo,
    "unet": UNet,
    "style_transfer": lambda classes: Style(),
    "optical_flow": lambda classes: Flow(),
    "resnet20_option_a": lambda classes: build.build_network(ModelPart(source="resnet20"), classes),
    "super_resolution": lambda classes: SuperResolution(),
}
