"""How each ATen operator treats channel labels: one table.

The rules are in weights.py (layers), plain.py (arithmetic) and movement.py (views, concatenation, indexing). An
operator without a rule freezes what it reads, with its name as the reason.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from deploy_prune.surgery.labels import Value
from deploy_prune.surgery.rules.arithmetic import (
    affine,
    along_dim,
    attention,
    gated_half,
    inner_product,
    matmul,
    matrix_vector,
    over_positions,
    patches,
    pointwise,
    prelu,
    reduction,
    same_as_input,
)
from deploy_prune.surgery.rules.call import Call, Result, Rule
from deploy_prune.surgery.rules.einsum import einsum
from deploy_prune.surgery.rules.layers import (
    channel_norm,
    convolution,
    embedding,
    linear,
    mixing_norm,
    recurrent,
    weight_norm,
)
from deploy_prune.surgery.rules.movement import cat, gather, index, like_another, move, pad, stack


def unknown(call: Call, reason: str = "") -> Result:
    """No rule: whatever it reads stays."""
    for value in call.values():
        call.freeze(value, reason or f"there is no rule for the operator {call.name}")
    outputs = tuple(Value(shape=s) for s in call.shapes)
    return outputs if call.several else outputs[0]


def fresh(call: Call) -> Result:
    """A new tensor of given sizes: it takes nothing but the type from what it is made like."""
    return call.result(())


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
    (weight_norm, "_weight_norm _weight_norm_interface"),
    (recurrent, "lstm gru rnn_tanh rnn_relu"),
    (matrix_vector, "mv"),
    (inner_product, "dot vdot"),
    (fresh, "new_zeros new_ones new_full new_empty"),
    (einsum, "einsum"),
    (prelu, "prelu _prelu_kernel"),
    (gated_half, "glu"),
    (affine, "addmm"),
    (pointwise, "hardswish zero fill copy floor_divide multiply divide subtract true_divide log_sigmoid zeros_like "
     "ones_like full_like empty_like rand_like randn_like bernoulli"),
    (over_positions, "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d "
     "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool2d "
     "upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d upsample_linear1d "
     "_upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler grid_sampler_2d"),
    (patches, "im2col"),
    (reduction, "mean sum amax amin prod var std var_mean std_mean norm linalg_vector_norm any all argmax "
     "argmin max_dim logsumexp"),
    (along_dim, "softmax _softmax log_softmax _log_softmax cumsum cumprod sort topk"),
    (same_as_input, "dropout feature_dropout alpha_dropout native_dropout"),
    (move, "view reshape _unsafe_view permute transpose t slice select split split_with_sizes chunk expand unsqueeze "
     "squeeze flatten unflatten clone contiguous alias detach roll flip pixel_shuffle pixel_unshuffle repeat unbind "
     "narrow movedim moveaxis swapaxes repeat_interleave channel_shuffle tile native_channel_shuffle lift_fresh_copy "
     "lift_fresh tensor_split unfold as_strided to _to_copy type_as hsplit vsplit dsplit "
     "positive numpy_T mT tril triu rot90 diagonal"),
    (like_another, "view_as expand_as reshape_as"),
    (pad, "pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d"),
    (index, "index index_select"),
    (gather, "gather"),
    (cat, "cat concat concatenate"),
    (stack, "stack"),
)  # fmt: skip


def rule_for(op: Any, name: str) -> Rule:
    """The rule of an ATen operator: its own, else elementwise if torch tags it so, else ``unknown``."""
    if name in RULES:
        return RULES[name]
    return pointwise if torch.Tag.pointwise in op.tags else unknown
