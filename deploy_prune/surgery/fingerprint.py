"""A network's definition as one digest: two networks with the same digest run the same code on the same shapes.

Digested are the code objects that are loaded now (not the files, which may have changed since), what they name, close
over and take by default, every module's attributes, the shapes of its tensors, and the values of those that are not
trained. Installed libraries count by their version. What can't be digested soundly has no digest.
"""

from __future__ import annotations

import builtins
import enum
import functools
import hashlib
import logging
import re
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.system.user_code import is_installed

_PLAIN: Final = (
    type(None), bool, int, float, complex, str, bytes, range, slice, re.Pattern, type(...), torch.dtype, torch.device,
    torch.layout, torch.memory_format, types.GenericAlias, types.UnionType,
)  # fmt: skip
_BUILT_IN: Final = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
_OPERATORS: Final = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_OUTSIDE: Final = frozenset(
    {"environ", "getenv", "eval", "exec", "__import__", "import_module", "globals", "vars", "attrgetter", "open"}
)
"""Names by which code reaches what can't be seen here."""
_NOT_CODE: Final = frozenset(
    {"__annotations__", "__annotate__", "__dict__", "__doc__", "__firstlineno__", "__module__", "__static_attributes__",
     "__weakref__", "_abc_impl"}
)  # fmt: skip
_NOT_RUN: Final = re.compile(
    r"training|_(backward|state_dict|load_state_dict|is_full_backward|modules|buffers|param).*"
)
"""Attributes of a module that don't matter in a forward pass, or are written on their own."""
_HOOKS: Final = re.compile(r"_forward_(pre_)?hooks.*")


class _UnknownPartError(Exception):
    """Something that can't be digested."""


def definition(network: nn.Module) -> str | None:
    """The digest of a network's definition, hexadecimal, or None if it has a part that can't be digested."""
    writer = _Writer()
    try:
        writer.write(network)
    except (_UnknownPartError, RecursionError):
        return None
    return writer.digest.hexdigest()


class _Writer:
    """Writes values into a digest, each object once."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._seen: dict[int, tuple[int, Any]] = {}  # the objects too: while they live, no other has their id

    def _text(self, *parts: object) -> None:
        for part in parts:
            encoded = str(part).encode("utf-8", "surrogatepass")
            self.digest.update(b"%d:" % len(encoded) + encoded)

    def write(self, value: Any) -> None:
        """Write any value.

        Raises:
            _UnknownPartError: it is of a kind that can't be written.
        """
        if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum):
            self._text(type(value).__name__, repr(value))
            return
        if isinstance(value, dict | list | tuple | set | frozenset):  # tracing may replace one by its equal
            self._text(type(value).__qualname__)
            self._compound(value)
            return
        if id(value) in self._seen:
            self._text("again", self._seen[id(value)][0])
            return
        self._seen[id(value)] = len(self._seen), value
        self._text(type(value).__qualname__)
        self._compound(value)

    def _compound(self, value: Any) -> None:
        if isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, Tensor):
            self._tensor(value, with_values=True)
        elif isinstance(value, Mapping):
            self._all([part for item in value.items() for part in item])
        elif isinstance(value, list | tuple):
            self._all(value)
        elif isinstance(value, set | frozenset):
            self._all(sorted(value, key=repr))
        elif isinstance(value, enum.Enum):
            self._all([type(value), value.name, value.value])
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self._all([value.__func__, value.__self__])
        else:
            self._rarer(value)

    def _rarer(self, value: Any) -> None:
        if isinstance(value, types.ModuleType):
            self._text(value.__name__, _version(value.__name__))
        elif isinstance(value, functools.partial):
            self._all([value.func, value.args, value.keywords])
        elif isinstance(value, staticmethod | classmethod):
            self.write(value.__func__)
        elif isinstance(value, property):
            self._all([value.fget, value.fset, value.fdel])
        elif isinstance(value, functools.cached_property):
            self.write(value.func)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, _BUILT_IN):
            self._text(getattr(value, "__module__", ""), value.__qualname__)
            owner = getattr(value, "__self__", None)
            self.write(None if isinstance(owner, types.ModuleType) else owner)
        elif isinstance(value, _OPERATORS) or type(value).__module__ == "typing":
            self._text(value)
        elif isinstance(value, logging.Logger):
            self._text(value.name)
        elif hasattr(value, "__dict__") and not hasattr(type(value), "__slots__"):
            self._all([type(value), vars(value)])
        else:
            raise _UnknownPartError

    def _all(self, values: Iterable[Any]) -> None:
        listed = list(values)
        self._text(len(listed))
        for value in listed:
            self.write(value)

    def _module(self, module: nn.Module) -> None:
        self.write(type(module))
        for name, parameter in module._parameters.items():
            self._text(name)
            self._tensor(parameter, with_values=False)
        for name, buffer in module._buffers.items():
            self._text(name)
            self._tensor(buffer, with_values=buffer is not None and not buffer.is_floating_point())
        for name, child in module._modules.items():
            self._text(name)
            self.write(child)
        for name, value in sorted(vars(module).items()):
            if _HOOKS.fullmatch(name):
                self._all(value.values())  # their numbers differ from process to process
            elif not _NOT_RUN.fullmatch(name):
                self._text(name)
                self.write(value)

    def _tensor(self, tensor: Tensor | None, with_values: bool) -> None:
        if tensor is None:
            self._text("none")
            return
        if not with_values:  # else ``write`` has noted it
            number, _ = self._seen.setdefault(id(tensor), (len(self._seen), tensor))
            self._text(number)  # tied tensors have one number
        self._text(type(tensor).__qualname__, tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.requires_grad)
        if with_values:
            if tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
                raise _UnknownPartError
            flat = tensor.detach().cpu().contiguous().flatten()
            self.digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")

    def _class(self, kind: type) -> None:
        """A class by its name; its own functions too, but for a library's, which go with the version."""
        self._text(kind.__module__, kind.__qualname__)
        for base in kind.__mro__:
            root = base.__module__.partition(".")[0]
            library = _version(root)
            self._text(base.__module__, base.__qualname__, library)
            for name, value in sorted(vars(base).items()):
                own = (getattr(value, "__module__", None) or base.__module__).partition(".")[0] == root
                if name in _NOT_CODE or (library is not None and (own or not isinstance(value, types.FunctionType))):
                    continue
                self._text(name)
                self.write(value)

    def _function(self, function: types.FunctionType) -> None:
        self._text(function.__module__, function.__qualname__)
        library = _version((function.__module__ or "").partition(".")[0])
        if library is not None and "<locals>" not in function.__qualname__:
            self._text(library)
            return
        self.write(function.__code__)
        self._all([function.__defaults__, function.__kwdefaults__])
        for cell in function.__closure__ or ():
            try:
                self.write(cell.cell_contents)
            except ValueError:  # not filled yet
                self._text("empty")
        names = sorted(_names(function.__code__))
        if library is None and _OUTSIDE & set(names):
            raise _UnknownPartError
        for name in names:
            if name in function.__globals__:
                self._named(name, function.__globals__[name], names)
            elif name not in vars(builtins) and name in sys.modules:  # imported inside the function
                self._named(name, sys.modules[name], names)

    def _named(self, name: str, value: Any, names: list[str]) -> None:
        """What a name stands for; of a module of the user's own, what the code may take from it."""
        self._text(name)
        if not isinstance(value, types.ModuleType) or _version(value.__name__.partition(".")[0]) is not None:
            self.write(value)
            return
        self._text(value.__name__)
        if "getattr" in names:  # what it takes is not to be seen
            raise _UnknownPartError
        for inner in names:
            if inner in vars(value) and vars(value)[inner] is not value:
                self._named(inner, vars(value)[inner], [n for n in names if n != inner])

    def _code(self, code: types.CodeType) -> None:
        self._text(code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self._text(code.co_flags, code.co_argcount, code.co_kwonlyargcount, code.co_exceptiontable.hex())
        self._all(code.co_consts)


def _names(code: types.CodeType) -> set[str]:
    """The names that code and the code within it look up."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inner)


@functools.cache
def _version(root: str) -> str | None:
    """An installed library's version, by the name of its top package; None for the user's own modules."""
    root = root.partition(".")[0]
    if root in sys.stdlib_module_names or root == "builtins":
        return sys.version
    package = sys.modules.get(root)
    file, version = getattr(package, "__file__", None), getattr(package, "__version__", None)
    return str(version) if file is not None and is_installed(Path(file)) and version is not None else None
