"""Code that divides channels by numbers: what the trials accept can be cut to any counts, and is proven."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from surgery_networks import groups_of
from torch import Tensor, nn

from deploy_prune.api.prune import prune
from deploy_prune.errors import BudgetError, SurgeryError
from deploy_prune.networks.compare import relative_difference
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery import try_groups
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.try_groups import keep_cuttable
from deploy_prune.surgery.uneven import uneven
from deploy_prune.surgery.verify import gates, prove
from deploy_prune.types import Axis, ChannelGroup, Keep, Structure

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Divide = Callable[[Tensor], Sequence[Tensor]]


class Divided(nn.Module):
    """A layer's channels in parts, of the code's own making; each part its own layer; all of it read by the head."""

    def __init__(self, widths: Sequence[int], divide: Divide, before: str = "one") -> None:
        super().__init__()
        torch.manual_seed(0)
        total = sum(widths)
        self.divide = divide
        first = widths if before == "parts" else [total]
        self.stem = nn.ModuleList([nn.Conv2d(3, width, 3, padding=1) for width in first])
        self.parts = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for width in widths])
        self.head = nn.Conv2d(2 * total, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([layer(x) for layer in self.stem], 1).relu()
        made = [layer(part).relu() for layer, part in zip(self.parts, self.divide(x), strict=True)]
        return self.head(torch.cat([x, *made], 1))


def rest(fraction: int) -> Divide:
    return lambda x: (x[:, : x.shape[1] // fraction], x[:, x.shape[1] // fraction :])


DIVIDED: dict[str, tuple[Sequence[int], Divide]] = {
    "chunk in 2": ((8, 8), lambda x: x.chunk(2, 1)),
    "chunk in 2 of 2": ((2, 2), lambda x: x.chunk(2, 1)),
    "chunk in 2 of 3": ((3, 3), lambda x: x.chunk(2, 1)),
    "chunk in 3": ((6, 6, 6), lambda x: x.chunk(3, 1)),
    "chunk in 4": ((4, 4, 4, 4), lambda x: x.chunk(4, 1)),
    "tensor_split": ((7, 7), lambda x: x.tensor_split(2, 1)),
    "numbers": ((5, 9), lambda x: x.split((5, 9), 1)),
    "split by shape": ((8, 8), lambda x: x.split(x.shape[1] // 2, 1)),
    "split rounded up": ((8, 8), lambda x: x.split(-(-x.shape[1] // 2), 1)),
    "half by shape": ((8, 8), rest(2)),
    "half rounded up": ((6, 6), lambda x: (x[:, : (x.shape[1] + 1) // 2], x[:, (x.shape[1] + 1) // 2 :])),
    "a quarter": ((4, 12), rest(4)),
    "written": ((6, 10), lambda x: (x[:, :6], x[:, 6:])),
    "from the end": ((10, 6), lambda x: (x[:, :-6], x[:, -6:])),
    "narrow": ((8, 8), lambda x: (x.narrow(1, 0, x.shape[1] // 2), x.narrow(1, x.shape[1] // 2, x.shape[1] // 2))),
    "view": ((6, 6), lambda x: x.view(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:]).unbind(1)),
    "every other": ((8, 8), lambda x: (x[:, ::2], x[:, 1::2])),
}


@cache
def cuttable(name: str, before: str) -> tuple[nn.Module, Structure]:
    widths, divide = DIVIDED[name]
    network = Divided(widths, divide, before).eval()
    return network, keep_cuttable(network, groups_of(network, X), (X,), gates_of, PrunePart())


def any_keep(structure: Structure, generator: torch.Generator) -> Keep:
    """Any number of each group, from one to all."""
    counts = {g.name: int(torch.randint(1, g.channels + 1, (1,), generator=generator)) for g in structure.groups}
    return {g.name: torch.randperm(g.channels, generator=generator) < counts[g.name] for g in structure.groups}


@pytest.mark.parametrize("before", ["one", "parts"])
@pytest.mark.parametrize("name", DIVIDED)
def test_what_is_accepted_can_be_cut_to_any_counts(name: str, before: str) -> None:
    network, structure = cuttable(name, before)
    assert len(structure.groups) >= (2 if name != "every other" else 1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(8):
        keep = any_keep(structure, generator)
        with torch.no_grad():
            masked = gates_of(structure)(network, gates(structure, keep, X))(X)
            assert relative_difference(masked, cut(network, structure, keep)(X)) < 1e-5


def test_groups_on_an_axis_keep_shares_far_apart_and_then_the_other_way_round() -> None:
    def group(name: str, channels: int, *axes: tuple[str, int]) -> ChannelGroup:
        members = tuple(Axis(tensor=t, axis=a, unit_of=torch.arange(channels)) for t, a in axes)
        return ChannelGroup(name=name, channels=channels, period=1, consumers=members, members=members)

    many = [group(f"alone{i}", 16, (f"w{i}", 0)) for i in range(20)]
    for channels, parts in ((2, 2), (3, 2), (16, 2), (16, 3), (64, 4)):
        together = [group(f"part{i}", channels, ("joined", 1)) for i in range(parts)]
        groups = [*many[:7], together[0], *many[7:], *together[1:]]
        first, second = uneven(groups)
        a, b = ([int(trial[g.name].sum()) for g in together] for trial in (first, second))
        assert len(set(a)) == len(set(b)) == parts
        assert sorted(range(parts), key=a.__getitem__) == sorted(range(parts), key=b.__getitem__, reverse=True)
        gaps = [y - x for x, y in zip(sorted(a), sorted(a)[1:], strict=False)]
        assert min(gaps) >= max(1, int(0.7 * channels / (2 * parts)))
        for trial in (first, second):
            assert all(1 <= int(mask.sum()) <= len(mask) for mask in trial.values())
            assert len({int(trial[g.name].sum()) for g in many}) > 5
        assert all(min(int(t[g.name].sum()) for t in (first, second)) < g.channels for g in groups)


def network_of_halves() -> nn.Module:
    return nn.Sequential(Divided((8, 8), lambda x: x.chunk(2, 1)), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()


@pytest.mark.parametrize("method", ["uniform", "magnitude", "random", "gate"])
@pytest.mark.parametrize("budget", ["40% macs", "70% macs"])
def test_a_learned_cut_of_halves_ends_in_a_proof(method: str, budget: str) -> None:
    (made,) = prune(
        network_of_halves(), X, lambda f, x: f(x).square().mean(), [X], method=method, budget=budget, steps=3
    )
    assert made.proof.difference < 1e-5
    assert made.structure.blueprint is not None


def test_a_cut_that_does_not_run_is_a_sentence_with_the_place() -> None:
    network = network_of_halves()
    structure = groups_of(network, X)
    keep = {g.name: torch.arange(g.channels) < (3 if g.name == "0.stem.0" else g.channels) for g in structure.groups}
    assert cut(network, structure, keep)
    with pytest.raises(SurgeryError) as caught:
        prove(network, structure, keep, (X,), gates_of(structure))
    message = str(caught.value)
    assert message.startswith("The cut network doesn't run: RuntimeError: ")
    assert "in 0.parts.0 (Conv2d), " in message
    assert f"{Path(__file__).name}:" in message
    assert "prune.skip" in message


class Written(nn.Module):
    """Sizes in the code wherever channels go; and no graph with a free batch size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu().view(4, 8, 36)
        x = self.second(x.view(4, 8, 6, 6)).relu()
        return self.head(x.view(4, 288))


def test_a_network_of_which_nothing_can_be_cut_is_refused_with_the_place() -> None:
    network = Written().eval()
    with pytest.raises(SurgeryError) as caught:
        keep_cuttable(network, find_groups(network, (X,), PrunePart()), (X,), gates_of, PrunePart())
    message = str(caught.value)
    assert message.startswith("No channel of the network can be cut: the network's code has sizes written in it")
    assert "in the network (Written), " in message
    assert "`x = self.first(x).relu().view(4, 8, 36)`" in message
    assert "exported graph instead isn't possible" in message


class Many(nn.Module):
    """Blocks in a row, two of which have halves in their code."""

    def __init__(self, halves: Sequence[int], length: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 1)
        self.blocks = nn.Sequential(*(Block(i in halves) for i in range(length)))
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class Block(nn.Module):
    def __init__(self, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        self.up, self.mid, self.down = (
            nn.Conv2d(8, 8, 1),
            nn.Conv2d(4 if halves else 8, 4, 1),
            nn.Conv2d(8 if halves else 12, 8, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        first = second = self.up(x).relu()
        if self.halves:
            first, second = first.chunk(2, 1)
        return x + self.down(torch.cat([self.mid(first).relu(), second], 1))


def test_the_groups_that_can_not_be_cut_are_found_in_few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Many((3, 9)).eval()
    structure = groups_of(network, X)
    tried = []
    real = try_groups.Trial._cut

    def counted(*arguments: Any, **named: Any) -> Any:
        tried.append(1)
        return real(*arguments, **named)

    def no_graph(*_: object) -> Structure:
        message = "it has none"
        raise SurgeryError(message)

    monkeypatch.setattr(try_groups.Trial, "_cut", counted)
    monkeypatch.setattr(try_groups, "with_blueprint", no_graph)
    left = keep_cuttable(network, structure, (X,), gates_of, PrunePart())
    wrong = [w for w in left.whole if w.reason.startswith("the network's code has sizes written in it")]
    assert {w.name.partition("#")[0] for w in wrong} == {"blocks.3.up", "blocks.9.up"}
    assert all(f"in {w.name.rpartition('.')[0]}.mid (Conv2d), " in w.reason for w in wrong)
    assert len(left.groups) + len(wrong) == len(structure.groups)
    assert len(tried) < len(structure.groups)


class OnlyTheMiddle(nn.Module):
    """Most of it has a size in its code, and the batch too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 64, 3, padding=1), nn.Linear(64, 64)
        self.last = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu()
        return self.last(self.head(x.view(len(X), 64, 36).mean(2)).relu().view(len(X), 64))


def test_a_budget_out_of_reach_names_what_is_left_whole_and_the_place() -> None:
    place = (
        r"(second|head) \[64 channels\] is left whole: .*sizes written.*in the network \(OnlyTheMiddle\), .*uneven\.py:"
    )
    with pytest.raises(BudgetError, match=place):
        prune(OnlyTheMiddle(), X, lambda f, x: f(x).square().mean(), [X], method="magnitude", budget="20% macs")
