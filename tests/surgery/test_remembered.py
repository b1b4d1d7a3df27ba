"""Groups are found once per definition, and never taken from the cache for another one."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy_prune.networks import build
from deploy_prune.recipe.parts import ModelPart, PrunePart
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery import remembered
from deploy_prune.surgery.fingerprint import definition
from deploy_prune.surgery.groups import find_groups
from deploy_prune.types import ChannelGroup, Structure

X = torch.zeros(1, 3, 16, 16)

NET = """
    import torch
    from torch import nn
    from my_helpers import act, joined

    SLOPE = 0.5

    class Net(nn.Module):
        def __init__(self, **kept):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
            self.kept = kept

        def forward(self, x):
            return self.c(act(joined(self.a(x), self.b(x)))).mean((2, 3))
"""
HELPERS = """
    import torch

    def joined(a, b):
        return a + b

    def act(x):
        return torch.relu(x)
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The networks whose groups were really searched for."""
    asked: list[nn.Module] = []

    def noted(network: nn.Module, *rest: Any) -> Structure:
        asked.append(network)
        return find_groups(network, *rest)

    monkeypatch.setattr(remembered, "find_groups", noted)
    return asked


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """Write my_net.py and my_helpers.py with some text replaced, and import them anew."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(net: tuple[str, str] = ("", ""), helpers: tuple[str, str] = ("", "")) -> ModuleType:
        assert net[0] in NET
        assert helpers[0] in HELPERS
        (tmp_path / "my_net.py").write_text(textwrap.dedent(NET.replace(*net)))
        (tmp_path / "my_helpers.py").write_text(textwrap.dedent(HELPERS.replace(*helpers)))
        for name in ("my_net", "my_helpers"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module("my_net")

    yield write
    for name in ("my_net", "my_helpers"):
        sys.modules.pop(name, None)


def _plain(group: ChannelGroup) -> tuple[Any, ...]:
    statistics = {place: unit_of.tolist() for place, unit_of in group.statistics.items()}
    return group.name, group.channels, group.period, statistics


def test_statistics_without_weights_are_written_down() -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6, elementwise_affine=False), nn.Linear(6, 2))
    structure = find_groups(network.eval(), (torch.ones(2, 4),), PrunePart())
    assert _plain(structure.groups[0]) == ("0", 6, 1, {("1", 2, 1, 6): [0, 1, 2, 3, 4, 5]})
    assert same(remembered.loads(remembered.dumps(structure)), structure)


def same(a: Structure, b: Structure) -> bool:
    """Equal in everything, axis for axis."""
    axes = [
        [(x.tensor, x.axis, x.unit_of.tolist(), x.unit_of.dtype) for x in (*g.members, *g.consumers)]
        for s in (a, b)
        for g in s.groups
    ]
    half = len(axes) // 2
    plain = [([_plain(g) for g in s.groups], s.layers, s.whole, s.mixing, s.blueprint) for s in (a, b)]
    return axes[:half] == axes[half:] and plain[0] == plain[1]


@pytest.mark.parametrize(
    "source", ["resnet20", "torchvision:mobilenet_v3_small", "timm:mixnet_s", "timm:convnext_atto"]
)
def test_a_second_search_takes_a_fraction_of_the_time_and_gives_the_same(
    source: str, searches: list[nn.Module]
) -> None:
    first, second = (build.build_network(ModelPart(source=source), 10) for _ in range(2))
    x, start = torch.zeros(1, 3, 32, 32), time.perf_counter()
    found = remembered.groups_of(first, x, PrunePart())
    searched, times = time.perf_counter() - start, []
    for network in (first, second):  # the same network after tracing, and another with other weights
        start = time.perf_counter()
        assert same(remembered.groups_of(network, x, PrunePart()), found)
        times.append(time.perf_counter() - start)
    assert searches == [first]
    assert found.groups
    assert min(times) < 0.3 * searched


def test_another_process_finds_it_too(searches: list[nn.Module]) -> None:
    code = (
        "import torch; from deploy_prune.networks import build; from deploy_prune.recipe.parts import *;"
        "from deploy_prune.surgery import remembered;"
        "network = build.build_network(ModelPart(source='resnet20'), 10);"
        "remembered.groups_of(network, torch.zeros(1, 3, 16, 16), PrunePart())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    remembered.groups_of(build.build_network(ModelPart(source="resnet20"), 10), X, PrunePart())
    assert searches == []


@pytest.mark.parametrize(
    ("net", "helpers"),
    [
        (("joined(self.a(x), self.b(x))", "self.a(x)"), ("", "")),
        (("act(joined", "(lambda x: x + 1)(joined"), ("", "")),
        (("SLOPE = 0.5", "SLOPE = 0.5\n    act = torch.tanh"), ("", "")),
        (("", ""), ("a + b", "a")),
        (("", ""), ("torch.relu", "torch.tanh")),
        (("", ""), ("torch.relu(x)", "x + 1")),
    ],
    ids=["forward", "lambda", "global", "helper", "helper's call", "helper's constant"],
)
def test_changed_code_is_searched_again(
    net: tuple[str, str], helpers: tuple[str, str], written: Callable[..., ModuleType], searches: list[nn.Module]
) -> None:
    """The same classes' names, repr and shapes throughout."""
    first = written().Net()
    remembered.groups_of(first, X, PrunePart())
    remembered.groups_of(written().Net(), X, PrunePart())
    assert searches == [first], "the same code, loaded anew"
    changed = written(net, helpers).Net()
    assert repr(changed) == repr(first)
    found = remembered.groups_of(changed, X, PrunePart())
    assert searches == [first, changed]
    assert same(found, find_groups(changed, (X,), PrunePart()))


def test_a_changed_forward_has_other_groups(written: Callable[..., ModuleType]) -> None:
    """What a stale entry would get wrong."""
    names = [
        {g.name: len(g.members) for g in remembered.groups_of(module.Net(), X, PrunePart()).groups}
        for module in (written(), written(("joined(self.a(x), self.b(x))", "self.a(x)")))
    ]
    assert names[0] != names[1]


def test_replaced_methods_and_attributes_are_seen(written: Callable[..., ModuleType]) -> None:
    module = written()
    seen = {definition(module.Net())}
    for kept in ({"a": 1}, {"a": 2}, {"a": torch.ones(2)}, {"a": torch.zeros(2)}, {"a": torch.relu}, {"a": [nn.ReLU]}):
        seen.add(definition(module.Net(**kept)))
    network = module.Net()
    network.forward = lambda x: network.a(x)
    seen.add(definition(network))
    hooked = module.Net()
    hooked.a.register_forward_hook(lambda module, inputs, output: output * 2)
    seen.add(definition(hooked))
    module.Net.forward = lambda self, x: self.b(x)
    seen.add(definition(module.Net()))
    assert None not in seen
    assert len(seen) == 10


def test_a_librarys_method_that_was_replaced_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models.resnet import BasicBlock

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.conv1(x)

    before = definition(build.build_network(ModelPart(source="torchvision:resnet18"), 10))
    monkeypatch.setattr(BasicBlock, "forward", forward)
    assert definition(build.build_network(ModelPart(source="torchvision:resnet18"), 10)) != before


def factory(width: int) -> type[nn.Module]:
    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[:, :width]

    return Made


def test_what_a_class_closes_over_is_seen() -> None:
    assert len({definition(factory(width)()) for width in (2, 3, 3)}) == 2


def test_integer_buffers_count_by_value_and_weights_do_not() -> None:
    def made(order: list[int]) -> nn.Module:
        network = nn.Sequential(nn.Conv2d(3, 4, 1))
        network.register_buffer("order", torch.tensor(order))
        return network

    assert definition(made([0, 1])) == definition(made([0, 1])) != definition(made([1, 0]))


def test_tied_weights_are_another_definition() -> None:
    free, tied = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))
    tied[1].weight = tied[0].weight
    assert definition(free) != definition(tied)


def reads_environment(x: Tensor) -> Tensor:
    import os

    return x if os.environ.get("MODE") else x + 1


class Holding(nn.Module):
    def __init__(self, part: Any) -> None:
        super().__init__()
        self.layer, self.part = nn.Conv2d(3, 4, 1), part

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean((2, 3))


@pytest.mark.parametrize("part", [reads_environment, iter([1]), object(), eval("lambda x: eval('x')")])
def test_what_can_not_be_digested_is_searched_every_time(part: Any, searches: list[nn.Module], tmp_path: Path) -> None:
    network = Holding(part)
    assert definition(network) is None
    for _ in range(2):
        remembered.groups_of(network, X, PrunePart())
    assert len(searches) == 2
    assert not (tmp_path / "cache").exists()


def test_functions_of_a_module_that_are_taken_by_a_computed_name_are_not_digested(
    written: Callable[..., ModuleType],
) -> None:
    taken = "import my_helpers; return self.c(getattr(my_helpers, 'act')("
    assert definition(written(("return self.c(act(", taken)).Net()) is None
    plain = ("return self.c(act(", "import my_helpers; return self.c(my_helpers.act(")
    first = definition(written(plain).Net())
    second = definition(written(plain, ("torch.relu", "torch.tanh")).Net())
    assert None not in (first, second)
    assert first != second, "a helper imported where it is used"


@pytest.mark.parametrize("change", ["shape", "prune", "version", "dtype", "torch", "code"])
def test_all_that_groups_depend_on_is_in_the_key(
    change: str, searches: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x, prune = build.build_network(ModelPart(source="resnet20"), 10), X, PrunePart()
    remembered.groups_of(network, x, prune)
    if change == "shape":
        x = torch.zeros(1, 3, 32, 32)
    elif change == "prune":
        prune = PrunePart(skip=["layer1.*"])
    elif change == "version":
        monkeypatch.setattr(remembered, "__version__", "9.9")
    elif change == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9")
    elif change == "code":
        monkeypatch.setattr(remembered, "own_code", lambda: "other")
    else:
        x = X.double()
        network.double()
    remembered.groups_of(network, x, prune)
    assert len(searches) == 2


def flipped(text: str) -> str:
    return text.replace('\\"period\\":1', '\\"period\\":2', 1)


DAMAGE: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "truncated": lambda text: text[: len(text) // 2],
    "flipped": flipped,
    "other value": lambda text: json.dumps({**json.loads(text), "value": [1]}),
    "no sum": lambda text: json.dumps({**json.loads(text), "value": {"structure": "{}"}}),
    "other key": lambda text: text.replace('"how": "traced"', '"how": "settled"'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_again(damage: str, searches: list[nn.Module], tmp_path: Path) -> None:
    network = build.build_network(ModelPart(source="resnet20"), 10)
    found = remembered.groups_of(network, X, PrunePart())
    (entry,) = (tmp_path / "cache" / remembered.KIND).glob("*.json")
    whole = entry.read_text()
    entry.write_text(DAMAGE[damage](whole))
    assert entry.read_text() != whole
    assert same(remembered.groups_of(network, X, PrunePart()), found)
    assert len(searches) == 2
    again, before = json.loads(entry.read_text()), json.loads(whole)
    assert (again["key"], again["value"]) == (before["key"], before["value"])


def test_a_cache_that_can_not_be_written_is_no_error(tmp_path: Path, searches: list[nn.Module]) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    network = build.build_network(ModelPart(source="resnet20"), 10)
    for _ in range(2):
        assert remembered.groups_of(network, X, PrunePart()).groups
    assert len(searches) == 2


def test_settled_groups_are_kept_apart_from_traced_ones(
    searches: list[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build.build_network(ModelPart(source="torchvision:mobilenet_v3_small"), 10)
    x = torch.zeros(1, 3, 32, 32)
    trials = (torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),)
    settled = [remembered.cuttable_groups(network, x, trials, PrunePart(skip=["classifier.*"]), gates_of)]
    monkeypatch.setattr(remembered, "keep_cuttable", None)  # calling it again would raise
    settled.append(remembered.cuttable_groups(network, x, trials, PrunePart(skip=["classifier.*"]), gates_of))
    assert same(*settled)
    assert len(searches) == 1
    assert len(list((tmp_path / "cache" / remembered.KIND).iterdir())) == 2


def test_a_structure_that_cuts_the_graph_is_not_kept(searches: list[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build.build_network(ModelPart(source="torchvision:shufflenet_v2_x0_5"), 10)
    x, trials = torch.zeros(1, 3, 32, 32), (torch.randn(2, 3, 32, 32),)
    for _ in range(2):
        assert remembered.cuttable_groups(network, x, trials, PrunePart(), gates_of).blueprint is not None
    assert len(searches) == 1, "what was traced is kept, what was settled is not"
    (entry,) = (tmp_path / "cache" / remembered.KIND).iterdir()
    assert json.loads(entry.read_text())["key"]["how"] == "traced"
