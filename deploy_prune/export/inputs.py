"""A network's inputs and outputs as files have them, and which inputs each format takes.

A file has tensors in order, each of a fixed shape, floating-point ones in float32. A network may be called with one
tensor, with several, or with tensors by name; it may give any nesting of sequences, mappings and dataclasses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.errors import ExportError
from deploy_prune.networks.copies import copied
from deploy_prune.types import Input

Given = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""One input, several in order, or several by the names of the network's arguments; each [N, ...]."""
TYPES: Final = {torch.float32: "float32", torch.int64: "int64", torch.int32: "int32", torch.bool: "bool"}


@dataclass(frozen=True, kw_only=True)
class Takes:
    """What a format's inputs may be: numbers of dimensions, the batch included, types, and whether several."""

    ranks: range
    types: tuple[str, ...]
    several: bool = True


ANY_TYPE: Final = ("float32", "int64", "int32", "bool")
TAKES: Final[dict[str, Takes]] = {
    "onnx": Takes(ranks=range(1, 9), types=ANY_TYPE),
    "ort": Takes(ranks=range(1, 9), types=ANY_TYPE),
    "tensorrt": Takes(ranks=range(1, 9), types=("float32", "int64", "int32"), several=False),
    "litert": Takes(ranks=range(1, 6), types=ANY_TYPE),
    "executorch": Takes(ranks=range(1, 5), types=ANY_TYPE),
    "ncnn": Takes(ranks=range(2, 6), types=("float32",)),
    "coreml": Takes(ranks=range(1, 6), types=("float32", "int64", "int32")),
    "openvino": Takes(ranks=range(1, 9), types=ANY_TYPE),
    "mnn": Takes(ranks=range(1, 7), types=ANY_TYPE),
}
"""Format -> what it takes; docs/formats.md says the same."""


def several(given: Given) -> tuple[Tensor, ...]:
    """The inputs in order."""
    if isinstance(given, Tensor):
        return (given,)
    return tuple(given.values()) if isinstance(given, Mapping) else tuple(given)


def described(given: Given) -> tuple[Input, ...]:
    """Shapes and types of the inputs, for an artifact; () for one float32 input."""
    inputs = several(given)
    if len(inputs) == 1 and inputs[0].dtype is torch.float32:
        return ()
    return tuple(Input(shape=tuple(x.shape), type=TYPES[x.dtype]) for x in inputs)


def batches(inputs: Sequence[Tensor], example: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, ...]]:
    """The inputs [N, ...] in pieces as long as the example's shapes; what doesn't fill a last one is left out."""
    for number in range(count(inputs, example)):
        yield tuple(x[number * s[0] : (number + 1) * s[0]] for x, s in zip(inputs, example, strict=True))


def count(inputs: Sequence[Tensor], example: Sequence[Sequence[int]]) -> int:
    """How often a file that takes the example's shapes can be run on these inputs."""
    return min((len(x) // shape[0] for x, shape in zip(inputs, example, strict=True)), default=0)


def flatten(outputs: Any) -> tuple[Tensor, ...]:
    """The tensors of a network's outputs (a tensor, or sequences and mappings of them) in order.

    Raises:
        ExportError: an output is neither a tensor, a sequence, a mapping nor None.
    """
    return tuple(_tensors(outputs))


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from _tensors(value)
    elif is_dataclass(outputs) and not isinstance(outputs, type):
        for field in fields(outputs):
            yield from _tensors(getattr(outputs, field.name))
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from _tensors(value)
    elif outputs is not None:
        kind = type(outputs).__name__
        message = f"The network returns a {kind}; only tensors, lists, dicts and dataclasses can be exported."
        raise ExportError(message)


def pieces(given: Given, batch: int) -> Iterator[tuple[Tensor, ...]]:
    """All inputs, ``batch`` of the first at a time and so much of the others as goes with them."""
    inputs = several(given)
    rows = len(inputs[0])
    steps = [batch * len(x) // max(rows, 1) for x in inputs]
    for number in range(-(-rows // batch)):
        yield tuple(x[number * step : (number + 1) * step] for x, step in zip(inputs, steps, strict=True))


def require_inputs(name: str, given: Given) -> None:
    """Raise if the format can't take such inputs.

    Raises:
        ExportError: with what it takes.
    """
    takes = TAKES[name]
    inputs = several(given)
    found = None
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        found = "inputs that are no tensors: give them their values in a module around the network"
    elif len(inputs) > 1 and not takes.several:
        found = f"{len(inputs)} inputs"
    for x in inputs if found is None else ():
        kind = "float32" if x.is_floating_point() else TYPES.get(x.dtype, str(x.dtype).removeprefix("torch."))
        if kind not in takes.types:
            found = f"an input of {kind}"
        elif x.dim() not in takes.ranks:
            found = f"an input of {x.dim()} dimensions"
        elif x.numel() == 0:
            found = "an input without values"
    if found is not None:
        message = f"The format {name} can't take {found}. It takes {in_words(takes)}."
        raise ExportError(message)


def in_words(takes: Takes) -> str:
    """What a format takes, as docs/formats.md has it too."""
    number = "one input or several" if takes.several else "one input"
    ranks = f"{takes.ranks.start} to {takes.ranks.stop - 1} dimensions"
    return f"{number} of {ranks}, in {', '.join(takes.types)}"


def as_float32(network: nn.Module) -> tuple[nn.Module, str | None]:
    """The network with float32 weights: itself, or a copy and a sentence that says so."""
    kinds = {t.dtype for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()} - {torch.float32}
    if not kinds:
        return network, None
    names = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    sentence = f"The network's weights in {names} were turned into float32 first, and it was compared in float32."
    return copied(network).float(), sentence


def float32(given: Given) -> tuple[Tensor, ...]:
    """The inputs in order, floating-point ones in float32."""
    return tuple(x.float() if x.is_floating_point() else x for x in several(given))


class Flat(nn.Module):
    """A network called with tensors in order, whose outputs are one tuple of tensors; names of weights stay."""

    def __init__(self, network: nn.Module, names: Sequence[str] | None) -> None:
        """``names``: of the network's arguments; None: they are given in order."""
        super().__init__()
        for held in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            vars(self)[held] = vars(network)[held]
        vars(self)["_called"] = (network, names)
        self.training = network.training

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The network's outputs."""
        network, names = vars(self)["_called"]
        return flatten(network(*inputs) if names is None else network(**dict(zip(names, inputs, strict=True))))

    def train(self, mode: bool = True) -> Flat:
        """As every module's; the network's own mode too."""
        vars(self)["_called"][0].train(mode)
        self.training = mode
        return self


def called_in_order(network: nn.Module, given: Given) -> nn.Module:
    """The network as files call it: itself, if it takes one tensor, else a ``Flat`` around it."""
    if isinstance(given, Tensor):
        return network
    return Flat(network, tuple(given) if isinstance(given, Mapping) else None)


def random_like(given: Given, times: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random inputs, ``times`` the example's: normal ones, and whole numbers from among the example's own."""

    def one(x: Tensor) -> Tensor:
        shape = (times * len(x), *x.shape[1:])
        if x.is_floating_point():
            return torch.randn(shape, generator=generator)
        return x.flatten()[torch.randint(x.numel(), shape, generator=generator)]

    return tuple(map(one, several(given)))


def as_given(inputs: Sequence[Tensor]) -> Any:
    """One tensor as itself, several as a tuple."""
    return inputs[0] if len(inputs) == 1 else tuple(inputs)
