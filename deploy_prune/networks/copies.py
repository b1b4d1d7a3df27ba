"""Copies of networks as people have them: compiled, in parallel, with tensors that a graph still hangs on."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from deploy_prune.errors import SurgeryError

_PARALLEL: Final = (nn.DataParallel, DistributedDataParallel)
_COMPILED: Final = "_orig_mod"
"""Where a module that ``torch.compile`` has made keeps the one that it was made from."""


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, out of ``torch.compile``, DataParallel and DistributedDataParallel."""
    while (inner := _inner(network)) is not None:
        network = inner
    return network


def is_wrapped(network: nn.Module) -> bool:
    """Whether the network, or a module in it, is in one of these wrappers, or is compiled in place."""
    return any(_inner(m) is not None or m._compiled_call_impl is not None for m in network.modules())


def _inner(module: nn.Module) -> nn.Module | None:
    if isinstance(module, _PARALLEL):
        return module.get_submodule("module")
    return dict(module.named_children()).get(_COMPILED)


def copied(network: nn.Module) -> nn.Module:
    """A deep copy, without its wrappers at any depth, in plain PyTorch.

    Tensors that are no leaves of a graph (feature maps that a module keeps, weights that a hook computes) are detached
    in it. Gradients are left behind.

    Raises:
        SurgeryError: the network is TorchScript, has layers without a size yet, or has an attribute that can't be
            copied; with the module's name.
    """
    require_plain(network)
    memo: dict[int, Any] = {}
    try:
        with _Detached():
            for module in _inside_out(network):
                memo |= {id(v): v for v in vars(module).values() if isinstance(v, types.ModuleType)}
                if (inner := _inner(module)) is not None:
                    memo[id(module)] = copy.deepcopy(inner, memo)
            return copy.deepcopy(network, memo)
    except (TypeError, RuntimeError, AttributeError, NotImplementedError, ValueError) as error:
        message = f"The network can't be copied: {_uncopyable(network)}: {type(error).__name__}: {_first(error)}. "
        message += "Keep it outside the network."
        raise SurgeryError(message) from error


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


def _inside_out(network: nn.Module) -> Iterator[nn.Module]:
    """All modules, each after those that it holds."""
    yield from reversed(list(network.modules()))


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
