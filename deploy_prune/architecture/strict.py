"""What architecture.json may say: within bounds that are checked before any memory is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from torch import Tensor

from deploy_prune.errors import ArchitectureError
from deploy_prune.system import strict_json
from deploy_prune.system.strict_json import shown

MAX_BYTES: Final = 8 * 2**20
"""A larger file is refused unread; ResNet-50's has about 30 kB."""
MAX_CHANNELS: Final = 2**20
MAX_UNITS: Final = 2**22
"""Units of all groups together."""
MAX_ELEMENTS: Final = 2**31
"""Elements of all tensors together, or of the input."""
MAX_NAME: Final = 300
MAX_ARGUMENTS: Final = 1000
"""Values among a builder's arguments, lists and mappings counted too."""
MAX_DEPTH: Final = 8

Shape = tuple[int, ...]


def read_text(path: Path) -> str:
    """The text of a file of moderate size.

    Raises:
        ArchitectureError: it is missing, no plain file, too large, or not UTF-8.
    """
    return strict_json.read_text(path, ArchitectureError, MAX_BYTES)


def parse(text: str) -> Any:
    """JSON without duplicate keys, NaN, infinities and giant numbers. Raises ArchitectureError."""
    return strict_json.parse(text, ArchitectureError, "the file")


def _refuse(message: str) -> NoReturn:
    raise ArchitectureError(message)


def mapping(raw: Any, where: str) -> dict[str, Any]:
    """A mapping whose keys can be names of modules. Raises ArchitectureError."""
    if not isinstance(raw, dict):
        _refuse(f"{where} must be a mapping.")
    for name in raw:
        if not name.isprintable() or len(name) > MAX_NAME:
            _refuse(f"{where} has the name '{shown(name)}', which no module can have.")
    return raw


def keys(raw: Any, expected: set[str], where: str) -> None:
    """Exactly these keys. Raises ArchitectureError."""
    if set(mapping(raw, where)) != expected:
        odd = min(set(raw) ^ expected)
        _refuse(f"{where} must have exactly the keys {', '.join(sorted(expected))}; look at '{shown(odd)}'.")


def count(raw: Any, where: str, smallest: int = 1, largest: int = MAX_CHANNELS) -> int:
    """A whole number within bounds. Raises ArchitectureError."""
    if type(raw) is not int or not smallest <= raw <= largest:
        _refuse(f"{where} must be a whole number from {smallest} to {largest}, not {shown(raw)}.")
    return raw


def arguments(raw: Any, where: str) -> dict[str, Any]:
    """A builder's arguments: few, and short. Raises ArchitectureError."""
    level: list[Any] = [mapping(raw, where)]
    values = characters = 0
    for _ in range(MAX_DEPTH):
        inner = [v for each in level for v in (each.values() if isinstance(each, dict) else each)]
        values += len(inner)
        characters += sum(len(v) for v in inner if isinstance(v, str))
        level = [v for v in inner if isinstance(v, dict | list)]
    if level or values > MAX_ARGUMENTS or characters > MAX_NAME * 10:
        _refuse(f"{where} is too long or too deep for a builder's arguments.")
    return dict(raw)


def shape(raw: Any, where: str, smallest: int = 1) -> Shape:
    """At most 8 sizes whose product is not too large. Raises ArchitectureError."""
    if not isinstance(raw, list) or len(raw) > 8:
        _refuse(f"{where} must be a list of at most 8 sizes.")
    sizes = tuple(count(size, where, smallest, MAX_ELEMENTS) for size in raw)
    if prod(max(size, 1) for size in sizes) > MAX_ELEMENTS:
        _refuse(f"{where} has more than {MAX_ELEMENTS} elements.")
    return sizes


def layers(raw: Any) -> dict[str, tuple[Shape, Shape | None]]:
    """Tensor name -> (dense shape, slim shape; None: it is gone). Raises ArchitectureError."""
    shapes: dict[str, tuple[Shape, Shape | None]] = {}
    elements = 0
    for name, row in mapping(raw, "layers").items():
        where = f"layers.{name}"
        if not isinstance(row, list) or len(row) != 2:
            _refuse(f"{where} must be [dense shape, slim shape].")
        dense = shape(row[0], where, 0)
        slim = None if row[1] is None else shape(row[1], where, 0)
        if slim is not None and not _fits(slim, dense):
            _refuse(f"{where}: the slim shape {list(slim)} does not fit into the dense shape {list(dense)}.")
        elements += prod(dense)
        shapes[name] = dense, slim
    if elements > MAX_ELEMENTS:
        _refuse(f"layers have more than {MAX_ELEMENTS} elements together.")
    return shapes


def _fits(slim: Shape, dense: Shape) -> bool:
    return len(slim) == len(dense) and all(few <= many for many, few in zip(dense, slim, strict=True))


def masks(raw: Any) -> dict[str, Tensor]:
    """Group name -> bool[C] from ``{"channels": C, "kept": K, "keep": "0-3,7"}``. Raises ArchitectureError."""
    groups = mapping(raw, "groups")
    units = 0
    for name, row in groups.items():
        keys(row, {"channels", "kept", "keep"}, f"groups.{name}")
        units += count(row["channels"], f"groups.{name}.channels")
    if units > MAX_UNITS:
        _refuse(f"groups have more than {MAX_UNITS} units together.")
    return {name: _mask(name, row) for name, row in groups.items()}


def _mask(name: str, row: Mapping[str, Any]) -> Tensor:
    channels, text = row["channels"], row["keep"]
    mask = torch.zeros(channels, dtype=torch.bool)
    before = -1
    for part in _parts(text, f"groups.{name}.keep"):
        first, _, last = part.partition("-")
        a, b = int(first[:12]), int((last or first)[:12])
        if not before < a <= b < channels:
            _refuse(f"groups.{name}.keep: '{part[:40]}' is out of order or beyond the {channels} units.")
        mask[a : b + 1] = True
        before = b
    if count(row["kept"], f"groups.{name}.kept", smallest=int(channels > 1)) != int(mask.sum()):
        _refuse(f"groups.{name}: kept says {row['kept']}, but keep names {int(mask.sum())} units.")
    return mask


def _parts(text: Any, where: str) -> list[str]:
    """The ranges of "0-3,7"."""
    parts = (text.split(",") if text else []) if isinstance(text, str) else [""]
    for part in parts:
        first, dash, last = part.partition("-")
        if not _digits(first) or (dash and not _digits(last)):
            _refuse(f"{where} must be ranges such as '0-3,7', not '{shown(text, 40)}'.")
    return parts


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()
