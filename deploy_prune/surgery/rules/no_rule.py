"""Why an operator has no label rule: what it reads stays whole, with this reason."""

from __future__ import annotations

from typing import Final

REASONS: Final[dict[str, str]] = {
    "the size of its result depends on the numbers": (
        "nonzero nonzero_static nonzero_numpy masked_select argwhere unique_consecutive unique_dim "
        "unique_dim_consecutive _unique _unique2 nms"
    ),
    "it takes elements in order, whatever channel they are of": (
        "masked_scatter take put segment_reduce combinations cartesian_prod _pdist_forward pdist"
    ),
    "it sorts elements into classes, whatever channel they are of": (
        "bincount histc histogram histogramdd _histogramdd_from_bin_cts bucketize searchsorted isin"
    ),
    "every number of its result depends on all channels": (
        "linalg_cholesky linalg_cholesky_ex linalg_cond linalg_det linalg_eig linalg_eigh linalg_eigvals "
        "linalg_eigvalsh linalg_householder_product linalg_inv linalg_inv_ex linalg_ldl_factor linalg_ldl_factor_ex "
        "linalg_ldl_solve linalg_lstsq linalg_lu linalg_lu_factor linalg_lu_factor_ex linalg_lu_solve "
        "linalg_matrix_exp linalg_matrix_power linalg_matrix_rank linalg_pinv linalg_qr linalg_slogdet linalg_solve "
        "linalg_solve_ex linalg_solve_triangular linalg_svd linalg_svdvals linalg_tensorinv linalg_tensorsolve "
        "linalg_vander cholesky cholesky_inverse cholesky_solve det geqrf inverse logdet lu_solve lu_unpack matrix_exp "
        "matrix_power orgqr ormqr pinverse qr slogdet svd triangular_solve trace corrcoef cov nuclear_norm renorm dist "
        "native_norm norm_except_dim linalg__powsum hash_tensor stft istft msort gradient vander"
    ),
    "a norm's gates are turned on in layer_norm, group_norm and rms_norm alone": (
        "native_layer_norm native_group_norm _fused_rms_norm batch_norm_stats "
        "batch_norm_elemt batch_norm_gather_stats batch_norm_gather_stats_with_counts batch_norm_update_stats"
    ),
    "it draws other random numbers when there are fewer channels": (
        "fractional_max_pool2d fractional_max_pool3d multinomial poisson binomial normal "
        "normal_functional cauchy exponential geometric log_normal random uniform"
    ),
    "its zero points are integers, which have no channels": (
        "fake_quantize_per_channel_affine fake_quantize_per_channel_affine_cachemask quantize_per_channel "
        "choose_qparams_optimized int_repr q_per_channel_scales q_per_channel_zero_points"
    ),
    "it is a loss": (
        "binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy_loss ctc_loss "
        "hinge_embedding_loss huber_loss kl_div l1_loss margin_ranking_loss mse_loss multi_margin_loss "
        "multilabel_margin_loss nll_loss nll_loss2d nll_loss_nd poisson_nll_loss smooth_l1_loss soft_margin_loss "
        "triplet_margin_loss nll_loss_forward nll_loss2d_forward multilabel_margin_loss_forward"
    ),
    "it changes memory, whatever is in it": (
        "resize resize_as set as_strided_scatter diagonal_scatter slice_inverse embedding_renorm grad"
    ),
    "it makes positions, no channels": "affine_grid_generator meshgrid linspace logspace as_tensor",
    "it lays one dimension along two": "diag diag_embed diagflat block_diag",
    "which dimensions it changes follows from sizes": (
        "sum_to_size broadcast_tensors pad_sequence flatten_dense_tensors unflatten_dense_tensors"
    ),
    "it is a convolution in a layout of its own": (
        "conv_tbc conv_depthwise3d convolution_overrideable slow_conv3d slow_conv3d_forward slow_conv_dilated2d "
        "slow_conv_dilated3d slow_conv_transpose2d slow_conv_transpose3d thnn_conv2d"
    ),
}
"""Reason -> the operators."""


ELSEWHERE: Final = (
    "cudnn_ miopen_ mkldnn_ fbgemm_ quantized_ quantize_per_tensor_dynamic empty_quantized to_mkldnn sparse_ sspaddmm "
    "smm hspmm to_sparse to_dense copy_sparse resize_as_sparse coalesce indices values crow_ ccol_ col_ row_indices "
    "nested_ to_padded_tensor glu_jvp"
)
"""How the names of operators begin that a traced network has none of: of one vendor's library, or on other layouts."""


def why(name: str) -> str:
    """The reason that an operator without a rule leaves whole what it reads."""
    for reason, names in REASONS.items():
        if name in names.split():
            return f"{name} has no rule: {reason}"
    if name.startswith(tuple(ELSEWHERE.split())):
        return f"{name} has no rule: it is of one library, or of tensors that aren't dense"
    return f"there is no rule for the operator {name}"
