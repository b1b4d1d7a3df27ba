"""What torch's own counter says of a network, halved, with nothing hidden from it.

It is given formulas for two operators that it has none for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


def bilinear_flops(x: Sequence[int], weight_OIJ: Sequence[int], *rest: Any, **options: Any) -> int:
    """X [N, I] and y [N, J] with weight [1, O, I, J]."""
    return 2 * x[0] * prod(weight_OIJ)


def addbmm_flops(added: Sequence[int], a_BMK: Sequence[int], b_BKN: Sequence[int], **options: Any) -> int:
    """Products of B pairs of matrices, added up."""
    return 2 * prod(a_BMK) * b_BKN[2]


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Without the fused kernels that the counter doesn't look into: attention, Transformer layers, LSTM."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def real_macs(network: nn.Module, *inputs: Any) -> int:
    """Multiply-accumulates of one run in eval mode."""
    formulas = {aten._trilinear: bilinear_flops, aten.addbmm: addbmm_flops}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with plain_kernels(), torch.enable_grad(), counter:  # without gradients it fails on parameters given to modules
        (network if isinstance(network, fx.GraphModule) else network.eval())(*inputs)
    return counter.get_total_flops() // 2
