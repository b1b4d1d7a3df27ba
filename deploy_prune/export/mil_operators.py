"""MIL's operators, computed by torch in float32: what they mean is from their definitions in coremltools' reference.

apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from deploy_prune.errors import ExportError

Arguments = Mapping[str, Any]
"""An operator's arguments by name: tensors, numbers, lists and strings."""


def _padding(a: Arguments, kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Before and after each spatial axis, in torch's order: the last axis first."""
    kind = a["pad_type"]
    if kind == "valid":
        pairs = [(0, 0) for _ in kernel]
    elif kind == "custom":
        pairs = list(zip(a["pad"][::2], a["pad"][1::2], strict=True))
    else:
        sizes = a["x"].shape[2:]
        pairs = [
            _same(*one, lower=kind == "same_lower") for one in zip(sizes, kernel, a["strides"], dilations, strict=True)
        ]
    return [width for pair in reversed(pairs) for width in pair]


def _same(size: int, kernel: int, stride: int, dilation: int, *, lower: bool) -> tuple[int, int]:
    """Padding that leaves ceil(size / stride) positions; the odd one goes after, or before if ``lower``."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    small, large = total // 2, total - total // 2
    return (large, small) if lower else (small, large)


def _conv(a: Arguments) -> Tensor:
    x = functional.pad(a["x"], _padding(a, a["weight"].shape[2:], a["dilations"]))
    conv = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}[x.dim()]
    return conv(x, a["weight"], a["bias"], a["strides"], 0, a["dilations"], a["groups"])


def _conv_transpose(a: Arguments) -> Tensor:
    x, bias = a["x"], None if a["bias"] is None else torch.as_tensor(a["bias"], dtype=torch.float32)
    conv = {3: torch.conv_transpose1d, 4: torch.conv_transpose2d, 5: torch.conv_transpose3d}[x.dim()]
    made: Tensor = conv(x, a["weight"], bias, a["strides"], 0, 0, a["groups"], a["dilations"])
    if a["pad_type"] == "custom":
        made = functional.pad(made, [-width for width in _padding(a, a["weight"].shape[2:], a["dilations"])])
    if a["pad_type"] not in {"valid", "custom"} or [*made.shape] != list(a["output_shape"] or made.shape):
        message = "a transposed convolution with padding on one side"
        raise NotImplementedError(message)
    return made


def _larger(a: Arguments) -> list[int]:
    scales = (a["scale_factor_height"], a["scale_factor_width"])
    return [int(size * scale) for size, scale in zip(a["x"].shape[-2:], scales, strict=True)]


def _nearest(a: Arguments) -> Tensor:
    """Defined for whole factors alone."""
    size = _larger(a)
    if any(large % small for large, small in zip(size, a["x"].shape[-2:], strict=True)):
        message = "the nearest neighbour at a scale that is no whole number"
        raise NotImplementedError(message)
    return functional.interpolate(a["x"], size, mode="nearest")


def _bilinear(a: Arguments) -> Tensor:
    return functional.interpolate(a["x"], _larger(a), mode="bilinear", align_corners=bool(a["align_corners"]))


def _crop(a: Arguments) -> Tensor:
    (top, bottom), (left, right) = a["crop_height"], a["crop_width"]
    return functional.pad(a["x"], [-left, -right, -top, -bottom])


def _gather(a: Arguments) -> Tensor:
    if a["batch_dims"]:
        message = "The package gathers along a batch, so its outputs can't be checked."
        raise ExportError(message)
    indices, axis = torch.as_tensor(a["indices"]).long(), a["axis"] % a["x"].dim()
    chosen: Tensor = a["x"].index_select(axis, indices.flatten())
    return chosen.reshape(*a["x"].shape[:axis], *indices.shape, *a["x"].shape[axis + 1 :])


def _max_pool(a: Arguments) -> Tensor:
    _require_floor(a)
    x = functional.pad(a["x"], _padding(a, a["kernel_sizes"], [1] * len(a["kernel_sizes"])), value=float("-inf"))
    return functional.max_pool2d(x, a["kernel_sizes"], a["strides"])


def _avg_pool(a: Arguments) -> Tensor:
    _require_floor(a)
    padding = _padding(a, a["kernel_sizes"], [1] * len(a["kernel_sizes"]))
    mean = functional.avg_pool2d(functional.pad(a["x"], padding), a["kernel_sizes"], a["strides"])
    if not a["exclude_padding_from_average"]:
        return mean
    share = functional.pad(torch.ones_like(a["x"]), padding)
    return mean / functional.avg_pool2d(share, a["kernel_sizes"], a["strides"])


def _require_floor(a: Arguments) -> None:
    if a["ceil_mode"]:
        message = "pooling with ceil_mode"
        raise NotImplementedError(message)


def _batch_norm(a: Arguments) -> Tensor:
    return functional.batch_norm(
        a["x"], a["mean"], a["variance"], a["gamma"], a["beta"], False, 0.0, float(a["epsilon"])
    )


def _layer_norm(a: Arguments) -> Tensor:
    shape = [a["x"].shape[axis] for axis in a["axes"]]
    return functional.layer_norm(a["x"], shape, a["gamma"], a["beta"], float(a["epsilon"]))


def _matmul(a: Arguments) -> Tensor:
    x = a["x"].transpose(-1, -2) if a["transpose_x"] else a["x"]
    return torch.matmul(x, a["y"].transpose(-1, -2) if a["transpose_y"] else a["y"])


def _slice_by_index(a: Arguments) -> Tensor:
    x, rank = a["x"], a["x"].dim()
    masks = [a[name] or [False] * rank for name in ("begin_mask", "end_mask", "squeeze_mask")]
    steps = a["stride"] or [1] * rank
    index: list[Any] = []
    for begin, end, step, no_begin, no_end, squeeze in zip(a["begin"], a["end"], steps, *masks, strict=True):
        index.append(begin if squeeze else slice(None if no_begin else begin, None if no_end else end, step))
    return x[tuple(index)]  # type: ignore[no-any-return]


def _slice_by_size(a: Arguments) -> Tensor:
    index = [slice(b, None if s == -1 else b + s) for b, s in zip(a["begin"], a["size"], strict=True)]
    return a["x"][tuple(index)]  # type: ignore[no-any-return]


def _split(a: Arguments) -> tuple[Tensor, ...]:
    x, axis = a["x"], a["axis"]
    sizes = a["split_sizes"] or [x.shape[axis] // a["num_splits"]] * a["num_splits"]
    return torch.split(x, sizes, axis)


def _pad(a: Arguments) -> Tensor:
    pairs = list(zip(a["pad"][::2], a["pad"][1::2], strict=True))
    widths = [width for pair in reversed(pairs) for width in pair]
    if a["mode"] == "constant":
        return functional.pad(a["x"], widths, value=float(a["constant_val"]))
    while len(widths) > 2 and widths[-2:] == [0, 0]:  # torch takes no more axes than are padded
        widths = widths[:-2]
    return functional.pad(a["x"], widths, mode=a["mode"])


def _reshape(a: Arguments) -> Tensor:
    """A 0 in the shape keeps the axis."""
    shape = [a["x"].shape[i] if size == 0 else size for i, size in enumerate(a["shape"])]
    return a["x"].reshape(shape)  # type: ignore[no-any-return]


def _squeeze(a: Arguments) -> Tensor:
    return a["x"].squeeze() if a["axes"] is None else a["x"].squeeze(tuple(a["axes"]))  # type: ignore[no-any-return]


def _expand_dims(a: Arguments) -> Tensor:
    x, rank = a["x"], a["x"].dim() + len(a["axes"])
    for axis in sorted(axis % rank for axis in a["axes"]):
        x = x.unsqueeze(axis)
    return x  # type: ignore[no-any-return]


def _gelu(a: Arguments) -> Tensor:
    if a["mode"] == "SIGMOID_APPROXIMATION":
        return a["x"] * torch.sigmoid(1.702 * a["x"])  # type: ignore[no-any-return]
    return functional.gelu(a["x"], approximate="none" if a["mode"] == "EXACT" else "tanh")


def _reduce(compute: Callable[..., Tensor]) -> Callable[[Arguments], Tensor]:
    def reduced(a: Arguments) -> Tensor:
        axes = range(a["x"].dim()) if a["axes"] is None else a["axes"]
        return compute(a["x"], dim=tuple(axes), keepdim=bool(a["keep_dims"]))

    return reduced


def _one(compute: Callable[[Tensor], Tensor]) -> Callable[[Arguments], Tensor]:
    return lambda a: compute(a["x"])


def _two(compute: Callable[[Any, Any], Tensor]) -> Callable[[Arguments], Tensor]:
    return lambda a: compute(torch.as_tensor(a["x"]), torch.as_tensor(a["y"]))


OPERATORS: Final[dict[str, Callable[[Arguments], Any]]] = {
    "add": _two(torch.add),
    "sub": _two(torch.sub),
    "mul": _two(torch.mul),
    "real_div": _two(torch.div),
    "maximum": _two(torch.maximum),
    "minimum": _two(torch.minimum),
    "pow": _two(torch.pow),
    "matmul": _matmul,
    "linear": lambda a: functional.linear(a["x"], a["weight"], torch.as_tensor(a["bias"], dtype=torch.float32)),
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "crop": _crop,
    "upsample_nearest_neighbor": _nearest,
    "upsample_bilinear": _bilinear,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "relu": _one(torch.relu),
    "relu6": _one(functional.relu6),
    "leaky_relu": lambda a: functional.leaky_relu(a["x"], float(a["alpha"])),
    "thresholded_relu": lambda a: torch.where(a["x"] >= a["alpha"], a["x"], 0.0),
    "clip": lambda a: a["x"].clamp(float(a["alpha"]), float(a["beta"])),
    "sigmoid": _one(torch.sigmoid),
    "sigmoid_hard": lambda a: (a["x"] * a["alpha"] + a["beta"]).clamp(0, 1),
    "silu": _one(functional.silu),
    "gelu": _gelu,
    "elu": lambda a: functional.elu(a["x"], float(a["alpha"])),
    "softplus": _one(functional.softplus),
    "tanh": _one(torch.tanh),
    "erf": _one(torch.erf),
    "exp": _one(torch.exp),
    "sqrt": _one(torch.sqrt),
    "abs": _one(torch.abs),
    "rsqrt": lambda a: (a["x"] + a["epsilon"]).rsqrt(),
    "softmax": lambda a: a["x"].softmax(a["axis"]),
    "reduce_mean": _reduce(torch.mean),
    "reduce_sum": _reduce(torch.sum),
    "reduce_max": _reduce(torch.amax),
    "reshape": _reshape,
    "transpose": lambda a: a["x"].permute(a["perm"]),
    "squeeze": _squeeze,
    "expand_dims": _expand_dims,
    "concat": lambda a: torch.cat(a["values"], a["axis"]),
    "stack": lambda a: torch.stack(a["values"], a["axis"]),
    "gather": _gather,
    "select": lambda a: torch.where(
        torch.as_tensor(a["cond"]).bool(), torch.as_tensor(a["a"]), torch.as_tensor(a["b"])
    ),
    "greater_equal": _two(torch.ge),
    "split": _split,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "pad": _pad,
    "tile": lambda a: a["x"].repeat(a["reps"]),
    "cast": _one(lambda x: x),
    "identity": _one(lambda x: x),
}
"""MIL operator -> its outputs, a tensor or a tuple of them. Casts between floats change nothing here."""
