"""Copies of networks as people have them: compiled, in parallel, with tensors that a graph still hangs on."""

from __future__ import annotations

import copy
import types
from contextlib import suppress
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from deploy_prune.errors import SurgeryError

_PARALLEL: Final = (nn.DataParallel, DistributedDataParallel)
_COMPILED: Final = "_orig_mod"
"""Where a module that ``torch.compile`` has made keeps the one that it was made from."""
_COMPILED_CODE: Final = "_torchdynamo_orig_callable"
"""Where a function that it has made keeps the one that it was made from."""


def is_wrapped(network: nn.Module) -> bool:
    """Whether the network, or a module in it, is in one of these wrappers, or is compiled in place."""
    return any(
        _inner(m) is not None or m._compiled_call_impl is not None or compiled_code(m) for m in network.modules()
    )


def _inner(module: nn.Module) -> nn.Module | None:
    if isinstance(module, _PARALLEL):
        return module.get_submodule("module")
    return dict(module.named_children()).get(_COMPILED)


def compiled_code(module: nn.Module) -> dict[str, Any]:
    """Name -> plain code, of those attributes that ``torch.compile`` has made, such as ``forward``."""
    return {
        name: _plain(value) for name, value in vars(module).items() if _COMPILED_CODE in getattr(value, "__dict__", ())
    }


def _plain(code: Any) -> Any:
    """What torch's own functions that run it are made of."""
    while isinstance(code, types.FunctionType) and str(code.__globals__["__name__"]).startswith("torch._dynamo"):
        code = vars(code)["__wrapped__"]
    return code


def copied(network: nn.Module, *, share: bool = False) -> nn.Module:
    """A deep copy, without its wrappers at any depth, in plain PyTorch; ``share``: with the same memory of parameters.

    Tensors that are no leaves of a graph (feature maps that a module keeps, weights that a hook computes) are detached
    in it. Hooks and other functions that close over a module close over its copy. Gradients are left behind.

    Raises:
        SurgeryError: the network is TorchScript, has layers without a size yet, or has an attribute that can't be
            copied; with the module's name.
    """
    require_plain(network)
    memo: dict[int, Any] = {id(p): _sharing(p) for p in network.parameters() if share and type(p) is nn.Parameter}
    try:
        with _Detached():
            functions = _closures(network)
            memo |= {id(old): new for old, new in functions}
            for module in reversed(list(network.modules())):  # those inside first
                memo |= {id(v): v for v in vars(module).values() if isinstance(v, types.ModuleType)}
                if (inner := _inner(module)) is not None:
                    memo[id(module)] = copy.deepcopy(inner, memo)
            other = copy.deepcopy(network, memo)
            for old, new in functions:
                _fill(old, new, memo)
            for module in (m for m in network.modules() if _inner(m) is None):
                vars(memo[id(module)]).update(copy.deepcopy(compiled_code(module), memo))
            return other
    except (TypeError, RuntimeError, AttributeError, NotImplementedError, ValueError) as error:
        message = f"The network can't be copied: {_uncopyable(network)}: {type(error).__name__}: {_first(error)}. "
        message += "Keep it outside the network."
        raise SurgeryError(message) from error


def _sharing(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)


def require_plain(network: nn.Module) -> None:
    """Raise SurgeryError if a part of the network is TorchScript, or has no sizes before its first forward."""
    for name, module in network.named_modules():
        what = f"{name or 'The network'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            message = f"{what} is TorchScript, whose code can't be changed; give the nn.Module that it was made from."
            raise SurgeryError(message)
        if any(nn.parameter.is_lazy(p) for p in (*module._parameters.values(), *module._buffers.values())):
            message = f"{what} has no weights before its first forward; call the network on an example once."
            raise SurgeryError(message)


class _Detached(TorchFunctionMode):
    """Inside, a copy of a tensor that is no leaf is a detached one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Copy such a tensor; pass everything else on."""
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _closures(network: nn.Module) -> list[tuple[types.FunctionType, types.FunctionType]]:
    """Functions of modules (hooks, a forward of their own) that close over a module, each with one of open cells."""
    modules = {id(m) for m in network.modules()}
    values = [v for m in network.modules() for held in vars(m).values() for v in _one_or_many(held)]
    return [
        (f, types.FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__, _cells(f)))
        for f in values
        if isinstance(f, types.FunctionType) and any(_reaches(c, modules) for c in f.__closure__ or ())
    ]


def _one_or_many(held: Any) -> list[Any]:
    return list(held.values()) if isinstance(held, dict) else [held]


def _cells(function: types.FunctionType) -> tuple[types.CellType, ...]:
    return tuple(types.CellType() for _ in function.__closure__ or ())


def _reaches(cell: types.CellType, modules: set[int]) -> bool:
    """Whether a cell has a module, or a method of one."""
    try:
        value = cell.cell_contents
    except ValueError:  # nothing is in it yet
        return False
    return id(getattr(value, "__self__", value)) in modules


def _fill(old: types.FunctionType, new: types.FunctionType, memo: dict[int, Any]) -> None:
    """Give a copied function what the other closes over: copies of modules, and of all that was copied with them."""
    vars(new).update(vars(old))
    new.__kwdefaults__ = old.__kwdefaults__
    for cell, given in zip(new.__closure__ or (), old.__closure__ or (), strict=True):
        with suppress(ValueError):  # nothing is in it yet
            value = given.cell_contents
            is_method = isinstance(value, types.MethodType)
            cell.cell_contents = copy.deepcopy(value, memo) if is_method else memo.get(id(value), value)


def _uncopyable(network: nn.Module) -> str:
    """The first attribute that can't be copied, as "features.3 (Block) has such a thing in its attribute 'lock'"."""
    modules = {id(m): m for m in network.modules()}
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if key == "_modules" or isinstance(value, types.ModuleType):
                continue
            try:
                with _Detached():
                    copy.deepcopy(value, dict(modules))
            except Exception as error:  # noqa: BLE001  whatever it raises, this is the one
                del error
                return f"{name or 'it'} ({type(module).__name__}) has such a thing in its attribute {key!r}"
    return "its own way to be copied fails"


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")
