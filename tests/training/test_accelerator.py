"""The user's own accelerator goes on as it was, whatever is trained beside it."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from deploy_prune.training.loop import Session, fit, make_accelerator, set_seed


@pytest.fixture(autouse=True)
def _as_before():
    """accelerate's state of this process, as the other tests have it."""
    kinds = (PartialState, AcceleratorState, GradientState)
    before = [dict(kind._shared_state) for kind in kinds]
    for kind in kinds:
        kind._shared_state.clear()
    yield
    for kind, kept in zip(kinds, before, strict=True):
        kind._shared_state.clear()
        kind._shared_state.update(kept)


def step(accelerator):
    """One step of a user's own training, by everything that accelerate keeps per process."""
    set_seed(0)
    network = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(torch.ones(8, 4), batch_size=4)
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    for batch in loader:
        with accelerator.accumulate(network), accelerator.autocast():
            out, mixed = network(batch), torch.is_autocast_enabled("cpu")
        accelerator.backward(out.float().mean())
        optimizer.step()
        optimizer.zero_grad()
    return mixed, accelerator.gather(next(network.parameters()).detach()).clone()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_users_accelerator_goes_on(precision):
    theirs = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    mixed, weights = step(theirs)
    assert mixed == (precision == "bf16")
    told = repr(theirs.state), theirs.num_processes, theirs.gradient_accumulation_steps
    ours = make_accelerator("cpu", "no" if precision == "bf16" else "bf16", 3)
    assert (ours.mixed_precision, ours.gradient_accumulation_steps) != (precision, 2)
    network = nn.Linear(4, 1)
    seen = []
    fit(
        lambda batch: seen.append(y := network(batch)) or y.float().mean(), iter([torch.ones(2, 4)] * 3),
        [torch.optim.SGD(network.parameters(), lr=0.1)], steps=1, work="ours",
        session=Session(accelerator=ours, seed=0),
    )  # fmt: skip
    assert seen[0].dtype == (torch.float32 if precision == "bf16" else torch.bfloat16)
    assert (repr(theirs.state), theirs.num_processes, theirs.gradient_accumulation_steps) == told
    again, same = step(theirs)
    assert again == mixed
    assert torch.equal(weights, same)
    assert AcceleratorState().mixed_precision == precision


def test_one_that_is_made_afterwards_is_as_it_asks():
    make_accelerator("cpu", "bf16", 4)
    theirs = Accelerator(cpu=True, mixed_precision="no")
    assert (theirs.mixed_precision, theirs.gradient_accumulation_steps) == ("no", 1)


def test_two_of_ours_keep_their_own():
    one, two = make_accelerator("cpu", "bf16", 4), make_accelerator("cpu", "no", 2)
    assert (one.mixed_precision, one.gradient_accumulation_steps) == ("bf16", 4)
    assert (two.mixed_precision, two.gradient_accumulation_steps) == ("no", 2)
    assert not PartialState._shared_state
    assert not AcceleratorState._shared_state
