"""How each ATen operator treats channel labels: one function a kind of operator, one table (RULES) for all.

Data movement needs no rule of its own: ``move`` runs the operator itself on the label fields. An operator without a
rule freezes what it reads, with its name as the reason. Dimension letters: B batch, O I a weight's output and input
axis, G convolution groups, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import torch
from torch import Tensor

from deploy_prune.surgery.labels import FILL, KEPT, Labels, Value, compress, moved, varying
from deploy_prune.types import LayerKind

Result = Value | tuple[Value, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Applied:
    """A weight (or norm) applied once: what ``types.Layer`` will say, with labels instead of widths."""

    module: str
    kind: LayerKind
    tensor: str
    taps: int
    positions: int
    input_positions: int
    inputs: Tensor | int
    outputs: Tensor | int
    vectors: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One operator call: its arguments by name (tensors as ``Value``), the shapes it returns, and where notes go."""

    labels: Labels
    applied: list[Applied]
    op: Any
    name: str
    module: str
    given: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    several: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the only (or first) output."""
        return self.shapes[0]

    def values(self) -> list[Value]:
        """All tensor arguments, in order, those inside lists too."""
        found: list[Value] = []
        for given in self.given.values():
            found += [g for g in (given if isinstance(given, list | tuple) else [given]) if isinstance(g, Value)]
        return found

    def result(self, fields: Sequence[Tensor]) -> Result:
        """The outputs: the first with these fields, further ones (indices, statistics) unlabelled."""
        first = Value(shape=self.shape, fields=tuple(fields))
        return (first, *(Value(shape=s) for s in self.shapes[1:])) if self.several else first

    def freeze(self, value: Value, reason: str) -> None:
        """Everything this value's fields label stays."""
        for labels in value.fields:
            self.labels.freeze(labels, reason)


Rule = Callable[[Call], Result]


def along(call: Call, value: Value, dim: int) -> Tensor | None:
    """int64[size]: the labels along one dimension; what differs only in other dimensions is tied. None: no labels."""
    dim %= len(value.shape)
    found: Tensor | None = None
    for labels in value.fields:
        if labels.shape[dim] == 1:
            continue
        others = [d for d in varying(labels) if d != dim]
        ids = call.labels.tie(labels, others, f"{call.name} reads it as one axis").flatten()
        if found is not None:
            call.labels.merge(found, ids, f"{call.name} reads it twice")
        found = ids
    return found


def on(dim: int, rank: int, ids: Tensor | None) -> tuple[Tensor, ...]:
    """A field of the given rank with these labels along one dimension (empty for no labels)."""
    if ids is None:
        return ()
    shape = [1] * rank
    shape[dim] = -1
    return (ids.view(shape),)


def same(call: Call, a: Tensor | None, b: Tensor | None, reason: str) -> None:
    """Two label vectors of one axis go together; labels that meet an axis without labels stay."""
    if a is not None and b is not None:
        call.labels.merge(a, b, reason)
    elif a is not None or b is not None:
        call.labels.freeze(a if a is not None else b, reason)  # type: ignore[arg-type]


def contract(call: Call, x: Tensor | None, weight: Value, axis: int, reason: str) -> None:
    """A weight's axis reads the channels x: they go together, and a gate may sit on that axis."""
    ids = along(call, weight, axis)
    same(call, x, ids, reason)
    if ids is not None and weight.tensor is not None:
        call.labels.reads.append(ids)
    elif ids is not None:
        call.labels.freeze(ids, f"the weight of {call.module or call.name} is computed, not stored")


def keep_dims(call: Call, value: Value, dims: Sequence[int], reason: str) -> tuple[Tensor, ...]:
    """Freeze what is labelled along these dimensions; the other fields pass."""
    dims = [d % len(value.shape) for d in dims]
    for labels in value.fields:
        if set(varying(labels)) & set(dims):
            call.labels.freeze(labels, reason)
    return value.without(dims)


def _width(ids: Tensor | None, size: int) -> Tensor | int:
    return size if ids is None else ids


# --- layers with weights -------------------------------------------------------------------------------------------


def convolution(call: Call) -> Result:
    """Convolutions of any rank, grouped, depthwise or transposed (weight [I, O/G, ...])."""
    x, weight, groups = call.given["input"], call.given["weight"], call.given.get("groups", 1)
    transposed = call.given.get("transposed", "transpose" in call.name)
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    channel = len(x.shape) - len(weight.shape) + 1
    taps, spatial = prod(weight.shape[2:]), range(channel + 1, len(x.shape))
    passing = keep_dims(call, x, spatial, f"{call.name} mixes positions")
    passing = tuple(f for f in passing if f.shape[channel] == 1)
    x_ids = along(call, x, channel)
    if groups == 1:
        contract(call, x_ids, weight, in_axis, f"{call.module or call.name} reads channels that can't be cut")
        out = along(call, weight, out_axis)
    else:
        out = _grouped(call, x_ids, weight, groups, transposed)
    vectors = _bias(call, out)
    kind: LayerKind = "depthwise" if groups > 1 and weight.shape[in_axis if not transposed else out_axis] == 1 else "conv"
    inputs = along(call, weight, in_axis)
    if groups > 1 and transposed:
        inputs = None
    per_filter = weight.shape[in_axis] // (groups if transposed else 1)
    call.applied.append(
        Applied(
            module=call.module, kind=kind, tensor=weight.tensor or call.name, taps=taps,
            positions=prod(x.shape[channel + 1 :] if transposed else call.shape[channel + 1 :]),
            input_positions=prod(x.shape[channel + 1 :]), inputs=_width(inputs, per_filter),
            outputs=_width(out, call.shape[channel]), vectors=vectors,
        )
    )  # fmt: skip
    return call.result((*passing, *on(channel, len(call.shape), out)))


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
        call.freeze(Value(shape=(), fields=() if x_ids is None else (x_ids,)), f"{name} has one output channel")
        return None
    out_GO = out.view(groups, -1)
    if groups >= per_in:
        block = labels.tie(out_GO, [1], f"{name} has whole groups")
        same(call, None if x_ids is None else x_ids.view(groups, -1), block.expand(groups, per_in), f"{name} reads channels that can't be cut")  # noqa: E501
        read = along(call, weight, 1)
        if read is not None:
            labels.freeze(read, f"{name} keeps its groups' inputs")
        return out
    labels.tie(out_GO, [0], f"{name} keeps its groups equal")
    shared = None if x_ids is None else labels.tie(x_ids.view(groups, -1), [0], f"{name} keeps its groups equal")
    contract(call, None if shared is None else shared.flatten(), weight, 1, f"{name} reads channels that can't be cut")
    return out


def _bias(call: Call, out: Tensor | None) -> int:
    bias = call.given.get("bias")
    if bias is None:
        return 0
    same(call, out, along(call, bias, 0), f"the bias of {call.module or call.name} can't be cut")
    return 1


def linear(call: Call) -> Result:
    """x [..., I] times weight [O, I]."""
    x, weight = call.given["input"], call.given["weight"]
    last = len(x.shape) - 1
    contract(call, along(call, x, last), weight, 1, f"{call.module or call.name} reads channels that can't be cut")
    out = along(call, weight, 0)
    vectors = _bias(call, out)
    _apply_linear(call, weight, 1, 0, vectors)
    return call.result((*(f for f in x.without([last])), *on(last, len(call.shape), out)))


def _apply_linear(call: Call, weight: Value, in_axis: int, out_axis: int, vectors: int) -> None:
    positions = max(1, prod(call.shape[:-1]) // max(1, call.shape[0] if len(call.shape) > 1 else 1))
    call.applied.append(
        Applied(
            module=call.module, kind="linear", tensor=weight.tensor or call.name, taps=1, positions=positions,
            input_positions=positions, inputs=_width(along(call, weight, in_axis), weight.shape[in_axis]),
            outputs=_width(along(call, weight, out_axis), weight.shape[out_axis]), vectors=vectors,
        )
    )  # fmt: skip


def channel_norm(call: Call) -> Result:
    """Norms that treat every channel alone (batch norm, instance norm): parameters lie along dimension 1."""
    x = call.given["input"]
    ids = along(call, x, 1)
    vectors = 0
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = call.given.get(name)
        if value is not None:
            own = along(call, value, 0)
            same(call, ids, own, f"{call.module or call.name} normalises channels that can't be cut")
            ids = own if ids is None else ids
            vectors += name in ("weight", "bias")
    call.applied.append(
        Applied(
            module=call.module, kind="norm", tensor=call.module, taps=0, positions=prod(x.shape[2:]),
            input_positions=prod(x.shape[2:]), inputs=1, outputs=_width(ids, x.shape[1]), vectors=vectors,
        )
    )  # fmt: skip
    return call.result(x.fields)


def mixing_norm(call: Call) -> Result:
    """Norms over several channels (layer norm, group norm): zeroed channels would change the others' statistics."""
    for value in call.values():
        call.freeze(value, f"{call.module or call.name} normalises over channels")
    return call.result(call.given["input"].fields)


def embedding(call: Call) -> Result:
    """Rows of weight [V, D] picked by indices."""
    weight = call.given["weight"]
    keep_dims(call, weight, [0], f"{call.module or call.name} is indexed by values")
    return call.result(on(-1, len(call.shape), along(call, weight, 1)))


# --- operators without weights -------------------------------------------------------------------------------------


def pointwise(call: Call) -> Result:
    """Element by element, with broadcasting: coordinates that meet go together."""
    rank = len(call.shape)
    operands = [
        (tuple(f[(None,) * (rank - f.dim())] for f in v.fields), (1,) * (rank - len(v.shape)) + v.shape)
        for v in call.values()
    ]
    reason = f"{call.name} combines it with a tensor that can't be cut"
    fields: list[Tensor] = []
    for mine, _ in operands:
        for labels in mine:
            _meet_unlabelled(call, labels, operands, reason)
            for other in fields:
                if set(varying(labels)) & set(varying(other)):
                    call.labels.merge(labels, other, reason)
            fields.append(labels)
    return call.result(_widest(fields))


def _meet_unlabelled(
    call: Call, labels: Tensor, operands: Sequence[tuple[tuple[Tensor, ...], tuple[int, ...]]], reason: str
) -> None:
    for theirs, shape in operands:
        covered = {d for f in theirs for d in varying(f)}
        if any(shape[d] > 1 and d not in covered for d in varying(labels)):
            call.labels.freeze(labels, reason)


def _widest(fields: Sequence[Tensor]) -> list[Tensor]:
    """Drop fields whose dimensions another field covers."""
    kept: list[Tensor] = []
    for labels in sorted(fields, key=lambda f: -len(varying(f))):
        if not any(set(varying(labels)) <= set(varying(other)) for other in kept):
            kept.append(labels)
    return kept


def prelu(call: Call) -> Result:
    """One slope a channel (dimension 1), or one for all."""
    x, weight = call.given["self"], call.given["weight"]
    slopes = along(call, weight, 0) if prod(weight.shape) > 1 else None
    if slopes is not None:
        same(call, along(call, x, 1), slopes, f"{call.module or call.name} acts on channels that can't be cut")
    return call.result(x.fields or on(1, len(x.shape), slopes))


def gated_half(call: Call) -> Result:
    """glu: the first half of a dimension times the sigmoid of the second."""
    x = call.values()[0]
    dim = call.given.get("dim", -1) % len(x.shape)
    half = x.shape[dim] // 2
    parts = [
        moved(x, call.shape, [f.narrow(dim, start, half) if f.shape[dim] > 1 else f for f in x.fields])
        for start in (0, half)
    ]
    return pointwise_like(call, parts)


def affine(call: Call) -> Result:
    """addmm: self + mat1 @ mat2."""
    product = matmul(call)
    assert isinstance(product, Value)
    return pointwise_like(call, [call.given["self"], product])


def matmul(call: Call) -> Result:
    """a [..., M, K] @ b [..., K, N] (vectors, too); a parameter as b is a weight."""
    a, b = call.values()[-2:]
    if len(a.shape) < 2 or len(b.shape) < 2:
        for value in (a, b):
            call.freeze(value, f"{call.name} with a vector")
        return call.result(())
    rank = len(call.shape)
    reason = f"{call.name} reads channels that can't be cut"
    if b.tensor is not None and len(b.shape) == 2:
        contract(call, along(call, a, -1), b, 0, reason)
        _apply_linear(call, b, 0, 1, 0)
        return call.result((*a.without([len(a.shape) - 1]), *on(rank - 1, rank, along(call, b, 1))))
    left = _contracted(call, a, -1, rank)
    right = _contracted(call, b, -2, rank)
    same(call, _only(call, a, -1), _only(call, b, -2), reason)
    rows = [f for f in left if f.shape[-1] == 1]
    columns = [f for f in right if f.shape[-2] == 1]
    return call.result(_batched(call, rows, columns, reason))


def _only(call: Call, value: Value, dim: int) -> Tensor | None:
    """Labels along one dimension from the fields that vary along no other."""
    ids = [f.flatten() for f in value.fields if varying(f) == (dim % len(value.shape),)]
    return ids[0] if ids else None


def _contracted(call: Call, value: Value, dim: int, rank: int) -> list[Tensor]:
    """The fields left when a dimension is summed over: what spans it and others is tied along it (a head is a unit)."""
    left = []
    for labels in value.fields:
        dims = varying(labels)
        if dims == (dim % len(value.shape),):
            continue
        if labels.shape[dim] > 1:
            labels = call.labels.tie(labels, [dim % len(value.shape)], f"{call.name} sums over it")  # noqa: PLW2901
        left.append(labels[(None,) * (rank - labels.dim())])
    return left


def _batched(call: Call, rows: Sequence[Tensor], columns: Sequence[Tensor], reason: str) -> list[Tensor]:
    fields: list[Tensor] = []
    for labels in (*rows, *columns):
        for other in fields:
            if set(varying(labels)) & set(varying(other)):
                call.labels.merge(labels, other, reason)
        fields.append(labels)
    return _widest(fields)


def attention(call: Call) -> Result:
    """softmax(q k^T) v over q [..., H, L, D]: a head is a unit, and so is a channel of v."""
    query, key, value = call.given["query"], call.given["key"], call.given["value"]
    rank = len(call.shape)
    reason = f"{call.name} combines it with channels that can't be cut"
    heads = [*_contracted(call, query, -1, rank), *_contracted(call, key, -1, rank)]
    same(call, _only(call, query, -1), _only(call, key, -1), reason)
    mask = call.given.get("attn_mask")
    if isinstance(mask, Value):
        heads += [f[(None,) * (rank - f.dim())] for f in mask.fields]
    fields = [f for f in value.fields if f.shape[-2] == 1]
    return call.result(_batched(call, heads, fields, reason))


def over_positions(call: Call) -> Result:
    """Pooling and resizing: channels pass, positions mix."""
    x = next(iter(call.values()))
    spatial = [d for d in range(len(x.shape)) if x.shape[d] != call.shape[d]] if len(x.shape) == len(call.shape) else []
    last = {"1d": 1, "2d": 2, "3d": 3}.get(call.name[-2:], 0)
    dims = sorted({*spatial, *range(len(x.shape) - last, len(x.shape))})
    return call.result(keep_dims(call, x, dims, f"{call.name} mixes positions"))


def reduction(call: Call) -> Result:
    """mean, sum, max, ...: dimensions that vanish (or shrink to 1)."""
    x = call.values()[0]
    rank = len(x.shape)
    dims = call.given.get("dim")
    dims = list(range(rank)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    dims = [d % rank for d in dims] if rank else []
    fields = keep_dims(call, x, dims, f"{call.name} reduces over it")
    if len(call.shape) != rank:
        fields = tuple(f.reshape([s for d, s in enumerate(f.shape) if d not in dims]) for f in fields)
    return call.result(fields)


def along_dim(call: Call) -> Result:
    """softmax, cumsum, sort, ...: one dimension's coordinates see each other, the others pass."""
    x = call.values()[0]
    dim = call.given.get("dim", -1)
    fields = keep_dims(call, x, [-1 if dim is None else dim], f"{call.name} mixes its coordinates")
    return call.result(fields) if not call.several else tuple(Value(shape=s, fields=fields) for s in call.shapes)


def same_as_input(call: Call) -> Result:
    """dropout and the like: nothing changes."""
    return call.result(call.values()[0].fields)


# --- data movement: run the operator itself on the labels -----------------------------------------------------------


def move(call: Call) -> Result:
    """Any operator that only moves or copies elements of its first argument."""
    source = call.values()[0]
    outputs: list[list[Tensor]] = [[] for _ in call.shapes]
    for labels in source.fields:
        for fields, result in zip(outputs, _run(call, source, labels), strict=True):
            _take_field(call, labels, fields, result)
    made = tuple(moved(source, s, _widest(f)) for s, f in zip(call.shapes, outputs, strict=True))
    return made if call.several else made[0]


def _run(call: Call, source: Value, labels: Tensor) -> list[Tensor]:
    """The operator's results on a label field (in float64, exact up to 2^53, which every operator accepts)."""
    given = dict(call.given)
    if "value" in given and not isinstance(given["value"], Value):
        given["value"] = float(FILL)
    numbers = labels.expand(source.shape).to(torch.float64)
    arguments = {k: _concrete(numbers if v is source else v) for k, v in given.items()}
    schema = call.op._schema.arguments
    result = call.op(
        *[arguments[a.name] for a in schema if not a.kwarg_only and a.name in arguments],
        **{a.name: arguments[a.name] for a in schema if a.kwarg_only and a.name in arguments},
    )
    return [r.round().long() for r in (result if isinstance(result, list | tuple) else [result])]


def _concrete(given: Any) -> Any:
    if isinstance(given, Value):
        return given.data
    return [_concrete(g) for g in given] if isinstance(given, list | tuple) else given


def _take_field(call: Call, before: Tensor, fields: list[Tensor], result: Tensor) -> None:
    if not result.numel():
        return
    labels = compress(result)
    dims = varying(labels)
    if not dims:
        call.labels.freeze(labels, f"{call.name} picks a single channel")
        return
    if len(dims) > len(varying(before)):
        call.labels.rectangle(labels)
    for other in fields:
        if set(varying(other)) & set(dims):
            call.labels.merge(other, labels, f"{call.name} lays two axes over each other")
    fields.append(labels)


def index(call: Call) -> Result:
    """x[..., indices, ...] with indices known when tracing; with others, what they index stays."""
    source = call.given["self"]
    indices = call.given["index"] if call.name == "index_select" else call.given.get("indices")
    known = [i for i in (indices if isinstance(indices, list | tuple) else [indices]) if isinstance(i, Value)]
    if all(i.data is not None for i in known):
        return move(call)
    call.freeze(source, f"{call.name} with indices that depend on the input")
    return call.result(())


def cat(call: Call) -> Result:
    """Concatenation: fields that span the joined dimension are joined, the others go together."""
    parts: list[Value] = [p for p in call.given["tensors"] if prod(p.shape) or len(p.shape) != 1]
    rank = len(call.shape)
    dim = call.given.get("dim", 0) % rank
    reason = f"{call.name} joins it with a tensor that can't be cut"
    fields: list[Tensor] = []
    for dims in sorted({tuple(sorted({*varying(f), dim}) if dim in varying(f) else varying(f)) for p in parts for f in p.fields}):
        mine = [_spanning(call, p, dims, dim) for p in parts]
        if dim in dims:
            pieces = [_piece(p, m, dims, dim) for p, m in zip(parts, mine, strict=True)]
            fields.append(compress(torch.cat(pieces, dim)))
            continue
        first = next(m for m in mine if m is not None)
        for part, other in zip(parts, mine, strict=True):
            if other is not None:
                call.labels.merge(first, other, reason)
            elif any(part.shape[d] > 1 for d in dims):
                call.labels.freeze(first, reason)
        fields.append(first)
    return call.result(_widest(fields))


def _spanning(call: Call, part: Value, dims: Sequence[int], dim: int) -> Tensor | None:
    """The part's field that varies along (a subset of) these dimensions."""
    for labels in part.fields:
        own = set(varying(labels))
        if own == set(dims) or (dim in dims and own and own <= set(dims)):
            return labels
    return None


def _piece(part: Value, labels: Tensor | None, dims: Sequence[int], dim: int) -> Tensor:
    shape = [part.shape[d] if d in dims or d == dim else 1 for d in range(len(part.shape))]
    if labels is None:
        return torch.full(shape, KEPT)
    return labels.expand(shape)


def stack(call: Call) -> Result:
    """Like cat along a new dimension."""
    dim = call.given.get("dim", 0) % len(call.shape)
    parts = []
    for p in call.given["tensors"]:
        shape = (*p.shape[:dim], 1, *p.shape[dim:])
        parts.append(moved(p, shape, [f.unsqueeze(dim) for f in p.fields]))
    return pointwise_like(call, parts)


def pointwise_like(call: Call, parts: Sequence[Value]) -> Result:
    """Parts that lie over each other: combined as by an elementwise operator."""
    given = {str(i): p for i, p in enumerate(parts)}
    return pointwise(_with(call, given))


def _with(call: Call, given: dict[str, Any]) -> Call:
    return Call(
        labels=call.labels, applied=call.applied, op=call.op, name=call.name, module=call.module, given=given,
        shapes=call.shapes, several=call.several,
    )  # fmt: skip


def unknown(call: Call) -> Result:
    """No rule: whatever it reads stays."""
    for value in call.values():
        call.freeze(value, f"there is no rule for the operator {call.name}")
    outputs = tuple(Value(shape=s) for s in call.shapes)
    return outputs if call.several else outputs[0]


def _table(*rows: tuple[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in rows for name in names.split()}


RULES: Final[dict[str, Rule]] = _table(
    (convolution, "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d _convolution"),
    (linear, "linear"),
    (matmul, "matmul bmm mm"),
    (channel_norm, "batch_norm instance_norm cudnn_batch_norm native_batch_norm _native_batch_norm_legit_no_training"),
    (mixing_norm, "layer_norm group_norm rms_norm native_layer_norm native_group_norm"),
    (attention, "scaled_dot_product_attention"),
    (embedding, "embedding"),
    (prelu, "prelu _prelu_kernel"),
    (gated_half, "glu"),
    (affine, "addmm"),
    (pointwise, "hardswish fill copy floor_divide multiply divide subtract true_divide log_sigmoid zeros_like "
     "ones_like full_like empty_like rand_like randn_like bernoulli"),
    (over_positions, "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d "
     "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool2d "
     "upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d upsample_linear1d "
     "_upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler grid_sampler_2d"),
    (reduction, "mean sum amax amin prod var std norm linalg_vector_norm any all argmax argmin max_dim logsumexp"),
    (along_dim, "softmax _softmax log_softmax _log_softmax cumsum cumprod sort topk"),
    (same_as_input, "dropout feature_dropout alpha_dropout native_dropout"),
    (move, "view reshape _unsafe_view permute transpose t slice select split split_with_sizes chunk expand unsqueeze "
     "squeeze flatten unflatten clone contiguous alias detach pad constant_pad_nd roll flip pixel_shuffle "
     "pixel_unshuffle repeat unbind narrow movedim moveaxis swapaxes repeat_interleave channel_shuffle tile "
     "native_channel_shuffle lift_fresh_copy tensor_split view_as expand_as reflection_pad1d reflection_pad2d "
     "replication_pad1d replication_pad2d im2col unfold as_strided to _to_copy type_as hsplit vsplit dsplit "
     "detach_ lift_fresh positive numpy_T mT tril triu rot90 diagonal"),
    (index, "index index_select"),
    (cat, "cat concat concatenate"),
    (stack, "stack"),
)  # fmt: skip


def rule_for(op: Any, name: str) -> Rule:
    """The rule of an ATen operator: its own, else elementwise if torch tags it so, else ``unknown``."""
    if name in RULES:
        return RULES[name]
    return pointwise if torch.Tag.pointwise in op.tags else unknown
