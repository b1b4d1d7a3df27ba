"""The difference between two networks' outputs, however nested. Values that aren't finite are never equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree


def relative_difference(a: Any, b: Any) -> float:
    """max|a - b| / max|a| of the worst tensor of two equally nested outputs (see ``relative``).

    Numbers count as tensors. Infinite if the outputs are nested in another way or have no tensor with values.
    """
    left, right = dict(parts(a)), dict(parts(b))
    if left.keys() != right.keys():
        return float("inf")
    pairs = [(left[place], right[place]) for place in left]
    if not any(isinstance(x, Tensor) and x.numel() for x, _ in pairs):
        return float("inf")
    return max(map(_apart, *zip(*pairs, strict=True)))


def relative(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max|a| of two tensors of any real, integer or complex type, computed in float64.

    0 if both have no values. Integers and truth values that differ at all are 1 apart or more: they stand for names.
    Infinite if shapes differ, one of them is not finite, only one of them is of integers, or a is all zero and b isn't.
    """
    if a.shape != b.shape or _is_exact(a) != _is_exact(b):
        return float("inf")
    if not a.numel():
        return 0.0
    if not (is_finite(a) and is_finite(b)):
        return float("inf")
    if torch.equal(a.cpu(), b.cpu()):
        return 0.0
    x, y = _wide(a), _wide(b)
    gap, scale = float((x - y).abs().max()), float(x.abs().max())
    apart = gap / scale if scale else float("inf")
    return max(1.0, apart) if _is_exact(a) else apart


def is_finite(x: Tensor) -> bool:
    """Whether all values are finite."""
    return bool(torch.isfinite(x).all())


def not_finite(output: Any) -> str | None:
    """Where in a nested output the first tensor that isn't finite is, as in "['scores'][0]"; None if there is none."""
    places = (place for place, x in parts(output) if isinstance(x, Tensor) and not is_finite(x))
    return next(places, None)


def tensors_of(output: Any) -> list[Tensor]:
    """All floating-point tensors of a nested output, in order."""
    return [x for _, x in parts(output) if isinstance(x, Tensor) and x.is_floating_point()]


def parts(output: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor of a nested output, with its place; of what is neither tensor nor number, its type.

    Looked into are mappings, lists, tuples, dataclasses, and whatever torch's pytree knows.
    """
    if isinstance(output, Tensor):
        yield place, output
    elif isinstance(output, bool | int | float | complex):
        yield place, torch.tensor(output)
    else:
        inner = _inner(output)
        if inner is None:
            yield place, type(output)
        else:
            for key, value in inner.items():
                yield from parts(value, f"{place}[{key!r}]")


def _inner(output: Any) -> Mapping[Any, Any] | None:
    """What a container holds, by key or number; None if it is none."""
    if isinstance(output, Mapping):
        return output
    if isinstance(output, list | tuple):
        return dict(enumerate(output))
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    known = _pytree.SUPPORTED_NODES.get(type(output))
    return None if known is None else dict(enumerate(known.flatten_fn(output)[0]))


def _apart(a: Any, b: Any) -> float:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return relative(a, b)
    return 0.0 if a is b else float("inf")


def _is_exact(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex())


def _wide(x: Tensor) -> Tensor:
    """In float64, or complex128, on the CPU."""
    x = x.detach().cpu()
    return x.to(torch.complex128) if x.is_complex() else x.double()
