"""All tensors that a network holds, by name: the one idea of them."""

from __future__ import annotations

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
