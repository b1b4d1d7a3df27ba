"""All tensors that a network holds, by name: the one idea of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def tensors_held(network: nn.Module) -> dict[str, Tensor]:
    """Every name -> its tensor: parameters, buffers (saved or not), and tensors that are plain attributes of modules.

    A tensor that several modules share has several names.
    """
    return {
        f"{path}.{name}" if path else name: tensor
        for path, module in network.named_modules(remove_duplicate=False)
        for name, tensor in own_tensors(module).items()
    }


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The same of one module, without those that it holds."""
    everything = {**module._parameters, **module._buffers, **vars(module)}
    return {name: value for name, value in everything.items() if isinstance(value, Tensor)}


def moved(network: nn.Module, where: torch.device | torch.dtype) -> nn.Module:
    """The network, on a device or in a floating-point type; with its plain attributes, which ``to`` leaves behind."""
    on_device = isinstance(where, torch.device)
    network.to(device=where) if isinstance(where, torch.device) else network.to(dtype=where)
    for module in network.modules():
        held = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
        vars(module).update({n: t.to(where) for n, t in held.items() if on_device or t.is_floating_point()})
    return network
