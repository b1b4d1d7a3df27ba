"""Networks of the zoo for pictures that aren't classified, volumes, points and pairs: small, but wired as their papers.

Poses, depth, generators, diffusion, clouds of points, volumes, trackers.
"""

from __future__ import annotations

import math
from typing import Final

import torch
import torch.nn.functional as F
from _zoo_own import conv
from _zoo_sequences import Entry
from torch import Tensor, nn


class Pose(nn.Module):
    """Xiao et al., arXiv 1804.06208: a backbone, transposed convolutions, a map per joint."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 16, 3, 2), conv(16, 32, 3, 2), conv(32, 64, 3, 2), conv(64, 64, 3, 2))
        layers: list[nn.Module] = []
        for i in (64, width):
            layers += [nn.ConvTranspose2d(i, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.up, self.head = nn.Sequential(*layers), nn.Conv2d(width, 17, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.body(x)))


class Hourglass(nn.Module):
    """Newell et al., arXiv 1603.06937: down and up again twice, with a map after each that the next one reads."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.start = conv(3, width, 3, 2)
        self.down = nn.ModuleList(nn.ModuleList(conv(width, width) for _ in range(3)) for _ in range(2))
        self.side = nn.ModuleList(nn.ModuleList(conv(width, width) for _ in range(3)) for _ in range(2))
        self.heads = nn.ModuleList(nn.Conv2d(width, 16, 1) for _ in range(2))
        self.back = nn.Conv2d(16, width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x, maps = self.start(x), []
        for down, side, head in zip(self.down, self.side, self.heads, strict=True):
            y, skips = x, []
            for layer, beside in zip(down, side, strict=True):
                skips.append(beside(y))
                y = layer(F.max_pool2d(y, 2))
            for skip in reversed(skips):
                y = skip + F.interpolate(y, scale_factor=2.0)
            maps.append(head(y))
            x = x + y + self.back(maps[-1])
        return tuple(maps)


class Depth(nn.Module):
    """Monodepth2's decoder (Godard et al., arXiv 1806.01260): ELU, reflection padding, a depth at every scale."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 24, 32)
        self.down = nn.ModuleList(conv(i, o, 3, 2) for i, o in zip((3, *widths), widths, strict=False))
        self.first = nn.ModuleList(nn.Conv2d(i, o, 3) for i, o in ((32, 24), (24, 16), (16, 16)))
        self.second = nn.ModuleList(nn.Conv2d(i, o, 3) for i, o in ((48, 24), (32, 16), (16, 16)))
        self.heads = nn.ModuleList(nn.Conv2d(w, 1, 3) for w in (24, 16, 16))

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        maps, skips = [], skips[:-1]
        for first, second, head in zip(self.first, self.second, self.heads, strict=True):
            x = F.interpolate(F.elu(first(F.pad(x, (1,) * 4, mode="reflect"))), scale_factor=2.0, mode="nearest")
            x = torch.cat([x, skips.pop()], 1) if skips else x
            x = F.elu(second(F.pad(x, (1,) * 4, mode="reflect")))
            maps.append(head(F.pad(x, (1,) * 4, mode="reflect")).sigmoid())
        return maps


class Generator(nn.Module):
    """DCGAN's generator (Radford et al., arXiv 1511.06434): noise [B, Z] to a picture by transposed convolutions."""

    def __init__(self, noise: int = 32, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, o, stride, padding in ((noise, 4 * width, 1, 0), (4 * width, 2 * width, 2, 1), (2 * width, width, 2, 1)):
            layers += [nn.ConvTranspose2d(i, o, 4, stride, padding, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.ConvTranspose2d(width, 3, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.body(z[:, :, None, None])).tanh()


class Autoencoder(nn.Module):
    """A convolutional autoencoder that finds what is unusual: strides down, transposed convolutions up."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.down = nn.Sequential(conv(3, width, 3, 2), conv(width, 2 * width, 3, 2), nn.Conv2d(2 * width, 16, 1))
        self.up = nn.Sequential(
            nn.ConvTranspose2d(16, 2 * width, 2, 2), nn.ReLU(), nn.ConvTranspose2d(2 * width, width, 2, 2), nn.ReLU(),
            nn.Conv2d(width, 3, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class Denoiser(nn.Module):
    """DnCNN (Zhang et al., arXiv 1608.03981): plain convolutions that predict the noise."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        middle = [conv(width, width, act=nn.ReLU) for _ in range(4)]
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), *middle, nn.Conv2d(width, 1, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x - self.body(x)


class TimedBlock(nn.Module):
    """A residual block of a diffusion U-Net: group norms, and the time's embedding added in between."""

    def __init__(self, i: int, o: int, time: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, i), nn.SiLU(), nn.Conv2d(i, o, 3, padding=1))
        self.second = nn.Sequential(nn.GroupNorm(8, o), nn.SiLU(), nn.Conv2d(o, o, 3, padding=1))
        self.time, self.short = nn.Linear(time, o), nn.Conv2d(i, o, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.short(x) + self.second(self.first(x) + self.time(time)[:, :, None, None])


class Diffusion(nn.Module):
    """The U-Net of Ho et al., arXiv 2006.11239: a noisy picture and a time [B] in, the noise out; attention inside."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width))
        self.start, self.end = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.down = nn.ModuleList(TimedBlock(i, o, 2 * width) for i, o in ((width, width), (width, 2 * width)))
        self.shrink = nn.ModuleList(nn.Conv2d(o, o, 3, 2, 1) for o in (width, 2 * width))
        self.middle = TimedBlock(2 * width, 2 * width, 2 * width)
        self.norm, self.qkv, self.out = nn.GroupNorm(8, 2 * width), nn.Conv2d(64, 192, 1), nn.Conv2d(64, 64, 1)
        self.up = nn.ModuleList(TimedBlock(i, o, 2 * width) for i, o in ((4 * width, 2 * width), (3 * width, width)))

    def attend(self, x: Tensor) -> Tensor:
        """Four heads over all positions."""
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, 4, c // 4, h * w).transpose(3, 4).unbind(1)
        made = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, h, w)
        return x + self.out(made)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        rates = torch.exp(torch.arange(self.width // 2) * (-math.log(10000.0) / (self.width // 2 - 1)))
        angles = time[:, None] * rates.to(time)
        when = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        x, skips = self.start(x), []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            x = block(x, when)
            skips.append(x)
            x = shrink(x)
        x = self.attend(self.middle(x, when))
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skips.pop()], 1), when)
        return self.end(x)


def solid(i: int, o: int, stride: int = 1) -> nn.Sequential:
    """3-D convolution, instance norm, leaky ReLU."""
    return nn.Sequential(nn.Conv3d(i, o, 3, stride, 1), nn.InstanceNorm3d(o, affine=True), nn.LeakyReLU(0.01))


class VolumeUNet(nn.Module):
    """A 3-D U-Net (Cicek et al., arXiv 1606.06650) with instance norms and trilinear resizing, for scans."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first, self.down, self.deep = solid(1, width), solid(width, 2 * width, 2), solid(2 * width, 2 * width)
        self.merge, self.head = solid(3 * width, width), nn.Conv3d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.deep(self.down(a))
        up = F.interpolate(b, scale_factor=2.0, mode="trilinear", align_corners=False)
        return self.head(self.merge(torch.cat([up, a], 1)))


class VolumeNet(nn.Module):
    """A 3-D residual network with pooling, for volumes [B, 1, D, H, W]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.start = nn.Sequential(nn.Conv3d(1, width, 3, padding=1, bias=False), nn.BatchNorm3d(width), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv3d(width, width, 3, padding=1, bias=False), nn.BatchNorm3d(width), nn.ReLU(),
            nn.Conv3d(width, width, 3, padding=1, bias=False), nn.BatchNorm3d(width),
        )  # fmt: skip
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(self.start(x), 2)
        return self.head(F.adaptive_avg_pool3d((x + self.block(x)).relu(), 1).flatten(1))


class PointNet(nn.Module):
    """Qi et al., arXiv 1612.00593: shared layers over points [B, 3, N], a learned turn, the largest over points."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        shared = lambda i, o: nn.Sequential(nn.Conv1d(i, o, 1), nn.BatchNorm1d(o), nn.ReLU())  # noqa: E731
        self.look, self.turn = nn.Sequential(shared(3, 32), shared(32, width)), nn.Linear(width, 9)
        self.body = nn.Sequential(shared(3, 32), shared(32, 32))
        self.deep = nn.Sequential(shared(32, width), nn.Conv1d(width, 2 * width, 1))
        self.parts = nn.Sequential(shared(32 + 2 * width, 32), nn.Conv1d(32, 6, 1))

    def forward(self, points: Tensor) -> Tensor:
        turn = self.turn(torch.max(self.look(points), 2)[0]).view(-1, 3, 3)
        local = self.body(torch.bmm(turn, points))
        whole = torch.max(self.deep(local), 2, keepdim=True)[0]
        return self.parts(torch.cat([local, whole.expand(-1, -1, local.shape[2])], 1))


class Pillars(nn.Module):
    """PointPillars (Lang et al., arXiv 1812.05784): points of cells [B, cells, points, 9] to a map, convolved."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.points, self.norm = nn.Linear(9, width, bias=False), nn.BatchNorm1d(width)
        self.body = nn.Sequential(conv(width, 48, 3, 2), conv(48, 48))
        self.head = nn.Conv2d(48, 14, 1)

    def forward(self, cells: Tensor) -> Tensor:
        b, n, p, _ = cells.shape
        y = self.points(cells.flatten(0, 1))
        y = self.norm(y.transpose(1, 2)).relu().max(2)[0]
        side = math.isqrt(n)
        return self.head(self.body(y.view(b, side, side, -1).permute(0, 3, 1, 2)))


class Tracker(nn.Module):
    """SiamFC's scheme (Bertinetto et al., arXiv 1606.09549): one backbone for an object and a scene."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 16, 3, 2), conv(16, width, 3, 2))
        self.gate, self.head = nn.Linear(width, width), nn.Sequential(conv(width, width, 1), nn.Conv2d(width, 5, 1))

    def forward(self, thing: Tensor, scene: Tensor) -> Tensor:
        kernel = self.gate(self.body(thing).mean((2, 3))).sigmoid()
        return self.head(self.body(scene) * kernel[:, :, None, None])


class Stereo(nn.Module):
    """Disparity of a pair (GC-Net, Kendall et al., arXiv 1703.04309): shifted features, 3-D convolutions."""

    def __init__(self, width: int = 16, reach: int = 4) -> None:
        super().__init__()
        self.reach = reach
        self.body = nn.Sequential(conv(3, width, 3, 2), conv(width, width))
        self.volume = nn.Sequential(nn.Conv3d(2 * width, width, 3, padding=1), nn.BatchNorm3d(width), nn.ReLU())
        self.head = nn.Conv3d(width, 1, 3, padding=1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.body(left), self.body(right)
        pairs = [torch.cat([a, F.pad(b, (d, 0))[..., : b.shape[3]]], 1) for d in range(self.reach)]
        weights = self.head(self.volume(torch.stack(pairs, 2))).squeeze(1).softmax(1)
        return (weights * torch.arange(self.reach, dtype=torch.float32)[:, None, None]).sum(1)


class Anomaly(nn.Module):
    """CBAM's attention (Woo et al., arXiv 1807.06521): the mean and the largest over positions and over channels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.start, self.again = conv(3, width, 3, 2), conv(width, width)
        self.channels = nn.Sequential(nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width))
        self.places, self.head = nn.Conv2d(2, 1, 7, padding=3), nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        pooled = self.channels(x.mean((2, 3))) + self.channels(F.adaptive_max_pool2d(x, 1).flatten(1))
        x = x * pooled.sigmoid()[:, :, None, None]
        x = x * self.places(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)).sigmoid()
        return self.head(self.again(x))


SCENES: Final[dict[str, Entry]] = {
    "pose": (Pose, lambda n: (torch.randn(n, 3, 64, 48),)),
    "hourglass": (Hourglass, lambda n: (torch.randn(n, 3, 64, 64),)),
    "depth": (Depth, lambda n: (torch.randn(n, 3, 48, 64),)),
    "generator": (Generator, lambda n: (torch.randn(n, 32),)),
    "autoencoder": (Autoencoder, lambda n: (torch.randn(n, 3, 32, 32),)),
    "denoiser": (Denoiser, lambda n: (torch.randn(n, 1, 40, 40),)),
    "diffusion_unet": (Diffusion, lambda n: (torch.randn(n, 3, 16, 16), 100 * torch.rand(n))),
    "volume_unet": (VolumeUNet, lambda n: (torch.randn(n, 1, 8, 16, 16),)),
    "volume_net": (VolumeNet, lambda n: (torch.randn(n, 1, 8, 12, 12),)),
    "pointnet": (PointNet, lambda n: (torch.randn(n, 3, 64),)),
    "pillars": (Pillars, lambda n: (torch.randn(n, 64, 12, 9),)),
    "tracker": (Tracker, lambda n: (torch.randn(n, 3, 32, 32), torch.randn(n, 3, 64, 64))),
    "stereo": (Stereo, lambda n: (torch.randn(n, 3, 32, 48), torch.randn(n, 3, 32, 48))),
    "attention_maps": (Anomaly, lambda n: (torch.randn(n, 3, 48, 48),)),
}
