"""Leave a network as it was: whatever its modules keep while they run is put back.

Networks keep anchors, tables, feature maps and counts: in attributes, in containers, in buffers that they write to, in
what a hook closes over, in their class, in a global table, in a function's cache. Tracing would leave tensors without
numbers there.
"""

from __future__ import annotations

import functools
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import torch
from torch import Tensor, nn

_Undo = Callable[[], None]
_LIBRARIES: Final = frozenset(
    {"torch", "numpy", "scipy", "accelerate", "lightning", "lightning_fabric", "pytorch_lightning", "deploy_prune"}
    | {"huggingface_hub", "tokenizers", "safetensors", "filelock", "tqdm", "yaml"}
)
"""Their functions keep nothing of a network, and their objects (loggers, loaders, trainers) are not the network's."""
_FOLLOWED: Final = frozenset({"types", "functools"})
"""Standard modules whose objects may hold what a network keeps."""
_PLAIN: Final = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_CONTAINERS: Final = (list, deque, set, bytearray)
_CACHED: Final = type(functools.lru_cache(lambda: None))
_DICTS_OF_OBJECTS: Final = ("__dict__", "__weakref__")


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Whatever happens inside, the network is afterwards as it was: attribute for attribute, and to the bit.

    Put back are all modules' attributes, modes, hooks and tensors (values, flags, gradients), containers and objects
    that they hold, and what their code keeps in closures, default arguments, classes, global names and functions'
    caches, which are emptied. Code of torch and numpy keeps nothing. What can't be rewound stays: an iterator, a file.

    Takes a copy of the network's tensors while it lasts.
    """
    memory = _Memory()
    memory.note(network)
    try:
        yield
    finally:
        memory.restore()


def forgotten(network: nn.Module) -> nn.Module:
    """The network, after its modules have thrown away what they keep of their weights from evaluation mode.

    Attention biases for one (timm's LeViT). They do so when they are put into training mode; modes are as before.
    """
    modes = [(module, module.training) for module in network.modules()]
    with suppress(NotImplementedError):  # the module of an exported program has no modes
        network.train()
    for module, mode in modes:
        module.training = mode
    return network


class _Memory:
    """What was found, and how to put it back; each object once."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}  # the objects too: while they live, no other has their id
        self._undo: list[_Undo] = []
        self._open: list[Any] = []

    def note(self, value: Any) -> None:
        """Note the state of a value, and of all that can be reached from it."""
        self._open.append(value)
        with torch.no_grad():
            while self._open:
                found = self._open.pop()
                if not isinstance(found, _PLAIN) and id(found) not in self._seen:
                    self._seen[id(found)] = found
                    self._look(found)

    def restore(self) -> None:
        """Put everything back."""
        with torch.no_grad():
            for undo in self._undo:
                undo()

    def _look(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._undo.append(_tensor(value))
        elif isinstance(value, dict):
            self._dict(value)
        elif isinstance(value, _CONTAINERS):
            self._container(value)
        elif isinstance(value, tuple | frozenset):
            self._open.extend(tuple.__iter__(value) if isinstance(value, tuple) else frozenset.__iter__(value))
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, _CACHED):
            misses = value.cache_info().misses
            self._undo.append(lambda: None if value.cache_info().misses == misses else value.cache_clear())
            self._open.append(value.__wrapped__)
        elif isinstance(value, type):
            self._class(value)
        else:
            self._object(value)

    def _object(self, value: Any) -> None:
        """A module, or an object of any other class."""
        if type(value) is torch.Generator:
            state = value.get_state()
            self._undo.append(lambda: _set_generator(value, state))
        elif isinstance(value, types.MethodType):
            self._open += [value.__func__, value.__self__]
        elif isinstance(value, functools.partial):
            self._open += [value.func, value.args, value.keywords]
        elif isinstance(value, staticmethod | classmethod):
            self._open.append(value.__func__)
        elif isinstance(value, property):
            self._open += [value.fget, value.fset]
        elif isinstance(value, functools.cached_property):
            self._open.append(value.func)
        elif isinstance(value, nn.Module) or _is_own(type(value).__module__):
            kind = type(value)
            self._undo.append(lambda: None if type(value) is kind else setattr(value, "__class__", kind))
            self._open.append(kind)
            for name in _slots(kind):
                self._attribute(value, name)
            if isinstance(getattr(value, "__dict__", None), dict):
                self._dict(vars(value))

    def _dict(self, value: dict[Any, Any]) -> None:
        """By dict's own methods: a class of the network's may have others, that load what isn't there yet."""
        kind: type[dict[Any, Any]] = OrderedDict if isinstance(value, OrderedDict) else dict
        items = list(kind.items(value))

        def undo() -> None:
            if not _same([x for pair in kind.items(value) for x in pair], [x for pair in items for x in pair]):
                kind.clear(value)
                kind.update(value, items)

        self._undo.append(undo)
        self._open.extend(v for _, v in items)

    def _container(self, value: Any) -> None:
        kind: Any = next(kind for kind in _CONTAINERS if isinstance(value, kind))
        items = list(kind.__iter__(value))

        def undo() -> None:
            if not _same(list(kind.__iter__(value)), items):
                kind.clear(value)
                (kind.update if kind is set else kind.extend)(value, items)

        self._undo.append(undo)
        self._open.extend(items)

    def _function(self, function: types.FunctionType) -> None:
        if not _is_own(function.__module__):
            return
        self._open += [function.__defaults__, function.__kwdefaults__]
        if vars(function):
            self._dict(vars(function))
        for cell in function.__closure__ or ():
            self._attribute(cell, "cell_contents")
        for name in _names(function.__code__):
            if name in function.__globals__:
                self._key(function.__globals__, name)

    def _class(self, kind: type) -> None:
        """The class's own attributes: its functions, its tables, what it counts."""
        for base in kind.__mro__:
            if _is_own(base.__module__):
                before = dict(vars(base))
                self._undo.append(functools.partial(_restore_class, base, before))
                self._open.extend(v for name, v in before.items() if name not in _DICTS_OF_OBJECTS)

    def _attribute(self, owner: Any, name: str) -> None:
        """An attribute that is no entry of a dict: a slot, or what a closure's cell has."""
        try:
            value = getattr(owner, name)
        except (AttributeError, ValueError):  # nothing is there yet
            return
        self._undo.append(lambda: None if getattr(owner, name, None) is value else setattr(owner, name, value))
        self._open.append(value)

    def _key(self, names: dict[str, Any], name: str) -> None:
        """A global name, and what it stands for."""
        value = names[name]
        self._undo.append(lambda: None if names.get(name) is value else names.__setitem__(name, value))
        if not isinstance(value, types.ModuleType):
            self._open.append(value)


def _same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _tensor(tensor: Tensor) -> _Undo:
    """How to give a tensor its memory, numbers, flag and gradient back."""
    grad, flag = tensor.grad if tensor.is_leaf else None, tensor.requires_grad
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout is torch.strided and not tensor.is_meta
    held, numbers = (tensor.detach(), tensor.detach().clone()) if plain else (tensor, None)

    def undo() -> None:
        if numbers is not None:
            if tensor.data_ptr() != held.data_ptr() or tensor.shape != held.shape or tensor.stride() != held.stride():
                tensor.data = held
            if not _equal(held, numbers):
                with torch.inference_mode(held.is_inference()):
                    held.copy_(numbers)
        if tensor.is_leaf:
            if tensor.requires_grad is not flag:
                tensor.requires_grad_(flag)
            if tensor.grad is not grad:
                tensor.grad = grad

    return undo


def _equal(a: Tensor, b: Tensor) -> bool:
    """The same numbers; those that are none (NaN) in the same places."""
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _set_generator(generator: torch.Generator, state: Tensor) -> None:
    if not torch.equal(generator.get_state(), state):
        generator.set_state(state)


def _restore_class(kind: type, before: dict[str, Any]) -> None:
    for name in vars(kind).keys() - before.keys():
        delattr(kind, name)
    for name, value in before.items():
        if name not in _DICTS_OF_OBJECTS and vars(kind).get(name) is not value:
            setattr(kind, name, value)


@functools.cache
def _is_own(module: str | None) -> bool:
    """Whether functions and objects of a Python module may keep something of the network."""
    root = (module or "").partition(".")[0]
    return root in _FOLLOWED or not (root in _LIBRARIES or root in sys.stdlib_module_names or root == "builtins")


@functools.cache
def _names(code: types.CodeType) -> frozenset[str]:
    """The names that code and the code within it look up."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return frozenset(code.co_names).union(*inner)


def _slots(kind: type) -> list[str]:
    """The attributes that objects of a class have in slots."""
    given = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    names = [name for slots in given for name in ([slots] if isinstance(slots, str) else slots)]
    return [name for name in names if name not in _DICTS_OF_OBJECTS]
