"""Small networks with what converters stumble over, and ways to run and damage what was written."""

import importlib.util
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

import deploy_prune


class Small(nn.Module):
    """Names like "0" at the top, batch norm, a depthwise convolution, every second pixel, a head; [B, 3, 16, 16]."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.add_module("0", first)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(self, "0")(x)
        x = functional.hardswish(self.depth(x)) + x
        x = functional.pad(x[:, :, ::2, 1::3], (0, 0, 0, 0, 2, 2))
        return self.head(self.drop(x.mean((2, 3))))


class Attention(nn.Module):
    """Patches, queries, keys and values from one layer, the batch moved off the front; [B, 3, 16, 16]."""

    def __init__(self, heads: int = 2, width: int = 8) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.patches = nn.Conv2d(3, heads * width, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 16, heads * width))
        self.norm = nn.LayerNorm(heads * width)
        self.qkv = nn.Linear(heads * width, 3 * heads * width)
        self.head = nn.Linear(heads * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        b, n, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = x + functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return self.head(functional.gelu(x).mean(1))


class Two(nn.Module):
    """A dict of outputs, one of them nested."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Small()
        self.extra = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.body(x)
        return {"scores": y, "more": [self.extra(y), x.mean((2, 3))]}


def network(kind: type[nn.Module] = Small, seed: int = 0) -> nn.Module:
    """With batch norms as after training, in training mode."""
    torch.manual_seed(seed)
    made = kind()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.data.normal_()
    return made


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def exported(net: nn.Module) -> nn.Module:
    """The network as a GraphModule of torch.export."""
    return torch.export.export(net.eval(), (images(1),)).module()


def payload(name: str):
    """The runtime's module, loaded from its file as on a device."""
    path = Path(deploy_prune.__file__).parent / "device" / "payload" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"payload_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outputs(name: str, artifact, x: Tensor) -> list[Tensor]:
    """One input at a time."""
    model = payload(name).Model(str(artifact.path), 1, artifact.layout)
    found = []
    for one in x.split(artifact.input_shape[0]):
        model.feed(one.numpy())
        found.append(model.run())
    return [torch.from_numpy(numpy.concatenate(column)) for column in zip(*found, strict=True)]


def distance(net: nn.Module, found: Tensor, x: Tensor) -> float:
    """max|a - b| / max|a|, a the network's only output."""
    with torch.no_grad():
        expected = net.eval()(x)
    assert expected.shape == found.shape
    return float((expected - found).abs().max() / expected.abs().max())


def swapped(net: nn.Module) -> None:
    """The head's first two output channels in each other's place."""
    for tensor in (net.head.weight.data, net.head.bias.data):
        tensor[[0, 1]] = tensor[[1, 0]]


def unbiased(net: nn.Module) -> None:
    """A bias dropped."""
    net.depth.bias.data.zero_()


FAULTS = {"swapped": swapped, "unbiased": unbiased}
