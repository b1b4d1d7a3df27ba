"""Read what torch.save wrote, as data. Nothing is imported or called; a tensor's bytes are read when needed.

The zip that torch writes since 1.6, and the row of pickles before. Every size is compared with the file's before
anything is reserved.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from deploy_prune.system import pickles
from deploy_prune.system.pickles import Global, Made, Persistent

_MAGIC: Final = 0x1950A86A20F9469CFC6C
"""What the row of pickles begins with (torch/serialization.py)."""
_STORAGES: Final = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128, "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}  # fmt: skip
_DTYPES: Final = {
    name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype) and "q" not in name
}
_PLAIN: Final = {"_rebuild_tensor": 4, "_rebuild_tensor_v2": 6, "_rebuild_tensor_v3": 7}
"""The functions of torch._utils that make tensors, and how many arguments they have at least."""
_WRAPPERS: Final = {
    ("torch._utils", "_rebuild_parameter"), ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch.nn.parameter", "Parameter"), ("torch.nn.parameter", "Buffer"),
}  # fmt: skip
_OTHERS: Final = {
    "_rebuild_sparse_tensor": "is sparse; save it as tensor.to_dense()",
    "_rebuild_qtensor": "is quantised; save the weights of the float network",
    "_rebuild_meta_tensor_no_storage": "has no values (device meta)",
    "_rebuild_nested_tensor": "is nested",
}
_CODE: Final = frozenset(
    {"os", "posix", "nt", "sys", "subprocess", "importlib", "runpy", "pty", "socket", "shutil", "ctypes", "code"}
    | {"timeit", "pickle", "_pickle", "operator", "_operator", "webbrowser", "commands", "pdb", "bdb", "marshal"}
)
"""Modules that no tensor, container or setting needs: who names their functions to be called wants to run something."""
_BUILTINS: Final = frozenset({"builtins", "__builtin__"})
_CONTAINERS: Final = frozenset(
    {"set", "frozenset", "dict", "list", "tuple", "bytearray", "bytes", "complex", "slice", "range", "object", "str"}
    | {"int", "float", "bool"}
)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor in a file: what it is, where it lies, and how to read it. ``problem``: why it can't be."""

    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    place: tuple[Any, ...] = ()
    read: Callable[[], Tensor] | None = None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Content:
    """A file: its value as plain data, bytes of its storages, and how to read one."""

    value: Any
    sizes: Mapping[str, int]
    read: Callable[[str], bytes]


@contextmanager
def opened(path: Path) -> Iterator[Content]:
    """The file's content, while it is open.

    Raises:
        ValueError: it is damaged, another kind of file, or names functions that have no place in weights.
        OSError: it can't be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start == b"PK\x03\x04":
            try:
                with zipfile.ZipFile(file) as archive:
                    yield _zipped(archive, size)
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
                message = f"it is damaged: {error}"
                raise ValueError(message) from error
        else:
            yield _rowed(file, size)


def _zipped(archive: zipfile.ZipFile, size: int) -> Content:
    members = {member.filename: member for member in archive.infolist()}
    pickled = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickled) != 1:
        message = "it is a zip, but none that torch.save wrote"
        raise ValueError(message)
    top = pickled[0].removesuffix("data.pkl")
    if top + "constants.pkl" in members:
        message = "it is a TorchScript archive; save the state dict of the network that it was made of"
        raise ValueError(message)
    if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
        message = "its parts are compressed, which torch.save never does"
        raise ValueError(message)
    if sum(member.file_size for member in members.values()) > size:
        message = "its parts are larger than the file"
        raise ValueError(message)
    if top + "byteorder" in members and archive.read(top + "byteorder") != b"little":
        message = "its numbers are big-endian; save it on another machine"
        raise ValueError(message)
    with archive.open(pickled[0]) as file:
        told = pickles.read(pickles.Bounded(file, members[pickled[0]].file_size))
    _require_no_calls(told)
    place = f"{top}data/"
    sizes = {name.removeprefix(place): m.file_size for name, m in members.items() if name.startswith(place)}
    return Content(value=told.value, sizes=sizes, read=lambda key: archive.read(place + key))


def _rowed(file: BinaryIO, size: int) -> Content:
    """Magic number, version, system, value, names of the storages; then each storage with its number of values."""
    source = pickles.Bounded(file, size)
    first = pickles.read(source)
    if first.value != _MAGIC:
        _require_no_calls(first)
        return Content(value=first.value, sizes={}, read=lambda _: b"")
    _version, system, told, keys = (pickles.read(source) for _ in range(4))
    _require_no_calls(told)
    if not (isinstance(system.value, dict) and system.value.get("little_endian", True) is True):
        message = "its numbers are big-endian; save it on another machine"
        raise ValueError(message)
    kinds = {found[0]: found[1] for p in told.persistent if (found := _storage(Persistent(p))) is not None}
    sizes, places = dict[str, int](), dict[str, int]()
    for key in keys.value if isinstance(keys.value, list) else []:
        name, head = str(pickles.text(key)), source.read(8)
        if name not in kinds or len(head) < 8:
            message = "it is damaged: its storages aren't those that its tensors need"
            raise ValueError(message)
        sizes[name], places[name] = struct.unpack("<q", head)[0] * kinds[name].itemsize, source.tell()
        if not 0 <= sizes[name] <= size - source.tell():
            message = "it is cut off"
            raise ValueError(message)
        file.seek(sizes[name], 1)

    def read(key: str) -> bytes:
        file.seek(places[key])
        return file.read(sizes[key])

    return Content(value=told.value, sizes=sizes, read=read)


def _require_no_calls(told: pickles.Told) -> None:
    for module, name in sorted(told.called):
        if module.split(".")[0] in _CODE or (module in _BUILTINS and name not in _CONTAINERS):
            message = f"it holds pickled Python objects that would run code when loaded ({module}.{name})"
            raise ValueError(message)


def stored(value: Any, content: Content) -> Stored | None:
    """A tensor, parameter or numpy array of the file; None if the value is something else."""
    for _ in range(4):  # a parameter of a tensor of a subclass: no deeper
        if pickles.is_call(value, _WRAPPERS) and isinstance(value.arguments, tuple) and value.arguments:
            value = value.arguments[0]
        elif pickles.is_call(value, {("torch._tensor", "_rebuild_from_type_v2")}) and _length(value.arguments) == 4:
            value = Made(value.arguments[0], value.arguments[2])
    if not isinstance(value, Made) or not isinstance(value.call, Global):
        return None
    module, name = value.call.pair
    if module == "torch._utils" and name in _PLAIN:
        return _tensor(value.arguments, name, content)
    if module == "torch._utils" and name.startswith("_rebuild_"):
        return Stored(problem=_OTHERS.get(name, f"is of a kind that is not read ({name})"))
    return _array(value)


def _array(value: Made) -> Stored | None:
    try:
        found = pickles.array(value)
        if found is None:
            return None
        tensor = torch.from_numpy(found.astype(found.dtype.newbyteorder("="), copy=True))
    except (ValueError, TypeError) as error:
        return Stored(problem=f"can't be read: {error}")
    return Stored(shape=tuple(tensor.shape), dtype=tensor.dtype, place=(id(value),), read=lambda: tensor)


def _tensor(arguments: Any, name: str, content: Content) -> Stored:
    if _length(arguments) < _PLAIN[name]:
        return Stored(problem="is damaged")
    found, (offset, shape, strides) = _storage(arguments[0]), arguments[1:4]
    if found is None:
        return Stored(problem="was not written by torch.save, or is quantised")
    key, dtype = found[0], _dtype(arguments[6]) if name == "_rebuild_tensor_v3" else found[1]
    if dtype is None:
        return Stored(problem="has a type that torch here doesn't know")
    if not _are_counts((offset,)) or not _are_counts(shape) or not _are_counts(strides) or len(shape) != len(strides):
        return Stored(problem="is damaged")
    last = offset + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    if key not in content.sizes or (math.prod(shape) and (last + 1) * dtype.itemsize > content.sizes[key]):
        return Stored(problem="is damaged: it is larger than what the file has of it")
    place = (key, dtype, offset, shape, strides)
    return Stored(shape=shape, dtype=dtype, place=place, read=lambda: _read(content, place))


def _dtype(value: Any) -> torch.dtype | None:
    return _DTYPES.get(value.name) if isinstance(value, Global) and value.module == "torch" else None


def _read(content: Content, place: tuple[Any, ...]) -> Tensor:
    """A tensor of its own, whatever shares its storage."""
    key, dtype, offset, shape, strides = place
    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    held = bytearray(content.read(key))
    flat = torch.frombuffer(held, dtype=dtype, count=len(held) // dtype.itemsize)
    return flat.as_strided(shape, strides, offset)


def _storage(value: Any) -> tuple[str, torch.dtype] | None:
    """Name and type of what a tensor lies in: ("storage", type, name, device, number of values)."""
    told = value.told if isinstance(value, Persistent) else None
    if not isinstance(told, tuple) or len(told) < 5 or not isinstance(told[1], Global):
        return None
    if len(told) > 5 and told[5] is not None:  # a part of another one, as before torch 0.4
        return None
    key, dtype = pickles.text(told[2]), _STORAGES.get(told[1].name)
    return None if key is None or dtype is None else (key, dtype)


def _are_counts(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < 2**62 for value in values)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, tuple) else 0
