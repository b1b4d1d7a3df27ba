"""Any differentiable loss: half the MACs of a classifier, of style transfer, optical flow and translation."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from flops import real_macs
from task_networks import EXAMPLES, Example
from torch import nn
from torch.optim import Adam

import deploy_prune
from deploy_prune.api.prune import Pruned
from deploy_prune.training.loop import Session, fit, make_accelerator, one_cycle

pytestmark = pytest.mark.slow

TRAIN, SEARCH, RETRAIN = 200, 150, 700
WORSE = 1.10
"""How much higher the slim network's held-out loss may be."""


def train(network: nn.Module, example: Example, steps: int, seed: int) -> nn.Module:
    optimizer = Adam(network.train().parameters(), lr=example.lr)
    fit(
        lambda batch: example.loss(network, batch), example.batches(seed), [optimizer],
        session=Session(accelerator=make_accelerator("cpu"), seed=0), steps=steps, work="train",
        schedulers=one_cycle(optimizer, steps),
    )  # fmt: skip
    return network


@torch.no_grad()
def held_out_loss(network: nn.Module, example: Example) -> float:
    losses = [float(example.loss(network.eval(), batch)) for batch in example.test_batches()]
    return sum(losses) / len(losses)


@cache
def trained(name: str) -> tuple[nn.Module, float, float]:
    """The dense network, the held-out loss it has untrained, and that after as many steps as the slim one gets."""
    torch.manual_seed(0)
    example = EXAMPLES[name]
    network = example.network()
    untrained = held_out_loss(network, example)
    train(network, example, TRAIN, seed=1)
    longer = train(copy.deepcopy(network), example, SEARCH + RETRAIN, seed=2)
    return network, untrained, held_out_loss(longer, example)


def halved(name: str, method: str) -> Pruned:
    network, example = trained(name)[0], EXAMPLES[name]
    before = copy.deepcopy(network.state_dict())
    session = Session(accelerator=make_accelerator("cpu"), seed=0)
    (found,) = deploy_prune.prune(
        network, inputs_of(example), example.loss, example.batches(3), budget="50% macs", method=method, steps=SEARCH,
        lr=example.search_lr, batch_size=example.batch_size,
        min_channels=example.min_channels, session=session,
    )  # fmt: skip
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())
    return found


def inputs_of(example: Example) -> tuple[torch.Tensor, ...]:
    return tuple(x[:6] for x in next(example.batches(4))[: example.num_inputs])


def counted_macs(network: nn.Module, example: Example) -> float:
    """Per example, by torch's own counter."""
    inputs = inputs_of(example)
    return real_macs(network, *inputs) / len(inputs[0])


CASES = [
    ("classifier", "dap"), ("classifier", "gumbel"), ("style", "gate"), ("flow", "gumbel"), ("translation", "dap"),
    ("translation", "gate"),
]  # fmt: skip
"""Every task, and every method on two of them."""


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of the counter's switches
@pytest.mark.parametrize(("name", "method"), CASES)
def test_half_the_macs_cost_little(name, method):
    example = EXAMPLES[name]
    dense, untrained, dense_loss = trained(name)
    found = halved(name, method)
    assert found.proof.difference <= found.proof.tolerance
    assert 0.4 * found.dense_macs < found.macs <= 0.5 * found.dense_macs
    assert found.dense_macs == counted_macs(dense, example)
    assert found.macs == counted_macs(found.network, example)
    if name == "translation":
        kept = {group: int(mask.sum()) for group, mask in found.keep.items()}
        whole = {g.name: g.channels for g in found.structure.groups}
        assert any(kept[g] < whole[g] for g in kept if "attn" in g), "no head went"
        assert any(kept[g] < whole[g] for g in kept if "linear1" in g), "no hidden unit went"
        assert "places" in whole, "the embedding's width is not a group"
    slim_loss = held_out_loss(train(found.network, example, RETRAIN, seed=5), example)
    print(f"{name} {method}: untrained {untrained:.3f}, dense {dense_loss:.4f}, slim {slim_loss:.4f}")
    assert dense_loss < 0.7 * untrained
    assert slim_loss <= WORSE * dense_loss
