"""How each ATen operator treats channel labels: one table.

The rules are in layers.py (weights), arithmetic.py, products.py and einsum.py (products), positions.py (pooling,
resizing), movement.py (views, concatenation) and indexing.py. An operator without a rule freezes what it reads, with
the reason in no_rule.py or its name.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from deploy_prune.surgery.labels import Value
from deploy_prune.surgery.rules.arithmetic import (
    affine,
    along_dim,
    attention,
    extreme,
    gated_half,
    inner_product,
    matmul,
    matrix_vector,
    pointwise,
    prelu,
    reduction,
    same_as_input,
)
from deploy_prune.surgery.rules.call import Call, Result, Rule
from deploy_prune.surgery.rules.einsum import einsum
from deploy_prune.surgery.rules.indexing import (
    assigned,
    embedding_bag,
    gather,
    index,
    index_put,
    one_hot,
    scatter,
)
from deploy_prune.surgery.rules.layers import (
    channel_norm,
    convolution,
    deformable,
    embedding,
    linear,
    mixing_norm,
    recurrent,
    weight_norm,
)
from deploy_prune.surgery.rules.movement import cast, cat, complex_parts, joined, like_another, move, pad, stack
from deploy_prune.surgery.rules.no_rule import why
from deploy_prune.surgery.rules.positions import along_dims, folded, of_boxes, over_positions, patches, unpooled
from deploy_prune.surgery.rules.products import (
    bilinear,
    chain,
    cross,
    distance,
    distances,
    inner,
    kron,
    product,
    tensordot,
)


def unknown(call: Call, reason: str = "") -> Result:
    """No rule: whatever it reads stays."""
    for value in call.values():
        call.freeze(value, reason or why(call.name))
    outputs = tuple(Value(shape=s) for s in call.shapes)
    return outputs if call.several else outputs[0]


def fresh(call: Call) -> Result:
    """A new tensor of given sizes: it takes nothing but the type from what it is made like."""
    return call.result(())


def _table(*rows: tuple[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in rows for name in names.split()}


RULES: Final[dict[str, Rule]] = _table(
    (convolution, "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d _convolution"),
    (deformable, "deform_conv2d"),
    (linear, "linear"),
    (matmul, "matmul bmm mm linalg_matmul"),
    (channel_norm, "batch_norm instance_norm cudnn_batch_norm native_batch_norm _native_batch_norm_legit "
     "_native_batch_norm_legit_no_training"),
    (mixing_norm, "layer_norm group_norm rms_norm"),
    (attention, "scaled_dot_product_attention"),
    (embedding, "embedding"),
    (embedding_bag, "embedding_bag _embedding_bag"),
    (weight_norm, "_weight_norm _weight_norm_interface"),
    (recurrent, "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
    (matrix_vector, "mv"),
    (inner_product, "dot vdot"),
    (fresh, "new_zeros new_ones new_full new_empty new_empty_strided"),
    (einsum, "einsum"),
    (product, "outer ger linalg_vecdot addbmm addmv addr"),
    (tensordot, "tensordot"),
    (inner, "inner"),
    (chain, "chain_matmul linalg_multi_dot"),
    (bilinear, "bilinear"),
    (kron, "kron"),
    (distances, "cdist _cdist_forward _euclidean_dist"),
    (distance, "cosine_similarity pairwise_distance"),
    (cross, "cross linalg_cross"),
    (prelu, "prelu _prelu_kernel"),
    (gated_half, "glu"),
    (affine, "addmm baddbmm"),
    (pointwise, "__and__ __or__ __xor__ __lshift__ __rshift__"),
    (pointwise, "hardswish zero fill copy floor_divide multiply divide subtract true_divide log_sigmoid zeros_like "
     "ones_like full_like empty_like rand_like randn_like randint_like bernoulli where masked_fill rsub negative "
     "absolute arccos arccosh arcsin arcsinh arctan arctan2 arctanh fix greater greater_equal less less_equal "
     "not_equal special_digamma special_erf special_erfc special_erfinv special_exp2 special_expit special_expm1 "
     "special_gammainc special_gammaincc special_gammaln special_i0 special_log1p special_logit special_multigammaln "
     "special_ndtr special_polygamma special_psi special_round special_sinc special_xlogy isclose isreal real imag "
     "conj resolve_conj resolve_neg complex polar clamp_min clamp_max nan_to_num rrelu_with_noise_functional "
     "log_sigmoid_forward fake_quantize_per_tensor_affine fake_quantize_per_tensor_affine_cachemask "
     "quantize_per_tensor dequantize"),
    (extreme, "max min"),
    (over_positions, "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
     "max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
     "adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
     "adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
     "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
     "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa grid_sampler "
     "grid_sampler_2d grid_sampler_3d"),
    (unpooled, "max_unpool2d max_unpool3d"),
    (of_boxes, "roi_align roi_pool"),
    (patches, "im2col"),
    (folded, "col2im"),
    (along_dims, "diff cumulative_trapezoid fft_fft fft_fft2 fft_fftn fft_ifft fft_ifft2 fft_ifftn "
     "fft_rfft fft_rfft2 fft_rfftn fft_irfft "
     "fft_irfft2 fft_irfftn fft_hfft fft_hfft2 fft_hfftn fft_ihfft fft_ihfft2 fft_ihfftn _fft_r2c _fft_c2r _fft_c2c"),
    (reduction, "mean sum amax amin prod var std var_mean std_mean norm linalg_vector_norm linalg_norm "
     "linalg_matrix_norm any all argmax argmin logsumexp special_logsumexp median nanmedian mode kthvalue nansum "
     "nanmean frobenius_norm trapezoid trapz count_nonzero aminmax quantile nanquantile"),
    (along_dim, "softmax _softmax special_softmax _safe_softmax log_softmax _log_softmax special_log_softmax cumsum "
     "cumprod cummax cummin logcumsumexp sort argsort topk"),
    (same_as_input, "dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout"),
    (move, "view reshape _unsafe_view permute transpose t slice select split split_with_sizes chunk expand unsqueeze "
     "squeeze flatten unflatten clone contiguous alias detach roll flip pixel_shuffle pixel_unshuffle repeat unbind "
     "narrow movedim moveaxis swapaxes repeat_interleave channel_shuffle tile native_channel_shuffle lift_fresh_copy "
     "lift_fresh tensor_split unfold as_strided hsplit vsplit dsplit positive numpy_T mT mH adjoint rot90 diagonal "
     "linalg_diagonal fliplr flipud swapdims ravel narrow_copy broadcast_to atleast_1d atleast_2d atleast_3d "
     "unsafe_chunk unsafe_split unsafe_split_with_sizes matrix_H fft_fftshift fft_ifftshift"),
    (cast, "to _to_copy type_as cpu cuda data chalf pin_memory lift tril triu"),
    (complex_parts, "view_as_real view_as_complex"),
    (like_another, "view_as expand_as reshape_as"),
    (pad, "pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
     "replication_pad2d replication_pad3d"),
    (index, "index index_select"),
    (gather, "gather take_along_dim"),
    (scatter, "scatter scatter_add scatter_reduce index_add index_copy index_fill index_reduce"),
    (index_put, "index_put"),
    (assigned, "slice_scatter select_scatter"),
    (one_hot, "one_hot"),
    (cat, "cat concat concatenate"),
    (stack, "stack"),
    (joined, "hstack vstack row_stack dstack column_stack"),
)  # fmt: skip


def rule_for(op: Any, name: str) -> Rule:
    """The rule of an ATen operator: its own, else elementwise if torch tags it so, else ``unknown``.

    (view_copy and its like are views whose result is copied.)
    """
    for known in (name, name.removesuffix("_copy")):
        if known in RULES:
            return RULES[known]
    return pointwise if torch.Tag.pointwise in op.tags else unknown
