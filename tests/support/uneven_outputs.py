"""A transposed convolution whose output channels differ much in scale: each needs a step of its own in 8 bits."""

import torch
from torch import Tensor, nn


def uneven_transposed(groups: int, kernel: int = 4, stride: int = 2, bias: bool = True) -> nn.ConvTranspose2d:
    """[B, 8, H, W] -> [B, 8, 2 H, 2 W] by default. Its weight is [inputs, outputs / groups, ...]."""
    layer = nn.ConvTranspose2d(8, 8, kernel, stride, (kernel - stride) // 2, groups=groups, bias=bias)
    scales = torch.logspace(-1.5, 0, 8)
    with torch.no_grad():
        by_group = layer.weight.unflatten(0, (groups, -1)) * scales.view(groups, 1, 8 // groups, 1, 1)
        layer.weight.copy_(by_group.flatten(0, 1))
        if layer.bias is not None:
            layer.bias.mul_(scales)
    return layer


def uneven(groups: int) -> tuple[nn.Module, Tensor]:
    """A network that ends in one, and 64 inputs."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), uneven_transposed(groups)).eval()
    return network, nn.functional.interpolate(torch.randn(64, 3, 4, 4), scale_factor=4, mode="bicubic")
