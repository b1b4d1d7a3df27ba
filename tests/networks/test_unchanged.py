"""Whatever a network keeps while it runs is put back, and nothing else is in its way."""

from __future__ import annotations

import functools
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from deploy_prune.api.prune import prune
from deploy_prune.errors import DeployPruneError, ExportError, SurgeryError
from deploy_prune.export.artifact import export_program
from deploy_prune.networks.unchanged import unchanged
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.surgery.trace import trace

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
OTHER_SIZE = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(1))
TABLE: dict[Any, Tensor] = {}
CALLS = 0


class Slots:
    __slots__ = ("grid",)

    def __init__(self) -> None:
        self.grid: Tensor | None = None


@functools.lru_cache
def positions(width: int) -> Tensor:
    return torch.linspace(0, 1, width)


class Keeps(nn.Module):
    """Two convolutions, and between them ``keep``: what the network keeps of y [B, C, H, W]; returns what to add."""

    shape: Any = None
    anchors = torch.empty(0)
    shared: ClassVar[dict[Any, Tensor]] = {}

    def __init__(self, keep: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)
        self.keep = keep
        self.features: Any = None
        self.listed: list[Any] = []
        self.last: deque[Any] = deque(maxlen=2)
        self.nested: dict[str, Any] = {"by": [{}, []]}
        self.held, self.slots = SimpleNamespace(grid=None), Slots()
        self.generator = torch.Generator()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.full((16,), float("nan")), persistent=False)
        self.plain = torch.zeros(16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        added = self.keep(self, y)
        return self.b(y if added is None else y + added)


def anchors(net: Any, y: Tensor) -> Tensor:
    if net.shape != y.shape:
        net.anchors, net.shape = torch.linspace(0, 1, y.shape[3]), y.shape
    return net.anchors


def table_by_size(net: Any, y: Tensor) -> Tensor:
    return net.nested["by"][0].setdefault(y.shape[2:], torch.linspace(0, 1, y.shape[3]))


def table_of_the_class(net: Any, y: Tensor) -> Tensor:
    return type(net).shared.setdefault(y.shape[2:], torch.linspace(0, 1, y.shape[3]))


def attribute_of_the_class(net: Any, y: Tensor) -> Tensor:
    if type(net).anchors.shape != y.shape[3:]:
        type(net).anchors = torch.linspace(0, 1, y.shape[3])
    return type(net).anchors


def global_table(net: Any, y: Tensor) -> Tensor:
    return TABLE.setdefault(y.shape[2:], torch.linspace(0, 1, y.shape[3]))


def global_number(net: Any, y: Tensor) -> None:
    global CALLS  # noqa: PLW0603
    CALLS += 1


def cached_function(net: Any, y: Tensor) -> Tensor:
    return positions(y.shape[3])


def default_argument(net: Any, y: Tensor, kept: dict[Any, Tensor] = {}) -> Tensor:  # noqa: B006
    return kept.setdefault(y.shape[2:], torch.linspace(0, 1, y.shape[3]))


def features(net: Any, y: Tensor) -> None:
    net.features = y
    net.listed.append(y)
    net.last.append(y.mean())


def counters(net: Any, y: Tensor) -> None:
    net.count += 1
    net.mean.copy_(y.detach().mean((0, 2, 3)))
    net.plain[:] = 1


def replaced_buffer(net: Any, y: Tensor) -> None:
    net.count = net.count + 1


def objects(net: Any, y: Tensor) -> Tensor:
    net.held.grid = net.slots.grid = torch.linspace(0, 1, y.shape[3])
    return net.slots.grid


def weights(net: Any, y: Tensor) -> None:
    net.b.weight.data = torch.renorm(net.b.weight.data, 2, 0, 0.1)


def flags(net: Any, y: Tensor) -> None:
    net.b.requires_grad_(False)
    net.new = net.b.training


def random_numbers(net: Any, y: Tensor) -> Tensor:
    return torch.rand(16, 1, 1, generator=net.generator)


KEEPERS = (
    anchors, table_by_size, table_of_the_class, attribute_of_the_class, global_table, global_number, cached_function,
    default_argument, features, counters, replaced_buffer, objects, weights, flags, random_numbers,
)  # fmt: skip
REFUSED = (weights, flags, random_numbers)
"""May be refused: a forward that changes weights, or that is another one each time."""


def state(net: Keeps) -> dict[str, Any]:
    """All that this file's networks keep, as plain values."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            grad = None if not value.is_leaf or value.grad is None else value.grad.tolist()
            return type(value).__name__, value.tolist(), value.requires_grad, grad
        if isinstance(value, dict):
            return [(str(k), plain(v)) for k, v in value.items()]
        if isinstance(value, list | tuple | deque):
            return [plain(v) for v in value]
        return str(value)

    found = {name: plain({k: v for k, v in vars(m).items() if k != "_modules"}) for name, m in net.named_modules()}
    found["objects"] = plain([net.held.grid, net.slots.grid, net.generator.get_state()])
    found["class"] = plain([Keeps.shape, Keeps.anchors, Keeps.shared])
    found["global"] = plain([TABLE, default_argument.__defaults__, CALLS])
    return {name: str(value) for name, value in found.items()}  # as text, NaN is equal to itself


@pytest.fixture(params=KEEPERS, ids=lambda keep: keep.__name__)
def net(request: pytest.FixtureRequest) -> Any:
    made = Keeps(request.param).train()
    made.b.eval()
    made.a.weight.grad = torch.ones_like(made.a.weight)
    with unchanged(made):
        yield made


def as_before(net: Keeps, work: Callable[[], Any]) -> None:
    before, identities = state(net), {name: id(t) for name, t in (*net.named_parameters(), *net.named_buffers())}
    work()
    assert state(net) == before
    assert {name: id(t) for name, t in (*net.named_parameters(), *net.named_buffers())} == identities
    assert type(net(OTHER_SIZE)) is Tensor


def test_running_changes_them_all_and_everything_is_put_back(net: Keeps) -> None:
    before = state(net)
    with unchanged(net):
        net(X)
        changed = state(net) != before
        assert changed or net.keep in (cached_function,)
    assert state(net) == before


def test_tracing_leaves_nothing(net: Keeps) -> None:
    def both() -> None:
        with suppress(SurgeryError) if net.keep in REFUSED else nullcontext():
            trace(net.eval(), (X,), 60)
        with suppress(ExportError) if net.keep in REFUSED else nullcontext():
            export_program(net, X, ExportPart())

    as_before(net.eval(), both)


@pytest.mark.parametrize("ran", [False, True], ids=["fresh", "after a forward"])
def test_pruning_leaves_nothing(net: Keeps, ran: bool) -> None:
    if ran:
        net(X)

    def pruned() -> None:
        with suppress(DeployPruneError) if net.keep in REFUSED else nullcontext():
            (made,) = prune(net, X, lambda f, x: f(x).square().mean(), [X], method="magnitude")
            with unchanged(made.network):
                assert type(made.network(OTHER_SIZE)) is Tensor

    as_before(net, pruned)


def test_what_a_hook_closes_over_is_put_back() -> None:
    store: dict[str, Tensor] = {}
    net = Keeps(lambda net, y: None)
    net.a.register_forward_hook(lambda module, args, output: store.__setitem__("a", output))
    trace(net, (X,), 60)
    prune(net, X, lambda f, x: f(x).square().mean(), [X], method="magnitude")
    assert store == {}


def test_looking_at_a_table_runs_none_of_its_own_code() -> None:
    """Its ``items`` may load a library, and its ``__iter__`` use something up."""

    def loaded(*_: Any) -> Any:
        raise AssertionError

    methods = dict.fromkeys(("items", "values", "__iter__", "clear", "update", "extend"), loaded)
    net, named = Keeps(lambda net, y: None), {"inner": [1]}
    kept = {dict: named, OrderedDict: [("inner", 2)], list: [named], deque: [3], set: [4], tuple: (named,)}
    lazy: list[Any] = [type("Lazy", (kind,), methods)(start) for kind, start in kept.items()]
    net.features = lazy
    with unchanged(net):
        dict.clear(lazy[0])
        OrderedDict.move_to_end(lazy[1], "inner")
        OrderedDict.__setitem__(lazy[1], "more", 1)
        list.clear(lazy[2])
        deque.append(lazy[3], 5)
        set.clear(lazy[4])
        named["inner"].append(2)
    assert dict.__eq__(lazy[0], {"inner": [1]})
    assert OrderedDict.__len__(lazy[1]) == 1
    assert list.__len__(lazy[2]) == deque.__len__(lazy[3]) == set.__len__(lazy[4]) == 1
    assert named == {"inner": [1]}


def test_an_error_inside_puts_everything_back_too() -> None:
    net = Keeps(features)

    def fails() -> None:
        with unchanged(net):
            net(X)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert net.features is None
    assert net.listed == []


def test_a_stopped_trace_puts_everything_back() -> None:
    def by_value(net: Any, y: Tensor) -> Any:
        net.features = y
        return y if y.sum() > 0 else None

    net = Keeps(by_value)
    with pytest.raises(
        SurgeryError, match=r"in the network \(Keeps\), .*test_unchanged.py:\d+: `added = self.keep\(self, y\)`"
    ):
        trace(net, (X,), 60)
    assert net.features is None
