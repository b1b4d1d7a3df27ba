"""Small networks around one construct each, that real networks have and that graph-based pruning gets wrong.

CUT: the stem's channels can be cut. WHOLE: they can't, with a part of the reason that must be given.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


class Net(nn.Module):
    """Stem -> ``middle`` -> a convolution that reads ``read`` channels -> head. Inputs are [B, 3, 8, 8]."""

    def __init__(self, middle: Callable[[Tensor], Tensor], read: int = 8) -> None:
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, 8, 3, padding=1), middle
        if isinstance(middle, nn.Module):
            self.inner = middle
        self.read = nn.Conv2d(read, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.read(self.middle(self.stem(x)))).mean((2, 3)))


class Own(nn.Module):
    """A module of parameters, buffers and submodules, and what to do with them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self._run = run
        for name, part in parts.items():
            if isinstance(part, nn.Parameter | nn.Module):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self, x)


def p(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.5 + 0.5)


def conv(i: int = 8, o: int = 8, k: int = 3, **args: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **args)


def shuffle(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def partial_inplace(net: Any, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :4] = net.conv(x[:, :4])
    return x


def inplace_add(net: Any, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :4] += x[:, 4:]
    y[:, 4:] = x[:, :4]
    return y + x


def radix(net: Any, x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    u = net.conv(x).view(b, 2, 8, h, w)
    gap = u.sum(1).mean((2, 3), keepdim=True)
    weight = net.fc(gap).view(b, 2, 8, 1, 1).softmax(1)
    return (u * weight).sum(1)


def tokens(run: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Run on [B, L, C] instead of [B, C, H, W]."""

    def wrapped(net: Any, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = run(net, x.flatten(2).transpose(1, 2))
        return y.transpose(1, 2).reshape(b, -1, h, w)

    return wrapped


def heads(net: Any, x: Tensor) -> Tensor:
    b, length, c = x.shape
    q, k, v = net.qkv(x).reshape(b, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    attention = (q @ k.transpose(-2, -1) * 0.5).softmax(-1)
    return net.out((attention @ v).transpose(1, 2).reshape(b, length, c))


def chunked_heads(net: Any, x: Tensor) -> Tensor:
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in net.qkv(x).chunk(3, -1))
    return net.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def grouped_query(net: Any, x: Tensor) -> Tensor:
    b, length, _ = x.shape
    q = net.q(x).view(b, length, 4, 4).transpose(1, 2)
    k, v = (t.view(b, length, 2, 4).transpose(1, 2) for t in (net.k(x), net.v(x)))
    k, v = (t[:, :, None].expand(b, 2, 2, length, 4).reshape(b, 4, length, 4) for t in (k, v))
    return net.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, length, 16))


def rotary(net: Any, x: Tensor) -> Tensor:
    def turn(t: Tensor) -> Tensor:
        return t * net.angles.cos() + torch.cat([-t[..., 2:], t[..., :2]], -1) * net.angles.sin()

    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in net.qkv(x).chunk(3, -1))
    q, k = turn(net.norm(q)), turn(k)
    return net.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def einsum_heads(net: Any, x: Tensor) -> Tensor:
    q, k, v = (torch.einsum("blc,chd->bhld", x, w) for w in (net.q, net.k, net.v))
    return torch.einsum("bhij,bhjd,hdc->bic", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v, net.out)


def windows(net: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    x = x.roll((-2, -2), (2, 3)).view(b, c, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    x = heads(net, x).view(b, 2, 2, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
    return x.roll((2, 2), (2, 3))


def merge_patches(net: Any, x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    parts = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return net.reduce(net.norm(torch.cat(parts, -1))).permute(0, 3, 1, 2)


def c2f(net: Any, x: Tensor) -> Tensor:
    parts = list(net.first(x).chunk(2, 1))
    parts.append(net.second(parts[-1]))
    return net.last(torch.cat(parts, 1))


def rms(net: Any, x: Tensor) -> Tensor:
    return net.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def own_layer_norm(net: Any, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    return net.weight[:, None, None] * (x - mean) / (variance + 1e-6).sqrt() + net.bias[:, None, None]


def response_norm(net: Any, x: Tensor) -> Tensor:
    strength = x.norm(dim=(1, 2), keepdim=True)
    return x + net.weight * x * (strength / (strength.mean(-1, keepdim=True) + 1e-6)) + net.bias


def standardised(net: Any, x: Tensor) -> Tensor:
    weight = F.batch_norm(net.weight.reshape(1, 8, -1), None, None, training=True, momentum=0.0).reshape_as(net.weight)
    return F.conv2d(x, weight, padding=1)


def involution(net: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    kernel = net.kernel(x).view(b, 2, 1, 9, h, w)
    patches = F.unfold(x, 3, padding=1).view(b, 2, c // 2, 9, h, w)
    return (patches * kernel).sum(3).reshape(b, c, h, w)


class Scaled(nn.Conv2d):
    """A convolution that computes its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 0.7, self.bias, padding=self.padding)


def shared(net: Any, x: Tensor) -> Tensor:
    return net.conv(net.conv(x).relu())


def unet(net: Any, x: Tensor) -> Tensor:
    down = net.down(F.max_pool2d(x, 2))
    return torch.cat([F.interpolate(down, scale_factor=2.0, mode="bilinear"), x], 1)


def old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(module)


def no_grad(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = net.conv(x)
    return x + y


def reentrant(net: Any, x: Tensor) -> Tensor:
    return checkpoint(net.conv, x, use_reentrant=True)


def few_tokens(net: Any, x: Tensor) -> Tensor:
    """As many tokens as channels: a table over them has the same size both ways."""
    y = F.adaptive_avg_pool2d(x, (4, 2)).flatten(2).transpose(1, 2) + net.table
    return y.transpose(1, 2).reshape(-1, 8, 4, 2)


def nonlocal_block(net: Any, x: Tensor) -> Tensor:
    q, k, v = (c(x).flatten(2) for c in (net.q, net.k, net.v))
    y = torch.bmm((q.transpose(1, 2) @ k).softmax(-1), v.transpose(1, 2)).transpose(1, 2)
    return x + net.out(y.reshape(len(x), -1, *x.shape[2:]))


def swiglu(net: Any, x: Tensor) -> Tensor:
    gate, up = net.up(x).chunk(2, -1)
    return net.down(F.silu(gate) * up)


def focus(x: Tensor) -> Tensor:
    return torch.cat([x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)], 1)


def depth_to_space(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, h * 2, w * 2)


def ghost(net: Any, x: Tensor) -> Tensor:
    first = net.first(x)
    return torch.cat([first, net.cheap(first)], 1)[:, :7]


def blurred(net: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, net.kernel.expand(x.shape[1], -1, -1, -1), padding=1, groups=x.shape[1])


def queries(net: Any, x: Tensor) -> Tensor:
    """Attention from one learned query; its answer is added everywhere."""
    k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in net.kv(x).chunk(2, -1))
    q = net.query.expand(len(x), -1, -1).unflatten(-1, (2, 4)).transpose(1, 2)
    return x + net.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def standardised_by_hand(net: Any, x: Tensor) -> Tensor:
    w = net.weight
    mean, std = w.mean((1, 2, 3), keepdim=True), w.std((1, 2, 3), keepdim=True, unbiased=False)
    return F.conv2d(x, (w - mean) / (std + 1e-5), padding=1)


def standardised_as_in_bit(net: Any, x: Tensor) -> Tensor:
    v, m = torch.var_mean(net.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
    return F.conv2d(x, (net.weight - m) / torch.sqrt(v + 1e-10), padding=1)


def standardised_flat(net: Any, x: Tensor) -> Tensor:
    w = net.weight - net.weight.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
    return F.conv2d(x, w / (w.view(w.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5), padding=1)


def tokens_of(run: Callable[[Tensor], Tensor]) -> Own:
    return Own(tokens(lambda _, x: run(x)))


def adaptive_norm(net: Any, x: Tensor) -> Tensor:
    shift, scale = net.modulate(torch.ones(1, 3)).chunk(2, 1)
    y = net.norm(x.movedim(1, 3)) * (1 + scale[:, None, None]) + shift[:, None, None]
    return y.movedim(3, 1)


def fourier_layer(net: Any, x: Tensor) -> Tensor:
    """Li et al., arXiv 2010.08895."""
    w = net.weight
    w = w if w.is_complex() else torch.view_as_complex(w) if w.shape[-1] == 2 else torch.complex(w[0], w[1])
    return torch.fft.irfft2(torch.einsum("bixy,ioxy->boxy", torch.fft.rfft2(x), w))


def attention_parts() -> dict[str, nn.Module | Tensor]:
    return {"qkv": nn.Linear(8, 24), "out": nn.Linear(8, 8)}


torch.manual_seed(0)  # One in 200 draws of some of these networks puts out zeros, which no cut changes.

CUT: Final[dict[str, Net]] = {
    "slice, negative": Net(lambda x: x[:, -4:] + x[:, :4], 4),
    "slice, first half": Net(lambda x: x[:, :4], 4),
    "slice, two halves joined": Net(lambda x: torch.cat([x[:, 4:], x[:, :4]], 1)),
    "slice, every second": Net(lambda x: x[:, ::2], 4),
    "narrow": Net(lambda x: x.narrow(1, 2, 4), 4),
    "split, uneven, joined": Net(lambda x: torch.cat([t.relu() for t in x.split([3, 5], 1)], 1)),
    "split, dimension -3": Net(lambda x: torch.cat(x.split([2, 6], -3)[::-1], 1)),
    "split, a branch": Net(Own(lambda n, x: torch.cat([n.a(x[:, :3]), x[:, 3:]], 1), a=conv(3, 3))),
    "tensor_split": Net(lambda x: torch.cat(torch.tensor_split(x, 3, 1), 1)),
    "batch norm, then split by hand": Net(
        Own(lambda n, x: torch.cat([n.conv(t) for t in n.norm(x).split((4, 4), 1)], 1) + n.norm(x).view(-1, 8, 8, 8),
            norm=nn.BatchNorm2d(8), conv=conv(4, 4))
    ),
    "C2f": Net(Own(c2f, first=conv(), second=conv(4, 4), last=conv(12, 8, 1))),
    "channel shuffle by view": Net(shuffle),
    "channel shuffle": Net(nn.ChannelShuffle(2)),
    "flip of channels": Net(lambda x: x.flip(1)),
    "roll of channels": Net(lambda x: x.roll(3, 1)),
    "roll of windows": Net(lambda x: x.roll((1, 2), (2, 3))),
    "zeros padded": Net(lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)), 12),
    "zeros joined": Net(lambda x: torch.cat([x, torch.zeros_like(x)], 1), 16),
    "radix": Net(Own(radix, conv=conv(8, 16), fc=nn.Conv2d(8, 16, 1))),
    "partial convolution in place": Net(Own(partial_inplace, conv=conv(4, 4))),
    "slices assigned in place": Net(Own(inplace_add)),
    "index_select": Net(Own(lambda n, x: x.index_select(1, n.order), order=torch.randperm(8))),
    "index, a subset": Net(Own(lambda n, x: x[:, n.some], some=torch.tensor([5, 1, 6])), 3),
    "pixel shuffle": Net(nn.PixelShuffle(2), 2),
    "pixel unshuffle": Net(nn.PixelUnshuffle(2), 32),
    "repeat": Net(lambda x: x.repeat(1, 2, 1, 1), 16),
    "repeat_interleave": Net(lambda x: x.repeat_interleave(2, 1), 16),
    "expand": Net(lambda x: x[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2), 16),
    "depthwise, twice as many out": Net(conv(8, 16, groups=8), 16),
    "grouped": Net(conv(groups=2)),
    "grouped, fewer out": Net(conv(8, 4, groups=4), 4),
    "glu": Net(nn.GLU(1), 4),
    "maxout": Net(lambda x: x.view(-1, 4, 2, 8, 8).amax(2), 4),
    "instance norm": Net(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
    "group norm": Net(nn.GroupNorm(2, 8)),
    "buffer over channels": Net(Own(lambda n, x: x * n.scale, scale=torch.rand(1, 8, 1, 1))),
    "position table": Net(Own(lambda n, x: x + n.table, table=p(1, 8, 8, 8))),
    "position table over tokens": Net(Own(tokens(lambda n, x: x + n.table), table=p(1, 64, 8))),
    "class token": Net(
        Own(tokens(lambda n, x: torch.cat([n.token.expand(len(x), -1, -1), x], 1)[:, 1:]), token=p(1, 1, 8))
    ),
    "layer scale": Net(Own(lambda n, x: x + n.scale[:, None, None] * n.conv(x), scale=p(8), conv=conv())),
    "frozen batch norm": Net(Own(
        lambda n, x: x * (n.w * (n.v + 1e-5).rsqrt()).view(1, -1, 1, 1) + n.b.view(1, -1, 1, 1),
        w=torch.rand(8), v=torch.rand(8), b=torch.rand(8),
    )),
    "functional batch norm": Net(Own(lambda n, x: F.batch_norm(x, n.m, n.v, n.w, n.b), m=torch.rand(8),
                                     v=torch.rand(8) + 0.5, w=p(8), b=p(8))),
    "layer norm": Net(Own(tokens(lambda n, x: n.norm(x)), norm=nn.LayerNorm(8))),
    "RMS norm by hand": Net(Own(tokens(lambda n, x: n.norm(x)), norm=Own(rms, weight=p(8)))),
    "layer norm by hand": Net(Own(own_layer_norm, weight=p(8), bias=p(8))),
    "global response norm": Net(Own(lambda n, x: n.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
                                    norm=Own(response_norm, weight=p(8), bias=p(8)))),
    "weight norm, old": Net(old_weight_norm(conv())),
    "weight norm": Net(parametrizations.weight_norm(conv())),
    "RMS norm, channels last": Net(Own(lambda n, x: n.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
                                       norm=nn.RMSNorm(8))),
    "position table over as many tokens as channels": Net(Own(few_tokens, table=p(1, 8, 8))),
    "checkpoint, reentrant": Net(Own(reentrant, conv=conv())),
    "non-local block": Net(Own(nonlocal_block, q=conv(8, 4, 1), k=conv(8, 4, 1), v=conv(8, 4, 1), out=conv(4, 8, 1))),
    "SwiGLU": Net(Own(tokens(swiglu), up=nn.Linear(8, 24), down=nn.Linear(12, 8))),
    "space to depth by slices": Net(focus, 32),
    "depth to space by view": Net(depth_to_space, 2),
    "ghost": Net(Own(ghost, first=conv(8, 4, 1), cheap=conv(4, 4, groups=4)), 7),
    "blur by a shared kernel": Net(Own(blurred, kernel=torch.rand(1, 1, 3, 3))),
    "attention, learned query": Net(
        Own(tokens(queries), kv=nn.Linear(8, 16), out=nn.Linear(8, 8), query=p(1, 1, 8))
    ),
    "weight standardisation by hand": Net(Own(standardised_by_hand, weight=p(8, 8, 3, 3))),
    "weight standardisation, var_mean": Net(Own(standardised_as_in_bit, weight=p(8, 8, 3, 3))),
    "weight standardisation, its authors'": Net(Own(standardised_flat, weight=p(8, 8, 3, 3))),
    "typed as another": Net(Own(lambda n, x: n.conv(x).type_as(x) + x.to(n.conv.weight), conv=conv())),
    "biases from coordinates": Net(
        Own(lambda n, x: x + n.second(n.first(n.places).relu()).t().reshape(1, 8, 8, 8), places=torch.rand(64, 3),
            first=nn.Linear(3, 6), second=nn.Linear(6, 8))
    ),
    "tokens picked by the input": Net(Own(tokens(lambda n, x: x[torch.arange(len(x)), n.score(x)[..., 0].argmax(1)]
                                                 [:, None] + x), score=nn.Linear(8, 1))),
    "tokens gathered by the input": Net(
        Own(tokens(lambda n, x: x.gather(1, n.score(x).argsort(1).expand(-1, -1, x.shape[2]))), score=nn.Linear(8, 1))
    ),
    "spectral norm": Net(parametrizations.spectral_norm(conv())),
    "weight standardisation": Net(Own(standardised, weight=p(8, 8, 3, 3))),
    "einsum": Net(Own(lambda n, x: torch.einsum("bchw,oc->bohw", x, n.weight), weight=p(8, 8))),
    "linear over positions": Net(Own(lambda n, x: n.mix(x.flatten(2)).view(x.shape), mix=nn.Linear(64, 64))),
    "linear over the width": Net(nn.Linear(8, 8)),
    "unfold and linear": Net(
        Own(lambda n, x: n.read(F.unfold(x, 2, stride=2).transpose(1, 2)).transpose(1, 2).view(-1, 8, 4, 4),
            read=nn.Linear(32, 8))
    ),
    "no grad": Net(Own(no_grad, conv=conv())),
    "detached": Net(lambda x: x + x.detach().sigmoid()),
    "checkpoint": Net(Own(lambda n, x: checkpoint(n.conv, x, use_reentrant=False), conv=conv())),
    "attention, fused": Net(Own(tokens(heads), **attention_parts())),
    "attention, chunked": Net(Own(tokens(chunked_heads), **attention_parts())),
    "attention, grouped queries": Net(
        Own(tokens(grouped_query), q=nn.Linear(8, 16), k=nn.Linear(8, 8), v=nn.Linear(8, 8), out=nn.Linear(16, 8))
    ),
    "attention, rotary, norms shared by heads": Net(
        Own(tokens(rotary), **attention_parts(), norm=nn.LayerNorm(4), angles=torch.rand(64, 4))
    ),
    "made like another": Net(lambda x: x + x.new_ones(8, 8)),
    "attention, einsum": Net(Own(tokens(einsum_heads), q=p(8, 2, 4), k=p(8, 2, 4), v=p(8, 2, 4), out=p(2, 4, 8))),
    "attention, windows": Net(Own(windows, **attention_parts())),
    "attention, torch's": Net(
        Own(
            tokens(lambda n, x: n.mha(x, x, x, need_weights=False)[0]),
            mha=nn.MultiheadAttention(8, 2, batch_first=True),
        )
    ),
    "patch merging": Net(Own(merge_patches, norm=nn.LayerNorm(32), reduce=nn.Linear(32, 8))),
    "squeeze and excite": Net(Own(lambda n, x: x * n.fc(x.mean((2, 3), keepdim=True)).sigmoid(), fc=conv(k=1))),
    "transposed, grouped": Net(nn.ConvTranspose2d(8, 8, 2, stride=2, groups=4)),
    "upsampled": Net(nn.Upsample(scale_factor=2)),
    "involution": Net(Own(involution, kernel=nn.Conv2d(8, 18, 1))),
    "a subclass of convolution": Net(Scaled(8, 8, 3, padding=1)),
    "one layer used twice": Net(Own(shared, conv=conv())),
    "U-Net": Net(Own(unet, down=conv()), 16),
    "copied in place": Net(Own(lambda n, x: torch.empty_like(x).copy_(n.conv(x)) + x, conv=conv())),
    "spatial attention over kept channels": Net(
        Own(lambda n, x: x * n.conv(x).sigmoid(), conv=nn.Conv2d(8, 1, 3, padding=1))
    ),
    "scale of the whole": Net(Own(lambda n, x: x * n.scale, scale=p(1))),
    "dropout": Net(nn.Dropout2d(0.5)),
    "softmax over channels": Net(lambda x: x.softmax(1)),
    "smallest and largest channel": Net(lambda x: x - x.amin(1, keepdim=True) + x.amax(1, keepdim=True)),
    "largest channel and where, CBAM": Net(Own(lambda n, x: x * n.conv(torch.cat(
        [torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)], 1)).sigmoid(), conv=conv(2, 1, 7))),
    "length of channels": Net(lambda x: F.normalize(x, dim=1)),
    "sum over channels": Net(lambda x: x * x.sum(1, keepdim=True).tanh() + x.std(1, keepdim=True)),
    "mean over channels and positions": Net(
        lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)),
    "spatial attention by mean": Net(lambda x: x * x.mean(1, keepdim=True).sigmoid()),
    "layer norm without weights": Net(
        Own(tokens(lambda n, x: n.norm(x)), norm=nn.LayerNorm(8, elementwise_affine=False))),
    "layer norm without weights, by function": Net(
        tokens_of(lambda x: F.layer_norm(x, x.shape[-1:]) + F.rms_norm(x, x.shape[-1:]))),
    "group norm without weights": Net(nn.GroupNorm(2, 8, affine=False)),
    "group norm without weights, many groups": Net(nn.GroupNorm(4, 8, affine=False), 8),
    "one group": Net(nn.GroupNorm(1, 8, affine=False)),
    "RMS norm without weights": Net(Own(tokens(lambda n, x: n.norm(x)), norm=nn.RMSNorm(8, elementwise_affine=False))),
    "adaptive norm, DiT": Net(
        Own(adaptive_norm, norm=nn.LayerNorm(8, elementwise_affine=False), modulate=nn.Linear(3, 16))),
    "tokens picked by a mask": Net(Own(tokens(lambda n, x: n.score(x) + x[n.score(x)[..., 0] > 0].mean(0)),
                                       score=nn.Linear(8, 1))),
    "Fourier layer": Net(Own(fourier_layer, weight=p(8, 8, 8, 5, 2))),
    "Fourier layer of complex numbers": Net(
        Own(fourier_layer, weight=nn.Parameter(torch.randn(8, 8, 8, 5, dtype=torch.cfloat)))),
    "Fourier layer of two parts": Net(Own(fourier_layer, weight=p(2, 8, 8, 8, 5))),
    "size by hand": Net(lambda x: x.view(-1, 8, 64).mean(2).view(-1, 8, 1, 1)),
}  # fmt: skip

WHOLE: Final[dict[str, tuple[Net, str]]] = {
    "cumulative sum": (Net(lambda x: x.cumsum(1)), "cumsum mixes"),
    "largest channels": (Net(lambda x: x.topk(4, 1)[0], 4), "topk mixes"),
    "one channel at a time": (Net(lambda x: torch.stack([t.relu() for t in x.unbind(1)], 1)), "a single channel"),
    "product over channels": (
        Net(Own(tokens(lambda n, x: (x @ x.transpose(1, 2)).softmax(-1) @ x))), "matmul sums over it"),
    "layer norm over channels and positions": (Net(nn.LayerNorm([8, 8, 8])), "normalises over channels"),
    "convolution over channels": (
        Net(Own(lambda n, x: x * n.conv(x.mean((2, 3))[:, None])[:, 0, :, None, None],
                conv=nn.Conv1d(1, 1, 3, padding=1))), "mixes positions"),
    "indices that depend on the input": (
        Net(lambda x: x.gather(1, x.mean((2, 3), keepdim=True).argsort(1).expand_as(x))), "argsort mixes"),
    "GRU over channels": (
        Net(Own(tokens(lambda n, x: n.gru(x)[0]), gru=nn.GRU(8, 8, batch_first=True))), "gru"),
    "LSTM over channels": (
        Net(Own(tokens(lambda n, x: n.lstm(x)[0]), lstm=nn.LSTM(8, 8, batch_first=True))), "lstm"),
}  # fmt: skip
