"""Label rules of layers with weights: convolutions, linear layers, norms, embeddings."""

from __future__ import annotations

from torch import Tensor

from deploy_prune.surgery.labels import Value, varying
from deploy_prune.surgery.rules.call import (
    Call,
    Result,
    along,
    contract,
    keep_dims,
    on,
    same,
    zero_free,
)


def convolution(call: Call) -> Result:
    """Convolutions of any rank, grouped, depthwise or transposed (weight [I, O/G, ...])."""
    x, weight, groups = call.given["input"], call.given["weight"], call.given.get("groups", 1)
    transposed = call.given.get("transposed", "transpose" in call.name)
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    channel = len(x.shape) - len(weight.shape) + 1
    spatial = range(channel + 1, len(x.shape))
    passing = keep_dims(call, x, spatial, f"{call.name} mixes positions")
    passing = tuple(f for f in passing if f.shape[channel] == 1)
    x_ids = along(call, x, channel)
    if groups == 1:
        contract(call, x_ids, weight, in_axis, f"{call.module or call.name} reads channels that can't be cut")
        out = along(call, weight, out_axis)
    else:
        out = _grouped(call, x_ids, weight, groups, transposed)
    _bias(call, out)
    return call.result((*passing, *on(channel, len(call.shape), out)))


def deformable(call: Call) -> Result:
    """Torchvision's deform_conv2d: a convolution whose taps lie where offsets say, as strong as a mask says."""
    name = call.module or call.name
    for places in (call.given["offset"], call.given["mask"]):
        call.freeze(places, f"{name} takes it as positions")
    if call.given["offset_groups"] > 1:
        call.freeze(call.given["input"], f"{name} has other positions for each group of channels")
    return convolution(call)


def _grouped(call: Call, x_ids: Tensor | None, weight: Value, groups: int, transposed: bool) -> Tensor | None:
    """Labels of a grouped convolution's output.

    Many narrow groups: a whole group is one unit. Few wide ones: the same channel of every group is one unit, so that
    the groups stay equal. The first includes depthwise, with or without a multiplier.
    """
    name, labels = call.module or call.name, call.labels
    if transposed:
        whole, per_in = along(call, weight, 0), weight.shape[0] // groups
        same(call, x_ids, whole, f"{name} reads channels that can't be cut")
        per_out = along(call, weight, 1)
        if per_out is not None:
            labels.freeze(per_out, f"{name} is a grouped transposed convolution")
        if whole is None:
            return None
        blocks = labels.tie(whole.view(groups, per_in), [1], f"{name} has whole groups")
        return blocks.expand(groups, weight.shape[1]).reshape(-1)
    out = along(call, weight, 0)
    per_in = weight.shape[1]
    if out is None:
        if groups == weight.shape[0] == call.given["input"].shape[len(call.shape) - len(weight.shape) + 1]:
            return x_ids  # all channels have the same kernel
        call.freeze(Value(shape=(), fields=() if x_ids is None else (x_ids,)), f"{name} has one output channel")
        return None
    out_GO = out.view(groups, -1)
    if groups >= per_in:
        block = labels.tie(out_GO, [1], f"{name} has whole groups")
        same(
            call,
            None if x_ids is None else x_ids.view(groups, -1),
            block.expand(groups, per_in),
            f"{name} reads channels that can't be cut",
        )  # noqa: E501
        read = along(call, weight, 1)
        if read is not None:
            labels.freeze(read, f"{name} keeps its groups' inputs")
        return out
    labels.tie(out_GO, [0], f"{name} keeps its groups equal")
    shared = None if x_ids is None else labels.tie(x_ids.view(groups, -1), [0], f"{name} keeps its groups equal")
    contract(call, None if shared is None else shared.flatten(), weight, 1, f"{name} reads channels that can't be cut")
    return out


def _bias(call: Call, out: Tensor | None) -> None:
    bias = call.given.get("bias")
    if bias is not None:
        same(call, out, along(call, bias, 0), f"the bias of {call.module or call.name} can't be cut")


def linear(call: Call) -> Result:
    """X [..., I] times weight [O, I]."""
    x, weight = call.given["input"], call.given["weight"]
    last = len(x.shape) - 1
    contract(call, along(call, x, last), weight, 1, f"{call.module or call.name} reads channels that can't be cut")
    out = along(call, weight, 0)
    _bias(call, out)
    return call.result((*(f for f in x.without([last])), *on(last, len(call.shape), out)))


def channel_norm(call: Call) -> Result:
    """Norms that treat every channel alone (batch norm, instance norm): parameters lie along dimension 1."""
    x = call.given["input"]
    if x.vanishing() and x.shape[0] == 1:
        return _standardised(call, x)
    ids = along(call, x, 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = call.given.get(name)
        if value is not None:
            own = along(call, value, 0)
            same(call, ids, own, f"{call.module or call.name} normalises channels that can't be cut")
            ids = own if ids is None else ids
    if ids is not None and all(call.given.get(n) is None for n in ("weight", "running_mean")):
        call.labels.statistics(call.module, len(x.shape), 1, ids)  # for the number of channels that its module notes
    return call.result(x.fields)


def _standardised(call: Call, x: Value) -> Result:
    """A weight [1, O, N] whose every filter is normalised (Qiao et al., arXiv 1903.10520): over kept inputs."""
    reason = f"{call.module or call.name} standardises its weight over it"
    if x.tensor is None or call.given.get("running_mean") is not None:
        call.freeze(x, reason)
        return call.result(x.fields)
    out = along(call, x, 1)
    for name in ("weight", "bias"):
        if call.given.get(name) is not None:
            same(call, out, along(call, call.given[name], 0), f"{call.module or call.name} scales its weight")
    zero_free(call, x, [2], reason)
    call.labels.mixing.append(x.tensor)
    return Value(shape=call.shape, fields=x.fields, vanishes=True)


def weight_norm(call: Call) -> Result:
    """Weight g v / |v|, the norm over all dimensions but one (Salimans and Kingma, arXiv 1602.07868)."""
    v, g, dim = call.given["v"], call.given["g"], call.given.get("dim", 0)
    same(call, along(call, v, dim), along(call, g, dim), f"{call.module or call.name} scales its weight")
    zero_free(
        call, v, [d for d in range(len(v.shape)) if d != dim], f"{call.module or call.name} normalises its weight"
    )
    made = Value(shape=call.shape, fields=v.fields, vanishes=True)
    return (made, *(Value(shape=s) for s in call.shapes[1:])) if call.several else made


def recurrent(call: Call) -> Result:
    """LSTM, GRU, RNN and their cells: what they read stays, and so do they. A unit has a row in every gate."""
    gates = {"lstm": 4, "gru": 3}.get(call.name.partition("_")[0], 1)
    given = call.given.get("params") or [call.given["w_ih"], call.given["w_hh"]]
    rows = [along(call, w, 0) for w in given if len(w.shape) == 2 and w.shape[0] % gates == 0]
    tied = [None if r is None else call.labels.tie(r.view(gates, -1), [0], "they are one unit's gates") for r in rows]
    for own, state in zip(tied[::2], tied[1::2], strict=False):
        if own is not None and state is not None and own.shape == state.shape:
            call.labels.merge(own, state, "they are one layer's")
    for value in call.values():
        call.freeze(value, f"{call.module or call.name} is a recurrent layer ({call.name}), which is left whole")
    return call.result(())


def mixing_norm(call: Call) -> Result:
    """Norms over several channels (layer, group and RMS norm): their statistics are over the kept ones.

    Group norm: with many narrow groups a whole group is a unit; with few wide ones the same channel of each is.
    """
    x, weight, shape = call.given["input"], call.given.get("weight"), call.given.get("normalized_shape")
    name = call.module or call.name
    if (weight is not None and weight.tensor is None) or (shape is not None and len(shape) != 1):
        for value in call.values():
            call.freeze(value, f"{name} normalises over channels, and has no weight of its own per channel")
        return call.result(x.fields)
    axis = 1 if shape is None else len(x.shape) - 1
    if any(f.shape[axis] > 1 and len(varying(f)) > 1 for f in x.fields):  # of heads: each is whole, with its norm
        for part in (weight, call.given.get("bias")):
            if part is not None:
                call.freeze(part, f"{name} is shared between heads")
        return call.result(keep_dims(call, x, [axis], f"{name} normalises over it"))
    ids = along(call, x, axis)
    for part in (weight, call.given.get("bias")):
        if part is not None:
            same(call, ids, along(call, part, 0), f"{name} normalises channels that can't be cut")
    if ids is not None and shape is None and (groups := call.given["num_groups"]) > 1:
        whole = groups >= len(ids) // groups
        call.labels.tie(ids.view(groups, -1), [1 if whole else 0], f"{name} keeps its groups equal")
    if weight is not None:
        call.labels.mixing.append(weight.tensor)
    elif ids is not None:
        call.labels.statistics(call.module, len(x.shape), axis, ids)
    return call.result(x.fields)


def embedding(call: Call) -> Result:
    """Rows of weight [V, D] picked by indices; what labels the indices' own dimensions passes."""
    weight, indices = call.given["weight"], call.given["indices"]
    keep_dims(call, weight, [0], f"{call.module or call.name} is indexed by values")
    rows = [f.unsqueeze(-1) for f in indices.fields]
    return call.result((*rows, *on(-1, len(call.shape), along(call, weight, 1))))
