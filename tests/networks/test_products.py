"""What operators multiply, against torch's own counter and against closed formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import counted_networks
import pytest
import torch
from flops import real_macs
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attention

from deploy_prune.latency.ops import list_ops
from deploy_prune.networks.products import BY_TORCH, FORMULAS, products


class Applies(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *x: Tensor) -> Any:
        return self.function(*x)


def program_of(network: nn.Module, *inputs: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(network.eval(), inputs, strict=False)


def counted(program: torch.export.ExportedProgram) -> int:
    return sum(product.macs for node in program.graph.nodes for product in products(node, lambda _: False))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(counted_networks.NETWORKS))
def test_networks_multiply_what_torch_counts_and_so_do_the_operators_of_a_runtime(name: str) -> None:
    network, x = counted_networks.make(name)
    program = program_of(network, x)
    assert counted(program) == sum(op.macs() for op in list_ops(program)) == real_macs(network, x) > 0


def tensors(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(shape) for shape in shapes)


OPERATORS = {
    "matrix": (torch.matmul, tensors((2, 3, 4), (4, 5))),
    "broadcast": (torch.matmul, tensors((2, 1, 3, 4), (6, 4, 5))),
    "vector times matrix": (torch.matmul, tensors((4,), (2, 4, 5))),
    "matrix times vector": (torch.matmul, tensors((2, 3, 4), (4,))),
    "mm": (torch.mm, tensors((3, 4), (4, 5))),
    "addmm": (torch.addmm, tensors((5,), (3, 4), (4, 5))),
    "baddbmm": (torch.baddbmm, tensors((2, 3, 5), (2, 3, 4), (2, 4, 5))),
    "tensordot": (lambda a, b: torch.tensordot(a, b, dims=2), tensors((2, 3, 4), (3, 4, 5))),
    "inner": (torch.inner, tensors((2, 3), (5, 3))),
    "multi_dot": (lambda *x: torch.linalg.multi_dot(x), tensors((2, 3), (3, 4), (4, 5))),
    "multi_dot of four": (lambda *x: torch.linalg.multi_dot(x), tensors((9, 3), (3, 8), (8, 2), (2, 7))),
    "tensordot over other dimensions": (
        lambda a, b: torch.tensordot(a, b, dims=([0, 2], [2, 0])), tensors((2, 3, 4), (4, 5, 2))
    ),
    "inner of blocks": (torch.inner, tensors((2, 4, 3), (5, 3))),
    "inner of vectors": (torch.inner, tensors((3,), (3,))),
    "power": (lambda a: torch.linalg.matrix_power(a, 5), tensors((4, 4))),
    "one image": (nn.Conv2d(3, 4, 3, stride=2), tensors((3, 9, 9))),
    "one image, transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), tensors((4, 5, 5))),
    "one sequence": (nn.LSTM(3, 5, num_layers=2), tensors((7, 3))),
    "masked attention": (attention, tensors((2, 4, 6, 8), (2, 4, 7, 8), (2, 4, 7, 8), (6, 7))),
    "attention of other values": (attention, tensors((2, 3, 6, 8), (2, 3, 7, 8), (2, 3, 7, 5))),
    "attention of shared heads": (
        lambda q, k, v: attention(q, k, v, enable_gqa=True),
        tensors((2, 4, 6, 8), (2, 2, 7, 8), (2, 2, 7, 8)),
    ),
    "attention without a batch": (attention, tensors((6, 8), (7, 8), (7, 8))),
    "elementwise": (lambda a, b: a * b + torch.outer(a[0], a[1]).sum(), tensors((3, 4), (3, 4))),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_multiplies_what_torch_counts(name: str) -> None:
    function, inputs = OPERATORS[name]
    network = function if isinstance(function, nn.Module) else Applies(function)
    assert counted(program_of(network, *inputs)) == real_macs(network, *inputs)


EINSUMS = (
    ("bi,oi->bo", (2, 3), (5, 3)), ("bi,bi->b", (2, 3), (2, 3)), ("bi,i->bi", (2, 3), (3,)), ("bi,oi", (2, 3), (5, 3)),
    ("bij,bk->bk", (2, 3, 4), (2, 5)), ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)), ("bijc,c->bij", (2, 3, 4, 5), (5,)),
    ("...i,oi->...o", (2, 3, 4), (5, 4)), ("i,j->ij", (2,), (3,)), ("ii->i", (3, 3)), ("bij->bi", (2, 3, 4)),
    ("bij,bjk->bk", (2, 3, 4), (1, 4, 5)), ("...ij,...jk->...ik", (2, 3, 4), (7, 2, 4, 5)),
    ("bik,k->b", (2, 3, 4), (4,)),
    ("bij,jk,kl->bil", (2, 3, 4), (4, 5), (5, 6)), ("ab,bc,cd,de->ae", (2, 9), (9, 3), (3, 7), (7, 2)),
    ("bhqd,bhkd,bhkv->bhqv", (2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 7)), ("iij,j->i", (3, 3, 4), (4,)),
)  # fmt: skip


BEST_ORDER = pytest.mark.skipif(not torch.backends.opt_einsum.is_available(), reason="opt_einsum is not installed")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ordered", [pytest.param(True, marks=BEST_ORDER), False])
@pytest.mark.parametrize(("equation", "shapes"), [(equation, shapes) for equation, *shapes in EINSUMS])
def test_an_einsum_multiplies_what_torch_counts(equation: str, shapes: list[tuple[int, ...]], ordered: bool) -> None:
    """Two at a time, in the best order that torch finds (``ordered``), or from the left."""
    network, inputs = Applies(lambda *x: torch.einsum(equation, *x)), tensors(*shapes)
    with torch.backends.opt_einsum.flags(enabled=ordered):
        assert counted(program_of(network, *inputs)) == real_macs(network, *inputs)


def test_operators_that_torch_does_not_count_are_counted_by_formula() -> None:
    assert counted(program_of(nn.Bilinear(3, 4, 5), *tensors((2, 6, 3), (2, 6, 4)))) == 2 * 6 * 5 * 3 * 4
    summed = Applies(torch.addbmm)
    assert counted(program_of(summed, *tensors((3, 5), (2, 3, 4), (2, 4, 5)))) == 2 * 3 * 4 * 5


ATEN = {
    name.partition("::")[2].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")
}


def test_the_tables_name_operators_that_there_are() -> None:
    assert set(FORMULAS) | BY_TORCH <= ATEN
    assert not set(FORMULAS) & BY_TORCH
