"""Read a pickle as plain data. Nothing is imported or called: an object stays a record of how to build it.

Python's own unpickler runs code by design, and even a few permitted names (numpy's arrays among them) are enough to
crash the interpreter. This one knows containers, numbers and text; of all else it keeps the name and the arguments.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, Final, cast

import numpy as np

MAX_OPCODES: Final = 1_500_000
"""Each makes at most some hundred bytes. A checkpoint has about 40 for a tensor with its optimiser's state, CIFAR-100
about 5 for each of its 50,000 images."""
_ARRAY = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
_BUFFER = {("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer")}
_DTYPE, _NDARRAY, _ENCODE = ("numpy", "dtype"), ("numpy", "ndarray"), ("_codecs", "encode")
_EMPTY_BYTES = {("__builtin__", "bytes"), ("builtins", "bytes")}
ARRAYS: Final = frozenset({*_ARRAY, *_BUFFER, _DTYPE, _NDARRAY, _ENCODE, *_EMPTY_BYTES})
"""Names that stand in pickles of arrays and bytes."""
_NUMBERS = re.compile(r"[<>|=]?([biuf][1248])")


class Bounded(io.RawIOBase):
    """A file that never reserves memory for bytes that it hasn't got."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__()
        self.file, self.size = file, size

    def read(self, size: int = -1) -> bytes:
        """At most so many bytes, or all that are left."""
        left = self.size - self.file.tell()
        return self.file.read(left if size < 0 else max(0, min(size, left)))

    def readline(self, size: int | None = -1) -> bytes:
        """To the line's end."""
        return self.file.readline(-1 if size is None else size)

    def tell(self) -> int:
        """How far it is read."""
        return self.file.tell()


@dataclass(frozen=True)
class Global:
    """A name that a pickle would import."""

    module: str
    name: str

    @property
    def pair(self) -> tuple[str, str]:
        """Both."""
        return self.module, self.name


@dataclass(frozen=True, eq=False)
class Persistent:
    """What lies beside the pickle, by what the pickle says of it."""

    told: Any


@dataclass(eq=False)
class Made:
    """An object, as what would be called with what, its state, and what would be put into it."""

    call: Any
    arguments: Any
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


class _Key:
    """A key of a dict that is no number or text: itself, whatever it holds."""


@dataclass(frozen=True)
class Told:
    """A pickle's value, the names it would call, and what lies beside it."""

    value: Any
    called: frozenset[tuple[str, str]]
    persistent: tuple[Any, ...]


def read(source: Bounded) -> Told:
    """The next pickle of a source.

    Raises:
        ValueError: it is damaged, has an opcode of no use in data, or more than MAX_OPCODES.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings(action="ignore"):  # about escapes in text
            value = _run(machine, source)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = str(error) if isinstance(error, ValueError) else "its steps don't fit together"
        message = f"it is no whole pickle: {reason}"
        raise ValueError(message) from error
    return Told(value=value, called=frozenset(machine.called), persistent=tuple(machine.persistent))


def _run(machine: _Machine, source: Bounded) -> Any:
    for number, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], source))):
        if number > MAX_OPCODES:
            message = f"it has more than {MAX_OPCODES} steps"
            raise ValueError(message)
        machine.step(opcode.name, argument)
    return machine.pop()


class _Machine:
    """The stack, the stacks below its marks, and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.called: set[tuple[str, str]] = set()
        self.persistent: list[Any] = []

    def step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(_VALUES[name](argument))
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in {"PROTO", "FRAME", "STOP"}:
            message = f"it has {name}, which is not read"
            raise ValueError(message)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def marked(self) -> list[Any]:
        """What lies above the last mark."""
        found, self.stack = self.stack, self.below.pop()
        return found

    def make(self, call: Any, arguments: Any) -> None:
        if isinstance(call, Global):
            self.called.add(call.pair)
        content = _content(call, arguments)
        self.stack.append(Made(call, arguments) if content is None else content)

    def aside(self, told: Any) -> None:
        self.persistent.append(told)
        self.stack.append(Persistent(told))

    def extend(self, elements: list[Any]) -> None:
        into = self.stack[-1]
        (into.elements if isinstance(into, Made) else into).extend(elements)

    def put(self, pairs: list[Any]) -> None:
        into = self.stack[-1]
        (into.items if isinstance(into, Made) else into).update(_pairs(pairs))

    def build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Made):
            self.stack[-1].state = state

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_or_mark(self) -> None:
        self.stack.pop() if self.stack else self.marked()

    def instance(self, call: Any | None) -> None:
        found = self.marked()
        self.make(found.pop(0) if call is None else call, tuple(found))

    def new(self, with_keywords: bool) -> None:
        if with_keywords:
            self.stack.pop()
        arguments = self.stack.pop()
        self.make(self.stack.pop(), arguments)

    def named(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Global(str(module), str(name)))


def _pairs(flat: list[Any]) -> dict[Any, Any]:
    keys = [key if isinstance(key, str | bytes | int | float | None) else _Key() for key in flat[::2]]
    return dict(zip(keys, flat[1::2], strict=True))


def _global(argument: str) -> Global:
    return Global(*argument.split(" ", 1))


def _last(machine: _Machine, count: int) -> tuple[Any, ...]:
    if len(machine.stack) < count:
        raise IndexError
    found = tuple(machine.stack[-count:])
    del machine.stack[-count:]
    return found


def _same(argument: Any) -> Any:
    return argument


def _latin(argument: str) -> bytes:
    """Text of Python 2, which is bytes."""
    return argument.encode("latin-1")


_VALUES: Final[dict[str, Callable[[Any], Any]]] = {
    "NONE": lambda _: None, "NEWTRUE": lambda _: True, "NEWFALSE": lambda _: False,
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _same),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _same),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _same), "BYTEARRAY8": bytes,
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _latin),
    "EMPTY_LIST": lambda _: [], "EMPTY_TUPLE": lambda _: (), "EMPTY_DICT": lambda _: {}, "EMPTY_SET": lambda _: [],
    "GLOBAL": _global,
}  # fmt: skip
_STEPS: Final[dict[str, Callable[[_Machine, Any], None]]] = {
    "MARK": lambda m, _: m.mark(), "POP": lambda m, _: m.pop_or_mark(), "DUP": lambda m, _: m.push(m.stack[-1]),
    "POP_MARK": lambda m, _: (m.marked(), None)[1],
    "APPEND": lambda m, _: m.extend([m.pop()]), "APPENDS": lambda m, _: m.extend(m.marked()),
    "ADDITEMS": lambda m, _: m.extend(m.marked()), "LIST": lambda m, _: m.push(m.marked()),
    "TUPLE": lambda m, _: m.push(tuple(m.marked())),
    "FROZENSET": lambda m, _: m.push(tuple(m.marked())),
    "TUPLE1": lambda m, _: m.push(_last(m, 1)), "TUPLE2": lambda m, _: m.push(_last(m, 2)),
    "TUPLE3": lambda m, _: m.push(_last(m, 3)),
    "DICT": lambda m, _: m.push(_pairs(m.marked())),
    "SETITEM": lambda m, _: m.put([*_last(m, 2)]), "SETITEMS": lambda m, _: m.put(m.marked()),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, at: m.push(m.memo[at])),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, at: m.memo.update({at: m.stack[-1]})),
    "MEMOIZE": lambda m, _: m.memo.update({len(m.memo): m.stack[-1]}),
    "STACK_GLOBAL": lambda m, _: m.named(),
    "REDUCE": lambda m, _: m.new(with_keywords=False), "NEWOBJ": lambda m, _: m.new(with_keywords=False),
    "NEWOBJ_EX": lambda m, _: m.new(with_keywords=True),
    "INST": lambda m, argument: m.instance(_global(argument)), "OBJ": lambda m, _: m.instance(None),
    "BUILD": lambda m, _: m.build(),
    "PERSID": lambda m, told: m.aside(told), "BINPERSID": lambda m, _: m.aside(m.pop()),
}  # fmt: skip


def is_call(value: Any, names: set[tuple[str, str]]) -> bool:
    """It is an object made by one of these names."""
    return isinstance(value, Made) and isinstance(value.call, Global) and value.call.pair in names


def text(value: Any) -> str | None:
    """A name: text, or Python 2's bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else None


def mapping(value: Any) -> dict[str, Any] | None:
    """What is a dict, or an object with items, by its names; keys that are no text are left aside."""
    items = value.items if isinstance(value, Made) else value
    if not isinstance(items, dict):
        return None
    return {name: item for key, item in items.items() if (name := text(key)) is not None}


def array(value: Any) -> np.ndarray[Any, Any] | None:
    """A numpy array of numbers; None if it is something else.

    Raises:
        ValueError: it says that it is one, but its size and its bytes don't go together, or it holds objects.
    """
    if is_call(value, _ARRAY):
        found = _of_state(value.state)
    elif is_call(value, _BUFFER):
        found = _of_buffer(value.arguments)
    else:
        return None
    if found is None:
        message = "an array in it has no numbers, or not as many as it says"
        raise ValueError(message)
    return found


def _of_state(state: Any) -> np.ndarray[Any, Any] | None:
    """(version, shape, dtype, is it in Fortran's order, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    _, shape, dtype, is_fortran, content = state
    return _numbers(content, dtype, shape, "F" if is_fortran is True else "C")


def _of_buffer(arguments: Any) -> np.ndarray[Any, Any] | None:
    if not isinstance(arguments, tuple) or len(arguments) != 4:
        return None
    content, dtype, shape, order = arguments
    return _numbers(content, dtype, shape, "F" if order == "F" else "C")


def _numbers(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any] | None:
    kind = _kind(dtype)
    if kind is None or not isinstance(content, bytes) or not isinstance(shape, tuple) or len(shape) > 32:
        return None
    if not all(type(side) is int and 0 <= side < 2**31 for side in shape):
        return None
    if math.prod(shape) * kind.itemsize != len(content):
        return None
    return np.frombuffer(content, kind).reshape(shape, order=order)


def _kind(value: Any) -> np.dtype[Any] | None:
    """numpy.dtype("f4", ...), with (version, byte order, ...) as its state."""
    if not is_call(value, {_DTYPE}) or not isinstance(value.arguments, tuple) or not value.arguments:
        return None
    found = _NUMBERS.fullmatch(text(value.arguments[0]) or "")
    order = text(value.state[1]) if isinstance(value.state, tuple) and len(value.state) > 1 else "|"
    return None if found is None or found[1] == "b2" else _dtype(order, found[1])


def _dtype(order: str | None, kind: str) -> np.dtype[Any] | None:
    is_known = order in {"<", ">", "|", "="} and kind not in {"b4", "b8", "f1"}
    return np.dtype(f"{order}{kind}") if is_known else None


def _content(call: Any, arguments: Any) -> bytes | None:
    """Bytes, where it is these that Python 3 writes so for Python 2."""
    if not isinstance(call, Global) or not isinstance(arguments, tuple):
        return None
    if call.pair == _ENCODE and len(arguments) == 2 and isinstance(arguments[0], str):
        return arguments[0].encode("latin-1")
    return b"" if call.pair in _EMPTY_BYTES and arguments == () else None


def names_beside(called: frozenset[tuple[str, str]], known: frozenset[tuple[str, str]]) -> list[str]:
    """The called names that are none of the known."""
    return sorted(f"{module}.{name}" for module, name in called - known)
