"""Values that half precision can't hold: where in a network they arise, and whether they spoil its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from deploy_prune.export.artifact import eval_mode, flatten
from deploy_prune.export.inputs import Given, pieces, several

LARGEST: Final = 65504.0
"""IEEE 754's binary16 holds no larger finite number."""
_ORIGIN: Final = "_deploy_prune_origin"
_ATEN: Final = torch.ops.aten
_NORMS: Final = frozenset(
    op
    for name in ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "batch_norm")
    for op in [getattr(getattr(_ATEN, name, None), "default", None)]
    if op is not None
)
"""Exporters put a batch norm into the convolution before it: what is between them is nowhere stored."""
_READERS: Final = frozenset(
    {_ATEN.convolution.default, _ATEN.addmm.default, _ATEN.mm.default, _ATEN.bmm.default, _ATEN.linear.default}
)


@dataclass(frozen=True, kw_only=True)
class Overflow:
    """Values that are too large: where they come from, in words, and the largest of them, with its sign.

    ``given``: they are a parameter's or the input's, not computed.
    """

    where: str
    magnitude: float
    given: bool


def stored_in_half(network: nn.Module, inputs: Given, batch: int) -> tuple[tuple[Tensor, ...], Overflow | None]:
    """Outputs for inputs [N, ...] when everything that an operator reads is rounded to half precision; and an overflow.

    Of several overflows the first that is given or positive is told: negative ones are often masks, which may be
    infinite.
    Batch norms read what they are given as it is, for in a file they are part of the layer before.
    """
    place = next((p.device for p in network.parameters()), several(inputs)[0].device)
    watch = _Stored({id(p): name for name, p in network.named_parameters()})
    columns: list[tuple[Tensor, ...]] = []
    with eval_mode(network), torch.no_grad(), _followed(network, watch):
        for piece in pieces(inputs, batch):
            chunk = tuple(x.to(place) for x in piece)
            for x in chunk:
                setattr(x, _ORIGIN, _Origin(where="the network's input", given=True))
            with watch:
                outputs = flatten(network(*chunk))
            columns.append(tuple(torch.atleast_1d(watch.rounded(y).cpu()) for y in outputs))
    found = sorted(watch.found, key=lambda overflow: overflow.magnitude < 0 and not overflow.given)
    return tuple(map(torch.cat, zip(*columns, strict=True))), found[0] if found else None


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """Of a tensor: where it was made, in words; the parameter that it is, or the parameters that it was made of."""

    where: str
    given: bool = False
    parameter: str | None = None
    weights: tuple[Tensor, ...] = ()


class _Stored(TorchDispatchMode):
    """Inside, operators read values rounded to half precision, and overflows are noted in ``found``, in their order."""

    def __init__(self, names: Mapping[int, str]) -> None:
        """``names``: id of a parameter -> its name."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.names, self.found = names, list[Overflow]()
        self.running, self.ended = list[tuple[str, bool]](), ""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator; its results remember where they were made."""
        given = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
        if any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
            origin = self._origin(given[0])  # a view is made where its base is
        else:
            origin = self._made(func, given)
            left = {i for i, a in enumerate(func._schema.arguments) if a.alias_info is not None}  # it is written
            left |= {i for i, x in enumerate(args) if any(x is w for w in origin.weights)}
            if func not in _NORMS:
                args = [x if i in left else tree_map(self.rounded, x) for i, x in enumerate(args)]
        results = func(*args, **(kwargs or {}))
        for y in tree_leaves(results):
            if isinstance(y, Tensor):
                setattr(y, _ORIGIN, origin)
        return results

    def rounded(self, x: Any) -> Any:
        """A floating-point tensor as half precision holds it, in its own type; anything else as it is.

        A layer's parameters are looked at when its output is read: by a batch norm, they are not stored as they are.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        origin = self._origin(x)
        if origin.parameter is not None:
            return x if self._fits(x, origin) else torch.full_like(x, torch.nan)
        if not all([self._fits(w, self._origin(w)) for w in origin.weights]):
            return torch.full_like(x, torch.nan)
        self._fits(x, origin)
        return x.half().to(x.dtype)

    def _fits(self, x: Tensor, origin: _Origin) -> bool:
        """Whether half precision holds all finite values; else the largest is noted."""
        values = x[x.isfinite()]
        largest = float(values[values.abs().argmax()]) if values.numel() else 0.0
        if abs(largest) > LARGEST:
            self.found.append(Overflow(where=origin.where, magnitude=largest, given=origin.given))
        return abs(largest) <= LARGEST

    def _origin(self, x: Tensor) -> _Origin:
        known: _Origin = getattr(x, _ORIGIN, _Origin(where="the network's constants"))
        name = self.names.get(id(x))
        return known if name is None else _Origin(where=f"the weight {name}", given=True, parameter=name)

    def _made(self, func: Any, given: Sequence[Tensor]) -> _Origin:
        """The origin of an operator's result: a layer's output, or what the network's code does after a layer."""
        weights = tuple(x for x in given if self._origin(x).parameter is not None) if func in _READERS else ()
        owners = [str(self._origin(w).parameter).rpartition(".")[0] for w in weights]
        operator = func._schema.name.rpartition("::")[2]
        if owners and owners[0]:
            where = f"the output of {owners[0]}"
        elif self.running and self.running[-1][1]:
            where = f"the output of {self.running[-1][0]}"
        else:
            where = f"{operator!r} after {self.ended}" if self.ended else f"{operator!r} on the input"
        return _Origin(where=where, weights=weights)


@contextmanager
def _followed(network: nn.Module, watch: _Stored) -> Iterator[None]:
    """Inside, ``watch`` knows which module runs, whether it is a layer (holds no others), and which ended last."""

    def enter(name: str, is_layer: bool) -> Any:
        return lambda *_: watch.running.append((name, is_layer))

    def leave(name: str) -> Any:
        def hook(*_: Any) -> None:
            watch.running.pop()
            watch.ended = name

        return hook

    with ExitStack() as stack:
        for name, module in network.named_modules():
            if name:
                is_layer = not any(True for _ in module.children())
                stack.callback(module.register_forward_pre_hook(enter(name, is_layer)).remove)
                stack.callback(module.register_forward_hook(leave(name), always_call=True).remove)
        yield
