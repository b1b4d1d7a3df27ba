"""Physically remove channels: a new, smaller network. torch-pruning shrinks the layers it knows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Final

import torch
import torch_pruning as tp
from torch import fx, nn

from deploy_prune.errors import SurgeryError
from deploy_prune.networks.coordinates import Lost, lost_coordinates
from deploy_prune.networks.copies import copied
from deploy_prune.networks.tensors import own_tensors, tensors_held
from deploy_prune.networks.tracing import told
from deploy_prune.networks.unchanged import forgotten
from deploy_prune.surgery.graph_network import Blueprint, with_weights
from deploy_prune.surgery.leave_out import leave_out
from deploy_prune.surgery.limits import require_enough
from deploy_prune.surgery.rewrite import rewrite
from deploy_prune.types import Keep, Structure

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OF_A_LAYER: Final = {"weight", "bias", "running_mean", "running_var"}
_PLAIN_NORMS: Final = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
_BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def cut(network: nn.Module, structure: Structure, keep: Keep) -> nn.Module:
    """A copy of the network without the units that ``keep`` marks False; the network itself is not touched.

    Modes, requires_grad, memory formats, gradients and tied weights are as in the original.

    Args:
        network: the dense network that ``structure`` was found on.
        structure: its channel groups.
        keep: group name -> bool[C], True = stays; groups not named stay whole.

    Raises:
        SurgeryError: ``keep`` doesn't fit the structure or empties a group, or a layer can't be shrunk.
    """
    _check(structure, keep)
    try:
        return _cut(network, structure, keep)
    except SurgeryError:
        raise
    except Exception as error:  # whatever torch and torch-pruning raise
        require_enough(error, "Cutting the network")
        message = f"The network can't be cut: {told(network, error)} Leave the group out with prune.skip."
        raise SurgeryError(message) from error


def _cut(network: nn.Module, structure: Structure, keep: Keep) -> nn.Module:
    blueprint = _blueprint(structure, keep)
    slim = _copy(network) if blueprint is None else with_weights(blueprint, network, share=True)
    if blueprint is not None and isinstance(slim, fx.GraphModule):
        leave_out(slim, blueprint.gone(keep))
    lost = _with_aliases(slim, lost_coordinates(structure, keep))
    ties = _ties(slim)
    by_module = _by_module(lost)
    for path, module in slim.named_modules():
        own = own_tensors(module) if path in by_module else {}
        if mine := {(name, axis): gone for (name, axis), gone in by_module.get(path, {}).items() if name in own}:
            _shrink(path, module, mine)
    if blueprint is None:
        _resize_plain_norms(slim, structure, keep)
    _tie_again(slim, ties)
    _own_memory(slim, network)
    if blueprint is not None and isinstance(slim, fx.GraphModule):
        rewrite(slim, blueprint, blueprint.kept_labels(keep))
        slim.train(network.training)
    return slim


def _blueprint(structure: Structure, keep: Keep) -> Blueprint | None:
    """What to cut the exported graph with, if the network's own modules can't be cut so: they have their branches."""
    blueprint: Blueprint | None = structure.blueprint
    own = structure.own_modules and (blueprint is None or not blueprint.gone(keep))
    return None if own else blueprint


def _resize_plain_norms(slim: nn.Module, structure: Structure, keep: Keep) -> None:
    """The sizes that norms without weights have in their attributes."""
    gone: dict[tuple[str, int], int] = defaultdict(int)
    for group in structure.groups:
        if (mask := keep.get(group.name)) is not None:
            goes = torch.cat([~mask.cpu(), torch.zeros(1, dtype=torch.bool)])
            for (path, _, _, size), unit_of in group.statistics.items():
                gone[path, size] += int(goes[unit_of].sum())
    for (path, size), number in gone.items():
        module = slim.get_submodule(path)
        if isinstance(module, _PLAIN_NORMS) and not own_tensors(module):
            _set_sizes(module, {"weight": [size - number]})


def _own_memory(slim: nn.Module, network: nn.Module) -> None:
    """What was not shrunk may still lie in the dense network's memory."""
    dense = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    for tensor in (*slim.parameters(), *slim.buffers()):
        if tensor.untyped_storage().data_ptr() in dense:
            tensor.data = tensor.detach().clone()


def _copy(network: nn.Module) -> nn.Module:
    """A copy, gradients included (which deepcopy leaves behind), with the same memory of parameters for now.

    So a cut takes the memory of what it keeps, not of the whole network besides.
    """
    slim = forgotten(copied(network, share=True))
    for old, new in zip(network.parameters(), slim.parameters(), strict=True):
        new.grad = None if old.grad is None else old.grad.clone()
    return slim


def _check(structure: Structure, keep: Keep) -> None:
    groups = {g.name: g for g in structure.groups}
    for name, mask in keep.items():
        if name not in groups:
            message = f"The keep mask names the group {name!r}, which the network doesn't have."
            raise SurgeryError(message)
        if mask.dtype != torch.bool or tuple(mask.shape) != (groups[name].channels,):
            message = (
                f"The keep mask of {name!r} must be bool[{groups[name].channels}], not {mask.dtype}{list(mask.shape)}."
            )
            raise SurgeryError(message)
        if not bool(mask.any()) and not groups[name].is_branch:
            message = f"The keep mask of {name!r} keeps nothing; at least one unit must stay."
            raise SurgeryError(message)


def _with_aliases(network: nn.Module, lost: Lost) -> Lost:
    """The same for every name that a shared tensor goes by."""
    names: dict[int, list[str]] = defaultdict(list)
    tensors = tensors_held(network)
    for name, tensor in tensors.items():
        names[id(tensor)].append(name)
    return {
        (alias, axis): gone
        for (name, axis), gone in lost.items()
        for alias in (names[id(tensors[name])] if name in tensors else [name])
    }


def _by_module(lost: Lost) -> dict[str, Lost]:
    """The same by the paths of modules, with the names that tensors have in them."""
    found: dict[str, Lost] = defaultdict(dict)
    for (name, axis), gone in lost.items():
        path, _, local = name.rpartition(".")
        found[path][local, axis] = gone
    return found


def _shrink(path: str, module: nn.Module, lost: Lost) -> None:
    before = {n: p for n, p in module.named_parameters(recurse=False)}
    changed = {*module._parameters, *module._buffers, *(name for name, _ in lost)}
    sizes = {n: list(t.shape) for n, t in own_tensors(module).items() if n in changed}
    for (name, axis), gone in lost.items():
        sizes[name][axis] -= len(gone)
    if not {name for name, _ in lost} <= _OF_A_LAYER or "weight" not in sizes:  # else it is computed from others
        _slice(module, lost)
        _set_sizes(module, sizes)
    elif isinstance(module, _CONVOLUTIONS) and module.groups == 1:
        _shrink_both(module, lost, tp.prune_conv_out_channels, tp.prune_conv_in_channels)
    elif isinstance(module, _CONVOLUTIONS) and module.groups == module.in_channels == module.out_channels:
        tp.prune_depthwise_conv_out_channels(module, lost["weight", 0].tolist())
    elif isinstance(module, nn.Linear):
        _shrink_both(module, lost, tp.prune_linear_out_channels, tp.prune_linear_in_channels)
    elif isinstance(module, _BATCH_NORMS) and module.affine and module.track_running_stats:
        tp.prune_batchnorm_out_channels(module, lost["weight", 0].tolist())
    else:
        _slice(module, lost)
        _set_sizes(module, sizes)
    for name, expected in sizes.items():
        if list(getattr(module, name).shape) != expected:
            message = f"Cutting {path!r} made its {name} {list(getattr(module, name).shape)} instead of {expected}."
            raise SurgeryError(message)
    for name, parameter in before.items():
        _as_before(getattr(module, name), parameter)


def _shrink_both(module: nn.Module, lost: Lost, prune_out: object, prune_in: object) -> None:
    for axis, prune in ((0, prune_out), (1, prune_in)):
        if (gone := lost.get(("weight", axis))) is not None:
            prune(module, gone.tolist())  # type: ignore[operator]


def _slice(module: nn.Module, lost: Lost) -> None:
    """Take the kept coordinates of any tensor of a module, and of layers that torch-pruning gets wrong."""
    for (name, axis), gone in lost.items():
        old = getattr(module, name)
        stays = torch.ones(old.shape[axis], dtype=torch.bool)
        stays[gone] = False
        index = stays.nonzero().flatten().to(old.device)
        new = old.detach().index_select(axis, index)
        if isinstance(old, nn.Parameter):
            parameter = nn.Parameter(new)
            if old.grad is not None:
                parameter.grad = old.grad.index_select(axis, index)
            setattr(module, name, parameter)
        else:
            setattr(module, name, new)


def _set_sizes(module: nn.Module, sizes: Mapping[str, list[int]]) -> None:
    """Bring a layer's attributes in line with its new tensors."""
    shape = sizes.get("weight")
    if shape is None:
        return
    if isinstance(module, _CONVOLUTIONS):
        per_in, per_out = module.in_channels // module.groups, module.out_channels // module.groups
        if module.groups >= per_in:  # whole groups are the units, see weights.py
            module.groups = shape[0] // per_out
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        group_size = module.in_channels // module.groups
        module.groups = max(1, shape[0] // group_size) if module.groups > 1 else 1
        module.in_channels, module.out_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups >= (size := module.num_channels // module.num_groups):
            module.num_groups = shape[0] // size
        module.num_channels = shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = shape
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(shape)
    elif hasattr(module, "num_features"):
        module.num_features = shape[0]  # type: ignore[assignment]


def _as_before(new: nn.Parameter, old: nn.Parameter) -> None:
    """Give a cut parameter the flags and the memory format of the original."""
    new.requires_grad_(old.requires_grad)
    for memory_format, rank in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if old.dim() == rank and not old.is_contiguous() and old.is_contiguous(memory_format=memory_format):
            new.data = new.data.contiguous(memory_format=memory_format)


def _ties(network: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return [tied for tied in names.values() if len(tied) > 1]


def _tie_again(network: nn.Module, ties: list[list[str]]) -> None:
    for first, *others in ties:
        shared = network.get_parameter(first)
        for name in others:
            path, _, local = name.rpartition(".")
            setattr(network.get_submodule(path), local, shared)
