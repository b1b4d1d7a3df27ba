"""Label rules of operators that mix positions and leave channels apart: pooling, resizing, sampling, patches."""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod

from torch import Tensor

from deploy_prune.surgery.labels import Value
from deploy_prune.surgery.rules.arithmetic import pointwise_like
from deploy_prune.surgery.rules.call import Call, Result, along, keep_dims, on


def over_positions(call: Call) -> Result:
    """Pooling, resizing, sampling: channels pass, positions mix; what says where (a grid) stays."""
    x, *places = call.values()
    for place in places:
        call.freeze(place, f"{call.name} takes it as positions")
    return call.alike(keep_dims(call, x, _mixed(call, x), f"{call.name} mixes positions"))


def _mixed(call: Call, x: Value) -> list[int]:
    """The dimensions of positions: as many as the operator's name says (else all but two), and what changes size."""
    rank = len(x.shape)
    named = re.search(r"([123])d", call.name)
    last = int(named[1]) if named else rank - 2
    resized = [d for d in range(rank) if x.shape[d] != call.shape[d]]
    return sorted({*resized, *range(rank - last, rank)})


def along_dims(call: Call) -> Result:
    """Transforms along some dimensions (Fourier, differences): the others pass.

    Raises:
        ValueError: further tensors are joined on.
    """
    x, *more = call.values()
    if more:
        raise ValueError(call.name)
    given = call.given.get("dim")
    dims = (
        [given]
        if isinstance(given, int)
        else given
        or ([-1] if call.name in _ALONG_LAST else [-2, -1] if call.name.endswith("fft2") else range(len(x.shape)))
    )
    return call.alike(keep_dims(call, x, list(dims), f"{call.name} mixes its coordinates"))


_ALONG_LAST = {"fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft", "diff", "cumulative_trapezoid"}


def unpooled(call: Call) -> Result:
    """max_unpool: values and their indices go together by channel; positions mix."""
    x, places = call.values()
    both = pointwise_like(replace(call, shapes=(x.shape,)), [x, places])
    assert isinstance(both, Value)
    return call.result(keep_dims(call, both, _mixed(call, both), f"{call.name} mixes positions"))


def of_boxes(call: Call) -> Result:
    """roi_align, roi_pool: x [B, C, H, W] and boxes [K, 5] to [K, C, h, w]; channels pass."""
    x, boxes = call.values()
    call.freeze(boxes, f"{call.name} takes it as positions")
    return call.alike(keep_dims(call, x, [0, 2, 3], f"{call.name} mixes positions"))


def patches(call: Call) -> Result:
    """im2col (F.unfold): [B, C, H, W] to [B, C taps, L]; every channel's taps lie together."""
    x = call.values()[0]
    reason = f"{call.name} mixes positions"
    ids = along(call, replace(x, fields=keep_dims(call, x, [-2, -1], reason)), -3)
    taps = call.shape[-2] // x.shape[-3]
    return call.result(on(-2, len(call.shape), None if ids is None else ids.repeat_interleave(taps)))


def folded(call: Call) -> Result:
    """col2im (F.fold): [B, C taps, L] to [B, C, H, W]; a channel's taps go together."""
    x = call.values()[0]
    ids = along(call, replace(x, fields=keep_dims(call, x, [-1], f"{call.name} mixes positions")), -2)
    return call.result(on(-3, len(call.shape), _whole_channels(call, ids, prod(call.given["kernel_size"]))))


def _whole_channels(call: Call, ids: Tensor | None, taps: int) -> Tensor | None:
    if ids is None:
        return None
    return call.labels.tie(ids.view(-1, taps), [1], f"{call.name} adds up its patches").flatten()
