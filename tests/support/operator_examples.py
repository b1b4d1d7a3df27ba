"""Networks around each operator of torch's core set, and of others that networks call: the name of the operator first.

EXAMPLES: the stem's channels can be cut through it. LEFT: operators of the core set with no example, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from surgery_constructs import Net, Own, conv, p, tokens
from torch import Tensor, nn

aten = torch.ops.aten
Run = Callable[[Tensor], Tensor]


def line(run: Run) -> Run:
    """Of x [B, C, 8, 8] as [B, C, 64]."""
    return lambda x: run(x.flatten(2)).unsqueeze(-1)


def volume(run: Run) -> Run:
    """Of x [B, C, 8, 8] as [B, C, 2, 4, 8]."""
    return lambda x: run(x.unflatten(2, (2, 4))).flatten(2, 3)


def first(run: Callable[[Tensor], Any]) -> Run:
    """The first of several results."""
    return lambda x: run(x)[0]


def compared(x: Tensor) -> Tensor:
    y = x.sigmoid() - 0.5
    a, b = x > 0, y < 0.1
    found = [x.ge(0.1), x.le(0.3), x.eq(0.0), x.ne(0.0), a & b, a | b, a ^ b, ~a, torch.logical_and(a, b)]
    found += [torch.bitwise_and(a, b), torch.bitwise_or(a, b), torch.bitwise_xor(a, b), torch.bitwise_not(b)]
    found += [torch.logical_or(a, b), torch.logical_xor(a, b), torch.logical_not(b), x.isnan(), x.isinf()]
    return torch.stack([f.to(x.dtype) for f in found]).sum(0) * x + torch.where(a, x, y)


def smooth(x: Tensor) -> Tensor:
    y = x.sigmoid() * 0.5 + 0.2
    one = y.acos() + (y + 1).acosh() + y.asin() + y.asinh() + y.atan() + torch.atan2(y, x) + y.atanh() + y.cos()
    two = y.cosh() + y.erf() + y.exp() + y.expm1() + y.log() + y.log10() + y.log1p() + y.log2() + y.reciprocal()
    return one + two + y.rsqrt() + y.sin() + y.sinh() + y.sqrt() + y.tan() + x.tanh() + y.pow(1.5) + y**x + 2**x


def stepped(x: Tensor) -> Tensor:
    one = x.abs() + x.ceil() + x.floor() + x.round() + x.trunc() + x.sign() + x.neg() + x.fmod(0.3) + x.remainder(0.4)
    two = x.clamp(-1, 1) + torch.maximum(x, x.sin()) + torch.minimum(x, x.cos()) + x / 2 - x * 3
    return one + two


ACTIVATIONS = nn.Sequential(
    nn.LeakyReLU(), nn.ELU(), nn.GELU(), nn.Hardtanh(), nn.Softplus(), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.SELU()
)


def integers(x: Tensor) -> Tensor:
    n = (x * 4).to(torch.int32)
    parts = [torch.bitwise_and(n, 3), torch.bitwise_or(n, 4), torch.bitwise_xor(n, 5), torch.bitwise_not(n)]
    return sum(parts + [n // 2, n % 3, n << 1]).to(x.dtype)


def reduced(x: Tensor) -> Tensor:
    y = x.flatten(2)
    parts = [y.mean(2), y.sum(2), y.amax(2), y.amin(2), y.prod(2), y.var(2), y.std(2), y.norm(dim=2), y.logsumexp(2)]
    parts += [torch.any(y > 1, 2), torch.all(y > -1, 2), y.argmax(2), y.argmin(2), y.max(2)[0], y.min(2)[0]]
    parts += [y.median(2)[0], y.kthvalue(3, 2)[0], y.mode(2)[0], y.nansum(2), torch.linalg.vector_norm(y, dim=2)]
    parts += [torch.var_mean(y, 2)[0], *torch.std_mean(y, 2), *torch.aminmax(y, dim=2), y.quantile(0.3, 2)]
    return x + sum(part.to(x.dtype) for part in parts)[..., None, None]


def scanned(x: Tensor) -> Tensor:
    y = x.flatten(2)
    parts = [y.cumsum(2), (y.sigmoid() + 0.5).cumprod(2), y.cummax(2)[0], y.cummin(2)[0], y.logcumsumexp(2)]
    parts += [y.sort(2)[0], y.argsort(2), y.topk(64, 2)[0], y.softmax(2), y.log_softmax(2)]
    return sum(part.to(x.dtype) for part in parts).unflatten(2, (8, 8))


def unpooled(x: Tensor) -> Tensor:
    y, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(y.sin(), places, 2)


def unpooled_volume(x: Tensor) -> Tensor:
    y, places = F.max_pool3d(x, 2, return_indices=True)
    return F.max_unpool3d(y.sin(), places, 2)


def unpooled_line(x: Tensor) -> Tensor:
    y, places = F.max_pool1d(x, 2, return_indices=True)
    return F.max_unpool1d(y.sin(), places, 2)


def fourier(x: Tensor) -> Tensor:
    y = torch.view_as_real(torch.fft.rfft2(x)).sigmoid()
    return torch.fft.irfft2(torch.view_as_complex(y)) + torch.fft.fft(x).abs() + torch.fft.ifftn(x, dim=(2, 3)).real


def fourier_core(x: Tensor) -> Tensor:
    return aten._fft_c2r(aten._fft_c2c(aten._fft_r2c(x, [2, 3], 1, True), [2], 1, True), [2, 3], 1, 8)


def written(x: Tensor) -> Tensor:
    y = torch.slice_scatter(x, x[:, :, 1:3].sin(), 2, 1, 3)
    y = torch.select_scatter(y, x[:, :, 0].cos(), 2, 5)
    return y.index_put((torch.tensor([0]),), x[:1].tanh())


def scattered(x: Tensor) -> Tensor:
    y, places = x.flatten(2), x.flatten(2).argsort(2)
    base = torch.zeros_like(y)
    parts = [base.scatter(2, places, y), base.scatter(2, places, 0.5), base.scatter_add(2, places, y)]
    parts += [base.scatter_reduce(2, places, y, "amax"), y.gather(2, places), torch.take_along_dim(y, places, 2)]
    some = torch.tensor([0, 3])
    parts += [y.index_add(2, some, y[:, :, :2]), y.index_copy(2, some, y[:, :, 4:6]), y.index_fill(2, some, 0.1)]
    return sum(parts).unflatten(2, (8, 8))


def masked_tokens(n: Any, x: Tensor) -> Tensor:
    """A mask over the batch and the tokens."""
    y = x.clone()
    y[n.score(x)[..., 0] > 0] = 0.5
    return y.masked_fill(n.score(y) > 1, 0.1)


def groups_of_queries(n: Any, x: Tensor) -> Tensor:
    q, k, v = (f(x).unflatten(2, (-1, 4)).transpose(1, 2) for f in (n.q, n.k, n.v))
    return n.out(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


def weighted(n: Any, x: Tensor) -> Tensor:
    y = torch.einsum("...chw,oc->...ohw", x, n.weight)
    y = torch.tensordot(y, n.weight, dims=([1], [0])).permute(0, 3, 1, 2)
    return torch.einsum("b...w, wv -> b...v", y, n.last)


def compared_to_itself(x: Tensor) -> Tensor:
    tokens_BLC1 = x.flatten(2).transpose(1, 2).unsqueeze(-1)
    near = torch.cdist(tokens_BLC1, torch.linspace(-1, 1, 3).view(1, 1, 3, 1).expand(len(x), 64, -1, -1)).amin(-1)
    alike = F.cosine_similarity(x, x.sin(), dim=3)[..., None] + F.pairwise_distance(x, x.cos())[..., None]
    return alike + near.transpose(1, 2).unflatten(2, (8, 8))


def bagged(n: Any, x: Tensor) -> Tensor:
    y = n.bags(torch.tensor([[1, 2], [3, 4]]))
    offsets = torch.tensor([0, 2])
    z = aten._embedding_bag(n.bags.weight, torch.tensor([1, 2, 5]), offsets)[0]
    return x + (y + z).mean(0)[:, None, None]


def moved_about(n: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    y = aten.alias(x).clone().permute(0, 2, 3, 1).flip(1).view(b, h * w, c)
    y = torch.cat([aten._to_copy(y, dtype=torch.float64).to(y.dtype), y[:, 3:5], y.select(1, 0).unsqueeze(1)], 1)
    a, z = y.split_with_sizes([60, 7], 1)
    a = a.index_select(1, torch.tensor([3, 1])) + z[:, torch.tensor([0, 2])] + a.as_strided((b, 2, c), a.stride())
    a = torch.empty_like(a).copy_(a) + torch.empty_like(a).fill_(0.5) + a.new_ones(1)
    a = a.repeat(1, 2, 1).transpose(1, 2).unsqueeze(-1).expand(-1, -1, -1, 4)
    return a.diagonal(0, 2, 3).unsqueeze(2).squeeze(2)[..., None] + aten.full_like(x[..., :1], 2.0)[:, :, :4]


def multiplied(n: Any, x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1).flatten(0, 2)
    y = torch.addmm(n.bias, y, n.weight).sin() + torch.mm(y, n.weight)
    y = torch.bmm(y.view(len(x), 64, -1), n.weight.expand(len(x), -1, -1))
    return y.transpose(1, 2).unflatten(2, (8, 8))


def multiplied_by_other_names(n: Any, x: Tensor) -> Tensor:
    y = x.movedim(1, 3)
    y = torch.inner(y, n.weight) + torch.linalg.vecdot(y.unsqueeze(-2), n.weight)
    y = torch.linalg.multi_dot([y.flatten(0, 2), n.weight, n.last]).view(x.shape[0], 8, 8, -1)
    y = y @ torch.kron(n.weight, n.block) @ torch.outer(n.long, n.bias)
    return y.movedim(3, 1)


def joined(x: Tensor) -> Tensor:
    y = torch.hstack([x, x.sin()]).view(len(x), 2, -1, 8, 8)
    z = torch.stack([x.sin(), x.cos()], 1).view_as(y)
    y = torch.vstack([y + z, (y * z).expand_as(z)])[: len(x)]
    return torch.dstack([y.sum(1), x]) + F.one_hot((x[:, :, :1, 0] > 0).long(), 8).to(x.dtype)


def bytes_of(x: Tensor) -> Tensor:
    """The same numbers by way of their bytes."""
    return (x.view(torch.int32) >> 1).view(torch.uint8).flip(3).flip(3).view(torch.int32).to(x.dtype) * 1e-9


def layers(n: Any, x: Tensor) -> Tensor:
    y = aten.convolution(x, n.conv.weight, n.conv.bias, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    m = n.norm
    y = aten._native_batch_norm_legit_no_training(y, m.weight, m.bias, m.running_mean, m.running_var, 0.1, 1e-5)[0]
    return aten.native_dropout(y, 0.5, False)[0]


BOXES: Final = torch.tensor([[0, 0, 0, 4, 4], [1, 1, 2, 7, 6]])


@torch.library.custom_op("examples::roi_align", mutates_args=())
def roi_align(x: Tensor, boxes: Tensor, size: int) -> Tensor:
    """As torchvision's, for whole numbers: its own needs a torchvision that was built for this torch."""
    crops = [x[b : b + 1, :, top:bottom, left:right] for b, left, top, right, bottom in boxes.tolist()]
    return torch.cat([F.adaptive_avg_pool2d(crop, size) for crop in crops])


@torch.library.custom_op("examples::deform_conv2d", mutates_args=())
def deform_conv2d(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, groups: int, offset_groups: int
) -> Tensor:
    """As torchvision's, for kernels of one tap."""
    height, width = input.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([(columns + offset[:, 1]) / (width - 1), (rows + offset[:, 0]) / (height - 1)], -1)
    return F.conv2d(F.grid_sample(input, places * 2 - 1, align_corners=True) * mask, weight, bias, groups=groups)


@deform_conv2d.register_fake
def _(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, groups: int, offset_groups: int
) -> Tensor:
    return input.new_empty(len(input), len(weight), *input.shape[2:])


def deformed(n: Any, x: Tensor) -> Tensor:
    places = n.places(x)
    return deform_conv2d(x, n.weight, places[:, :2].tanh(), places[:, 2:].sigmoid(), n.bias, 1, 1)


@roi_align.register_fake
def _(x: Tensor, boxes: Tensor, size: int) -> Tensor:
    return x.new_empty(len(boxes), x.shape[1], size, size)


torch.manual_seed(0)
EXAMPLES: Final[dict[str, Net]] = {
    "eq ne ge le gt lt bitwise_and bitwise_or bitwise_xor bitwise_not logical_and logical_or logical_xor logical_not "
    "isnan isinf where": Net(compared),
    "acos acosh asin asinh atan atan2 atanh cos cosh erf exp expm1 log log10 log1p log2 reciprocal rsqrt sin sinh sqrt "
    "tan tanh pow sigmoid mul add": Net(smooth),
    "abs ceil floor round trunc sign neg fmod remainder clamp maximum minimum div sub": Net(stepped),
    "leaky_relu elu gelu hardtanh relu": Net(ACTIVATIONS),
    "bitwise_and bitwise_or bitwise_xor bitwise_not": Net(integers),
    "mean sum amax amin prod var any argmax argmin max min median kthvalue quantile": Net(reduced),
    "cumsum cummax sort topk softmax log_softmax": Net(scanned),
    "max min": Net(lambda x: torch.max(x, x.sin()) + torch.min(x, x.cos())),
    "_softmax _log_softmax": Net(lambda x: aten._softmax(x, 3, False) - aten._log_softmax(x, 2, False)),
    "max_pool2d_with_indices max_unpool2d": Net(unpooled),
    "max_pool3d_with_indices max_unpool3d": Net(volume(unpooled_volume)),
    "max_pool1d_with_indices max_unpool2d": Net(line(unpooled_line)),
    "avg_pool2d max_pool2d adaptive_avg_pool2d adaptive_max_pool2d": Net(
        lambda x: (
            F.avg_pool2d(F.max_pool2d(x, 3, 1, 1), 3, 1, 1)
            + F.adaptive_avg_pool2d(x, 1)
            + F.adaptive_max_pool2d(x, (1, 8))
            + F.lp_pool2d(x, 2, 1)
        )
    ),
    "avg_pool3d max_pool3d adaptive_avg_pool3d adaptive_max_pool3d": Net(
        volume(
            lambda x: (
                F.avg_pool3d(F.max_pool3d(x, (1, 3, 3), 1, (0, 1, 1)), 2, 1, 1)[..., 1:, 1:, 1:]
                + F.adaptive_avg_pool3d(x, (1, 1, 8))
                + F.adaptive_max_pool3d(x, 1)
            )
        )
    ),
    "avg_pool1d max_pool1d adaptive_avg_pool1d adaptive_max_pool1d": Net(
        line(
            lambda x: (
                F.avg_pool1d(F.max_pool1d(x, 3, 1, 1), 3, 1, 1)
                + F.adaptive_avg_pool1d(x, 1)
                + F.adaptive_max_pool1d(x, 1)
            )
        )
    ),
    "_adaptive_avg_pool2d _adaptive_avg_pool3d": Net(
        lambda x: aten._adaptive_avg_pool2d(x, [1, 8]) + volume(lambda v: aten._adaptive_avg_pool3d(v, [2, 4, 8]))(x)
    ),
    "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa "
    "_upsample_bicubic2d_aa": Net(
        lambda x: sum(
            [F.interpolate(x, scale_factor=2.0, mode=m) for m in ("nearest", "nearest-exact", "bilinear", "bicubic")]
            + [F.interpolate(x, size=(16, 16), mode=m, antialias=True) for m in ("bilinear", "bicubic")]
        )
    ),
    "upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact3d": Net(
        volume(
            lambda x: sum(F.interpolate(x, scale_factor=2.0, mode=m) for m in ("nearest", "nearest-exact", "trilinear"))
        )
    ),
    "upsample_nearest1d upsample_linear1d _upsample_nearest_exact1d": Net(
        line(lambda x: sum(F.interpolate(x, scale_factor=2.0, mode=m) for m in ("nearest", "nearest-exact", "linear")))
    ),
    "grid_sampler": Net(
        lambda x: F.grid_sample(
            x, F.affine_grid(torch.eye(2, 3).expand(len(x), -1, -1), [len(x), 1, 8, 8], False), align_corners=False
        )
    ),
    "grid_sampler_2d": Net(
        lambda x: aten.grid_sampler_2d(
            x, torch.linspace(-1, 1, 32).view(1, 4, 4, 2).expand(len(x), -1, -1, -1), 0, 0, False
        )
    ),
    "roi_align": Net(lambda x: roi_align(x, BOXES, 4)),
    "deform_conv2d": Net(Own(deformed, places=conv(8, 3, 1), weight=p(8, 8, 1, 1), bias=p(8))),
    "im2col col2im": Net(lambda x: F.fold(F.unfold(x, 3, padding=1).sin(), (8, 8), 3, padding=1)),
    "reflection_pad1d replication_pad1d": Net(
        line(lambda x: aten.reflection_pad1d(x, [1, 2]) + aten.replication_pad1d(x, [2, 1]))
    ),
    "reflection_pad2d replication_pad2d constant_pad_nd": Net(
        lambda x: (
            F.pad(aten.reflection_pad2d(x, [1, 2, 0, 1]) + aten.replication_pad2d(x, [2, 1, 1, 0]), (1, 0))
            + aten.constant_pad_nd(x, [2, 2, 1, 0])
        )
    ),
    "reflection_pad3d replication_pad3d": Net(
        volume(lambda x: aten.reflection_pad3d(x, [1] * 6) + aten.replication_pad3d(x, [1] * 6))
    ),
    "fft_rfft2 fft_irfft2 view_as_real view_as_complex fft_fft fft_ifftn": Net(fourier),
    "_fft_r2c _fft_c2r _fft_c2c": Net(fourier_core),
    "slice_scatter select_scatter index_put": Net(written),
    "scatter scatter_add scatter_reduce gather take_along_dim index_add index_copy index_fill": Net(scattered),
    "index_put masked_fill": Net(Own(tokens(masked_tokens), score=nn.Linear(8, 1))),
    "cdist cosine_similarity pairwise_distance": Net(compared_to_itself),
    "_cdist_forward": Net(lambda x: aten._cdist_forward(x, x.sin(), 2.0, None)),
    "linalg_cross": Net(lambda x: torch.linalg.cross(x[:, :, :3], x[:, :, 3:6].sin(), dim=2)),
    "einsum tensordot": Net(Own(weighted, weight=p(8, 8), last=p(8, 8))),
    "inner linalg_vecdot linalg_multi_dot kron outer": Net(
        Own(multiplied_by_other_names, weight=p(8, 8), last=p(8, 8), block=p(1, 2), long=p(16), bias=p(8))
    ),
    "hstack vstack dstack stack view_as expand_as one_hot": Net(joined),
    "view": Net(bytes_of),
    "layer_norm linear": Net(Own(tokens(lambda n, x: n.read(n.norm(x))), norm=nn.LayerNorm(8), read=nn.Linear(8, 8))),
    "_weight_norm": Net(nn.utils.parametrizations.weight_norm(conv())),
    "mv": Net(nn.utils.parametrizations.spectral_norm(conv())),
    "bilinear": Net(
        Own(lambda n, x: n.pair(x.movedim(1, 3), x.movedim(1, 3).sin()).movedim(3, 1), pair=nn.Bilinear(8, 8, 8))
    ),
    "scaled_dot_product_attention": Net(
        Own(tokens(groups_of_queries), q=nn.Linear(8, 16), k=nn.Linear(8, 8), v=nn.Linear(8, 8), out=nn.Linear(16, 8))
    ),
    "embedding": Net(Own(lambda n, x: n.levels((x * 2).clamp(-3, 3).long() + 3).mean(-1), levels=nn.Embedding(7, 4))),
    "embedding_bag _embedding_bag": Net(Own(bagged, bags=nn.EmbeddingBag(8, 8))),
    "alias clone copy fill full_like new_ones expand permute view unsqueeze squeeze select slice "
    "split_with_sizes flip diagonal repeat cat index index_select as_strided _to_copy": Net(Own(moved_about)),
    "addmm mm bmm": Net(Own(multiplied, weight=p(8, 8), bias=p(8))),
    "convolution native_dropout _native_batch_norm_legit_no_training": Net(
        Own(layers, conv=conv(), norm=nn.BatchNorm2d(8))
    ),
    "_native_batch_norm_legit": Net(lambda x: aten._native_batch_norm_legit(x, None, None, True, 0.1, 1e-5)[0]),
    "glu prelu": Net(nn.Sequential(nn.PReLU(8), nn.GLU(3), nn.RReLU(), nn.Hardshrink())),
    "instance_norm batch_norm": Net(nn.Sequential(nn.InstanceNorm2d(8), nn.BatchNorm2d(8, affine=False))),
}
"""Operators -> a network that calls them."""

LEFT: Final[dict[str, str]] = {
    "makes a new tensor, without labels": "arange empty empty_strided full rand randn randperm scalar_tensor",
    "gives a number, not a tensor": (
        "_local_scalar_dense sym_numel sym_size sym_storage_offset sym_stride sym_is_contiguous"
    ),
}
"""Why an operator of the core set has no example -> the operators."""
