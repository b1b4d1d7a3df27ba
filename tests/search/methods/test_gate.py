from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from search_run import run_search

from deploy_prune.search.methods.gate import derivative, trainable_gate
from deploy_prune.tasks.classification import CLASSIFIER

search = partial(run_search, "gate", share=0.4, steps=80)

M = 1e5


def literal(w, g):
    """TG_M(w; g) as it stands in the paper."""
    sawtooth = (M * w - torch.floor(M * w)) / M
    return (w > 0).to(w.dtype) + sawtooth * g(w)


@pytest.mark.parametrize("shape", ["constant", "sigmoid"])
def test_the_gate_is_the_papers_at_large_m(shape):
    w = torch.linspace(-4, 4, 999, dtype=torch.float64)  # even number of intervals: never on a tooth of the saw
    w = (w + 0.3 / M).requires_grad_()
    expected = literal(w, lambda v: derivative(v, shape))
    (expected_slope,) = torch.autograd.grad(expected.sum(), w)
    result = trainable_gate(w, shape)
    (slope,) = torch.autograd.grad(result.sum(), w)
    assert bool(((result - expected).abs() <= 1 / M).all())
    assert bool(((slope - expected_slope).abs() <= 1 / M).all())
    assert set(result.tolist()) == {0.0, 1.0}


def test_the_step_is_closed_at_zero_and_the_derivatives_are_known():
    w = torch.tensor([-1.0, 0.0, 1e-30, 1.0])
    assert trainable_gate(w, "constant").tolist() == [0, 0, 1, 1]
    assert derivative(w, "constant").tolist() == [1, 1, 1, 1]
    assert float(derivative(torch.zeros(()), "sigmoid")) == 0.25


@pytest.mark.parametrize("shape", ["constant", "sigmoid"])
@pytest.mark.parametrize("share", [0.7, 0.3])
def test_the_expected_cost_comes_down_to_the_budget(example, accelerator, shape, share):
    result = search(example, accelerator, share=share, steps=100, derivative=shape)
    last = [row["cost"] for row in result.trace[-30:]]
    assert share / 3 < sum(last) / len(last) < share + 0.08


def test_nothing_has_a_price_while_the_cost_is_within_the_limit(chained, accelerator):
    assert all(row["lambda"] == 0 for row in search(chained, accelerator, share=1.0, steps=10).trace)


@pytest.mark.parametrize("scale", [2.0**-10, 2.0**10])
def test_the_price_does_not_depend_on_the_losss_unit(chained, accelerator, scale):
    def scaled(forward, batch):
        return scale * CLASSIFIER.batch_loss(forward, batch)

    plain = search(chained, accelerator, steps=25, weight_decay=0)
    other = search(chained, accelerator, steps=25, weight_decay=0, loss=scaled, lr=0.01 / scale)
    for first, second in zip(plain.trace, other.trace, strict=True):
        assert second["loss"] == pytest.approx(scale * first["loss"], rel=0.05)
        assert second["cost"] == pytest.approx(first["cost"], abs=0.1)
        assert second["lambda"] == pytest.approx(first["lambda"], abs=0.1)


def test_the_limit_falls_linearly_and_then_stays(chained, accelerator):
    limits = [row["limit"] for row in search(chained, accelerator, share=0.5, steps=20, anneal=0.5).trace]
    assert limits == pytest.approx([1 - 0.05 * k for k in range(1, 11)] + [0.5] * 10)


def test_the_trace_has_a_row_a_step(chained, accelerator):
    trace = search(chained, accelerator, steps=7).trace
    assert [row["step"] for row in trace] == [1, 2, 3, 4, 5, 6, 7]
    assert all(set(row) == {"step", "loss", "cost", "limit", "lambda", "kept"} for row in trace)
    assert trace[0]["kept"] == 36
    assert trace[0]["cost"] == pytest.approx(1)
    assert all(row["lambda"] >= 0 for row in trace)


def test_the_weights_are_trained(chained, accelerator):
    result = search(chained, accelerator, steps=5)
    before = chained.network.state_dict()
    assert set(result.state) == set(before)
    changed = {name for name, tensor in result.state.items() if not torch.equal(tensor, before[name])}
    assert changed == set(before)


def test_no_group_closes_under_an_impossible_budget(example, accelerator):
    result = search(example, accelerator, share=1e-6, steps=60)
    assert result.trace[-1]["kept"] >= len(example.structure.groups)
    assert result.trace[-1]["cost"] > 0
    assert all(bool(torch.isfinite(score_C).all()) for score_C in result.scores.values())


def test_no_steps_leave_all_channels_equal(chained, accelerator):
    result = search(chained, accelerator, steps=0)
    assert result.trace == ()
    for first, second in itertools.pairwise(result.scores["3"].tolist()):
        assert first == second
