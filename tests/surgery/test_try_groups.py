"""A trial must see what it judges: values that hide a group from the output don't hide that its cut is wrong."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy_prune.errors import SurgeryError, VerificationError
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery import remembered, trial, try_groups
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.limits import LimitError
from deploy_prune.surgery.trace import evaluating
from deploy_prune.surgery.try_groups import keep_cuttable
from deploy_prune.surgery.visible_copy import redrawn
from deploy_prune.types import ChannelGroup, Structure

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A stem, a residual branch ("branch.0" makes the group under trial), and a head; ``act`` between the layers."""

    def __init__(self, act: Callable[[Tensor], Tensor] = F.relu, end: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.act, self.end = act, end
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.branch = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Conv2d(12, 8, 1))
        self.norm, self.scale = nn.BatchNorm2d(8), nn.Parameter(torch.ones(8, 1, 1))
        self.alpha = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        first, norm, last = self.branch
        x = x + self.alpha * self.scale * self.norm(last(self.act(norm(first(x)))))
        y = self.head(x.mean((2, 3)))
        return y if self.end is None else self.end(y)


def zero_head(net: Net) -> None:
    nn.init.zeros_(net.head.weight)


def constant_head(net: Net) -> None:
    nn.init.zeros_(net.head.weight)
    nn.init.constant_(net.head.bias, 3.0)


def zero_norm(net: Net) -> None:
    nn.init.zeros_(net.norm.weight)


def zero_scale(net: Net) -> None:
    nn.init.zeros_(net.scale)


def tiny_scale(net: Net) -> None:
    nn.init.constant_(net.scale, 1e-7)


def zero_alpha(net: Net) -> None:
    nn.init.zeros_(net.alpha)


def zero_last(net: Net) -> None:
    nn.init.zeros_(net.branch[2].weight)


def dead_units(net: Net) -> None:
    nn.init.uniform_(net.branch[1].bias, -120, -80)


def stale_statistics(net: Net) -> None:
    net.norm.running_var.fill_(1e14)


def huge_variance(net: Net) -> None:
    net.branch[1].running_var.fill_(1e14)
    nn.init.constant_(net.branch[1].bias, 2.0)


def saturated(net: Net) -> None:
    net.act = F.hardsigmoid
    nn.init.uniform_(net.branch[1].bias, 30, 40)


def saturated_sigmoid(net: Net) -> None:
    net.act = torch.sigmoid
    nn.init.uniform_(net.branch[1].bias, -300, -200)


def labels_only(net: Net) -> None:
    net.end = lambda y: y.argmax(1)


def no_gradient(net: Net) -> None:
    nn.init.zeros_(net.head.weight)
    net.end = lambda y: y.detach()


BLIND = (
    zero_head, constant_head, zero_norm, zero_scale, tiny_scale, zero_alpha, zero_last, dead_units, stale_statistics,
    huge_variance, saturated, saturated_sigmoid, labels_only, no_gradient,
)  # fmt: skip


def reversed_consumers(structure: Structure, name: str) -> Structure:
    """The consumers' units of one group in reversed order: cut and masked can't be equal."""

    def wrong(group: ChannelGroup) -> ChannelGroup:
        consumers = tuple(replace(a, unit_of=group.channels - 1 - a.unit_of) for a in group.consumers)
        of = {(a.tensor, a.axis): a for a in consumers}
        members = tuple(of.get((a.tensor, a.axis), a) for a in group.members)
        return replace(group, consumers=consumers, members=members)

    return replace(structure, groups=tuple(wrong(g) if g.name == name else g for g in structure.groups))


def failure(network: nn.Module, structure: Structure, name: str | None = None) -> str | None:
    """Why one group, or all of them, can't be cut."""
    trials = try_groups.Trials(network=network, inputs=(X,), gates_of=gates_of)
    found = trials.failure(structure, [g for g in structure.groups if name in (None, g.name)])
    return None if found is None else found.why


@pytest.mark.parametrize("hide", BLIND, ids=lambda hide: hide.__name__)
def test_a_wrong_group_is_found_whatever_the_values_are(hide: Callable[[Net], None]) -> None:
    network = Net().eval()
    hide(network)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    right = find_groups(network, (X,), PrunePart())
    wrong = reversed_consumers(right, "branch.0")

    why = failure(network, wrong, "branch.0")
    together = failure(network, wrong)

    assert why is not None
    assert "differ by" in why
    assert together is not None
    assert try_groups.keep_cuttable(network, right, (X,), gates_of, PrunePart()) is right
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in state.items())
    assert not network.training


class Attention(nn.Module):
    """Tokens, attention whose output layer starts at zero, modulation that starts at zero (adaLN-zero), a zero head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.condition, self.up, self.down = nn.Linear(3, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)
        for layer in (self.out, self.condition, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.condition(x.mean((2, 3)))[:, None]
        x = self.patch(x).flatten(2).transpose(1, 2)
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q * 1e3, k * 1e3, v).transpose(1, 2).reshape(b, n, 16))
        x = x + gate * self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


def test_a_wrong_group_is_found_in_attention_that_starts_at_zero() -> None:
    network = Attention().eval()
    right = find_groups(network, (X,), PrunePart())
    assert "up" in {g.name for g in right.groups}
    wrong = reversed_consumers(right, "up")
    why = failure(network, wrong, "up")
    assert why is not None
    assert "differ by" in why
    assert failure(network, right, "up") is None


class Auxiliary(Net):
    """A second head that only training has, behind dropout in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(nn.Conv2d(8, 10, 1), nn.ReLU(), nn.Conv2d(10, 4, 1))

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return (y, self.aux(F.dropout(F.relu(self.stem(x)), 0.5, self.training))) if self.training else y


def test_what_only_training_has_is_tried_in_training() -> None:
    network = Auxiliary().eval()
    right = find_groups(network, (X,), PrunePart())
    assert "aux.0" in {g.name for g in right.groups}
    assert try_groups.keep_cuttable(network, right, (X,), gates_of, PrunePart()) is right
    wrong = reversed_consumers(right, "aux.0")
    left = try_groups.keep_cuttable(network, wrong, (X,), gates_of, PrunePart())
    assert "aux.0" not in {g.name for g in left.groups}


class Active(nn.BatchNorm2d):
    """A batch norm with its activation inside, as timm's."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


def test_norms_that_hold_others_are_not_trained_in_a_trial() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), Active(8), nn.Conv2d(8, 4, 3))
    with evaluating(net, training=True):
        assert [m.training for m in net.modules()] == [True, False, False, False, False]


class Rows(nn.Module):
    """Channels as rows beside the examples', and a size for torch to find: the sizes are written in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(3, 16, 3), nn.Parameter(torch.rand(1, 1, 2, 2)), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, y = x.shape[0], self.conv(x)
        y = y.view(batch * 16, -1, 1, 1) * self.mix
        return self.head(y.view(batch, 16, 28, 28).relu()).flatten(1)


def test_channels_may_be_rows_beside_the_examples() -> None:
    net = Rows().eval()
    structure = keep_cuttable(net, find_groups(net, (X[:1],), PrunePart()), (X[:2],), gates_of, PrunePart())
    assert [(g.name, g.channels) for g in structure.groups] == [("conv", 16)]
    assert structure.blueprint is not None
    keep = {"conv": torch.arange(16) % 3 > 0}
    slim = cut(net, structure, keep)
    masked = gates_of(structure)(net, {"conv": keep["conv"].float()})
    for batch in (1, 3):
        torch.testing.assert_close(slim(X[:batch]), masked(X[:batch]))


def test_a_group_that_nothing_shows_is_left_whole_with_the_reason() -> None:
    network = Net(act=lambda x: 0 * x).eval()
    structure = find_groups(network, (X,), PrunePart())
    assert "branch.0" in {g.name for g in structure.groups}
    left = try_groups.keep_cuttable(network, structure, (X,), gates_of, PrunePart())
    assert {g.name for g in left.groups} == {g.name for g in structure.groups} - {"branch.0"}
    (reason,) = [w.reason for w in left.whole if w.name == "branch.0"]
    assert reason == "no trial shows whether its cut is right: the output doesn't depend on branch.0"


class ManyUnseen(nn.Module):
    """Residual branches that end in a zero which is no weight, as frozen norms of an untrained network have."""

    def __init__(self, branches: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 3)
        self.branches = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)) for _ in range(branches))
        self.register_buffer("scale", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = x + self.scale * branch(x)
        return self.head(x.mean((2, 3)))


def test_groups_that_nothing_shows_are_left_whole_without_a_trial_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    failure = try_groups.Trials.failure
    monkeypatch.setattr(try_groups.Trials, "failure", lambda *args: asked.append(args) or failure(*args))
    x = torch.randn(2, 3, 4, 4)
    network = ManyUnseen(8)
    structure = try_groups.keep_cuttable(
        network, find_groups(network, (x[:1],), PrunePart()), (x,), gates_of, PrunePart()
    )
    assert [g.name for g in structure.groups] == ["stem"]
    assert sum("no trial shows" in w.reason for w in structure.whole) == 8
    assert len(asked) <= 6, "of two forms: all, the others, those that nothing shows"


def test_other_values_leave_the_network_and_its_ties_alone() -> None:
    network = Net()
    network.branch[2].bias = network.norm.bias
    before = copy.deepcopy(network.state_dict())
    other = redrawn(network, (X,), 0, torch.float64)
    assert other.branch[2].bias is other.norm.bias
    assert other.head.weight.dtype == torch.float64
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert min(float(p.detach().abs().max()) for p in other.parameters()) > 0.01
    with torch.no_grad():
        y = other(X.double())
    assert float((y - y.mean(0)).abs().max()) > 0.1 * float(y.abs().max())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda net: net.branch[1].weight.data.fill_(float("nan")), "its branch.1.weight has such values itself"),
        (lambda net: net.norm.running_mean.fill_(float("nan")), "its norm.running_mean has such values itself"),
        (lambda net: net.branch[2].weight.data.fill_(3e38), r"first layer that makes them is branch.2 \(Conv2d\)"),
        (lambda net: setattr(net, "end", lambda y: y / 0), "none of its layers makes them, its own code does"),
    ],
)
def test_a_network_whose_output_is_not_finite_is_refused_with_the_place(damage: Any, words: str) -> None:
    network = Net().eval()
    structure = find_groups(network, (X,), PrunePart())
    damage(network)
    with pytest.raises(VerificationError, match=f"The network's output has values that are not finite.*{words}"):
        try_groups.keep_cuttable(network, structure, (X,), gates_of, PrunePart())


def test_inputs_that_are_not_finite_are_named() -> None:
    network, x = Net().eval(), X.clone()
    x[0, 0, 0, 0] = float("inf")
    with pytest.raises(VerificationError, match="input 0 has such values itself"):
        try_groups.keep_cuttable(network, find_groups(network, (X,), PrunePart()), (x,), gates_of, PrunePart())


OUT_OF_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.fixture
def own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "definition", lambda network: "a digest")
    return tmp_path / "cache"


@pytest.mark.parametrize("error", [MemoryError(), OUT_OF_MEMORY, OSError(28, "No space left on device")])
def test_what_fails_for_want_of_memory_says_nothing_of_the_network(
    error: Exception, own_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Net().eval()

    def fails(*_: Any) -> Any:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(trial, "cut", fails)
        with pytest.raises(LimitError, match="Trying a cut"):
            remembered.cuttable_groups(network, X[:1], (X,), PrunePart(), gates_of)
    assert not list(own_cache.rglob("settled*"))
    assert len(remembered.cuttable_groups(network, X[:1], (X,), PrunePart(), gates_of).groups) == 2


class Padded(nn.Module):
    """A shortcut that is padded by numbers in the code: only the exported graph can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = F.relu(self.second(x) + F.pad(x, (0, 0, 0, 0, 2, 2)))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("swallowed", [False, True])
def test_a_time_limit_in_a_second_trace_is_an_error_and_not_remembered(
    swallowed: bool, own_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poorer structure of a trace that took too long would be every later run's."""
    network, real = Padded().eval(), torch.export.export

    def slow(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("dynamic_shapes") is not None:
            try:
                time.sleep(1)
            except SurgeryError as error:
                if not swallowed:
                    message = "torch says something else"
                    raise RuntimeError(message) from error
        return real(*args, **kwargs)

    with monkeypatch.context() as late:
        late.setattr(torch.export, "export", slow)
        with pytest.raises(LimitError, match=r"longer than 0\.7 s.*trace_timeout_s"):
            remembered.cuttable_groups(network, X[:1], (X,), PrunePart(trace_timeout_s=0.7), gates_of)
    found = remembered.cuttable_groups(network, X[:1], (X,), PrunePart(), gates_of)
    assert found.blueprint is not None
    assert found.groups
    slim = cut(network, found, {g.name: torch.arange(g.channels) < 2 for g in found.groups})
    assert slim(X).shape == (4, 3)
