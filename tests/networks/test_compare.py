"""What is not finite, or nested in another way, is never equal."""

import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from deploy_prune.networks.compare import is_finite, not_finite, relative, relative_difference, tensors_of

NAN, INF = float("nan"), float("inf")
Pair = namedtuple("Pair", "x y")
ONES = torch.ones(2, 3)


@dataclass
class Output:
    logits: Tensor
    extra: tuple[Tensor, ...] = ()


def with_one(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.ones(2, 3, dtype=dtype)
    x[1, 2] = value
    return x


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("nest", [lambda x: x, lambda x: {"a": ONES, "b": [x]}, Output, lambda x: Pair(ONES, x)])
def test_what_is_not_finite_is_never_equal(bad, dtype, nest):
    good, other = nest(torch.ones(2, 3, dtype=dtype)), nest(with_one(bad, dtype))
    assert relative_difference(good, good) == 0
    for a, b in ((good, other), (other, good), (other, other)):
        assert relative_difference(a, b) == INF


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((ONES,), (ONES, ONES)),
        ({"a": ONES}, {"b": ONES}),
        ({"a": ONES}, {"a": ONES, "b": ONES}),
        ([ONES, None], [ONES]),
        ([ONES, None], [ONES, ONES]),
        (ONES, [ONES]),
        (ONES, torch.ones(3, 2)),
        (ONES, torch.ones(1, 3)),
        (ONES, ONES.int()),
        (ONES, None),
        (Output(ONES), Output(ONES, (ONES,))),
        (torch.zeros(3), torch.tensor([0, 0, 1e-30])),
        ([ONES, 1], [ONES, 1.0]),
    ],
)
def test_another_structure_is_a_difference_and_no_crash(a, b):
    assert relative_difference(a, b) == INF
    assert relative_difference(b, a) >= 1


@pytest.mark.parametrize("nothing", [(), {}, None, [None], torch.zeros(0, 4), "text"])
def test_where_there_is_nothing_to_compare_nothing_is_equal(nothing):
    assert relative_difference(nothing, nothing) == INF


def test_integers_truth_values_and_numbers_count():
    labels = torch.tensor([2**60, 1])
    assert relative_difference(labels, labels.clone()) == 0
    assert relative_difference(labels, labels + torch.tensor([1, 0])) == 1
    assert relative_difference(ONES.bool(), ~ONES.bool()) == 1
    assert relative_difference([ONES, 2], [ONES, 3]) == 1
    assert relative_difference([ONES, 2.0], [ONES, 2.5]) == 0.25


def test_nested_outputs_are_compared_tensor_by_tensor():
    a = OrderedDict(x=torch.tensor([1.0, -4.0]), y=[torch.tensor([10.0])])
    b = {"y": (torch.tensor([10.0]),), "x": torch.tensor([1.0, -4.4])}
    assert relative_difference(a, b) == pytest.approx(0.1)
    assert relative(torch.tensor([4.0]), torch.tensor([0.0])) == 1
    assert relative(torch.zeros(2), torch.zeros(2)) == 0
    assert len(tensors_of([a, 3, ONES.int()])) == 2
    assert not math.isnan(relative(with_one(NAN), ONES))


def test_the_place_of_what_is_not_finite_is_told():
    assert not_finite({"a": ONES, "b": [ONES.int(), with_one(NAN)]}) == "['b'][1]"
    assert not_finite(with_one(INF)) == ""
    assert not_finite([ONES]) is None
    assert is_finite(ONES.int())
    assert not is_finite(with_one(-INF))
