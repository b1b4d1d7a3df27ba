"""`deploy_prune.prune` with a target: budgets of latency and size, for networks of any inputs, without a recipe."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from input_kinds import Of
from tiny_run import arithmetic_device
from torch import nn

import deploy_prune
from deploy_prune.api.prune import PredictedWarning
from deploy_prune.budget import candidates
from deploy_prune.data.examples import Batch
from deploy_prune.device.targets import load_target
from deploy_prune.errors import BudgetError, DataError, ExportError, TargetError
from deploy_prune.families.raw_form import RawForm
from deploy_prune.training.loop import Session, make_accelerator

HOST = replace(load_target("host"), granularity=4)


@pytest.fixture
def device(tmp_path, monkeypatch):
    """This machine keeps time by arithmetic, so what is asked can be met to the digit that widths allow."""
    monkeypatch.setattr(candidates, "VARIANTS", 2)
    with arithmetic_device(tmp_path / "cache") as device:
        yield device


def prune(network, inputs, loss=None, batches=None, **given):
    torch.manual_seed(0)
    given = {"target": HOST, "steps": 4, "method": "magnitude", "runs": 10, "warmup": 1, **given}
    session = Session(accelerator=make_accelerator("cpu"), seed=0)
    return deploy_prune.prune(network, inputs, loss, batches or [inputs], session=session, **given)


# --- networks of every kind of input ---


class UNet(nn.Module):
    """[B, 3, H, W] -> classes [B, 4, H, W]."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.out, self.head = nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.Conv2d(2 * width, 4, 1)

    def forward(self, x):
        high = self.down(x).relu()
        low = self.deep(F.max_pool2d(high, 2)).relu()
        return self.head(self.out(torch.cat([self.up(low), high], 1)).relu())


def unet():
    return UNet(), (torch.randn(2, 3, 12, 20),)


def audio():
    layers = [nn.Conv1d(1, 32, 9, 4), nn.ReLU(), nn.Conv1d(32, 64, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool1d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 5)), (torch.randn(2, 1, 400),)


def two_inputs():
    layers = {"a": nn.Conv2d(3, 32, 3), "b": nn.Linear(4, 48), "c": nn.Linear(80, 64), "head": nn.Linear(64, 5)}
    network = Of(lambda s, x, y: s.head(s.c(torch.cat([s.a(x).mean((2, 3)), s.b(y)], 1).relu()).relu()), **layers)
    return network, (torch.randn(2, 3, 12, 8), torch.randn(2, 4))


def tokens():
    layers = {"words": nn.Embedding(50, 96), "mid": nn.Linear(96, 128), "head": nn.Linear(128, 5)}
    return Of(lambda s, x: s.head(s.mid(s.words(x)).relu().mean(1)), **layers), (torch.randint(0, 50, (2, 12)),)


def slowly(make):
    return pytest.param(make, marks=pytest.mark.slow)


@pytest.mark.parametrize("make", [audio, slowly(unet), slowly(two_inputs), slowly(tokens)])
def test_a_latency_is_met_by_measurement(make, device):
    torch.manual_seed(0)
    network, inputs = make()
    (found,) = prune(network, inputs, lambda forward, batch: forward(*batch).square().mean(), budget="60%")
    assert found.budget.metric == "latency"
    assert found.is_measured
    assert found.slim_ms == pytest.approx(0.6 * found.dense_ms, rel=0.03)
    assert found.plan.chosen in found.plan.candidates
    assert all(int(mask.sum()) % 4 == 0 for mask in found.keep.values())
    assert found.network(*inputs).shape == network(*inputs).shape
    assert device.asked["bench"] >= 1 + len(found.plan.candidates)


def test_milliseconds_a_share_a_size_and_macs_of_one_search(device):
    network, inputs = audio()
    calls = []

    def loss(forward, batch):
        calls.append(1)
        return forward(*batch).square().mean()

    dense = prune(network, inputs, loss, budget="100%")[0].dense_ms
    calls.clear()
    budgets = [f"{0.7 * dense:.4f} ms", "50%", "60% size", "50% macs"]
    asked, half, small, few = prune(network, inputs, loss, budget=budgets, method="gate")
    assert len(calls) == 4
    assert asked.found is half.found is small.found is few.found
    assert asked.slim_ms == pytest.approx(0.7 * dense, rel=0.03)
    assert half.slim_ms == pytest.approx(0.5 * dense, rel=0.03)
    assert small.plan.chosen.observed <= 0.6 * small.plan.chosen.dense
    assert few.macs <= 0.5 * few.dense_macs
    assert (few.slim_ms, few.dense_ms, small.slim_ms) == (None, None, None)
    assert repr(few) == f"<Pruned to {few.budget.text}: {few.macs / 1e6:.3g} of {few.dense_macs / 1e6:.3g} MMACs>"
    assert f": {half.slim_ms:.3g} of {half.dense_ms:.3g} ms, " in repr(half)
    assert {p.target.name for p in (asked, half, small, few)} == {"host"}


def test_a_network_in_half_precision_is_measured_as_it_is_exported(device):
    network, inputs = audio()
    (found,) = prune(network.bfloat16(), (inputs[0].bfloat16(),), lambda f, b: f(*b).float().mean(), budget="60% size")
    assert found.plan.chosen.observed <= 0.6 * found.plan.chosen.dense
    assert next(found.network.parameters()).dtype is torch.bfloat16


def test_a_granule_is_the_callers(device):
    network, inputs = audio()
    (found,) = prune(network, inputs, lambda f, b: f(*b).mean(), budget="60%", granule=8)
    assert all(int(mask.sum()) % 8 == 0 for mask in found.keep.values())


# --- devices that aren't here ---


def test_a_device_that_is_not_attached_is_predicted_and_it_is_said():
    network, inputs = UNet(), (torch.randn(2, 3, 48, 80),)
    with pytest.warns(PredictedWarning, match=r"pixel-8 isn't attached .*predicted, not measured"):
        (found,) = prune(network, inputs, lambda f, b: f(*b).mean(), budget="60%", target="pixel-8")
    assert not found.is_measured
    assert 0.5 * found.dense_ms < found.slim_ms <= 0.6 * found.dense_ms
    assert " ms (predicted), " in repr(found)


# --- a network's own loss ---


class Detector(nn.Sequential):
    """Says itself what its raw form is."""

    def raw_form(self, inputs):
        return RawForm(network=nn.Sequential(*self), loss=lambda outputs, y: (outputs - y).square().mean(), decode=list)


def test_a_raw_form_and_a_family_bring_their_own_loss():
    x, y = torch.randn(6, 4), torch.randn(6, 3)
    layers = [nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)]
    seen = []
    own = RawForm(network=nn.Sequential(*layers), loss=lambda out, y: seen.append(y) or (out - y).square().mean())
    batch = Batch((x,), y) if hasattr(Batch, "_fields") else (x, y)
    (found,) = prune(own, x, batches=[batch], target=None, method="gate")
    assert all(torch.equal(one, y) for one in seen)
    assert len(seen) == 4
    assert found.form.loss is own.loss
    assert found.form.network is found.network is not own.network
    (again,) = prune(Detector(*layers), x, batches=[batch], target=None)
    assert again.form.decode is list


# --- what is refused ---


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"budget": "4 ms", "target": None}, BudgetError, r"is of latency, which needs target=\.\.\."),
        ({"budget": "2 kB", "target": None}, BudgetError, r"is of size, which needs target=\.\.\."),
        (
            {"budget": "0.001 ms"},
            BudgetError,
            r"'0.001 ms' can't be met on host: it asks for 0.001 ms, and the smallest",
        ),
        ({"budget": "1% size"}, BudgetError, r"can't be met on host: .*smallest reachable is .* bytes"),
        ({"target": "hots"}, TargetError, "Perhaps you meant 'host'"),
        ({"target": replace(HOST, precision="int4")}, ExportError, "can't be written in int4"),
        ({"target": replace(HOST, format="tensorrt")}, ExportError, "tensorrt can't take 2 inputs"),
        ({"loss": None}, DataError, "has none of its own; give a function"),
    ],
)
def test_what_is_refused_before_any_training(given, error, message, device):
    network, inputs = two_inputs()

    def never(forward, batch):
        raise AssertionError

    with pytest.raises(error, match=message):
        prune(network, inputs, **{"loss": never, "budget": "50%", **given})
